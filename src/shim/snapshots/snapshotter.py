"""The directories of snapshots, next to their records in `shim.metadata`.

ROOT/NUMBER/fs has the files and ROOT/NUMBER/work is overlay's. A directory is complete before a
record refers to it, and is removed after the record has gone; `clean` removes what a dead process
has left in between. Without overlay each snapshot is a copy of all that it shows.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from shim.errors import FailedPrecondition, InvalidArgument, NotFound, ShimError, Unavailable
from shim.metadata.store import Store
from shim.metadata.values import Kind, Orphans, Snapshot
from shim.model import Mount
from shim.snapshots import disk, overlay, walk
from shim.snapshots.limits import Budget, Limits, Meter
from shim.snapshots.refusal import refusal
from shim.snapshots.tree import Tree
from shim.snapshots.unpack import copy_tree
from shim.snapshots.walk import Usage

_FORM: Final = "form"
_OVERLAY: Final = "overlay"
_COPIES: Final = "copies"
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A mount's options have a language of their own, in which these mean something.
_FORBIDDEN: Final = re.compile(r"[,:\\\0]")

# A container may have made what is copied: it is bounded by the disk alone.
_NO_LIMITS: Final = Limits(bytes=1 << 62, entries=1 << 62)

_log = logging.getLogger(__name__)


class Snapshotter:
    """The snapshots in one directory. Any thread may call; the store is borrowed.

    `why_copies` tells why snapshots are copies, and is empty with overlay. Beside what a method
    names, everything raises ResourceExhausted for a full disk, FailedPrecondition for other
    errors of the file system, and what Store raises.
    """

    def __init__(self, root: Path, store: Store, why_copies: str) -> None:
        self.root = root
        self.store = store
        self.why_copies = why_copies

    @classmethod
    def open(cls, root: Path, store: Store) -> Snapshotter:
        """The snapshots in `root`, which is made if it is missing; its parent must exist.

        How they are kept is decided once, by what works then. Raises InvalidArgument for a path
        that is not absolute or has a comma, colon or backslash; FailedPrecondition when overlay
        works no more although snapshots need it.
        """
        if not root.is_absolute() or _FORBIDDEN.search(str(root)):
            raise InvalidArgument(
                f"snapshots cannot be kept in {str(root)!r}: it has to be an absolute path without "
                "comma, colon and backslash"
            )
        with _telling(f"keep snapshots in {root}"):
            root.mkdir(mode=0o700, exist_ok=True)
            os.chmod(root, 0o700)  # containers' set-uid programs are in it
            store.release_reserve()  # an attempt with overlay writes
            why_copies = _decide(root)
            store.make_reserve()
        if why_copies:
            _log.warning("snapshots in %s are plain copies: %s", root, why_copies)
        return cls(root, store, why_copies)

    def clean(self) -> Orphans:
        """The start-up pass: remove what dead processes have left, and what has gone from disk.

        Other calls may go on meanwhile. A directory that cannot be removed is logged.
        """
        with _telling(f"look at {self.root}"):
            present = [int(name) for name in os.listdir(self.root) if _NUMBER.fullmatch(name)]
        orphans = self.store.free_orphans(present)
        self.discard(orphans.directories)
        for snapshot in self.store.list_snapshots():
            if snapshot.kind is Kind.COMMITTED:
                self._remove_work(snapshot.directory)
        for key in orphans.damaged:
            _log.error("the snapshot %r has lost its directory, and is still used", key)
        return orphans

    def prepare(self, key: str, parent: str = "") -> tuple[Mount, ...]:
        """Make an active snapshot of what `parent` shows, or an empty one; its mounts.

        Raises InvalidArgument, AlreadyExists, NotFound, FailedPrecondition as Store does.
        """
        return self._make(key, parent, readonly=False)

    def view(self, key: str, parent: str = "") -> tuple[Mount, ...]:
        """The same for looking only."""
        return self._make(key, parent, readonly=True)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """What has to be mounted, in order, to see an active snapshot.

        Raises NotFound, FailedPrecondition for a committed one.
        """
        snapshot = self.store.stat(key)
        if snapshot.kind is not Kind.ACTIVE:
            raise FailedPrecondition(
                f"the snapshot {key!r} is committed; prepare or view one of it, and mount that"
            )
        return self._mounts(self.store.chain(key), snapshot.readonly)

    def commit(self, name: str, key: str) -> Snapshot:
        """Make an active snapshot a committed one called `name`; nobody may write to it any more.

        Raises what Store raises.
        """
        self.flush()
        snapshot = self.store.commit(name, key)
        self._remove_work(snapshot.directory)
        return snapshot

    def remove(self, key: str) -> None:
        """Forget a snapshot, with the layers that only it used. Raises what Store raises."""
        self.discard(self.store.remove(key))

    def usage(self, key: str) -> Usage:
        """What the snapshot itself takes, without those below it.

        Raises NotFound; Unavailable when its directories are moved meanwhile.
        """
        path = self.files(self.store.stat(key).directory)
        with self._opened(path, key) as directory:
            return walk.usage(directory)

    def discard(self, directories: Sequence[int]) -> None:
        """Remove directories that no record refers to any more; what fails is logged.

        For what Store.delete_container, too, has given. The next start-up pass tries again.
        """
        for number in directories:
            try:
                self._remove_directory(number)
            except OSError as error:
                _log.warning("cannot remove %s: %s", self.root / str(number), error)
        self.store.make_reserve()

    def flush(self) -> None:
        """Wait until all that was written is on the disk, before a record says that it is there."""
        with _telling(f"write {self.root} to the disk"):
            disk.flush(self.root)

    def files(self, number: int) -> Path:
        """Where the files of that directory are."""
        return self.root / str(number) / "fs"

    @contextmanager
    def new(self) -> Iterator[list[int]]:
        """Collects the directories that are made in the block; if that fails, they go again."""
        made: list[int] = []
        try:
            yield made
        except BaseException:
            self.discard(made)
            raise

    def make_directory(self, made: list[int], work: bool = False) -> int:
        """Make the directory of a new snapshot, empty; its number, which is added to `made`.

        work: it will be written to through overlay.
        """
        number = self.store.allocate()
        made.append(number)
        path = self.root / str(number)
        with _telling(f"make {path}"):
            path.mkdir(mode=0o700)
            for name in ("fs", "work") if work else ("fs",):
                (path / name).mkdir(mode=0o755)
                (path / name).chmod(0o755)
        return number

    def open_files(self, numbers: Sequence[int], stack: ExitStack) -> list[int]:
        """Open these directories until the end of `stack`."""
        opened = []
        for number in numbers:
            with _telling(f"open {self.files(number)}"):
                opened.append(os.open(self.files(number), _DIRECTORY))
            stack.callback(os.close, opened[-1])
        return opened

    def _make(self, key: str, parent: str, readonly: bool) -> tuple[Mount, ...]:
        below = self.store.chain(parent) if parent else ()
        with self.new() as made:
            number = self.make_directory(made, work=not readonly)
            self._begin(number, below, readonly)
            mounts = self._mounts((number, *below), readonly)
            self.store.prepare(key, parent, readonly, number)
        if self.store.chain(key) != (number, *below):
            self.remove(key)
            raise Unavailable(f"the snapshot {parent!r} was replaced meanwhile; try again")
        return mounts

    def _begin(self, number: int, below: Sequence[int], readonly: bool) -> None:
        """Let a new directory look like what is below it."""
        with ExitStack() as stack:
            own, *lowers = self.open_files((number, *below[:1]), stack)
            if lowers and not readonly and self.why_copies:
                tree = Tree(own, Budget(_NO_LIMITS))
                copy_tree(lowers[0], tree, Meter(None, "", 0))
            else:
                tree = Tree(own, Budget(_NO_LIMITS), lowers)
            tree.finish()

    def _mounts(self, chain: Sequence[int], readonly: bool) -> tuple[Mount, ...]:
        own, *below = chain
        files = self.files(own)
        if readonly:
            lowers = below[:1] if self.why_copies else below
            return overlay.mounts([self.files(n) for n in lowers] or [files], None, None)
        if self.why_copies:
            return (overlay.bind(files, read_only=False),)
        work = files.with_name("work")
        return overlay.mounts([self.files(number) for number in below], files, work)

    @contextmanager
    def _opened(self, path: Path, key: str) -> Iterator[int]:
        try:
            directory = os.open(path, _DIRECTORY)
        except FileNotFoundError as error:
            raise NotFound(f"the files of the snapshot {key!r} are gone from {path}") from error
        except OSError as error:
            raise refusal(f"open {path}", error) from error
        try:
            yield directory
        finally:
            os.close(directory)

    def _remove_directory(self, number: int) -> None:
        root = os.open(self.root, _DIRECTORY)
        try:
            walk.remove(root, str(number))
        finally:
            os.close(root)

    def _remove_work(self, number: int) -> None:
        """Remove what overlay needs for writing only; what fails is logged."""
        try:
            directory = os.open(self.root / str(number), _DIRECTORY)
            try:
                walk.remove(directory, "work")
            finally:
                os.close(directory)
        except OSError as error:
            _log.warning("cannot remove overlay's work of %s: %s", self.root / str(number), error)


def _decide(root: Path) -> str:
    """Why snapshots in `root` are copies, or empty. Raises OSError, FailedPrecondition."""
    why_not = overlay.why_not(root)
    form = root / _FORM
    try:
        kept = form.read_text().strip()
    except FileNotFoundError:
        kept = _COPIES if why_not else _OVERLAY
        temporary = root / f".{_FORM}"
        temporary.write_text(f"{kept}\n")
        temporary.rename(form)
    if kept == _OVERLAY and why_not:
        raise FailedPrecondition(
            f"the snapshots in {root} need overlay, which does not work any more: {why_not}; "
            "load its module, or keep new snapshots elsewhere"
        )
    if kept == _COPIES:
        return why_not or "overlay did not work when they were begun"
    return ""


@contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except ShimError:
        raise
    except OSError as error:
        raise refusal(what, error) from error
