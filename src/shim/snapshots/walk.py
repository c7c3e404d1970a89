"""Going through trees of any depth, with one descriptor, and removing them.

Paths are of no use here: a container may nest directories deeper than a path can name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple, Self

from shim.errors import Unavailable
from shim.snapshots.refusal import refusal

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE: Final = (FileNotFoundError, NotADirectoryError)


class Found(NamedTuple):
    """One file: the last of `names`, in the open `directory`. Both are only lent for the moment.

    `names` is the way from the tree's root.
    """

    directory: int
    names: list[str]
    facts: os.stat_result


class Usage(NamedTuple):
    """What a tree takes: bytes on the disk, and inodes."""

    size: int
    inodes: int


def walk(root: int, but: os.stat_result | None = None) -> Generator[Found]:
    """All files below the directory `root`, a directory before what is in it.

    Other file systems are not entered, nor the directory `but`. What vanishes meanwhile is left
    out. Borrows `root`. Raises OSError; Unavailable when directories are moved at the same time.
    """
    device = os.fstat(root).st_dev
    names: list[str] = []
    with _Place(os.open(".", _DIRECTORY, dir_fd=root)) as place:
        while True:
            name = next(place.waiting, None)
            if name is None:
                if not names:
                    return
                names.pop()
                place.leave()
            elif (facts := _look(place.directory, name)) is not None:
                names.append(name)
                yield Found(place.directory, names, facts)
                enters = _is_directory(facts, device) and not _is_same(facts, but)
                if not (enters and place.enter(name)):
                    names.pop()


class _Place:
    """A directory, and how to come back to those above it. Takes the descriptor."""

    def __init__(self, directory: int) -> None:
        self.directory = directory
        self._facts, self.waiting = _listed(directory)
        self._above: list[tuple[os.stat_result, Iterator[str]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.directory)

    def enter(self, name: str) -> bool:
        """Go into a directory, unless it has vanished."""
        below = _enter(self.directory, name)
        if below is not None:
            self._above.append((self._facts, self.waiting))
            self._move(below)
            self._facts, self.waiting = _listed(below)
        return below is not None

    def leave(self) -> None:
        """Go up again."""
        self._facts, self.waiting = self._above.pop()
        self._move(_leave(self.directory, self._facts))

    def _move(self, directory: int) -> None:
        os.close(self.directory)
        self.directory = directory


def _listed(directory: int) -> tuple[os.stat_result, Iterator[str]]:
    """What a directory is, and the names in it, in an order that does not depend on the disk."""
    return os.fstat(directory), iter(sorted(os.listdir(directory)))


def _look(directory: int, name: str) -> os.stat_result | None:
    with contextlib.suppress(*_GONE):
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    return None


def _is_directory(facts: os.stat_result, device: int) -> bool:
    return stat.S_ISDIR(facts.st_mode) and facts.st_dev == device


def _is_same(facts: os.stat_result, other: os.stat_result | None) -> bool:
    return other is not None and os.path.samestat(facts, other)


def _enter(directory: int, name: str) -> int | None:
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except OSError as error:
        if isinstance(error, _GONE) or error.errno == errno.ELOOP:
            return None  # replaced meanwhile
        raise


def _leave(directory: int, expected: os.stat_result) -> int:
    """The directory above, which has to be the one that this was entered from."""
    above = os.open("..", _DIRECTORY, dir_fd=directory)
    if os.path.samestat(os.fstat(above), expected):
        return above
    os.close(above)
    raise Unavailable("the directories are moved while they are looked at; try again")


def usage(root: int) -> Usage:
    """What the tree at the directory `root` takes, itself included; hard links count once.

    Borrows `root`. Raises Unavailable, and what an OSError stands for.
    """
    size = os.fstat(root).st_blocks * 512
    inodes = 1
    seen: set[int] = set()
    try:
        for found in walk(root):
            facts = found.facts
            if stat.S_ISDIR(facts.st_mode) or facts.st_nlink == 1 or facts.st_ino not in seen:
                size += facts.st_blocks * 512
                inodes += 1
            if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
                seen.add(facts.st_ino)
    except OSError as error:
        raise refusal("look at a snapshot's files", error) from error
    return Usage(size, inodes)


def remove(parent: int, name: str) -> None:
    """Remove whatever is called `name` in the directory `parent`; nothing may be there.

    Nobody else may change it meanwhile. Directories in it are moved up, so that neither depth
    nor the length of paths matters. Borrows `parent`. Raises OSError.
    """
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EISDIR:
            raise
        remove_below_name(parent, name)
        os.rmdir(name, dir_fd=parent)


def remove_below_name(parent: int, name: str) -> None:
    """Empty the directory `name`. As above."""
    top = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        remove_below(top)
    finally:
        os.close(top)


def remove_below(top: int) -> None:
    """Empty the directory `top`, which is borrowed. As above."""
    token = secrets.token_hex(8)  # no archive can have such names
    moved = 0
    while names := os.listdir(top):
        for name in names:
            moved = _remove_or_lift(top, name, token, moved)


def _remove_or_lift(top: int, name: str, token: str, moved: int) -> int:
    """Remove one file or directory of `top`, after moving the directories in that into `top`."""
    if _removed(top, name):
        return moved
    directory = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        for inner in os.listdir(directory):
            if not _removed(directory, inner):
                os.rename(inner, f"{token}-{moved}", src_dir_fd=directory, dst_dir_fd=top)
                moved += 1
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=top)
    return moved


def _removed(directory: int, name: str) -> bool:
    """Remove a file or an empty directory; False for a directory that is not empty."""
    try:
        os.unlink(name, dir_fd=directory)
        return True
    except OSError as error:
        if error.errno != errno.EISDIR:
            raise
    try:
        os.rmdir(name, dir_fd=directory)
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
