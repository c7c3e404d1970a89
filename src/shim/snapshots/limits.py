"""What an import may grow to, and how it tells how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from shim.errors import InvalidArgument

_STEP: Final = 1 << 20
# What one file costs at least, however small it is: in bytes, so that many are like a large one.
_LEAST: Final = 1 << 16
# Long names of a file and of its link, and pax records; and some more.
_HEADERS_OF_ENTRY: Final = 4


@dataclass(frozen=True)
class Limits:
    """Bounds of one import; whoever wants more says so.

    `bytes`: of all files together, holes included. `entries`: of all layers together.
    """

    bytes: int = 256 << 30
    entries: int = 2_000_000


class Progress(Protocol):
    """Told about every MiB that is read or unpacked, every few files, and at each part's end.

    What it raises ends the import, which leaves nothing. `done` is of what is read, which may be
    compressed, as `total` is; that is 0 while nobody knows it.
    """

    def __call__(self, what: str, done: int, total: int) -> None: ...


@dataclass
class Budget:
    """What one import has used of its limits."""

    limits: Limits = field(default_factory=Limits)
    bytes: int = 0
    entries: int = 0
    headers: int = 0

    def take_bytes(self, count: int) -> None:
        """Raises InvalidArgument beyond the limit."""
        self.bytes += count
        if self.bytes > self.limits.bytes:
            raise InvalidArgument(
                f"the files are larger than {self.limits.bytes} bytes together, which is the limit "
                "of an import"
            )

    def take_entry(self) -> None:
        """Raises InvalidArgument beyond the limit."""
        self.entries += 1
        if self.entries > self.limits.entries:
            raise InvalidArgument(
                f"there are more than {self.limits.entries} files, which is the limit of an import"
            )

    def take_header(self) -> None:
        """Count what says something about files without being one. Raises as above."""
        self.headers += 1
        limit = self.limits.entries * _HEADERS_OF_ENTRY
        if self.headers > limit:
            raise InvalidArgument(
                f"there are more than {limit} headers, which is the limit of an import"
            )


class Meter:
    """Counts what is read of one part, and tells `progress` of each step of a MiB of work.

    Work is what is read, and what becomes of it: that may be a thousand times as much.
    """

    def __init__(self, progress: Progress | None, what: str, total: int, before: int = 0) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._done = before
        self._untold = 0  # work, in bytes

    def add(self, count: int) -> None:
        """So many bytes have been read. Raises what `progress` raises."""
        self._done += count
        self._work(count)

    def unpacked(self, count: int) -> None:
        """So many bytes have come of them, or a file of a few. Raises what `progress` raises."""
        self._work(max(count, _LEAST))

    def tell(self) -> None:
        """Raises what `progress` raises."""
        self._untold = 0
        if self._progress is not None:
            self._progress(self._what, self._done, self._total)

    def _work(self, count: int) -> None:
        self._untold += count
        if self._untold >= _STEP:
            self.tell()
