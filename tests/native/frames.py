"""A client that speaks ttrpc to the keeper, frame by frame, and a keeper with sockets for it."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shim.keeper.records import Kind
from tests.native.harness import PATIENCE, Front, Keeper, wait_until

HEADER = struct.Struct(">IIBB")
MOST = 4 << 20

REQUEST, RESPONSE, DATA = 1, 2, 3
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE = 3, 8, 14

# Listeners of a Host.
GROUP, DOOR = 2, 3


@dataclass(frozen=True)
class Frame:
    stream: int
    body: bytes
    type: int = RESPONSE
    flags: int = 0

    def pack(self) -> bytes:
        return HEADER.pack(len(self.body), self.stream, self.type, self.flags) + self.body


def begin(front: Front, id: int, target: int) -> None:
    """Have request `id` begin: as by a signal to process `target`, but by one that is none."""
    assert front.ask(Kind.SIGNAL, id=target, number=0, owner=id).error == 0


def request(stream: int, body: bytes = b"body", flags: int = 0) -> bytes:
    """A request's frame."""
    return Frame(stream, body, REQUEST, flags).pack()


def status_of(frame: Frame) -> tuple[int, str]:
    """Code and message of a Response that has nothing but a status, decoded by hand."""
    body = frame.body
    assert frame.type == RESPONSE
    assert (body[0], body[1], body[2], body[4]) == (0x0A, len(body) - 2, 0x08, 0x12)
    assert body[5] == len(body) - 6
    return body[3], body[6:].decode()


class Caller:
    """A client's connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(os.fspath(path))  # waits while the queue is full
        except OSError:
            self.socket.close()
            raise
        self.socket.settimeout(PATIENCE)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        self.socket.sendall(b"".join(pieces))

    def pass_on(self, data: bytes, descriptors: Iterable[int]) -> None:
        """Send bytes with descriptors."""
        sent = socket.send_fds(self.socket, [data], list(descriptors))
        self.send(data[sent:])

    def receive(self) -> Frame:
        length, stream, type, flags = HEADER.unpack(self._exactly(HEADER.size))
        return Frame(stream, self._exactly(length), type, flags)

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            piece = self.socket.recv(size - len(found))
            if not piece:
                raise ConnectionResetError("the keeper has hung up")
            found += piece
        return bytes(found)

    def unread(self) -> int:
        """Bytes that the keeper has not read."""
        queued = array.array("i", [0])
        fcntl.ioctl(self.socket, termios.TIOCOUTQ, queued)
        return queued[0]

    def was_read(self) -> None:
        """Wait until the keeper has read everything."""
        wait_until(lambda: self.unread() == 0, "the keeper to read")


class Host:
    """A keeper with two listening sockets, a group's and a door; the test is front and client."""

    def __init__(self, keeper: Keeper, folder: Path) -> None:
        self.keeper = keeper
        self.folder = folder

    @property
    def front(self) -> Front:
        return self.keeper.front

    def call(self, door: bool = False) -> Caller:
        return Caller(self.folder / ("door" if door else "group"))

    def ready(self) -> Front:
        """The present front serves."""
        assert self.front.ask(Kind.READY).error == 0
        return self.front

    def settle(self) -> None:
        """Let the keeper go through its loop: what it was to tell the front has come then."""
        for _ in range(2):
            assert self.front.ask(Kind.PONG).error == 0


def listening(path: Path) -> socket.socket:
    """A socket that listens at `path`."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(os.fspath(path))
    made.listen(64)
    return made
