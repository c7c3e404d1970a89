"""System calls that the standard library lacks, with errno turned into OSError.

Those on mounts may block for as long as the kernel likes, with the interpreter's lock released:
call them in a `shim.blocking.BlockingPool`.
"""

from __future__ import annotations

import fcntl
import os
import struct

from shim._sys import ffi, lib

MS_RDONLY = lib.MS_RDONLY
MS_NOSUID = lib.MS_NOSUID
MS_NODEV = lib.MS_NODEV
MS_NOEXEC = lib.MS_NOEXEC
MS_SYNCHRONOUS = lib.MS_SYNCHRONOUS
MS_REMOUNT = lib.MS_REMOUNT
MS_MANDLOCK = lib.MS_MANDLOCK
MS_DIRSYNC = lib.MS_DIRSYNC
MS_NOATIME = lib.MS_NOATIME
MS_NODIRATIME = lib.MS_NODIRATIME
MS_BIND = lib.MS_BIND
MS_REC = lib.MS_REC
MS_UNBINDABLE = lib.MS_UNBINDABLE
MS_PRIVATE = lib.MS_PRIVATE
MS_SLAVE = lib.MS_SLAVE
MS_SHARED = lib.MS_SHARED
MS_RELATIME = lib.MS_RELATIME
MS_STRICTATIME = lib.MS_STRICTATIME
MNT_DETACH = lib.MNT_DETACH
UMOUNT_NOFOLLOW = lib.UMOUNT_NOFOLLOW
IN_MODIFY = lib.IN_MODIFY
IN_IGNORED = lib.IN_IGNORED
IN_Q_OVERFLOW = lib.IN_Q_OVERFLOW


def mount(source: str, target: str, type: str, flags: int, data: str = "") -> None:
    """Attach a file system or change a mount, as mount(2) does; `flags` are MS_* values.

    Raises OSError naming the call and the target; ValueError for a string with NUL.
    """
    strings = (_text(source), _text(target), _text(type))
    _check(lib.mount(*strings, flags, _text(data)), "mount", target)


def umount(target: str, flags: int) -> None:
    """Detach the topmost mount at `target`, as umount2(2) does.

    Raises OSError naming the call and the target; ValueError for a string with NUL.
    """
    _check(lib.umount2(_text(target), flags), "umount2", target)


def unshare_mounts() -> None:
    """Give the calling thread a mount namespace of its own (unshare(2), CLONE_NEWNS).

    Raises OSError naming the call.
    """
    _check(lib.unshare(lib.CLONE_NEWNS), "unshare", "the mount namespace")


def enter_mounts(process: int) -> None:
    """Move to the mount namespace of `process`, and to its root directory (setns(2)).

    Only a process with one thread may. Raises OSError.
    """
    namespace = os.open(f"/proc/{process}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(lib.setns(namespace, lib.CLONE_NEWNS), "setns", f"the mounts of {process}")
    finally:
        os.close(namespace)


def send_fifo(channel: int, record: bytes, other: int, fifo: int, *, input: bool) -> None:
    """Send `record` over the socket `channel` with a stream's three ends, two of them a FIFO's.

    fifo: an O_PATH descriptor of it, whose two ends are opened for this. They follow `other`, the
    stream's source, as sink and hold; with `input` the order is source, `other`, hold. The FIFO's
    client sees no end even if the caller is killed meanwhile: a process of its own, with the
    caller's descriptors, does it. May block in the FIFO's file system. Borrows all descriptors.
    Raises OSError.
    """
    size = len(record)
    _check(lib.ds_send_fifo(channel, record, size, other, fifo, input), "send", "a FIFO")


def unshare_directory() -> None:
    """Give the calling thread a working directory and a umask of its own (CLONE_FS).

    Raises OSError naming the call.
    """
    _check(lib.unshare(lib.CLONE_FS), "unshare", "the working directory")


def open_inside(root: int, path: str, flags: int) -> int:
    """Open `path` as if the directory `root` were /, whatever links it leads over (openat2(2)).

    Borrows `root`; the caller owns the result. Raises OSError, ENOSYS before Linux 5.6.
    """
    resolve = lib.RESOLVE_IN_ROOT | lib.RESOLVE_NO_MAGICLINKS
    opened = lib.ds_openat2(root, _text(path), flags | os.O_CLOEXEC, resolve)
    _check(opened, "openat2", path)
    return opened


def clone_mount(path: str, recursive: bool) -> int:
    """Copy the mount at `path`, with those below it if `recursive`; attached nowhere (open_tree).

    The caller owns the descriptor; unattached, the copy ends with it. Raises OSError, ENOSYS
    before Linux 5.2.
    """
    tree = lib.ds_clone_tree(_text(path), recursive)
    _check(tree, "open_tree", path)
    return tree


def map_mount(tree: int, user_namespace: int, read_only: bool) -> None:
    """Show the files' owners as the namespace maps them (mount_setattr(2), MOUNT_ATTR_IDMAP).

    tree: of `clone_mount`, not attached yet. Borrows both. Raises OSError: EINVAL for a file
    system that cannot do it, ENOSYS before Linux 5.12.
    """
    result = lib.ds_map_tree(tree, user_namespace, read_only)
    _check(result, "mount_setattr", "the mount's owners")


def attach_mount(tree: int, target: str) -> None:
    """Attach what `clone_mount` has made (move_mount). Borrows `tree`. Raises OSError."""
    _check(lib.ds_attach_tree(tree, _text(target)), "move_mount", target)


def start_in_user_namespace() -> int:
    """Start a process that only keeps a new user namespace alive; its pid.

    It runs none of this program's code. The caller kills it and waits with `wait_for`; it dies
    with the calling thread. Raises OSError.
    """
    pid = lib.ds_be_in_user_namespace()
    _check(pid, "clone3", "a user namespace")
    return pid


def wait_for(pid: int) -> None:
    """Wait for the end of a child, whatever signal that sends. Raises OSError."""
    os.waitpid(pid, lib.__WALL)


def make_core_cookie() -> None:
    """Let our process group share a core with nobody else (prctl(2), PR_SCHED_CORE).

    Raises OSError; EINVAL from a kernel without core scheduling.
    """
    _check(lib.ds_make_core_cookie(), "prctl", "PR_SCHED_CORE")


def loop_get_free(control: int) -> int:
    """The number of a loop device that is free at the moment (LOOP_CTL_GET_FREE).

    Borrows `control`, of /dev/loop-control. Raises OSError.
    """
    return fcntl.ioctl(control, lib.LOOP_CTL_GET_FREE)


def loop_configure(device: int, file: int, name: str, read_only: bool) -> None:
    """Make a free loop device show `file` until its last user has gone (LOOP_CONFIGURE).

    name: what losetup(8) shows. Borrows both. Raises OSError: EBUSY when it is not free any
    more, EINVAL before Linux 5.8.
    """
    config = ffi.new("struct loop_config *")
    config.fd = file
    config.info.lo_flags = lib.LO_FLAGS_AUTOCLEAR | (lib.LO_FLAGS_READ_ONLY if read_only else 0)
    shown = _text(name)[: len(config.info.lo_file_name) - 1]
    config.info.lo_file_name[0 : len(shown)] = shown
    fcntl.ioctl(device, lib.LOOP_CONFIGURE, ffi.buffer(config))


def pty_number(descriptor: int) -> int:
    """Return N of the /dev/pts/N that belongs to a pty master (ioctl_tty(2), TIOCGPTN).

    Borrows `descriptor`. Raises OSError, ENOTTY, for what is not a pty master.
    """
    answer = fcntl.ioctl(descriptor, lib.TIOCGPTN, bytes(4))
    return int(struct.unpack("=I", answer)[0])


def inotify() -> int:
    """Return a new inotify descriptor, non-blocking; the caller owns it.

    Raises OSError, EMFILE, when the user has no instance left.
    """
    descriptor = lib.inotify_init1(lib.IN_CLOEXEC | lib.IN_NONBLOCK)
    _check(descriptor, "inotify_init1", "the user's instances")
    return descriptor


def inotify_watch(descriptor: int, path: str, mask: int) -> int:
    """Report events of `path`, IN_* values in `mask`; returns the watch's number.

    A path that is watched already has the same number again. Borrows `descriptor`. Raises OSError
    naming the call and the path; ENOSPC when the user has no watch left.
    """
    watch = lib.inotify_add_watch(descriptor, _text(path), mask)
    _check(watch, "inotify_add_watch", path)
    return watch


def inotify_unwatch(descriptor: int, watch: int) -> None:
    """Report no more events of a watch. Borrows `descriptor`.

    Raises OSError, EINVAL when the watch has ended by itself, with its file.
    """
    _check(lib.inotify_rm_watch(descriptor, watch), "inotify_rm_watch", f"watch {watch}")


def _text(text: str) -> bytes:
    data = os.fsencode(text)
    if b"\0" in data:
        # C would silently take what stands before it.
        raise ValueError(f"{text!r} holds NUL")
    return data


def _check(result: int, call: str, subject: str) -> None:
    if result < 0:
        number = ffi.errno
        raise OSError(number, f"{call}: {os.strerror(number)}", subject)
