"""A containerd as the keeper's events see it: it does what a test says, step by step."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import socket
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.native.frames import HEADER, REQUEST, RESPONSE, Frame
from tests.native.harness import PATIENCE


def frame(stream: int, body: bytes, kind: int = RESPONSE) -> bytes:
    return Frame(stream, body, kind).pack()


def field(number: int, body: bytes) -> bytes:
    """A protobuf field of bytes."""
    return bytes([number << 3 | 2]) + varint(len(body)) + body


def varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def status(code: int, message: bytes = b"") -> bytes:
    """A ttrpc Response with that status, as Go writes it: the code comes first."""
    return field(1, b"\x08" + varint(code) + field(2, message))


@dataclass
class Event:
    """What came on a connection."""

    stream: int
    body: bytes


class Connection:
    """One that the keeper has made."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE)

    def close(self) -> None:
        self.socket.close()

    def receive(self) -> Event:
        """The next request."""
        size, stream, kind, flags = HEADER.unpack(self._read(HEADER.size))
        assert (kind, flags) == (REQUEST, 0)
        return Event(stream, self._read(size))

    def answer(self, event: Event, body: bytes = b"") -> None:
        self.socket.sendall(frame(event.stream, body))

    def serve(self, count: int) -> list[bytes]:
        """Answer that many events well; what they were."""
        found = []
        for _ in range(count):
            event = self.receive()
            self.answer(event)
            found.append(event.body)
        return found

    def is_silent(self) -> bool:
        """Whether nothing has come that was not received."""
        return not select.select([self.socket], [], [], 0)[0]

    def was_heard(self) -> bool:
        """Whether the keeper has read all that was sent: tcp(7), SIOCOUTQ, of unix sockets, too."""
        queued = array.array("i", [0])
        fcntl.ioctl(self.socket, termios.TIOCOUTQ, queued)
        return queued[0] == 0

    def ends(self) -> bool:
        """Wait until the keeper hangs up, and see that it sends nothing before."""
        with contextlib.suppress(ConnectionResetError):
            return self.socket.recv(1) == b""
        return True

    def _read(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            piece = self.socket.recv(size - len(found))
            assert piece, f"the connection has ended after {len(found)} bytes of {size}"
            found += piece
        return bytes(found)


class Server:
    """A listening socket at `path`; callers wait until the test accepts them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections: list[Connection] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(os.fspath(path))
        self._socket.listen(8)
        self._socket.settimeout(PATIENCE)

    def accept(self) -> Connection:
        sock, _ = self._socket.accept()
        self._connections.append(Connection(sock))
        return self._connections[-1]

    def close(self) -> None:
        """Go, with all connections; the file goes, too."""
        for connection in self._connections:
            connection.close()
        self._socket.close()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def server(path: Path) -> Iterator[Server]:
    made = Server(path)
    try:
        yield made
    finally:
        made.close()
