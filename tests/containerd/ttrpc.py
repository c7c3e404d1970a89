"""One call after the other to a shim, past containerd: for what ctr cannot ask."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final, Self

from google.protobuf.message import Message

from shim._pb import ttrpc_pb2
from tests.containerd.support import PATIENCE

_SERVICE: Final = "containerd.task.v2.Task"
# Length, stream, type, flags (ttrpc's PROTOCOL.md).
_HEADER: Final = struct.Struct(">IIBB")
_REQUEST: Final = 1


def frame(service: str, method: str, payload: bytes = b"", stream: int = 1) -> bytes:
    """A request as it is on the wire."""
    body = ttrpc_pb2.Request(service=service, method=method, payload=payload).SerializeToString()
    return _HEADER.pack(len(body), stream, _REQUEST, 0) + body


class ShimCaller:
    """A connection to a shim's socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._stream = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, method: str, request: Message) -> None:
        """Send a request, and do not wait."""
        self._stream += 2
        payload = request.SerializeToString()
        self._socket.sendall(frame(_SERVICE, method, payload, self._stream))

    def answer(self) -> ttrpc_pb2.Response:
        """The next answer."""
        length, *_ = _HEADER.unpack(self._receive(_HEADER.size))
        return ttrpc_pb2.Response.FromString(self._receive(length))

    def _receive(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self._socket.recv(size - len(found))
            assert more, "the shim has hung up"
            found += more
        return found
