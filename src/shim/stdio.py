"""The ends of a process's stdio that the front makes: pipes, and the client's FIFOs and files.

A FIFO is opened twice: for the relay, and as a hold on its other side, so that the client may
come and go (contract: Stdio). Opening may block on a hung file system: use a BlockingPool.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import stat
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, NamedTuple, NoReturn, Self
from urllib.parse import parse_qsl, unquote

from shim.errors import InvalidArgument, ResourceExhausted

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class OutputPipe(NamedTuple):
    """A pipe to write a stream to: `sink` for writing, `hold` for reading; `sink` never blocks."""

    sink: int
    hold: int


class FoundFifo(NamedTuple):
    """A client's FIFO, not opened yet: an O_PATH descriptor (open(2))."""

    path: int


class OutputFile(NamedTuple):
    """A regular file to append a stream to; `sink` is non-blocking, as the relay asks for."""

    sink: int


class LogDirectory(NamedTuple):
    """The directory of a log, O_PATH; the keeper opens the files in it."""

    directory: int


class Pipe(NamedTuple):
    """A pipe to or from a child: the shim's end is non-blocking, the child's blocks."""

    ours: int
    theirs: int


class Link(NamedTuple):
    """A pipe from one child to another; both ends block."""

    reading: int
    writing: int


class Scheme(enum.Enum):
    """What an output's string names (contract: runtime-v2, Choice by the stdout string).

    LOG is our own.
    """

    PATH = ""
    FIFO = "fifo"
    FILE = "file"
    BINARY = "binary"
    BINARY_V2 = "binary-v2"
    LOG = "log"


class Place(NamedTuple):
    """Where an output goes: an absolute path, and what a program there is called with."""

    scheme: Scheme
    path: str
    arguments: tuple[str, ...] = ()


class LogFiles(NamedTuple):
    """A log that the keeper writes (architecture: Logs): at most `files` of `limit` bytes each."""

    directory: str
    name: str  # of the newest; the others are name.1 and so on
    limit: int
    files: int


LOG_LIMITS: Final = (32 << 10, 1 << 40)
LOG_FILES: Final = (1, 100)
_LOG_DEFAULTS: Final = {"max_size": str(16 << 20), "max_files": "5"}
_LOG_NAME: Final = 200  # bytes

_URI = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):(//(?P<host>[^/?#]*))?"
    r"(?P<path>[^?#]*)(\?(?P<query>[^#]*))?(#.*)?",
    re.DOTALL,
)


def parse_place(text: str) -> Place:
    """Take a path as it is, and a URI apart.

    Of each key in the query the first value counts; key and value become arguments, an empty
    value, too. Raises InvalidArgument for an unknown scheme and what is no absolute path.
    """
    uri = _URI.fullmatch(text)
    if uri is None:
        return Place(Scheme.PATH, text)
    path = unquote(uri["path"], errors="surrogateescape")
    if uri["host"] or not path.startswith("/"):
        raise InvalidArgument(
            f"the stdio URI {text!r} needs an absolute path: {uri['scheme']}:///path"
        )
    values: dict[str, str] = {}
    pairs = parse_qsl(uri["query"] or "", keep_blank_values=True, errors="surrogateescape")
    for key, value in pairs:
        values.setdefault(key, value)
    arguments = tuple(part for pair in values.items() for part in pair)
    if any("\0" in part for part in (path, *arguments)):
        raise InvalidArgument(f"the stdio URI {text!r} holds NUL")
    return Place(_scheme(uri["scheme"]), path, arguments)


def parse_log(place: Place) -> LogFiles:
    """Take apart log:///DIRECTORY/NAME?max_size=BYTES&max_files=N, the query being optional.

    Raises InvalidArgument for what is out of bounds or not known, and a path with . or .. in it.
    """
    given = dict(zip(place.arguments[::2], place.arguments[1::2], strict=True))
    if unknown := given.keys() - _LOG_DEFAULTS.keys():
        known = " and ".join(_LOG_DEFAULTS)
        raise InvalidArgument(f"log:// does not know {', '.join(sorted(unknown))}; it has {known}")
    directory, _, name = place.path.rpartition("/")
    if not name or len(os.fsencode(name)) > _LOG_NAME:
        raise InvalidArgument(f"the log {place.path!r} needs a name, of {_LOG_NAME} bytes at most")
    if any(part in (".", "..") for part in place.path.split("/")) or name.startswith(".."):
        raise InvalidArgument(f"the log {place.path!r} must be named without . and ..")
    values = _LOG_DEFAULTS | given
    return LogFiles(
        directory or "/",
        name,
        _bounded("max_size", values["max_size"], LOG_LIMITS),
        _bounded("max_files", values["max_files"], LOG_FILES),
    )


def _bounded(key: str, text: str, bounds: tuple[int, int]) -> int:
    least, most = bounds
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(most))
    if not (is_number and least <= int(text) <= most):
        raise InvalidArgument(f"{key} of a log is a number from {least} to {most}, not {text!r}")
    return int(text)


def _scheme(name: str) -> Scheme:
    try:
        return Scheme(name.lower())
    except ValueError as error:
        known = ", ".join(f"{scheme.value}://" for scheme in Scheme if scheme.value)
        raise InvalidArgument(
            f"stdio with the scheme {name}:// is not known; there are {known} and plain paths"
        ) from error


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


def find_fifo(path: str) -> FoundFifo:
    """Find a client's FIFO, without opening it; the caller owns it.

    Raises InvalidArgument for what is not the absolute path of a FIFO, ResourceExhausted when
    descriptors have run out.
    """
    return FoundFifo(_find(path, (stat.S_IFIFO,)))


def open_sink(path: str) -> FoundFifo | OutputFile:
    """Find the FIFO, or open the regular file, that is there for stdout or stderr; as above."""
    with Descriptors() as descriptors:
        found = descriptors.own(_find(path, (stat.S_IFIFO, stat.S_IFREG)))
        if stat.S_ISFIFO(os.fstat(found).st_mode):
            return FoundFifo(descriptors.take(found))
        try:
            return OutputFile(os.open(f"/proc/self/fd/{found}", _APPEND))
        except OSError as error:
            _refuse(f"open the stdio path {path!r}", error)


def open_file(path: str) -> OutputFile:
    """Open the regular file at `path` for stdout and stderr, and make it if need be.

    Missing directories are made as well. Raises as above.
    """
    _check_path(path)
    with Descriptors() as descriptors:
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            flags = _APPEND | os.O_CREAT | os.O_NOCTTY
            sink = descriptors.own(os.open(path, flags, 0o644))
            _check_type(sink, path, (stat.S_IFREG,))
        except OSError as error:
            _refuse(f"open the stdio file {path!r}", error)
        return OutputFile(descriptors.take(sink))


def open_log(path: str) -> LogDirectory:
    """Open the directory of the log at `path`, and make it if need be, 0700.

    No symbolic link is followed, wherever in the path. Raises as above.
    """
    _check_path(path)
    with Descriptors() as descriptors:
        try:
            found = descriptors.own(os.open("/", _DIRECTORY))
            for name in filter(None, os.path.dirname(path).split("/")):
                found = descriptors.own(_enter(found, name))
        except OSError as error:
            _refuse(f"open the directory of the log {path!r}", error)
        return LogDirectory(descriptors.take(found))


def _enter(directory: int, name: str) -> int:
    """Open a directory in another one, after making it where there is none."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.mkdir(name, 0o700, dir_fd=directory)
        return os.open(name, _DIRECTORY, dir_fd=directory)


def pipe_for_output(owner: tuple[int, int] | None = None) -> Pipe:
    """Make a pipe that a child writes to, of this user and group if given.

    Raises ResourceExhausted; InvalidArgument for an owner that the kernel does not take.
    """
    reading, writing = pipe_between_children(owner)
    os.set_blocking(reading, False)
    return Pipe(ours=reading, theirs=writing)


def pipe_for_input(owner: tuple[int, int] | None = None) -> Pipe:
    """Make a pipe that a child reads from. As above."""
    reading, writing = pipe_between_children(owner)
    os.set_blocking(writing, False)
    return Pipe(ours=writing, theirs=reading)


def pipe_between_children(owner: tuple[int, int] | None = None) -> Link:
    """Make a pipe of which the shim keeps no end. As above."""
    with Descriptors() as descriptors:
        try:
            ends = [descriptors.own(end) for end in os.pipe2(os.O_CLOEXEC)]
            if owner is not None:
                os.fchown(ends[0], *owner)  # it is one inode
        except OSError as error:
            _refuse("make a pipe", error)
        return Link(*(descriptors.take(end) for end in ends))


_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES = {stat.S_IFIFO: "a FIFO", stat.S_IFREG: "a regular file"}


def _find(path: str, types: Collection[int]) -> int:
    """An O_PATH descriptor of what is at `path`. A symbolic link is not followed."""
    _check_path(path)
    with Descriptors() as descriptors:
        try:
            # O_PATH has no effect on what it opens: a device or a busy FIFO stays untouched.
            found = descriptors.own(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            _check_type(found, path, types)
        except OSError as error:
            _refuse(f"open the stdio path {path!r}", error)
        return descriptors.take(found)


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"the stdio path {path!r} is not an absolute path")


def _check_type(descriptor: int, path: str, allowed: Collection[int]) -> None:
    """Raises InvalidArgument unless its type of file, as stat.S_IFMT gives it, is allowed."""
    if stat.S_IFMT(os.fstat(descriptor).st_mode) not in allowed:
        wanted = " or ".join(_TYPES[type] for type in allowed)
        raise InvalidArgument(f"the stdio path {path!r} is not {wanted}")


def _refuse(what: str, error: OSError) -> NoReturn:
    text = f"cannot {what}: {error.strerror}"
    if error.errno in _EXHAUSTED:
        raise ResourceExhausted(text) from error
    raise InvalidArgument(text) from error
