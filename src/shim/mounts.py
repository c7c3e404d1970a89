"""Mounting and unmounting of a container's root file system.

Everything here may block for as long as a file system likes: run it in a BlockingPool.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from shim import syscalls as sc
from shim.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ShimError
from shim.model import Mount

_SET = {
    "ro": sc.MS_RDONLY,
    "nosuid": sc.MS_NOSUID,
    "nodev": sc.MS_NODEV,
    "noexec": sc.MS_NOEXEC,
    "sync": sc.MS_SYNCHRONOUS,
    "remount": sc.MS_REMOUNT,
    "dirsync": sc.MS_DIRSYNC,
    "mand": sc.MS_MANDLOCK,
    "noatime": sc.MS_NOATIME,
    "nodiratime": sc.MS_NODIRATIME,
    "relatime": sc.MS_RELATIME,
    "strictatime": sc.MS_STRICTATIME,
    "bind": sc.MS_BIND,
    "rbind": sc.MS_BIND | sc.MS_REC,
}
_CLEARED = {
    "defaults": 0,
    "rw": sc.MS_RDONLY,
    "suid": sc.MS_NOSUID,
    "dev": sc.MS_NODEV,
    "exec": sc.MS_NOEXEC,
    "async": sc.MS_SYNCHRONOUS,
    "nomand": sc.MS_MANDLOCK,
    "atime": sc.MS_NOATIME,
    "diratime": sc.MS_NODIRATIME,
    "norelatime": sc.MS_RELATIME,
    "nostrictatime": sc.MS_STRICTATIME,
}
_PROPAGATION = {
    "private": sc.MS_PRIVATE,
    "rprivate": sc.MS_PRIVATE | sc.MS_REC,
    "slave": sc.MS_SLAVE,
    "rslave": sc.MS_SLAVE | sc.MS_REC,
    "shared": sc.MS_SHARED,
    "rshared": sc.MS_SHARED | sc.MS_REC,
    "unbindable": sc.MS_UNBINDABLE,
    "runbindable": sc.MS_UNBINDABLE | sc.MS_REC,
}

_WRONG_REQUEST = frozenset(
    {
        errno.EINVAL,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENODEV,
        errno.ENOENT,
        errno.ENOTBLK,
        errno.ENOTDIR,
        errno.ENXIO,
    }
)
_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})
_NOT_MOUNTED = frozenset({errno.EINVAL, errno.ENOENT})


class Options(NamedTuple):
    """Options of fstab(5) as mount(2) takes them.

    `propagation` is apart from `flags` because MS_REC belongs to one of them: "bind" with
    "rprivate" is no recursive bind.
    """

    flags: int
    propagation: int
    data: str


def parse_options(options: Iterable[str]) -> Options:
    """Sort options into mount(2)'s flags, one propagation type and the file system's own data.

    A later option overrides an earlier one, as in mount(8). Raises InvalidArgument for NUL and
    for data that mount(2) would cut off at a page.
    """
    flags, propagation, data = 0, 0, []
    for option in options:
        if option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option in _SET:
            flags |= _SET[option]
        elif option in _CLEARED:
            flags &= ~_CLEARED[option]
        elif option:
            data.append(option)
    return Options(flags, propagation, _checked_data(",".join(data)))


def mount(mount: Mount, target: Path) -> None:
    """Mount `mount` on the directory `target`; the mount's own target is not looked at.

    A read-only bind, and a propagation type, take further mount(2) calls; if one of them fails,
    nothing stays mounted. With "rbind", flags such as "ro" hold for the topmost mount only
    (MS_REMOUNT is not recursive). Raises InvalidArgument, FailedPrecondition or
    ResourceExhausted naming type, source, target and the kernel's reason.
    """
    _check_strings(mount)
    options = parse_options(mount.options)
    try:
        _mount(mount, options, target)
    except OSError as error:
        raise _refusal(mount, target, error) from error


def mount_all(mounts: Sequence[Mount], target: Path) -> int:
    """Mount all on `target`, in order; return how many `unmount_all` has to take away.

    If one fails, those before it are unmounted. Raises what `mount` raises.
    """
    count = 0
    for entry in mounts:
        try:
            mount(entry, target)
        except ShimError:
            unmount_all(target, count)
            raise
        count += _adds_one(entry)
    return count


def unmount_all(target: Path, count: int) -> None:
    """Unmount the `count` topmost mounts at `target`; fewer or none mounted is fine.

    A busy mount is detached: it vanishes from the tree now, and ends with its last user.
    Raises FailedPrecondition when the kernel refuses (umount2(2)).
    """
    for _ in range(count):
        try:
            _unmount(target)
        except OSError as error:
            if error.errno in _NOT_MOUNTED:
                return
            raise FailedPrecondition(f"cannot unmount {target}: {_reason(error)}") from error


def make_slave_root() -> None:
    """Make / recursively slave, so that what is mounted here stays in this mount namespace.

    Raises OSError (mount_namespaces(7); contract: how the daemon launches a shim).
    """
    sc.mount("", "/", "", sc.MS_SLAVE | sc.MS_REC)


def _adds_one(mount: Mount) -> bool:
    return not parse_options(mount.options).flags & sc.MS_REMOUNT


def _mount(mount: Mount, options: Options, target: Path) -> None:
    binds = options.flags & sc.MS_BIND and not options.flags & sc.MS_REMOUNT
    first = options.flags & (sc.MS_BIND | sc.MS_REC) if binds else options.flags
    with _directory(target) as path:
        sc.mount(mount.source, path, mount.type, first, options.data)
    try:
        if binds:
            _restrict_bind(options.flags & ~first, target)
        _propagate(options.propagation, target)
    except OSError:
        unmount_all(target, int(_adds_one(mount)))
        raise


def _restrict_bind(flags: int, target: Path) -> None:
    """A bind takes its source's flags whatever the first call says: mount(2), "Bind mounts"."""
    if flags:
        with _directory(target) as path:
            sc.mount("", path, "", sc.MS_REMOUNT | sc.MS_BIND | flags)


def _propagate(propagation: int, target: Path) -> None:
    if propagation:
        with _directory(target) as path:
            sc.mount("", path, "", propagation)


@contextmanager
def _directory(target: Path) -> Iterator[str]:
    """A path that stays this very directory, whoever replaces it by a symbolic link meanwhile.

    Opened anew for each call: the descriptor is of what was topmost at that moment.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(target, flags)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _unmount(target: Path) -> None:
    # Not by descriptor: an O_PATH descriptor would itself keep the mount busy.
    try:
        sc.umount(str(target), sc.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        sc.umount(str(target), sc.UMOUNT_NOFOLLOW | sc.MNT_DETACH)


def _checked_data(data: str) -> str:
    if "\0" in data:
        raise InvalidArgument(f"the mount options {data!r} hold NUL")
    if len(os.fsencode(data)) >= mmap.PAGESIZE:
        raise InvalidArgument(
            f"the mount options {data[:60]!r}… are longer than the {mmap.PAGESIZE - 1} bytes that "
            "mount(2) takes; use fewer or shorter ones"
        )
    return data


def _check_strings(mount: Mount) -> None:
    for text in (mount.type, mount.source):
        if "\0" in text:
            raise InvalidArgument(f"the mount's {text!r} holds NUL")


def _refusal(mount: Mount, target: Path, error: OSError) -> ShimError:
    text = f"cannot mount {mount.type} {mount.source!r} on {target}: {_reason(error)}"
    if error.errno in _WRONG_REQUEST:
        return InvalidArgument(f"{text}; check type, source, options and that the target is a "
                               "directory")  # fmt: skip
    if error.errno in _NO_RESOURCES:
        return ResourceExhausted(text)
    return FailedPrecondition(text)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0)
