"""A host's door: a thread that takes a launcher's calls and gives what the test wants answered.

It speaks ttrpc by hand, so that it can be as wrong as a test needs. A launcher finds it in a mount
namespace of its own (`Place`), where no real host is met.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shim._pb import ttrpc_pb2 as ttrpc
from shim._pb.denseshim.host.v1 import host_pb2 as host

PATIENCE = 20.0
HEADER = struct.Struct(">IIBB")  # length, stream, type, flags
REQUEST, RESPONSE = 1, 2
Argument = str | bytes | Path


class Place:
    """A mount namespace with an empty /run, held by a shell until `close`."""

    PRIVATE: tuple[str, ...] = ("/run",)

    def __init__(self) -> None:
        mounts = "".join(f"mount -t tmpfs tmpfs {path} && " for path in self.PRIVATE)
        script = f"{mounts}echo && read end"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        pipe = subprocess.PIPE
        self._holder = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"\n", "no mount namespace: are you root?"
        self._proc = Path(f"/proc/{self._holder.pid}")
        self.run_folder = self._proc / "root/run"

    def close(self) -> None:
        self._holder.communicate()

    @property
    def state(self) -> Path:
        """The directory of this namespace's host, as this process reaches it."""
        kinds = (self._proc / "ns" / kind for kind in ("mnt", "pid", "user"))
        key = "-".join(str(kind.stat().st_ino) for kind in kinds)
        return self.run_folder / "denseshim" / f"host-{key}"

    def make_state(self) -> Path:
        """The state directory, as a host makes it."""
        for folder in (self.state.parent, self.state):
            folder.mkdir(mode=0o700, exist_ok=True)
        return self.state

    def command(
        self, argv: Sequence[Argument], cwd: Path = Path("/"), before: str = "", streams: str = ""
    ) -> list[Argument]:
        """What executes `argv` there, after the shell commands `before`.

        `streams` are the shell's redirections. The pid stays the same.
        """
        script = f'cd "$0" && {{ {before or ":"}; }} && exec "$@" {streams}'
        return ["nsenter", f"--mount={self._proc}/ns/mnt", "sh", "-c", script, cwd, *argv]


@dataclass(frozen=True)
class Call:
    """What a launcher has sent. The test closes the descriptors."""

    stream: int
    kind: int
    service: str
    method: str
    launch: host.LaunchRequest
    descriptors: tuple[int, ...]


class Door:
    """Serves as the host of a place: calls come out of `calls`, answers go into `answers`.

    One answer a connection: raw bytes, after which it is closed. HANG_UP: it is closed when the
    call has begun to come, without reading it.
    """

    HANG_UP = b"hang up"

    def __init__(self, place: Place) -> None:
        self.path = place.make_state() / "door"
        self.calls: queue.Queue[Call] = queue.Queue()
        self.answers: queue.Queue[bytes] = queue.Queue()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.answers.put(b"")
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._listener.close()
        self.path.unlink()

    def call(self) -> Call:
        """The next call."""
        return self.calls.get(timeout=PATIENCE)

    def _serve(self) -> None:
        for connection in self._connections():
            with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._serve_one(connection)

    def _connections(self) -> Iterator[socket.socket]:
        with contextlib.suppress(OSError):  # EINVAL: it has been shut down
            while True:
                yield self._listener.accept()[0]

    def _serve_one(self, connection: socket.socket) -> None:
        if not self.answers.empty() and self.answers.queue[0] == self.HANG_UP:
            self.answers.get()
            connection.recv(1, socket.MSG_PEEK)
            return
        if call := _read_call(connection):
            self.calls.put(call)
            connection.sendall(self.answers.get(timeout=PATIENCE))


def _read_call(connection: socket.socket) -> Call | None:
    """None: the launcher has hung up without one."""
    first, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 4)
    if not first:
        return None
    stream = bytearray(first)
    while len(stream) < HEADER.size or len(stream) < HEADER.size + HEADER.unpack_from(stream)[0]:
        piece = connection.recv(1 << 16)
        assert piece, "the launcher has hung up in the middle of its call"
        stream += piece
    length, number, kind, _ = HEADER.unpack_from(stream)
    assert len(stream) == HEADER.size + length
    request = ttrpc.Request.FromString(bytes(stream[HEADER.size :]))
    launch = host.LaunchRequest.FromString(request.payload)
    return Call(number, kind, request.service, request.method, launch, tuple(descriptors))


def frame(body: bytes, stream: int = 1, kind: int = RESPONSE, length: int | None = None) -> bytes:
    """A frame of ttrpc; `length`: what it says instead of the truth."""
    return HEADER.pack(len(body) if length is None else length, stream, kind, 0) + body


def answer(status: int = 0, stdout: bytes = b"", stderr: bytes = b"", apart: bool = False) -> bytes:
    """What a host answers to Launch."""
    launch = host.LaunchResponse(status=status, stdout=stdout, stderr=stderr, apart=apart)
    return frame(ttrpc.Response(payload=launch.SerializeToString()).SerializeToString())


def refusal(code: int, message: str) -> bytes:
    """What a host, or its keeper, answers to a call that failed."""
    status = ttrpc.Status(code=code, message=message)
    return frame(ttrpc.Response(status=status).SerializeToString())
