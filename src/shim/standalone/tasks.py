"""Tasks: what runs of a container, at most one for each (contract: shim-v1, Tasks)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from shim import places
from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ShimError,
)
from shim.events import Subscription
from shim.metadata.values import Container as Recorded
from shim.model import (
    CheckpointRequest,
    CreateRequest,
    Exit,
    Mount,
    ProcessInfo,
    RuntimeOptions,
    Stdio,
)
from shim.service.bundle import check_id
from shim.service.container import Container
from shim.service.groups import STANDALONE
from shim.service.host import FILE_LIMIT, Host
from shim.service.process import Process
from shim.service.tasks import Tasks
from shim.standalone.bundle import make_bundle, remove_bundle, remove_io
from shim.standalone.events import TaskEvents
from shim.standalone.library import Library

# What a window's size is given in: struct winsize, ioctl_tty(2).
LARGEST_SIDE: Final = 0xFFFF
# Execs of one task that are remembered when they have ended: somebody may ask how they did.
ENDED_KEPT: Final = 32

_log = logging.getLogger(__name__)


class MachineTasks:
    """The tasks of one library's containers.

    They are containers of the front's Tasks, in a group without a socket: so they survive and
    end as all others do.
    """

    def __init__(
        self, host: Host, tasks: Tasks, library: Library, events: TaskEvents, bundles: Path
    ) -> None:
        self._host = host
        self._tasks = tasks
        self._library = library
        self._events = events
        self._bundles = bundles
        # Of what is being created or deleted: one at a time for each container.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._wanted: Counter[str] = Counter()

    # -- after an earlier front

    async def recover(self) -> None:
        """Go on with what an earlier front has left: execs that will end, bundles of nothing."""
        for container in self.all():
            for process in container.execs.all():
                self._host.later(self._forget_ended(container, process))
        names = os.listdir(self._bundles) if self._bundles.exists() else []
        for id in names:
            self._host.later(self._remove_unused(id))

    async def _remove_unused(self, id: str) -> None:
        try:
            async with self._turn(id):
                there = await self._tasks.settled(STANDALONE, id)
                if there is not None and there.facts.deleting:
                    await self._tasks.delete(there)
                if there is None or there.facts.deleting:
                    await self._leave(id)
        except ShimError as error:
            _log.error("the bundle of container %s stays: %s", id, error)

    # -- looking

    def has_task(self, id: str) -> bool:
        """Whether the container has a task, or is about to get one. Any thread may ask."""
        return self._wanted[id] > 0 or self._tasks.holds(STANDALONE, id)

    def all(self) -> list[Container]:
        """The tasks that there are."""
        return [found for found in self._tasks if found.facts.group == STANDALONE.id]

    def find(self, id: str) -> Container:
        """Raises NotFound."""
        try:
            return self._tasks.find(STANDALONE, id)
        except NotFound as error:
            raise NotFound(f"container {id[:100]!r} has no task") from error

    async def processes(self, id: str) -> list[ProcessInfo]:
        """The processes in the container. Raises NotFound."""
        return await self.find(id).processes()

    def events(self) -> Subscription:
        """A new reader of all tasks' events. The caller closes it. Raises OSError."""
        return self._events.log.subscribe()

    # -- life

    async def create(
        self, id: str, rootfs: tuple[Mount, ...], stdio: Stdio, checkpoint: str = ""
    ) -> int:
        """Create the container's task, on its snapshot unless `rootfs` has mounts; its pid.

        checkpoint: the directory of an image to restore. Raises NotFound for the container,
        AlreadyExists, FailedPrecondition, and what Tasks.create raises; nothing is left then.
        """
        check_id(id)
        self._wanted[id] += 1  # before its record is read: from now on it is not deleted
        try:
            async with self._turn(id):
                return await self._create(id, rootfs, stdio, checkpoint)
        finally:
            self._wanted[id] -= 1
            self._wanted += Counter()  # without zeroes

    async def _create(
        self, id: str, rootfs: tuple[Mount, ...], stdio: Stdio, checkpoint: str
    ) -> int:
        store = self._library.store
        container = await self._library.record("read the container", store.get_container, id)
        there = await self._tasks.settled(STANDALONE, id)
        if there is not None and not there.facts.deleting:
            raise AlreadyExists(f"container {id} has a task already; delete that first")
        if there is not None:
            await self._tasks.delete(there)
        if not rootfs and container.rootfs:
            await self._refuse_roommates(container)
            mounts = self._library.snapshots.mounts
            rootfs = await self._library.record("find the snapshot", mounts, container.rootfs)
        bundle = self._bundles / id
        await self._host.pool.run(
            f"make {bundle}", FILE_LIMIT, make_bundle,
            bundle, container, stdio.terminal, bool(rootfs),
        )  # fmt: skip
        options = RuntimeOptions(runtime=container.runtime, root=str(places.RUNTIME_ROOT))
        request = CreateRequest(
            id, str(bundle), stdio, options, rootfs=rootfs, checkpoint=checkpoint
        )
        try:
            return (await self._tasks.create(STANDALONE, request, call=0)).init.pid
        except ShimError:
            await self._leave(id)
            raise

    async def _refuse_roommates(self, container: Recorded) -> None:
        """What overlay does with one upper directory under two mounts is undefined."""
        roommates = self._library.store.roommates
        found = await self._library.record("look at the snapshot", roommates, container)
        for other in filter(self.has_task, found):
            raise FailedPrecondition(
                f"the root file system of container {container.id} is that of {other}, which has "
                "a task: delete that first, or prepare another snapshot"
            )

    async def start(self, id: str) -> None:
        """Run the task's program. Raises NotFound, FailedPrecondition, RuntimeFailed."""
        await self.find(id).start()

    async def delete(self, id: str) -> Exit:
        """Delete a task that does not run; how it ended.

        Raises NotFound, FailedPrecondition, and what Container.delete raises.
        """
        async with self._turn(id):
            ended = await self._tasks.delete(self.find(id))
            await self._leave(id)
            return ended

    async def _leave(self, id: str) -> None:
        """Remove what was made for the task; what stays is logged, and removed by the next."""
        bundle = self._bundles / id
        try:
            await self._host.pool.run(f"remove {bundle}", FILE_LIMIT, remove_bundle, bundle)
            await self._host.pool.run("remove its FIFOs", FILE_LIMIT, remove_io, id)
        except ShimError as error:
            _log.warning("container %s: %s", id, error)

    @contextlib.asynccontextmanager
    async def _turn(self, id: str) -> AsyncIterator[None]:
        async with self._turns.setdefault(id, asyncio.Lock()):
            yield

    # -- changes

    async def kill(self, id: str, number: int, pid: int, all: bool) -> None:
        """Signal the init, all processes, or one that is in the container. Raises NotFound."""
        await self.find(id).kill(number, pid, all)

    async def pause(self, id: str) -> None:
        """Suspend the task. Raises NotFound, FailedPrecondition."""
        await self.find(id).pause()

    async def resume(self, id: str) -> None:
        """Let the task go on. Raises NotFound, FailedPrecondition."""
        await self.find(id).resume()

    async def exec(self, id: str, spec: Mapping[str, Any], stdio: Stdio) -> int:
        """Start another process; its pid. Nobody can delete it: ended ones are forgotten.

        Raises NotFound, FailedPrecondition, InvalidArgument, and what the runtime raises.
        """
        container = self.find(id)
        pid = await container.exec(spec, stdio)
        self._host.later(self._forget_ended(container, container.find(pid)))
        return pid

    async def _forget_ended(self, container: Container, process: Process) -> None:
        await asyncio.shield(process.over)
        await process.stdio.delivered()
        if container.deleted:
            return
        execs = container.execs.all()
        over = [one for one in execs if one.exit is not None and not one.stdio.is_open()]
        for old in over[:-ENDED_KEPT]:
            with contextlib.suppress(NotFound):
                await container.forget_exec(old)

    async def resize(self, id: str, pid: int, width: int, height: int) -> None:
        """Set the size of a process's terminal, in columns and rows.

        Raises InvalidArgument, NotFound.
        """
        container = self.find(id)
        if pid == 0:
            raise InvalidArgument("Pty needs the pid of a process")
        if not (width <= LARGEST_SIDE and height <= LARGEST_SIDE):
            raise InvalidArgument(f"a terminal of {width} by {height} is too large")
        await container.find(pid).stdio.resize(width, height)

    async def close_stdin(self, id: str, pid: int) -> None:
        """End the shim's hold on a process's stdin. Raises NotFound."""
        self.find(id).find(pid).stdio.close_stdin()

    async def checkpoint(self, id: str, request: CheckpointRequest) -> None:
        """Write an image of the task. Raises NotFound, and what Container.checkpoint raises."""
        await self.find(id).checkpoint(request)
