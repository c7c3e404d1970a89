"""A containerd that takes every event, and is called nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Self

from shim._pb import ttrpc_pb2
from shim._pb.containerd.services.events.ttrpc.v1.events_pb2 import ForwardRequest
from tests.fakes.door import HEADER, frame

PATIENCE = 20.0


class Containerd:
    """Listens on `ttrpc`; a context manager. `topics` are the events' in the order they came."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "c.sock")
        self.ttrpc = folder / "c.sock.ttrpc"
        self.topics: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.ttrpc))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Every caller must be gone, or about to go."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # EINVAL: it has been shut down
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        reset = contextlib.suppress(ConnectionResetError)
        with connection, connection.makefile("rb") as stream, reset:
            while header := stream.read(HEADER.size):
                length, number, _, _ = HEADER.unpack(header)
                request = ttrpc_pb2.Request.FromString(stream.read(length))
                self.topics.append(ForwardRequest.FromString(request.payload).envelope.topic)
                connection.sendall(frame(b"", number))
