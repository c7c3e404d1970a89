"""The files of a log, which its writer moves on while they are read.

NAME is the newest; rotation makes it NAME.1, and so on: the highest first, and the oldest goes.
So a file's number only grows, and what is open stays readable, whatever becomes of its name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from shim.stdio import Descriptors

NUMBERS: Final = range(100)  # that files may have: as many as the keeper keeps at most
BLOCK: Final = 256 << 10  # bytes of one read
LONGEST: Final = 1 << 20  # bytes of a line; what is longer is damaged, and comes in pieces

# Nothing there, a symbolic link, a socket.
_NO_FILE: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO})
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class LogFile:
    """One file, and how far it has been read. Takes the descriptor."""

    def __init__(self, descriptor: int, number: int) -> None:
        self.descriptor = descriptor
        self.number = number  # when it was last seen: it may be a higher one by now
        self.facts = os.fstat(descriptor)
        self._offset = 0
        self._rest = b""  # of a line whose end has not come

    def close(self) -> None:
        """Read no more."""
        os.close(self.descriptor)

    def is_same(self, facts: os.stat_result) -> bool:
        """Whether these are this file's."""
        return os.path.samestat(self.facts, facts)

    def lines(self) -> list[bytes]:
        """The next lines, without their ends; [] once there are no more for now.

        A file that was cut to be written anew is read from its beginning. Raises OSError.
        """
        while data := os.pread(self.descriptor, BLOCK, self._offset):
            self._offset += len(data)
            *found, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > LONGEST:
                found.append(self.take_rest())
            if found:
                return found
        if os.fstat(self.descriptor).st_size < self._offset:
            self._offset, self._rest = 0, b""
            return self.lines()
        return []

    def take_rest(self) -> bytes:
        """The beginning of a line that has not ended; whoever wrote it may have died over it."""
        rest, self._rest = self._rest, b""
        return rest

    def skip(self) -> int:
        """Go to the end of the last line; how far that is. For a file that was not read yet."""
        end = os.fstat(self.descriptor).st_size
        while end:
            start = max(end - BLOCK, 0)
            at = os.pread(self.descriptor, end - start, start).rfind(b"\n")
            if at >= 0:
                self._offset = start + at + 1
                break
            end = start
        return self._offset

    def lines_before(self, end: int) -> Iterator[bytes]:
        """The lines before that offset, the last one first. Raises OSError."""
        if end and os.pread(self.descriptor, 1, end - 1) == b"\n":
            end -= 1
        elif not end:
            return
        rest = b""
        while end:
            start = max(end - BLOCK, 0)
            rest, *found = (os.pread(self.descriptor, end - start, start) + rest).split(b"\n")
            end = start
            yield from reversed(found)
            if len(rest) > LONGEST and end:
                yield rest
                rest = b""
        yield rest


class LogFolder:
    """The directory of a log. Borrows its descriptor."""

    def __init__(self, directory: int, name: str) -> None:
        self._directory = directory
        self._name = name

    def newer_than(self, known: LogFile | None) -> tuple[list[LogFile], bool]:
        """The files that came after `known`, the oldest first, and whether `known` is still there.

        All files without `known`. They are the caller's to close. Raises OSError.
        """
        found: list[LogFile] = []
        with Descriptors() as owned:
            file = self._first(0)
            while file is not None:
                owned.own(file.descriptor)
                if known is not None and known.is_same(file.facts):
                    break
                found.append(file)
                file = self._older(file)
            for each in found:
                owned.take(each.descriptor)
        return found[::-1], file is not None

    def _older(self, file: LogFile) -> LogFile | None:
        """The file before that one. Whatever moves meanwhile, none is left out, nor taken twice:
        as long as `file` has its number, rotation can only have begun above it."""
        while self._find(file):
            older = self._first(file.number + 1)
            if self._is_at(file, file.number):
                return older
            if older is not None:
                older.close()
        return None

    def _find(self, file: LogFile) -> bool:
        """Look for the number that a file has by now; False: it was removed."""
        for number in NUMBERS[file.number :]:
            if self._is_at(file, number):
                file.number = number
                return True
        return False

    def _is_at(self, file: LogFile, number: int) -> bool:
        try:
            facts = os.stat(self._path(number), dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return file.is_same(facts)

    def _first(self, least: int) -> LogFile | None:
        """The file with the lowest number from that on; what is no regular file is left out."""
        for number in NUMBERS[least:]:
            try:
                opened = os.open(self._path(number), _OPEN, dir_fd=self._directory)
            except OSError as error:
                if error.errno in _NO_FILE:
                    continue
                raise
            file = LogFile(opened, number)
            if stat.S_ISREG(file.facts.st_mode):
                return file
            file.close()
        return None

    def _path(self, number: int) -> str:
        return f"{self._name}.{number}" if number else self._name
