"""A container's control groups, as the kernel sees them: where they are, what is in them.

Works with cgroup v1, v2 and both at once ("hybrid"); see cgroups(7).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

UNIFIED: Final = "unified"  # the key, in what `locate` returns, of a host that has v2 alone

_UNIFIED = frozenset({""})  # /proc/PID/cgroup has the v2 hierarchy as an empty controller list
# Where containerd looks which version the host has.
_MOUNT = "/sys/fs/cgroup"
# The controllers of v1 that count something.
_FREEZER = "freezer"
_COUNTING = frozenset({"cpu", "cpuacct", "memory", "blkio", "pids", "hugetlb", "rdma"})
# ENODEV: the file was open when its cgroup went. EOPNOTSUPP: a threaded cgroup has no list of
# processes (its domain, further up, has them), and a kernel may be told to measure no pressure.
ABSENT = frozenset({errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP})
LARGEST = 65536  # bytes; the longest files have a few lines for each block device
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Cgroup:
    """One cgroup, by the absolute path of its directory; the path is all there is to keep."""

    path: str

    def pids(self) -> list[int]:
        """The processes in this cgroup and all below it, sorted; [] when it is gone.

        Reads the cgroup file system, which may block. Raises OSError for what is neither a
        cgroup nor gone.
        """
        return sorted({pid for directory in _tree(self.path) for pid in _members(directory)})


@dataclass(frozen=True)
class _Hierarchy:
    """A mounted hierarchy: the directory `mount` shows the cgroup `root`."""

    options: frozenset[str]  # its controllers among them
    root: str
    mount: str


def find(pid: int) -> Cgroup | None:
    """The cgroup that process `pid` has for itself, or None if it is gone or has none.

    The root cgroup, and one that the shim itself is in or below, are never the answer: they
    hold the host's processes. v2 is preferred, else the first v1 hierarchy that tells.
    Raises OSError if /proc cannot be read.
    """
    return next((Cgroup(path) for _, path in _private(pid, _hierarchies())), None)


def locate(pid: int) -> dict[str, str]:
    """The directories that tell what process `pid` and those with it use, by controller.

    On a host that has cgroup v2 alone there is one, UNIFIED; with v1 beside it, or alone, those
    of v1. The same cgroups as for `find` are left out; {} when the process is gone. The paths are
    all there is to keep. Raises OSError if /proc cannot be read.
    """
    hierarchies = _hierarchies()
    found = dict(_private(pid, hierarchies))
    if any(each.options == _UNIFIED and each.mount == _MOUNT for each in hierarchies):
        return {UNIFIED: found[_UNIFIED]} if _UNIFIED in found else {}
    return {
        controller: path
        for controllers, path in found.items()
        for controller in sorted(controllers & (_COUNTING | {_FREEZER}))
    }


def thaw(paths: Mapping[str, str]) -> None:
    """Let the processes in the cgroups that `locate` has found go on, if they are frozen.

    A signal does not end a process of v1 that is. Raises OSError for what is not absent.
    """
    if UNIFIED in paths:
        _write(f"{paths[UNIFIED]}/cgroup.freeze", "0")
    if _FREEZER in paths:
        _write(f"{paths[_FREEZER]}/freezer.state", "THAWED")


def _write(path: str, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in ABSENT:
            raise


def content(path: str) -> bytes:
    """What a file of numbers holds, or b"" if the kernel has no such file, or not any more.

    Such a file is written in one piece, so one read gives all of it. Waits for nothing but the
    kernel's own locks. Raises OSError for what is neither readable nor absent.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.read(descriptor, LARGEST)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in ABSENT:
            return b""
        raise


def counters(text: bytes) -> dict[str, int]:
    """The lines of a "flat keyed" file, `NAME NUMBER` each, as a mapping."""
    words = text.decode().split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


def procs_files(memberships: str) -> tuple[str, ...]:
    """The files by which a process joins the cgroups that `memberships` names.

    It has the form of /proc/PID/cgroup (cgroups(7)). Those that we are in ourselves are left
    out, for our children are there already: joining costs the kernel a grace period.
    """
    own, theirs = _memberships("self"), _parse_memberships(os.fsencode(memberships))
    moved = [names for names, path in theirs.items() if own.get(names, path) != path]
    if not moved:
        return ()
    hierarchies = _hierarchies()
    found = (_locate(names, theirs[names], hierarchies) for names in moved)
    return tuple(f"{path}/cgroup.procs" for path in found if path)


def remove_empty(path: str) -> None:
    """Remove the cgroup `path` from every hierarchy that has it, unless a process is in it.

    Raises OSError for what is neither gone nor in use.
    """
    path = os.path.normpath(f"/{path}")
    for hierarchy in _hierarchies():
        located = _locate(hierarchy.options, path, [hierarchy])
        for directory in reversed(list(_tree(located))) if located else ():
            with contextlib.suppress(FileNotFoundError):
                _remove(directory)


def leave(path: str, pids: Iterable[int]) -> None:
    """Move processes from the cgroup `path`, where we are, to the root; then it may go.

    Nothing happens in a hierarchy in which we are elsewhere. Raises OSError.
    """
    hierarchies = _hierarchies()
    for controllers, own in _memberships("self").items():
        root = _locate(controllers, "/", hierarchies)
        if own != path or root is None:
            continue
        for pid in pids:
            Path(root, "cgroup.procs").write_text(str(pid))
    remove_empty(path)


def _remove(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise


def _private(pid: int, hierarchies: list[_Hierarchy]) -> Iterator[tuple[frozenset[str], str]]:
    """The cgroups that `pid` has for itself: their controllers and directories, v2 first."""
    own, theirs = _memberships("self"), _memberships(str(pid))
    for controllers in sorted(theirs, key=lambda names: names != _UNIFIED):
        path = theirs[controllers]
        if not _contains(path, own.get(controllers, "/")):
            located = _locate(controllers, path, hierarchies)
            if located:
                yield controllers, located


def _contains(cgroup: str, other: str) -> bool:
    return f"{other.rstrip('/')}/".startswith(f"{cgroup.rstrip('/')}/")


def _locate(controllers: frozenset[str], path: str, hierarchies: list[_Hierarchy]) -> str | None:
    """The directory that shows the cgroup `path`, if a mount does (cgroup_namespaces(7))."""
    if ".." in path.split("/"):
        return None
    for hierarchy in hierarchies:
        if controllers <= hierarchy.options and _contains(hierarchy.root, path):
            return hierarchy.mount + path.removeprefix(hierarchy.root.rstrip("/"))
    return None


def _memberships(pid: str) -> dict[frozenset[str], str]:
    """A process's cgroups by their hierarchies' controllers; {} when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/cgroup").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return _parse_memberships(text)


def _parse_memberships(text: bytes) -> dict[frozenset[str], str]:
    """Lines of another form are left out."""
    lines = (os.fsdecode(line).split(":", 2) for line in text.splitlines())
    return {frozenset(line[1].split(",")): line[2] for line in lines if len(line) == 3}


def _hierarchies() -> list[_Hierarchy]:
    """What is mounted of cgroups, here (proc_pid_mountinfo(5))."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    # Most of a host's mounts are containers' root file systems.
    found = (_hierarchy(os.fsdecode(line)) for line in lines if b" - cgroup" in line)
    return [hierarchy for hierarchy in found if hierarchy]


def _hierarchy(line: str) -> _Hierarchy | None:
    fields, _, rest = line.partition(" - ")
    kind, _, options = rest.split(" ", 2)
    if kind not in ("cgroup", "cgroup2"):
        return None
    root, mount = (_unescape(field) for field in fields.split(" ")[3:5])
    return _Hierarchy(_UNIFIED if kind == "cgroup2" else frozenset(options.split(",")), root, mount)


def _unescape(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _tree(path: str) -> Iterator[str]:
    """`path` and all directories below it; one that vanishes meanwhile is left out."""
    yield path
    try:
        with os.scandir(path) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for directory in below:
        yield from _tree(directory)


def _members(directory: str) -> list[int]:
    try:
        text = Path(directory, "cgroup.procs").read_bytes()
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise
    # 0 stands for a process that has no number in our pid namespace.
    return [int(line) for line in text.splitlines() if line != b"0"]
