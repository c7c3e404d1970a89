"""A log from its beginning, or from near its end, and what comes after."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from shim.logs.files import LogFile, LogFolder
from shim.logs.records import DAMAGED, Record, parse
from shim.logs.since import to_record_time
from shim.logs.tail import last_lines

# A file's time of change may be some milliseconds before that of its last record.
_SLACK: Final = 10**9
# Files that are held open, at most, to be read once those before them have been.
_HELD: Final = 8


class LogReader:
    """Gives each record once, in order, while the log is written and rotated.

    The files are those of `name` in the directory, a borrowed descriptor. since: nanoseconds
    since the epoch; records from before are left out. tail: how many lines before the first
    `read` are wanted, None for all. `lost` says that files were removed before they were read,
    for there is never more kept of a log than it may have. Use as a context manager.
    """

    def __init__(self, directory: int, name: str, since: int = 0, tail: int | None = None) -> None:
        self.lost = False
        self._folder = LogFolder(directory, name)
        self._since = since
        self._first = to_record_time(since) if since else b""
        self._shows = not since  # what a damaged line is shown after
        self._tail = tail
        self._files: deque[LogFile] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._files:
            self._files.popleft().close()

    def exists(self) -> bool:
        """Whether there is anything to read, even an empty file. Raises OSError."""
        self._look()
        return bool(self._files)

    def read(self) -> Iterator[Record]:
        """What there is and has not been read. Raises OSError."""
        self._look()
        if self._tail is not None:
            last, self._tail = self._take_tail(self._tail), None
            yield from filter(self._is_wanted, last)
        while self._files:
            yield from self._read_first()
            self._look()
            if len(self._files) == 1:
                return
            # It had its last record before the next file was there.
            yield from self._read_first()
            file = self._files.popleft()
            if rest := file.take_rest():
                yield from filter(self._is_wanted, [parse(rest)])
            file.close()

    def rest(self) -> Iterator[Record]:
        """What `read` has left: a record at the end that is not whole, as far as it goes."""
        for file in self._files:
            if rest := file.take_rest():
                yield from filter(self._is_wanted, [parse(rest)._replace(whole=False)])

    def _read_first(self) -> Iterator[Record]:
        """The whole records of the oldest file that have come."""
        while lines := self._files[0].lines():
            for line in lines:
                record = parse(line)
                if not self._first or self._is_wanted(record):
                    yield record
            self._look()

    def _look(self) -> None:
        """Open the files that have come."""
        if len(self._files) >= _HELD:
            return
        known = self._files[-1] if self._files else None
        files, is_there = self._folder.newer_than(known)
        # A log that has one file at most never has the one before.
        self.lost |= known is not None and not is_there and len(files) > 1
        self._files.extend(files)
        if known is None:
            self._skip_old()

    def _skip_old(self) -> None:
        while len(self._files) > 1 and self._files[0].facts.st_mtime_ns < self._since - _SLACK:
            self._files.popleft().close()

    def _take_tail(self, count: int) -> list[Record]:
        """The last lines; what comes after them is yet to be read."""
        if not self._files:
            return []
        found = last_lines(self._lines_before(self._files[-1].skip()), count)
        while len(self._files) > 1:
            self._files.popleft().close()
        return found

    def _lines_before(self, end: int) -> Iterator[bytes]:
        """All lines, the last one first, but for those behind that offset in the newest file."""
        *older, newest = self._files
        yield from newest.lines_before(end)
        for file in reversed(older):
            yield from file.lines_before(os.fstat(file.descriptor).st_size)

    def _is_wanted(self, record: Record) -> bool:
        """By its time; a damaged line is, if the one before it was."""
        if record.stream is not DAMAGED:
            self._shows = record.time >= self._first
        return self._shows
