"""One file as an archive or a directory has it, without its content."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from shim.errors import InvalidArgument

# The kernel's limits (chown(2): the highest number means "no change"; makedev(3)).
_ID_LIMIT: Final = (1 << 32) - 1
_TIME_LIMIT: Final = 1 << 40  # seconds either way
_MAJOR_LIMIT: Final = 1 << 12
_MINOR_LIMIT: Final = 1 << 20
_SIZE_LIMIT: Final = 1 << 63
_SECOND: Final = 1_000_000_000


class Type(enum.Enum):
    """What kind of file it is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARD_LINK = "hard link"
    FIFO = "FIFO"
    CHARACTER = "character device"
    BLOCK = "block device"


DEVICES: Final = frozenset({Type.CHARACTER, Type.BLOCK})


@dataclass(frozen=True)
class Entry:
    """`name` is as the archive has it, bytes that are no UTF-8 as surrogates (PEP 383).

    `link` is a link's target, `mtime` in ns since the epoch, `size` of the content with its
    holes, `device` major and minor.
    """

    name: str
    type: Type
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    def check(self) -> None:
        """Raises InvalidArgument for what no system call takes as it is."""
        major, minor = self.device
        fits = (
            0 <= self.uid < _ID_LIMIT
            and 0 <= self.gid < _ID_LIMIT
            and abs(self.mtime) < _TIME_LIMIT * _SECOND
            and 0 <= self.size < _SIZE_LIMIT
            and 0 <= major < _MAJOR_LIMIT
            and 0 <= minor < _MINOR_LIMIT
        )
        if not fits:
            raise InvalidArgument(f"{self.name[:100]!r} has an owner, time or size out of range")
        if any("\0" in text for text in (self.link, *self.xattrs)):
            raise InvalidArgument(f"{self.name[:100]!r} has a link or an attribute with NUL")


def parts_of(name: str) -> list[str]:
    """The names on the way to a file inside a tree; none for the tree itself.

    Raises InvalidArgument for what may lead out of it: an absolute name, and "..".
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise InvalidArgument(f"the name {name[:100]!r} leads out of the tree")
    if "\0" in name:
        raise InvalidArgument(f"the name {name[:100]!r} holds NUL")
    return parts
