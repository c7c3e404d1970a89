"""Writing the files of an archive into one directory, and never elsewhere.

Every path is resolved by the kernel as if that directory were / (openat2(2), RESOLVE_IN_ROOT);
the last name is never followed. So it does not matter what links an archive makes first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Final

from shim import syscalls as sc
from shim.errors import InvalidArgument
from shim.snapshots import layers, walk
from shim.snapshots.entry import DEVICES, Entry, Type, parts_of
from shim.snapshots.limits import Budget
from shim.snapshots.refusal import refusal

Content = Iterable[tuple[int, bytes]]

_RESERVED: Final = ("trusted.overlay.", "user.overlay.")

_FIND: Final = os.O_PATH | os.O_DIRECTORY
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NODES: Final = {
    Type.FIFO: stat.S_IFIFO,
    Type.CHARACTER: stat.S_IFCHR,
    Type.BLOCK: stat.S_IFBLK,
}


class Tree:
    """The directory `root`, to be filled.

    lowers: what overlay will have below it, the uppermost first; directories that an archive
    does not mention get their attributes from there. devices: whether an archive may have
    device nodes. Borrows all descriptors.

    Everything raises InvalidArgument for what an archive may not hold, ResourceExhausted for a
    full disk, FailedPrecondition for other errors of the file system.
    """

    def __init__(
        self, root: int, budget: Budget, lowers: Sequence[int] = (), devices: bool = True
    ) -> None:
        self._root = root
        self.budget = budget
        self._lowers = tuple(lowers)
        self._devices = devices
        # A directory's time changes with what is put in it: it is set at the end, if that
        # directory is still the same one.
        self._times: dict[str, tuple[int, int]] = {}
        self._shows_nothing_below = False
        self.lost = 0  # extended attributes that this file system does not take
        with _told("import the root directory"):
            self._inherit(root, ())

    def add(self, entry: Entry, content: Content = ()) -> None:
        """Make a file, or change a directory that is there; what else is there goes."""
        with _told(f"import {entry.name[:200]!r}"):
            parts = parts_of(entry.name)
            self._check(entry)
            self.budget.take_entry()
            self.budget.take_bytes(entry.size if entry.type is Type.FILE else 0)
            if parts:
                with self._made(parts[:-1]) as parent:
                    self._put(parent, parts, entry, content)
            else:
                self._change_root(entry)

    def hide(self, name: str) -> None:
        """Hide what the layers below show of that name; what this layer has of it stays."""
        with _told(f"import the whiteout of {name[:200]!r}"):
            parts = parts_of(name)
            self.budget.take_entry()
            if not parts:
                raise InvalidArgument("a layer may not hide its own root")
            self._hide(parts)

    def hide_below(self, name: str) -> None:
        """Hide all that the layers below show in the directory of that name."""
        with _told(f"import {name[:200]!r} as opaque"):
            parts = parts_of(name)
            self.budget.take_entry()
            if parts:
                self._hide_below(parts)
            elif not self._shows_nothing_below:
                # Overlay does not look whether a root is opaque.
                for inner in sorted({name for lower in self._lowers for name in os.listdir(lower)}):
                    self._hide([inner])
                self._shows_nothing_below = True

    def remove(self, name: str) -> None:
        """Remove what is there of that name, for a layer that is put upon a copy."""
        with _told(f"remove {name[:200]!r}"):
            parts = parts_of(name)
            self.budget.take_entry()
            if not parts:
                raise InvalidArgument("a layer may not remove its own root")
            if isinstance(layers.look(self._root, parts), os.stat_result):
                with self._made(parts[:-1]) as parent:
                    walk.remove(parent, parts[-1])

    def remove_below(self, name: str) -> None:
        """Remove all that is in the directory of that name, if there is one."""
        with _told(f"empty {name[:200]!r}"):
            parts = parts_of(name)
            self.budget.take_entry()
            if _is_directory(layers.look(self._root, parts)):
                with self._made(parts) as directory:
                    walk.remove_below_name(directory, ".")

    def finish(self) -> None:
        """Give the directories their times. Nothing may be added afterwards."""
        with _told("set the times of directories"):
            for path, (inode, time) in self._times.items():
                found = self._find(path)
                if found is not None:
                    try:
                        if os.fstat(found).st_ino == inode:
                            os.utime(f"/proc/self/fd/{found}", ns=(time, time))
                    finally:
                        os.close(found)

    def _check(self, entry: Entry) -> None:
        entry.check()
        if entry.type in DEVICES and not self._devices:
            raise InvalidArgument(f"{entry.name[:200]!r} is a device, which is not allowed here")
        if entry.type is Type.CHARACTER and entry.device == (0, 0):
            raise InvalidArgument(
                f"{entry.name[:200]!r} is the device 0:0, by which overlay hides files; import "
                "what is mounted, or an image with its layers"
            )
        for name in entry.xattrs:
            if name.startswith(_RESERVED):
                raise InvalidArgument(f"{entry.name[:200]!r} has overlay's own attribute {name!r}")

    def _put(self, parent: int, parts: list[str], entry: Entry, content: Content) -> None:
        name = parts[-1]
        if entry.type is Type.DIRECTORY:
            self._put_directory(parent, parts, entry)
        elif entry.type is Type.HARD_LINK:
            self._put_hard_link(parent, name, entry)
        else:
            walk.remove(parent, name)
            self._put_new(parent, name, entry, content)

    def _put_directory(self, parent: int, parts: list[str], entry: Entry) -> None:
        directory = self._make_directory(parent, parts[-1])
        try:
            self._dress(directory, entry)
            self._remember("/".join(parts), directory, entry.mtime)
        finally:
            os.close(directory)

    def _put_new(self, parent: int, name: str, entry: Entry, content: Content) -> None:
        if entry.type is Type.FILE:
            file = os.open(name, _NEW_FILE, 0o600, dir_fd=parent)
            try:
                _fill(file, entry.size, content)
                self._dress(file, entry)
                os.utime(file, ns=(entry.mtime, entry.mtime))
            finally:
                os.close(file)
            return
        if entry.type is Type.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
        else:
            kind = _NODES[entry.type]
            os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=parent)
        self._dress_node(parent, name, entry)

    def _put_hard_link(self, parent: int, name: str, entry: Entry) -> None:
        target = parts_of(entry.link)
        above = self._find("/".join(target[:-1])) if target else None
        if above is None:
            raise InvalidArgument(f"it is a link to {entry.link[:200]!r}, which is not there")
        try:
            facts = os.stat(target[-1], dir_fd=above, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode) or layers.is_whiteout(facts):
                raise InvalidArgument(f"it is a link to {entry.link[:200]!r}, which is no file")
            if _is_same(parent, name, facts):
                return
            walk.remove(parent, name)
            os.link(target[-1], name, src_dir_fd=above, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(above)

    def _change_root(self, entry: Entry) -> None:
        if entry.type is not Type.DIRECTORY:
            raise InvalidArgument(f"the root of the tree is a {entry.type.value}")
        root = os.open(".", _OPEN_DIRECTORY, dir_fd=self._root)
        try:
            self._dress(root, entry)
            self._remember("", root, entry.mtime)
        finally:
            os.close(root)

    def _hide(self, parts: list[str]) -> None:
        # In a directory that shows nothing from below, a whiteout itself would be seen.
        if layers.find(self._lowers, parts) is None:
            return
        own = layers.look(self._root, parts)
        if own is layers.Nothing.BELOW:
            with self._made(parts[:-1]) as parent:
                os.mknod(parts[-1], stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=parent)
        elif _is_directory(own):
            self._make_opaque(parts)

    def _hide_below(self, parts: list[str]) -> None:
        below = layers.find(self._lowers, parts)
        own = layers.look(self._root, parts)
        if below is None or not _is_directory(below.facts):
            return
        if own is layers.Nothing.BELOW or _is_directory(own):
            self._make_opaque(parts)

    def _make_opaque(self, parts: list[str]) -> None:
        with self._made(parts) as found:
            directory = os.open(".", _OPEN_DIRECTORY, dir_fd=found)
            try:
                if layers.is_opaque(directory):
                    return
                os.setxattr(directory, layers.OPAQUE, b"y")
                # There is nothing left to be hidden: they would be seen.
                with closing(walk.walk(directory)) as files:
                    for file in files:
                        if layers.is_whiteout(file.facts):
                            os.unlink(file.names[-1], dir_fd=file.directory)
            finally:
                os.close(directory)

    @contextmanager
    def _made(self, parts: Sequence[str]) -> Iterator[int]:
        """The directory there, made if it is missing; borrowed for the block."""
        found = self._find("/".join(parts))
        missing = len(parts)
        while found is None:
            missing -= 1
            found = self._find("/".join(parts[:missing]))
        try:
            for depth in range(missing, len(parts)):
                below = self._imply(found, parts[: depth + 1])
                os.close(found)
                found = below
            yield found
        finally:
            os.close(found)

    def _find(self, path: str) -> int | None:
        """An O_PATH descriptor of a directory, the caller's; None if there is none."""
        try:
            return sc.open_inside(self._root, path or ".", _FIND)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise

    def _imply(self, parent: int, parts: Sequence[str]) -> int:
        """Make a directory that the archive has not mentioned."""
        self.budget.take_entry()
        path = "/".join(parts)
        try:
            directory = self._make_directory(parent, parts[-1], keep=True)
        except FileExistsError as error:
            raise InvalidArgument(f"{path[:200]!r} is no directory, nor leads to one") from error
        try:
            os.fchmod(directory, 0o755)
            self._inherit(directory, parts)
        finally:
            os.close(directory)
        return sc.open_inside(parent, parts[-1], _FIND | os.O_NOFOLLOW)

    def _make_directory(self, parent: int, name: str, keep: bool = False) -> int:
        """Open the directory `name`, made if need be in the place of what else is there.

        keep: raise FileExistsError for what is there, unless it hides something.
        """
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=parent)
        else:
            if keep and not layers.is_whiteout(found):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
                if self._lowers:
                    # It is new: nothing from below may show up in it.
                    self._set_opaque(parent, name)
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)

    def _set_opaque(self, parent: int, name: str) -> None:
        directory = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
        try:
            os.setxattr(directory, layers.OPAQUE, b"y")
        finally:
            os.close(directory)

    def _inherit(self, directory: int, parts: Sequence[str]) -> None:
        """Give an unmentioned directory what the one has that is seen below."""
        shown = layers.find(self._lowers, parts)
        if shown is not None and _is_directory(shown.facts):
            path = "/".join(parts)
            found = sc.open_inside(shown.layer, path or ".", _FIND)
            try:
                self._copy_attributes(found, shown.facts, directory, path)
            finally:
                os.close(found)

    def _copy_attributes(
        self, source: int, facts: os.stat_result, directory: int, path: str
    ) -> None:
        target = f"/proc/self/fd/{directory}"
        os.chown(target, facts.st_uid, facts.st_gid)
        os.chmod(target, stat.S_IMODE(facts.st_mode))
        self._set_xattrs(target, own_xattrs(f"/proc/self/fd/{source}"))
        self._remember(path, directory, facts.st_mtime_ns)

    def _remember(self, path: str, directory: int, time: int) -> None:
        self._times.pop(path, None)  # the last one counts
        self._times[path] = (os.fstat(directory).st_ino, time)

    def _dress(self, file: int, entry: Entry) -> None:
        """Owner, mode and attributes, in this order: a change of owner takes the others away."""
        os.fchown(file, entry.uid, entry.gid)
        os.fchmod(file, entry.mode)
        self._set_xattrs(f"/proc/self/fd/{file}", entry.xattrs)

    def _dress_node(self, parent: int, name: str, entry: Entry) -> None:
        """The same for what cannot be opened."""
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.type is not Type.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        self._set_xattrs(f"/proc/self/fd/{parent}/{name}", entry.xattrs, follow=False)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _set_xattrs(self, path: str, xattrs: Mapping[str, bytes], follow: bool = True) -> None:
        for name, value in xattrs.items():
            try:
                os.setxattr(path, name, value, follow_symlinks=follow)
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
                self.lost += 1


def own_xattrs(path: str, follow: bool = True) -> dict[str, bytes]:
    """The extended attributes of a file that are not overlay's. Raises OSError."""
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {
        name: os.getxattr(path, name, follow_symlinks=follow)
        for name in names
        if not name.startswith(_RESERVED)
    }


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what an error is about."""
    try:
        yield
    except InvalidArgument as error:
        raise InvalidArgument(f"cannot {what}: {error}") from error
    except OSError as error:
        raise refusal(what, error) from error


def _fill(file: int, size: int, content: Content) -> None:
    """Write the pieces; what lies between them stays a hole."""
    written = 0
    for offset, data in content:
        view = memoryview(data)
        while view:
            count = os.pwrite(file, view, offset)
            offset += count
            view = view[count:]
        written = offset
    if written < size:
        os.ftruncate(file, size)


def _is_directory(found: object) -> bool:
    return isinstance(found, os.stat_result) and stat.S_ISDIR(found.st_mode)


def _is_same(parent: int, name: str, facts: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), facts)
    except FileNotFoundError:
        return False
