"""Create: from a bundle to a container that waits for Start, or to nothing at all."""

from __future__ import annotations

import contextlib
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from shim.cgroup import find
from shim.errors import InvalidArgument, NotFound, ShimError
from shim.keeper.client import Spawn
from shim.keeper.command import Command
from shim.model import CreateRequest, Event, EventType, Status
from shim.mounts import mount_all, unmount_all
from shim.runtime import Runtime, read_pid
from shim.service.bundle import check_id, read_config
from shim.service.commands import Commands
from shim.service.container import FILE_LIMIT, Container
from shim.service.host import Host
from shim.service.launch import launch
from shim.service.process import Process, ProcessSpec
from shim.service.record import ContainerRecord, Facts
from shim.service.stdio import StdioBuilder

# Seconds for a mount: a file system on a network may take its time, but not for ever.
MOUNT_LIMIT = 60.0

_log = logging.getLogger(__name__)


class Creation:
    """One Create. What it has done so far is taken back when it fails."""

    def __init__(
        self, host: Host, record: ContainerRecord, commands: Commands, request: CreateRequest
    ) -> None:
        self._host = host
        self._record = record
        self._commands = commands
        self._request = request
        self._bundle = Path(request.bundle)
        self._facts = Facts(
            request.id, request.bundle, request.runtime, request.no_pivot, mounts=0
        )

    async def run(self) -> Container:
        """The container, created and announced.

        Raises InvalidArgument, RuntimeFailed, FailedPrecondition, ResourceExhausted,
        DeadlineExceeded; nothing of the container is left then.
        """
        check_id(self._request.id)
        _check_images(self._request)
        read = partial(read_config, self._bundle)
        config = await self._host.pool.run(f"read {self._bundle}", FILE_LIMIT, read)
        runtime = await self._find_runtime()
        with StdioBuilder(self._host.keeper, self._host.pool, self._request.stdio) as builder:
            spec = ProcessSpec.read(config.get("process"), self._request.stdio.terminal)
            init = Process(self._host.keeper.new_id(), 0, spec, builder.stdio)
            try:
                return await self._create(runtime, builder, init)
            except BaseException:
                builder.stdio.cut()
                await self._take_back(runtime)
                raise

    async def _take_back(self, runtime: Runtime) -> None:
        """Undo; what fails of it is logged, for the caller has to learn why Create failed."""
        try:
            await undo(self._host, self._record, self._facts, runtime)
        except (ShimError, OSError) as error:
            _log.error("container %s is not wholly taken back: %s", self._facts.id, error)

    async def _find_runtime(self) -> Runtime:
        make = partial(
            Runtime, self._request.runtime, self._bundle, self._host.keeper.spawn, self._host.env
        )
        return await self._host.pool.run("find the runtime", FILE_LIMIT, make)

    async def _create(self, runtime: Runtime, builder: StdioBuilder, init: Process) -> Container:
        self._record.save(self._facts, init)
        descriptors = await builder.open()
        await self._mount(init)
        runtime.pid_file.unlink(missing_ok=True)
        spawn = await launch(
            builder, self._record.directory / "init.tty", self._command(runtime, descriptors, init)
        )
        try:
            init.pid = read_pid(runtime.pid_file)
            child = await self._host.keeper.track(init.pid, spawn, init.child_id)
            cgroup = await self._host.pool.run("find the cgroup", FILE_LIMIT, find, init.pid)
            self._facts.cgroup = cgroup.path if cgroup else ""
            container = Container(self._host, self._record, self._facts, runtime, init)
            self._announce(container)
            container.adopt_init(child)
        finally:
            spawn.release()
        return container

    async def _mount(self, init: Process) -> None:
        """Mount the root file system. The record knows first: who finds it knows what to undo."""
        self._facts.mounts = len(self._request.rootfs)
        self._record.save(self._facts, init)
        rootfs = self._bundle / "rootfs"
        what = f"mount the root file system on {rootfs}"
        undo_late = partial(unmount_all, rootfs)
        try:
            self._facts.mounts = await self._host.pool.run(
                what, MOUNT_LIMIT, mount_all, self._request.rootfs, rootfs,
                late=undo_late,
            )  # fmt: skip
        except ShimError:
            self._facts.mounts = 0  # mount_all takes back its own, and must not touch others
            raise

    def _command(self, runtime: Runtime, descriptors: dict[int, int], init: Process) -> Any:
        request = self._request
        bound = runtime.using(self._spawn_for(init))
        if request.checkpoint:
            run = partial(bound.restore, request.id, Path(request.checkpoint), descriptors)
        else:
            run = partial(bound.create, request.id, descriptors)
        return lambda console: run(console_socket=console, no_pivot=request.no_pivot)

    def _spawn_for(self, init: Process) -> Any:
        async def spawn(command: Command) -> Spawn:
            id = self._host.keeper.new_id()
            self._facts.intent = {"command": "create", "spawn": id}
            self._record.save(self._facts, init)
            return await self._commands.spawn(command, id)

        return spawn

    def _announce(self, container: Container) -> None:
        facts = self._facts
        facts.created, facts.intent = True, {}
        facts.restored = bool(self._request.checkpoint)
        facts.status = Status.RUNNING if facts.restored else Status.CREATED
        container.init.announced = True
        container.commit(Event(facts.id, EventType.CREATE, container.init.pid))


def _check_images(request: CreateRequest) -> None:
    for path in (request.checkpoint, request.parent_checkpoint):
        if path and (not path.startswith("/") or "\0" in path):
            raise InvalidArgument(f"the checkpoint {path!r} is not an absolute path")


async def undo(
    host: Host, record: ContainerRecord, facts: Facts, runtime: Runtime, killed: bool = False
) -> None:
    """Take back a container that did not come to be: runtime state, mounts, files.

    killed: so may have been the runtime itself, with its own work half done.
    Accepts whatever is not there. Each step is tried whatever becomes of the others; then
    raises what the last failing one has raised.
    """
    rootfs = Path(facts.bundle) / "rootfs"
    unmount = partial(unmount_all, rootfs, facts.mounts)
    remove = partial(shutil.rmtree, runtime.work, ignore_errors=True)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(record.clear)
        stack.callback(runtime.pid_file.unlink, missing_ok=True)
        stack.push_async_callback(host.pool.run, "remove CRIU's work", FILE_LIMIT, remove)
        stack.push_async_callback(host.pool.run, f"unmount {rootfs}", FILE_LIMIT, unmount)
        if facts.intent:
            stack.push_async_callback(
                _delete, runtime.using(host.keeper.spawn), facts, killed
            )  # fmt: skip


async def _delete(runtime: Runtime, facts: Facts, killed: bool) -> None:
    """Delete the runtime's container, unless it is somebody else's of the same name.

    One that the runtime does not know may be just in the making, by another's command; but a
    runtime that was killed leaves a directory behind that only its `delete` removes.
    """
    try:
        found = await runtime.state(facts.id)
    except NotFound:
        found = {"bundle": facts.bundle} if killed else {}
    if found.get("bundle") == facts.bundle:
        with contextlib.suppress(NotFound):
            await runtime.delete(facts.id, force=True)
