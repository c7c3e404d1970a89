"""Mounting and unmounting of a container's root file system.

Everything here may block for as long as a file system likes: run it in a BlockingPool.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from shim import loop
from shim import syscalls as sc
from shim.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ShimError
from shim.idmap import IdMaps, mapped, mapped_directory, parse_map
from shim.model import Mount
from shim.stdio import Descriptors

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

# Seconds for what has a mount open to close it, and between two looks: nothing tells of it.
BUSY_LIMIT = 2.5
BUSY_PAUSE = 0.05

_MAPS = ("uidmap=", "gidmap=")

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
    "rprivate" is no recursive bind. `base` is the directory that relative paths in `data` are
    to be seen from, or "". `loop`: the source is a file to be shown as a device. `maps`: how
    the files' owners are to be shown.
    """

    flags: int
    propagation: int
    data: str
    base: str = ""
    loop: bool = False
    maps: IdMaps | None = None


def parse_options(options: Iterable[str]) -> Options:
    """Sort options into mount(2)'s flags, one propagation type and the file system's own data.

    A later option overrides an earlier one, as in mount(8). Raises InvalidArgument for NUL, for
    data that mount(2) would cut off at a page, and for what is no option of a file system.
    """
    flags, propagation, loop, data = 0, 0, False, []
    maps: dict[str, str] = {}
    for option in options:
        if option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option in _SET:
            flags |= _SET[option]
        elif option in _CLEARED:
            flags &= ~_CLEARED[option]
        elif option == "loop":
            loop = True
        elif option.startswith(_MAPS):
            name, _, text = option.partition("=")
            maps[name] = parse_map(text)
        elif option:
            data.append(_checked_option(option))
    base = "" if _fits(data) and not maps else _shorten_layers(data)
    data_text = _checked_data(",".join(data))
    return Options(flags, propagation, data_text, base, loop, _both_maps(maps))


def _both_maps(maps: Mapping[str, str]) -> IdMaps | None:
    if len(maps) == 1:
        raise InvalidArgument("the mount options uidmap= and gidmap= need each other")
    return IdMaps(maps["uidmap"], maps["gidmap"]) if maps else None


def mount(mount: Mount, root: Path) -> None:
    """Mount `mount` on the directory `root`, or on the one in it that the mount's target names.

    The target is resolved as if `root` were /.

    A read-only bind, and a propagation type, take further mount(2) calls; if one of them fails,
    nothing stays mounted. With "rbind", flags such as "ro" hold for the topmost mount only
    (MS_REMOUNT is not recursive). Raises InvalidArgument, FailedPrecondition or
    ResourceExhausted naming type, source, target and the kernel's reason.
    """
    _check_strings(mount)
    options = parse_options(mount.options)
    target = root / mount.target.lstrip("/")
    try:
        _mount(mount, options, root if target == root else _resolve(root, mount.target))
    except OSError as error:
        raise _refusal(mount, target, error) from error


def mount_all(mounts: Sequence[Mount], root: Path) -> int:
    """Mount all on `root`, or below it, in order; return how many `unmount_all` has to take away.

    A missing `root` is made when there is something to mount. If one fails, those before it are
    unmounted. Raises what `mount` raises.
    """
    if mounts:
        _make_root(root)
    count = 0
    for entry in mounts:
        try:
            mount(entry, root)
        except ShimError:
            unmount_all(root, count)
            raise
        count += _adds_one(entry)
    return count


def _make_root(root: Path) -> None:
    try:
        root.mkdir(0o711)
    except FileExistsError:
        return
    except OSError as error:
        raise FailedPrecondition(f"cannot make {root}: {_reason(error)}") from error


def unmount_all(target: Path, count: int) -> None:
    """Unmount what is mounted below `target`, the deepest first, and the `count` topmost at it.

    Nothing happens for a count of 0; fewer or none mounted is fine. A mount that stays busy for
    BUSY_LIMIT is detached: it vanishes from the tree, and ends with its last user. Raises
    FailedPrecondition when the kernel refuses (umount2(2)).
    """
    if count:
        below = [path for path in _mounted(target) if path != target]
        _unmount_each([*below, *[target] * count])


def unmount_below(target: Path) -> None:
    """Unmount all that is mounted on `target` and below it, the deepest first.

    For a caller that does not know how much it is; nothing is there mostly. As above.
    """
    _unmount_each(_mounted(target))


def _unmount_each(paths: Sequence[Path]) -> None:
    end = time.monotonic() + BUSY_LIMIT
    for path in paths:
        try:
            _unmount(path, end)
        except OSError as error:
            if error.errno not in _NOT_MOUNTED:
                raise FailedPrecondition(f"cannot unmount {path}: {_reason(error)}") from error


def _mounted(target: Path) -> list[Path]:
    """What is mounted at `target` and below it, in the order of unmounting.

    The kernel's list has real paths, whatever links lead to the directory of `target`.
    """
    inside = os.path.join(os.path.realpath(target.parent), target.name)
    lines = Path("/proc/thread-self/mountinfo").read_bytes().splitlines()
    places = [os.fsdecode(_unescape(line.split(b" ", 5)[4])) for line in lines]
    found = [path for path in places if path == inside or path.startswith(f"{inside}/")]
    deepest = sorted(found, key=lambda path: path.count("/"), reverse=True)
    return [target / path[len(inside) + 1 :] for path in deepest]


def _unescape(text: bytes) -> bytes:
    """A path as proc_pid_mountinfo(5) writes it, with \\040 for a blank."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def make_slave_root() -> None:
    """Make / recursively slave, so that what is mounted here stays in this mount namespace.

    Raises OSError (mount_namespaces(7); contract: how the daemon launches a shim).
    """
    sc.mount("", "/", "", sc.MS_SLAVE | sc.MS_REC)


def _adds_one(mount: Mount) -> bool:
    return not parse_options(mount.options).flags & sc.MS_REMOUNT


def _resolve(root: Path, path: str) -> Path:
    """The directory at `path` below `root`, without links. Raises OSError."""
    with Descriptors() as descriptors:
        top = descriptors.own(os.open(root, _DIRECTORY))
        found = descriptors.own(sc.open_inside(top, path, os.O_PATH | os.O_DIRECTORY))
        return Path(os.readlink(f"/proc/self/fd/{found}"))


def _mount(mount: Mount, options: Options, target: Path) -> None:
    binds = options.flags & sc.MS_BIND and not options.flags & sc.MS_REMOUNT
    first = options.flags & (sc.MS_BIND | sc.MS_REC) if binds else options.flags
    with _directory(target) as path:
        if options.maps is None:
            with _source(mount, options) as source, _seen_from(options.base):
                sc.mount(source, path, mount.type, first, options.data)
        else:
            _mount_mapped(mount, options, options.maps, path)
    try:
        if binds:
            _restrict_bind(options.flags & ~first, target)
        _propagate(options.propagation, target)
    except OSError:
        unmount_all(target, int(_adds_one(mount)))
        raise


def _source(mount: Mount, options: Options) -> AbstractContextManager[str]:
    if options.loop:
        return loop.attached(mount.source, bool(options.flags & sc.MS_RDONLY))
    return nullcontext(mount.source)


def _mount_mapped(mount: Mount, options: Options, maps: IdMaps, path: str) -> None:
    """Bind with mapped owners; or stack overlay on layers with mapped owners."""
    if options.flags & sc.MS_BIND:
        recursive = bool(options.flags & sc.MS_REC)
        with mapped(mount.source, maps, recursive) as tree:
            sc.attach_mount(tree, path)
    elif options.base:
        _check_one_mount(mount, options.base)
        with mapped_directory(options.base, maps) as base, _seen_from(base):
            sc.mount(mount.source, path, mount.type, options.flags, options.data)
    else:
        raise InvalidArgument("uidmap= and gidmap= are for bind and overlay mounts only")


def _check_one_mount(mount: Mount, base: str) -> None:
    """What is mounted below `base` is not in its copy: a layer there would seem to be empty."""
    expected = _mount_id(base)
    for path in (path for option in mount.options for path in _layers(option)):
        if _mount_id(_plain(path)) != expected:
            raise InvalidArgument(f"the layer {path!r} is not on the same mount as {base!r}")


def _mount_id(path: str) -> str:
    """Which mount a path leads to: proc_pid_fdinfo(5)."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    return next(line for line in lines if line.startswith("mnt_id:"))


@contextmanager
def _seen_from(base: str) -> Iterator[None]:
    """Let the calling thread, and no other, have the working directory `base` for the block."""
    if not base:
        yield
        return
    sc.unshare_directory()
    before = os.open(".", _DIRECTORY)
    try:
        os.chdir(base)
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def _restrict_bind(flags: int, target: Path) -> None:
    """A bind takes its source's flags whatever the first call says: mount(2), "Bind mounts"."""
    if flags:
        with _directory(target) as path:
            sc.mount("", path, "", sc.MS_REMOUNT | sc.MS_BIND | flags)


def _propagate(propagation: int, target: Path) -> None:
    if propagation:
        with _directory(target) as path:
            sc.mount("", path, "", propagation)


_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def _directory(target: Path) -> Iterator[str]:
    """A path that stays this very directory, whoever replaces it by a symbolic link meanwhile.

    Opened anew for each call: the descriptor is of what was topmost at that moment.
    """
    descriptor = os.open(target, _DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _unmount(target: Path, end: float) -> None:
    """Unmount the topmost mount; one that is busy until `end` (time.monotonic) is detached."""
    # Not by descriptor: an O_PATH descriptor would itself keep the mount busy.
    while True:
        try:
            return sc.umount(str(target), sc.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        if time.monotonic() >= end:
            return sc.umount(str(target), sc.UMOUNT_NOFOLLOW | sc.MNT_DETACH)
        time.sleep(BUSY_PAUSE)


def _checked_option(option: str) -> str:
    if option.startswith("X-containerd."):
        raise InvalidArgument(f"the mount option {option!r} is containerd's own, not for a shim")
    return option


def _fits(data: Sequence[str]) -> bool:
    return len(os.fsencode(",".join(data))) < mmap.PAGESIZE


def _shorten_layers(data: list[str]) -> str:
    """Name overlay's lower directories from the one that they have in common; return that.

    "" when there are none, or not all of them are absolute.
    """
    for number, option in enumerate(data):
        if paths := _layers(option):
            base = os.path.commonpath(paths)
            depth = len(_parts(base))
            rest = ("/".join(_parts(path)[depth:]) or "." for path in paths)
            data[number] = f"lowerdir={':'.join(rest)}"
            return _plain(base)
    return ""


def _layers(option: str) -> list[str]:
    """Overlay's lower directories as the option writes them, if they are all absolute."""
    name, _, value = option.partition("=")
    paths = re.split(r"(?<!\\):", value)  # a colon in a path has a backslash before it
    return paths if name == "lowerdir" and all(path.startswith("/") for path in paths) else []


def _plain(path: str) -> str:
    """A path without overlay's backslashes."""
    return re.sub(r"\\(.)", r"\1", path)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _checked_data(data: str) -> str:
    if "\0" in data:
        raise InvalidArgument(f"the mount options {data!r} hold NUL")
    if not _fits([data]):
        raise InvalidArgument(
            f"the mount options {data[:60]!r}… are longer than the {mmap.PAGESIZE - 1} bytes that "
            "mount(2) takes; use fewer or shorter ones"
        )
    return data


def _check_strings(mount: Mount) -> None:
    for text in (mount.type, mount.source, mount.target):
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
