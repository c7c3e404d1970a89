"""Putting archives and directories into a tree."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from typing import Final

from shim.errors import InvalidArgument, Unavailable
from shim.snapshots.entry import DEVICES, Entry, Type
from shim.snapshots.inflate import CHUNK, Exact
from shim.snapshots.limits import Meter
from shim.snapshots.refusal import refusal
from shim.snapshots.tar import Reader
from shim.snapshots.tree import Tree, own_xattrs
from shim.snapshots.walk import Found, walk

# OCI image specification, layer.md, "Whiteouts".
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_OTHERS: Final = ".wh..wh."  # aufs' own

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TYPES: Final = {
    stat.S_IFREG: Type.FILE,
    stat.S_IFDIR: Type.DIRECTORY,
    stat.S_IFLNK: Type.SYMLINK,
    stat.S_IFIFO: Type.FIFO,
    stat.S_IFCHR: Type.CHARACTER,
    stat.S_IFBLK: Type.BLOCK,
}


def unpack(source: Exact, tree: Tree) -> None:
    """Put a whole tar into `tree`, and read `source` to its end.

    Raises what Tree and Reader raise; InvalidArgument for symbolic links out of the tree.
    """
    reader = Reader(source, budget=tree.budget)
    for entry in reader:
        _check_link(entry)
        tree.add(entry, reader.content())
    reader.drain()


def unpack_layer(source: Exact, tree: Tree) -> None:
    """Put a layer into `tree`, which has it alone: whiteouts hide what is below. As above."""
    reader = Reader(source, must_end=False, budget=tree.budget)
    for entry in reader:
        folder, name = _split(entry.name)
        if name == _OPAQUE:
            tree.hide_below(folder)
        elif name.startswith(_WHITEOUT):
            if not name.startswith(_OTHERS):
                tree.hide(f"{folder}/{_hidden(name)}")
        else:
            _check_link(entry)
            tree.add(entry, reader.content())
    reader.drain()


def remove_hidden(source: Exact, tree: Tree) -> None:
    """Remove from `tree`, a copy of what is below, all that a layer hides. Raises as above."""
    reader = Reader(source, must_end=False, budget=tree.budget)
    for entry in reader:
        folder, name = _split(entry.name)
        if name == _OPAQUE:
            tree.remove_below(folder)
        elif name.startswith(_WHITEOUT) and not name.startswith(_OTHERS):
            tree.remove(f"{folder}/{_hidden(name)}")
    reader.drain()


def _split(name: str) -> tuple[str, str]:
    folder, _, last = name.rstrip("/").rpartition("/")
    return folder or ("/" if name.startswith("/") else "."), last


def _hidden(name: str) -> str:
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in ("", ".", ".."):
        raise InvalidArgument(f"the whiteout {name!r} names no file")
    return hidden


def _check_link(entry: Entry) -> None:
    """Refuse a symbolic link that climbs over the root: some program will not stop there."""
    if entry.type is not Type.SYMLINK:
        return
    absolute = entry.link.startswith("/")
    depth = 0 if absolute else len([p for p in entry.name.split("/") if p not in ("", ".")]) - 1
    for part in entry.link.split("/"):
        if part not in ("", "."):
            depth += -1 if part == ".." else 1
        if depth < 0:
            raise InvalidArgument(
                f"cannot import {entry.name[:200]!r}: it links to {entry.link[:200]!r}, which is "
                "out of the tree"
            )


def copy_tree(source: int, tree: Tree, meter: Meter, but: os.stat_result | None = None) -> None:
    """Copy what is in the directory `source`, and its own attributes, into `tree`.

    Sockets are left out, as tar(1) does; what is mounted below shows up as an empty directory,
    and so does the directory `but`. Borrows `source`. Raises what Tree raises, Unavailable when
    directories are moved meanwhile, and what `meter` raises.
    """
    links: dict[tuple[int, int], str] = {}
    try:
        tree.add(_entry(source, ".", ".", os.fstat(source)))
        with closing(walk(source, but)) as files:
            for found in files:
                _copy(found, tree, meter, links)
    except OSError as error:
        raise refusal("read the files to be copied", error) from error


def _copy(found: Found, tree: Tree, meter: Meter, links: dict[tuple[int, int], str]) -> None:
    directory, names, facts = found
    meter.unpacked(0)
    path = "/".join(names)
    if stat.S_IFMT(facts.st_mode) not in _TYPES:
        return
    entry = _entry(directory, names[-1], path, facts)
    if entry.type is Type.DIRECTORY:
        tree.add(entry)
        return
    first = links.setdefault((facts.st_dev, facts.st_ino), path) if facts.st_nlink > 1 else path
    if first != path:
        tree.add(Entry(path, Type.HARD_LINK, link=first))
    elif entry.type is Type.FILE:
        _copy_file(directory, names[-1], entry, tree, meter)
    else:
        tree.add(entry)


def _copy_file(directory: int, name: str, entry: Entry, tree: Tree, meter: Meter) -> None:
    file = os.open(name, _READ, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise Unavailable(f"{entry.name[:200]!r} was replaced while it was copied; try again")
        tree.add(entry, _content(file, entry.size, meter))
    finally:
        os.close(file)


def _content(file: int, size: int, meter: Meter) -> Iterator[tuple[int, bytes]]:
    """What a file holds, without its holes (lseek(2), SEEK_DATA)."""
    offset = 0
    while offset < size and (start := _data_from(file, offset)) is not None:
        end = min(os.lseek(file, start, os.SEEK_HOLE), size)
        offset = start
        while offset < end and (data := os.pread(file, min(end - offset, CHUNK), offset)):
            meter.add(len(data))
            yield offset, data
            offset += len(data)
        if offset < end:
            return  # somebody has cut it off


def _data_from(file: int, offset: int) -> int | None:
    try:
        return os.lseek(file, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _entry(directory: int, name: str, path: str, facts: os.stat_result) -> Entry:
    type = _TYPES[stat.S_IFMT(facts.st_mode)]
    device = (os.major(facts.st_rdev), os.minor(facts.st_rdev)) if type in DEVICES else (0, 0)
    return Entry(
        name=path,
        type=type,
        mode=stat.S_IMODE(facts.st_mode),
        uid=facts.st_uid,
        gid=facts.st_gid,
        mtime=facts.st_mtime_ns,
        size=facts.st_size if type is Type.FILE else 0,
        link=os.readlink(name, dir_fd=directory) if type is Type.SYMLINK else "",
        device=device,
        xattrs=own_xattrs(f"/proc/self/fd/{directory}/{name}", follow=False),
    )
