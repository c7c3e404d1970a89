"""The containers of today's task service (contract: runtime-v2, Task service)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    ShimError,
)
from shim.keeper.client import Held
from shim.model import CreateRequest, Exit, Status
from shim.service.commands import Commands
from shim.service.container import Container
from shim.service.create import Creation
from shim.service.ending import kill_child
from shim.service.groups import STANDALONE, Group, Groups
from shim.service.host import Home, Host
from shim.service.orphan import Orphan
from shim.service.record import ContainerRecord, Facts
from shim.service.recovery import recover, remove_left
from shim.service.stdio import ProcessStdio
from shim.service.teller import Silence, Teller
from shim.store import MISSHAPEN

# Where containerd's runtimes keep their state, by namespace (contract: runtime-v2, 3.4).
RUNTIME_ROOT = "/run/containerd/runc"
# Containers of a dead keeper that are removed at once: each starts two runtime processes.
REMOVALS = 4

# Beside the records: those that could not be read.
DAMAGED = "damaged"

_log = logging.getLogger(__name__)
Key = tuple[str, str, str]


class _Work(NamedTuple):
    """What is being done, for a container of this group."""

    group: int
    task: asyncio.Future[Any]


class Tasks:
    """All containers of one front's groups.

    `teller` makes what tells a container's events to the containerd of its group.
    """

    def __init__(
        self, host: Host, groups: Groups, directory: Path, teller: Callable[[Group, str], Teller]
    ) -> None:
        self._host = host
        self._groups = groups
        self._directory = directory
        self._teller = teller
        self._containers: dict[Key, Container] = {}
        # What is being created or removed; whoever wants the key waits.
        self._busy: dict[Key, _Work] = {}
        self._removals = asyncio.Semaphore(REMOVALS)
        # They stay until somebody has asked for them: nothing else knows their pids then.
        self._orphans: dict[Key, Orphan] = {}
        # Of creations that were taken back: until the call comes again, their clients must not
        # see an end.
        self._former: dict[Key, ProcessStdio] = {}
        self._half_deleted: list[Container] = []  # by an earlier front

    def __len__(self) -> int:
        return len(self._containers) + len(self._busy)

    def __iter__(self) -> Iterator[Container]:
        return iter(self._containers.values())

    def uses(self, group: Group) -> bool:
        """Whether a container of this group is there, or being made."""
        groups = [container.facts.group for container in self]
        groups += [work.group for work in self._busy.values()]
        return group.id in groups

    def holds(self, group: Group, id: str) -> bool:
        """Whether this container is there, being made or being removed. Any thread may ask."""
        key = (group.address, group.namespace, id)
        return key in self._containers or key in self._busy

    async def settled(self, group: Group, id: str) -> Container | None:
        """The container that is there, once it is not being created or removed any more."""
        return await self._settled((group.address, group.namespace, id))

    # -- after an earlier front, or an earlier keeper

    async def recover(self, held: Held) -> None:
        """Go on with what is there; what has to be removed is, meanwhile.

        What is no record is put aside: the others must not suffer from it.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for directory in sorted(self._directory.iterdir()):
            try:
                await self._recover_record(ContainerRecord(directory), held)
            except (*MISSHAPEN, PermissionError) as error:
                _log.error("%s cannot be read, and is put aside: %r", directory, error)
                self._put_aside(directory)

    def go_on(self) -> None:
        """Finish what an earlier front was deleting.

        After the front has said that it is ready: the calls that asked for it join in, for they
        come before any runtime's command can end.
        """
        for container in self._half_deleted:
            self._host.later(self._finish_deleting(container))
        self._half_deleted.clear()

    def _put_aside(self, record: Path) -> None:
        damaged = self._directory.with_name(DAMAGED)
        damaged.mkdir(mode=0o700, exist_ok=True)
        record.rename(damaged / f"{record.name}-{self._host.now()}")

    async def _recover_record(self, record: ContainerRecord, held: Held) -> None:
        if (orphan := record.load_orphan()) is not None:
            home = Home(self._host, record, Silence(), Commands(self._host.keeper))
            facts = Facts.from_state(orphan["facts"])
            execs = [one["process"] for one in record.load_execs()]
            left = Orphan(home, facts, orphan["init"], execs)
            self._orphans[_key_of(facts)] = left
            self._occupy(_key_of(facts), 0, self._remove(left))
        elif (state := record.load()) is not None:
            await self._recover_one(record, Facts.from_state(state["facts"]), held)
        else:
            record.destroy()

    async def _recover_one(self, record: ContainerRecord, facts: Facts, held: Held) -> None:
        group = self._groups.get(facts.group)
        teller = self._teller(group, facts.id) if group else Silence()
        home = Home(self._host, record, teller, Commands(self._host.keeper))
        found = await recover(home, held)
        assert found is not None
        key = _key_of(found.facts)
        if found.rest is not None:
            self._former[key] = found.init.stdio
            self._occupy(key, facts.group, self._finish_creating(key, home, found.rest))
        if found.container is not None:
            self._containers[key] = found.container
            if found.facts.deleting:
                self._half_deleted.append(found.container)

    def _occupy(
        self, key: Key, group: int, work: Coroutine[Any, Any, Any]
    ) -> asyncio.Future[Any]:
        """Nobody else may have the key until the work is done."""
        task = asyncio.ensure_future(work)
        self._busy[key] = _Work(group, task)
        task.add_done_callback(lambda _: self._busy.pop(key))
        return task

    async def _remove(self, orphan: Orphan) -> None:
        """What fails stays in its directory, for the next front to try again."""
        home = orphan.home
        try:
            if orphan.facts.created:
                await orphan.clear()
            await orphan.end_loggers()
            async with self._removals:
                await remove_left(home, orphan.facts)
        except (ShimError, OSError) as error:
            _log.error("%s: not removed: %s", home.record.directory, error)
        else:
            home.record.destroy()
        finally:
            orphan.cleared.set()

    async def _finish_creating(
        self, key: Key, home: Home, rest: Awaitable[Container | None]
    ) -> None:
        try:
            container = await rest
        except (ShimError, OSError) as error:
            _log.error("%s: not removed: %s", home.record.directory, error)
            return
        if container is not None:
            self._containers[key] = container
            self._former.pop(key)
            return
        home.record.destroy()
        if key[:2] == (STANDALONE.address, STANDALONE.namespace):
            self._cut_former(key)  # its client has seen the call fail: it does not come again

    async def _finish_deleting(self, container: Container) -> None:
        """An earlier front had begun; its caller, if still there, joins in."""
        with contextlib.suppress(NotFound):
            try:
                await self.delete(container)
            except ShimError as error:
                _log.error("container %s: not deleted: %s", container.facts.id, error)

    # -- finding

    def find(self, group: Group, id: str) -> Container:
        """Raises NotFound."""
        container = self._containers.get((group.address, group.namespace, id))
        if container is None:
            raise NotFound(f"container {id[:100]!r} not found")
        return container

    # -- life

    async def create(self, group: Group, request: CreateRequest, call: int) -> Container:
        """Create a container, for the call `call`, which may come again.

        Raises AlreadyExists, ResourceExhausted and what Creation does.
        """
        key = (group.address, group.namespace, request.id)
        while (there := await self._settled(key)) is not None and there.facts.deleting:
            await self._delete(there, lambda _: None)
        if there is not None and not call == there.facts.request != 0:
            raise AlreadyExists(f"container {request.id} exists already")
        if there is not None:
            return there
        self._orphans.pop(key, None)
        task = self._occupy(key, group.id, self._create(key, group, request, call))
        container: Container = await asyncio.shield(task)
        return container

    async def _settled(self, key: Key) -> Container | None:
        """The container that is there, once nothing is being created or removed."""
        while key in self._busy:
            await asyncio.wait((self._busy[key].task,))
        return self._containers.get(key)

    async def _create(
        self, key: Key, group: Group, request: CreateRequest, call: int
    ) -> Container:
        options = request.options
        root = f"{options.root or RUNTIME_ROOT}/{group.namespace}"
        request = replace(request, options=replace(options, root=root))
        name = hashlib.sha256("\0".join(key).encode(errors="surrogateescape")).hexdigest()[:16]
        record = ContainerRecord(self._directory / name)
        teller = self._teller(group, request.id)
        home = Home(self._host, record, teller, Commands(self._host.keeper))
        creation = Creation(
            home,
            request,
            group.launcher,
            address=group.address,
            namespace=group.namespace,
            group=group.id,
            call=call,
        )
        try:
            container = await creation.run()
        except (ShimError, OSError) as error:
            if not record.exists():  # it has been taken back wholly
                record.destroy()
            if isinstance(error, ShimError):
                raise
            raise ResourceExhausted(f"cannot create {request.id}: {error}") from error
        finally:
            self._cut_former(key)
        self._containers[key] = container
        return container

    def _cut_former(self, key: Key) -> None:
        former = self._former.pop(key, None)
        if former is not None:
            former.cut()

    async def delete(
        self, container: Container, answer: Callable[[Exit], None] = lambda _: None
    ) -> Exit:
        """Delete a container that does not run; see `Container.delete`."""
        if container.status in (Status.RUNNING, Status.PAUSED) and not container.facts.deleting:
            raise FailedPrecondition("cannot delete a running process")
        return await self._delete(container, answer)

    async def _delete(self, container: Container, answer: Callable[[Exit], None]) -> Exit:
        try:
            ended = await container.delete(answer)
        except NotFound:
            if container.init.exit is None:
                raise
            return container.init.exit  # another call has done it meanwhile
        container.home.record.destroy()
        self._containers.pop(_key_of(container.facts), None)
        return ended

    async def remove(self, address: str, namespace: str, id: str) -> int | None:
        """Delete a container whatever its state, as a launcher's `delete` asks; None: it is gone.

        Its init's pid, when nothing of it is left; of a dead keeper's, no process and no mount:
        containerd asks for all of them at once, and waits for five seconds. Raises what
        `Container.delete` raises.
        """
        key = (address, namespace, id)
        orphan = self._orphans.get(key)
        if orphan is not None:
            await orphan.cleared.wait()
            self._orphans.pop(key, None)
            return orphan.pid
        container = await self._settled(key)
        self._cut_former(key)
        if container is None:
            return None
        for process in container.alive():
            if process.child is not None:
                await kill_child(process.child)
        with contextlib.suppress(NotFound):
            await self._delete(container, lambda _: None)
        return container.init.pid


def _key_of(facts: Facts) -> Key:
    return facts.address, facts.namespace, facts.id
