"""The store of containers and snapshots: each call is one short transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from shim.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from shim.metadata import containers, snapshots
from shim.metadata.database import Database
from shim.metadata.filters import Filter
from shim.metadata.reserve import Reserve
from shim.metadata.values import Container, Layer, Orphans, Snapshot

T = TypeVar("T")


def _none_has(id: str) -> bool:
    return False


class Store:
    """What one host knows of containers and snapshots. One process uses a store at a time.

    Any thread may call; a call may wait for the disk, and for another call's transaction.
    Everything raises ResourceExhausted for a full disk, Unavailable for a file that cannot be
    used otherwise, and CorruptState for one that is damaged: nothing has changed then. What
    removes something has a reserve of the disk's space (`make_reserve`).

    The files are another's (design: a directory is made before a record refers to it, and
    removed after the record has gone). A committed snapshot is held by its name until it is
    removed; an inner layer of an image, until nothing is made from it.
    """

    def __init__(self, database: Database, reserve: Reserve) -> None:
        self._database = database
        self._reserve = reserve
        with database.reading() as connection:
            self._newest_before = snapshots.last_allocated(connection)

    @classmethod
    def open(cls, path: Path) -> Store:
        """The store in the file `path`, which is made, and brought up to date, as needed.

        Raises CorruptState for what is no store of this version or an older one, OSError when
        it cannot be made.
        """
        reserve = Reserve(path.with_name(f"{path.name}-reserve"))
        try:
            database = Database(path)
        except ResourceExhausted:
            # SQLite has files of its own beside the database, which it makes first.
            if not reserve.release():
                raise
            database = Database(path)
        reserve.make()
        return cls(database, reserve)

    def close(self) -> None:
        """Close the file. Nothing may be called afterwards."""
        self._database.close()

    def check(self) -> list[str]:
        """What is wrong with the file, for a reader; empty when it is sound."""
        return self._database.check()

    def make_reserve(self) -> None:
        """Keep space for removing something, if there is any and it has been used.

        To be called when files have been removed, too: it does nothing otherwise.
        """
        self._reserve.make()

    def release_reserve(self) -> None:
        """Use that space for what has to be written before anything can be removed."""
        self._reserve.release()

    def create_container(self, container: Container) -> Container:
        """Record a container, and return it as it is recorded.

        Raises InvalidArgument for its id or labels, AlreadyExists, NotFound for its snapshot.
        """
        with self._database.writing() as connection:
            return containers.create(connection, container)

    def get_container(self, id: str) -> Container:
        """Raises NotFound."""
        with self._database.reading() as connection:
            return containers.get(connection, id)

    def list_containers(self, filter: str = "") -> list[Container]:
        """Those that match, by id.

        Raises InvalidArgument for the filter; ResourceExhausted for one that takes too long.
        """
        chosen = Filter(filter)
        with self._database.reading() as connection:
            found = containers.list_all(connection)
        return chosen.select(found)

    def update_container(
        self,
        container: Container,
        mask: Sequence[str] = (),
        has_task: Callable[[str], bool] = _none_has,
    ) -> Container:
        """Change the fields that `mask` names, or all, and return what is recorded then.

        The path labels.KEY is one label, which goes if `container` does not have it. The
        snapshot that a container had as its root stays. `has_task` as in delete_container.
        Raises InvalidArgument for a path, a label; NotFound for the container, its snapshot;
        FailedPrecondition for the root of a task.
        """
        with self._database.writing() as connection:
            before = containers.get(connection, container.id)
            changed = containers.update(connection, container, mask)
            if changed.rootfs != before.rootfs and has_task(container.id):
                raise FailedPrecondition(
                    f"the container {container.id!r} has a task, which runs in its root file "
                    "system; delete that first"
                )
            return changed

    def roommates(self, container: Container) -> list[str]:
        """The ids of other containers whose root is the same snapshot, which can be written to."""
        with self._database.reading() as connection:
            return containers.roommates(connection, container)

    def delete_container(self, id: str, has_task: Callable[[str], bool]) -> tuple[int, ...]:
        """Forget a container with what only it used; the directories that may be removed.

        `has_task` is asked within the transaction, in this thread: it may not block, nor use
        the store. Raises NotFound; FailedPrecondition when it has a task.
        """

        def delete(connection: sqlite3.Connection) -> tuple[int, ...]:
            freed = containers.delete(connection, id)
            if has_task(id):
                raise FailedPrecondition(f"the container {id!r} has a task; delete that first")
            return freed

        return self._freeing(delete)

    def allocate(self) -> int:
        """The number of a directory to be made, never given before."""
        self._reserve.make()
        with self._database.writing() as connection:
            return snapshots.allocate(connection)

    def prepare(self, key: str, parent: str, readonly: bool, directory: int) -> Snapshot:
        """Record an active snapshot, whose `directory` (of `allocate`) is complete.

        Raises InvalidArgument for the key, AlreadyExists, NotFound for the parent,
        FailedPrecondition for a parent that is not committed. The directory is the caller's
        then.
        """
        with self._database.writing() as connection:
            return snapshots.prepare(connection, key, parent, readonly, directory)

    def commit(self, name: str, key: str) -> Snapshot:
        """Make the active snapshot `key` a committed one called `name`, in the same directory.

        Raises NotFound, InvalidArgument for the name, AlreadyExists, FailedPrecondition for
        what is read-only or a container's root.
        """
        with self._database.writing() as connection:
            return snapshots.commit(connection, name, key)

    def add_image(self, layers: Sequence[Layer], config: bytes = b"") -> tuple[int, ...]:
        """Record an image, all layers at once, from the bottom to the top, which has its name.

        An inner layer that is recorded already, on the same parents, is shared; the
        directories that are therefore of no use are returned. Raises AlreadyExists, also for
        an inner layer's name that is another's; InvalidArgument.
        """
        if not layers:
            raise InvalidArgument("an image needs a layer")
        with self._database.writing() as connection:
            return snapshots.add_image(connection, layers, config)

    def remove(self, key: str) -> tuple[int, ...]:
        """Forget a snapshot and the inner layers that only it used; their directories.

        Raises NotFound; FailedPrecondition while a container or a snapshot uses it.
        """
        return self._freeing(lambda connection: snapshots.remove(connection, key))

    def stat(self, key: str) -> Snapshot:
        """Raises NotFound."""
        with self._database.reading() as connection:
            return snapshots.stat(connection, key)

    def list_snapshots(self) -> list[Snapshot]:
        """In the order in which their directories were allocated."""
        with self._database.reading() as connection:
            return snapshots.list_all(connection)

    def chain(self, key: str) -> tuple[int, ...]:
        """The directories from the snapshot's own down to its last ancestor's. Raises NotFound."""
        with self._database.reading() as connection:
            return snapshots.chain(connection, key)

    def image_config(self, key: str) -> bytes:
        """What `add_image` was given for the snapshot or its nearest ancestor that has it.

        Empty when there is none. Raises NotFound.
        """
        with self._database.reading() as connection:
            return snapshots.image_config(connection, key)

    def free_orphans(self, present: Collection[int]) -> Orphans:
        """The start-up pass: compare the records with the directories that are `present`.

        Whatever was allocated since this store was opened is left alone, so that other calls
        may go on.
        """
        newest = self._newest_before
        return self._freeing(lambda connection: snapshots.free_orphans(connection, present, newest))

    def _freeing(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Have `change` made in a transaction, on a full disk with what is kept for that."""
        try:
            with self._database.writing() as connection:
                return change(connection)
        except ResourceExhausted:
            if not self._reserve.release():
                raise
        try:
            with self._database.writing() as connection:
                return change(connection)
        finally:
            # Before somebody else takes it.
            self._database.shrink()
            self._reserve.make()
