"""What a host keeps on disk: the records of containers and snapshots, and the snapshots' files.

One process at a time may use it, which the lock on a file sees to.
"""

from __future__ import annotations

import fcntl
import math
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar, TypeVarTuple

from shim import places
from shim.blocking import BlockingPool
from shim.errors import FailedPrecondition
from shim.metadata.store import Store
from shim.snapshots.snapshotter import Snapshotter
from shim.store import CorruptState

# Seconds for a record, and for another one's record before it.
RECORD_LIMIT: Final = 60.0
# Seconds for the files of a snapshot: without overlay they are copied, and a disk may be slow.
FILES_LIMIT: Final = 3600.0

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Library:
    """An open library. Its calls have threads of their own: no task's streams wait for them."""

    def __init__(self, store: Store, snapshots: Snapshotter, pool: BlockingPool) -> None:
        self.store = store
        self.snapshots = snapshots
        self._pool = pool
        self._imports = BlockingPool()

    @classmethod
    async def open(cls, pool: BlockingPool) -> Library:
        """Open it, and make it if it is not there. The caller has the lock.

        Raises FailedPrecondition, InvalidArgument, ResourceExhausted, DeadlineExceeded.
        """
        return cls(*await pool.run("open the library", RECORD_LIMIT, _open), pool)

    async def record(self, what: str, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """Have a thread read or write records; `what` is as BlockingPool.run has it.

        Raises what `func` raises, FailedPrecondition for a damaged store, DeadlineExceeded.
        """
        return await self._pool.run(what, RECORD_LIMIT, partial(_sound, func, *args))

    async def files(self, what: str, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """The same for what also reads or writes the files of snapshots."""
        return await self._pool.run(what, FILES_LIMIT, partial(_sound, func, *args))

    async def import_in_thread(self, what: str, func: Callable[[*Ts], T], *args: *Ts) -> T:
        """The same for an import, which takes as long as it likes."""
        return await self._imports.run(what, math.inf, partial(_sound, func, *args))

    def close(self) -> None:
        """Close the store. Nothing may be called afterwards."""
        self.store.close()
        self._imports.close()


async def lock(pool: BlockingPool) -> int:
    """Make the library's directory and lock it, once nobody else has it locked.

    The lock is held until the descriptor returned is closed, at the latest by our own death.
    Raises FailedPrecondition.
    """
    file = await pool.run("make the library", RECORD_LIMIT, _prepare)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        # The front before us may be dying still, with a thread in the kernel.
        wait = partial(fcntl.flock, file, fcntl.LOCK_EX)
        await pool.run("lock the library", math.inf, wait, late=lambda _: os.close(file))
    return file


def _prepare() -> int:
    """The lock's file, open."""
    try:
        places.LIBRARY.mkdir(mode=0o700, exist_ok=True)
        facts = places.LIBRARY.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise FailedPrecondition(f"{places.LIBRARY} is not our own directory; remove it")
        places.LIBRARY.chmod(0o700)
        for path in (places.LOGS, places.CHECKPOINTS):
            path.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(places.LOCK, flags, 0o600)
    except OSError as error:
        raise FailedPrecondition(f"cannot make {places.LIBRARY}: {error}") from error


def _open() -> tuple[Store, Snapshotter]:
    try:
        store = Store.open(places.DATABASE)
    except (CorruptState, OSError) as error:
        raise FailedPrecondition(f"{places.DATABASE} cannot be used: {error}") from error
    try:
        return store, Snapshotter.open(places.SNAPSHOTS, store)
    except BaseException:
        store.close()
        raise


def _sound(func: Callable[[*Ts], T], *args: *Ts) -> T:
    try:
        return func(*args)
    except CorruptState as error:
        raise FailedPrecondition(f"the library is damaged: {error}") from error
