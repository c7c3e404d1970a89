"""The socket through which a runtime hands over the master end of a terminal.

OCI runtimes connect to `--console-socket` and send one pty master by SCM_RIGHTS (runc's
docs/terminals.md, "Detached new terminal").
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from shim.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, RuntimeFailed
from shim.stdio import Descriptors
from shim.syscalls import pty_number

_PATH_LIMIT = 108  # sizeof sun_path, of which the NUL takes one byte: unix(7)
_NAME_LIMIT = 4096  # the message's text is the pty's name, which nobody needs
_SPARE = 16  # room for descriptors that must not be there, so that they can be closed

T = TypeVar("T")


class ConsoleSocket:
    """A listening unix socket at `path`, from entering the context to leaving it.

    The path must be new, shorter than 108 bytes and in a directory that only root can enter.
    Entering raises InvalidArgument for a path that is too long and FailedPrecondition if the
    socket cannot be made there. Leaving removes the path.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener: socket.socket

    async def __aenter__(self) -> Self:
        if len(os.fsencode(self._path)) >= _PATH_LIMIT:
            raise InvalidArgument(
                f"the console socket's path {self._path} has {_PATH_LIMIT} bytes or more"
            )
        self._listener = _listen(self._path)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        self._path.unlink(missing_ok=True)

    async def receive(self) -> int:
        """Wait for the runtime's connection and its pty master; the caller owns the descriptor.

        It is close-on-exec and non-blocking. There is no time limit: the caller stops waiting
        when the runtime has ended. Raises RuntimeFailed for a message that is not exactly one
        pty master, ResourceExhausted when descriptors have run out.
        """
        with await _retry(self._listener, self._accept) as connection:
            connection.setblocking(False)
            return await _retry(connection, lambda: _take_master(connection))

    def _accept(self) -> socket.socket:
        try:
            return self._listener.accept()[0]
        except BlockingIOError:
            raise
        except OSError as error:
            raise ResourceExhausted(
                f"cannot accept the runtime's connection on {self._path}: {error.strerror}"
            ) from error


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Before bind: the file is then never open to others, and the umask stays alone.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise FailedPrecondition(
            f"cannot make the console socket {path}: {error.strerror}"
        ) from error
    return listener


async def _retry(sock: socket.socket, call: Callable[[], T]) -> T:
    """Return what `call` returns once it no longer raises BlockingIOError.

    The call is made by the awaiting task itself, so that a cancellation cannot come between
    taking a descriptor from the kernel and owning it.
    """
    while True:
        try:
            return call()
        except BlockingIOError:
            await _readable(sock)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def _take_master(connection: socket.socket) -> int:
    space = socket.CMSG_SPACE(_SPARE * array.array("i").itemsize)
    name, control, flags, _ = connection.recvmsg(_NAME_LIMIT, space, socket.MSG_CMSG_CLOEXEC)
    with Descriptors() as received:
        passed = [received.own(descriptor) for descriptor in _passed(control)]
        if flags & socket.MSG_CTRUNC:
            raise RuntimeFailed("the runtime's console message was cut off: out of descriptors?")
        if not name and not passed:
            raise RuntimeFailed("the runtime closed the console socket without a terminal")
        if len(passed) != 1:
            raise RuntimeFailed(f"the runtime sent {len(passed)} descriptors, not one terminal")
        _check_master(passed[0])
        os.set_blocking(passed[0], False)
        return received.take(passed[0])


def _passed(control: list[tuple[int, int, bytes]]) -> list[int]:
    descriptors = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return descriptors.tolist()


def _check_master(descriptor: int) -> None:
    try:
        pty_number(descriptor)
    except OSError as error:
        raise RuntimeFailed(
            f"the runtime sent a descriptor that is no terminal's master: {error.strerror}"
        ) from error
