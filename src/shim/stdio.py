"""The ends of a process's stdio that the front makes: pipes, and the client's FIFOs.

A FIFO is opened twice: for the relay, and as a hold on its other side, so that the client may
come and go (contract: Stdio). Opening may block on a hung file system: use a BlockingPool.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

from shim.errors import InvalidArgument, ResourceExhausted

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class OutputFifo(NamedTuple):
    """A FIFO to write a stream to: `sink` for writing, `hold` for reading; both non-blocking."""

    sink: int
    hold: int


class InputFifo(NamedTuple):
    """A FIFO to read a stream from: `source` for reading, `hold` for writing; non-blocking."""

    source: int
    hold: int


class Pipe(NamedTuple):
    """A pipe to or from a child: the shim's end is non-blocking, the child's blocks."""

    ours: int
    theirs: int


class Descriptors:
    """Owns descriptors until they are taken; as a context manager, closes those that remain."""

    def __init__(self) -> None:
        self._owned: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def own(self, descriptor: int) -> int:
        """Take `descriptor` and return it for use as a borrowed one."""
        self._owned.add(descriptor)
        return descriptor

    def take(self, descriptor: int) -> int:
        """Give `descriptor` to the caller. Raises KeyError if it is not owned here."""
        self._owned.remove(descriptor)
        return descriptor

    def close(self) -> None:
        """Close all that is still owned, even if closing one of them fails (OSError)."""
        owned, self._owned = self._owned, set()
        close_all(owned)


def close_all(descriptors: Iterable[int]) -> None:
    """Take `descriptors` and close each, even if closing one of them fails (OSError)."""
    with ExitStack() as stack:
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)


def open_output(path: str) -> OutputFifo:
    """Open the client's FIFO for stdout or stderr; the caller owns both descriptors.

    Raises InvalidArgument for what is not the absolute path of a FIFO, ResourceExhausted when
    descriptors have run out.
    """
    # The hold first: a non-blocking open for writing fails while there is no reader (fifo(7)).
    hold, sink = _open_fifo(path, os.O_RDONLY, os.O_WRONLY)
    return OutputFifo(sink, hold)


def open_input(path: str) -> InputFifo:
    """Open the client's FIFO for stdin; the caller owns both descriptors. Raises as above."""
    source, hold = _open_fifo(path, os.O_RDONLY, os.O_WRONLY)
    return InputFifo(source, hold)


def pipe_for_output() -> Pipe:
    """Make a pipe that a child writes to. Raises ResourceExhausted."""
    reading, writing = _pipe()
    os.set_blocking(reading, False)
    return Pipe(ours=reading, theirs=writing)


def pipe_for_input() -> Pipe:
    """Make a pipe that a child reads from. Raises ResourceExhausted."""
    reading, writing = _pipe()
    os.set_blocking(writing, False)
    return Pipe(ours=writing, theirs=reading)


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        _refuse("make a pipe", error)


def _open_fifo(path: str, *modes: int) -> list[int]:
    """Open the FIFO at `path` once for each of `modes`, without following a symbolic link."""
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"the stdio path {path!r} is not an absolute path")
    with Descriptors() as descriptors:
        try:
            # O_PATH has no effect on what it opens: a device or a busy FIFO stays untouched.
            found = descriptors.own(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            _check_fifo(found, path)
            opened = [descriptors.own(_reopen(found, mode)) for mode in modes]
        except OSError as error:
            _refuse(f"open the stdio FIFO {path!r}", error)
        return [descriptors.take(descriptor) for descriptor in opened]


def _check_fifo(descriptor: int, path: str) -> None:
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        raise InvalidArgument(f"the stdio path {path!r} is not a FIFO; make one with mkfifo")


def _reopen(descriptor: int, mode: int) -> int:
    return os.open(f"/proc/self/fd/{descriptor}", mode | os.O_NONBLOCK | os.O_CLOEXEC)


def _refuse(what: str, error: OSError) -> NoReturn:
    text = f"cannot {what}: {error.strerror}"
    if error.errno in _EXHAUSTED:
        raise ResourceExhausted(text) from error
    raise InvalidArgument(text) from error
