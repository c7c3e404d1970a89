"""Create: from a bundle to a container that waits for Start, or to nothing at all."""

from __future__ import annotations

import contextlib
import logging
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from shim.cgroup import Cgroup, find
from shim.errors import InvalidArgument, NotFound, ShimError
from shim.keeper.client import Spawn
from shim.keeper.command import Command
from shim.metrics import locate
from shim.model import CreateRequest, EventType, Launcher, Status
from shim.mounts import mount_all, unmount_all
from shim.runtime import Runtime, read_pid
from shim.service.bundle import check_id, has_private_pids, read_config
from shim.service.container import Container
from shim.service.host import FILE_LIMIT, Home
from shim.service.launch import launch
from shim.service.process import Process, ProcessSpec
from shim.service.record import Facts
from shim.service.stdio import StdioBuilder

# Seconds for a mount: a file system on a network may take its time, but not for ever.
MOUNT_LIMIT = 60.0

_log = logging.getLogger(__name__)


class Creation:
    """One Create. What it has done so far is taken back when it fails.

    `address`, `namespace` and `group` are those of Facts; `call` is the call that asked for it,
    0 if it is none that may come twice.
    """

    def __init__(
        self,
        home: Home,
        request: CreateRequest,
        launcher: Launcher,
        *,
        address: str = "",
        namespace: str = "",
        group: int = 0,
        call: int = 0,
    ) -> None:
        self._home = home
        self._host = home.host
        self._request = request
        self._call = call
        self._bundle = Path(request.bundle)
        self._facts = Facts(
            request.id, request.bundle, request.options, launcher, address, namespace, group
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
        self._facts.private_pids = has_private_pids(config)
        runtime = await self._home.runtime(self._facts, self._host.keeper.spawn)
        # A later front need not look for it, on a file system that may hang by then.
        self._facts.options = replace(self._facts.options, runtime=runtime.program)
        stdio = self._request.stdio
        # The services of 2017 show the process; today's does not, and there are many.
        shown = {} if self._facts.address else config.get("process")
        with self._home.builder(self._facts, stdio) as builder:
            spec = ProcessSpec.read(shown, stdio.terminal)
            init = Process(self._host.keeper.new_id(), spec, stdio, builder.stdio)
            try:
                return await self._create(runtime, builder, init)
            except BaseException:
                builder.stdio.cut()
                await self._take_back(runtime)
                raise

    async def _take_back(self, runtime: Runtime) -> None:
        """Undo; what fails of it is logged, for the caller has to learn why Create failed."""
        try:
            await undo(self._home, self._facts, runtime)
        except (ShimError, OSError) as error:
            _log.error("container %s is not wholly taken back: %s", self._facts.id, error)

    async def _create(self, runtime: Runtime, builder: StdioBuilder, init: Process) -> Container:
        self._home.record.save(self._facts, init)
        descriptors = await builder.open()
        await self._mount(init)
        runtime.pid_file.unlink(missing_ok=True)
        console = self._home.record.directory / "init.tty"
        spawn = await launch(builder, console, self._command(runtime, descriptors, init))
        return await complete(self._home, self._facts, runtime, init, spawn, self._request)

    async def _mount(self, init: Process) -> None:
        """Mount the root file system. The record knows first: who finds it knows what to undo."""
        if not self._request.rootfs:
            return
        self._facts.mounts = len(self._request.rootfs)
        self._home.record.save(self._facts, init)
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

    def _command(
        self, runtime: Runtime, descriptors: dict[int, int], init: Process
    ) -> Any:
        request = self._request
        bound = runtime.using(self._spawn_for(init))
        if request.checkpoint:
            run = partial(bound.restore, request.id, Path(request.checkpoint), descriptors)
        else:
            run = partial(bound.create, request.id, descriptors)
        return lambda console: run(console_socket=console)

    def _spawn_for(self, init: Process) -> Any:
        async def spawn(command: Command) -> Spawn:
            id = self._host.keeper.new_id()
            self._facts.intent = {
                "command": "create",
                "spawn": id,
                "request": self._call,
                "asked": asdict(self._request),
            }
            self._home.record.save(self._facts, init)
            return await self._home.commands.spawn(command, id)

        return spawn


async def complete(
    home: Home, facts: Facts, runtime: Runtime, init: Process, spawn: Spawn, request: CreateRequest
) -> Container:
    """The container that the runtime's command `spawn`, which is released, has made.

    Once it has been told that it is created, it is: `recovery` looks at what was told. Raises
    RuntimeFailed, NotFound, DeadlineExceeded.
    """
    try:
        init.pid = read_pid(runtime.pid_file)
        child = await home.host.keeper.track(init.pid, spawn, init.child_id)
        cgroup, facts.cgroups = await home.host.pool.run(
            "find the cgroup", FILE_LIMIT, _find_cgroups, init.pid
        )
        facts.cgroup = cgroup.path if cgroup else ""
        facts.restored = bool(request.checkpoint)
        facts.status = Status.RUNNING if facts.restored else Status.CREATED
        container = Container(home, facts, runtime, init)
        init.announced = True
        home.teller.describe(request)
        container.save()
        facts.request, facts.created, facts.intent = facts.intent["request"], True, {}
        container.commit(EventType.CREATE)
        init.stdio.settle()
        container.adopt_init(child)
    finally:
        spawn.release()
    return container


def _find_cgroups(pid: int) -> tuple[Cgroup | None, dict[str, Any]]:
    return find(pid), locate(pid)


def _check_images(request: CreateRequest) -> None:
    for path in (request.checkpoint, request.parent_checkpoint):
        if path and (not path.startswith("/") or "\0" in path):
            raise InvalidArgument(f"the checkpoint {path!r} is not an absolute path")


async def undo(home: Home, facts: Facts, runtime: Runtime, killed: bool = False) -> None:
    """Take back a container that did not come to be: runtime state, mounts, files.

    killed: so may have been the runtime itself, with its own work half done.
    Accepts whatever is not there. Each step is tried whatever becomes of the others; then
    raises what the last failing one has raised, and the record stays for another attempt.
    """
    host = home.host
    rootfs = Path(facts.bundle) / "rootfs"
    unmount = partial(unmount_all, rootfs, facts.mounts)
    remove = partial(shutil.rmtree, runtime.work, ignore_errors=True)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(runtime.pid_file.unlink, missing_ok=True)
        stack.push_async_callback(host.pool.run, "remove CRIU's work", FILE_LIMIT, remove)
        stack.push_async_callback(host.pool.run, f"unmount {rootfs}", FILE_LIMIT, unmount)
        if facts.intent:
            stack.push_async_callback(
                _delete, runtime.using(host.keeper.spawn), facts, killed
            )  # fmt: skip
    home.record.clear()


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
