"""The execs of one container. They are started side by side; none waits for another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from shim.errors import NotFound
from shim.keeper.client import Child, Spawn
from shim.keeper.command import Command
from shim.model import Event, EventType, Exit, Stdio
from shim.runtime import Runtime, read_pid
from shim.service.commands import Commands
from shim.service.host import Host
from shim.service.launch import launch
from shim.service.process import Process, ProcessSpec
from shim.service.record import ContainerRecord
from shim.service.stdio import StdioBuilder


class Execs:
    """The execs that have been started and not yet been deleted, by pid.

    A pid that the kernel has given again belongs to the younger process: the elder has ended.
    """

    def __init__(
        self, host: Host, record: ContainerRecord, container: str, commands: Commands
    ) -> None:
        self._host = host
        self._record = record
        self._container = container
        self._commands = commands
        self._by_pid: dict[int, Process] = {}
        self._starting: set[asyncio.Future[None]] = set()

    def all(self) -> list[Process]:
        """In the order of their start."""
        return list(self._by_pid.values())

    def knows(self, pid: int) -> bool:
        """Whether an exec has, or had, this pid."""
        return pid in self._by_pid

    def find(self, pid: int) -> Process:
        """The exec with this pid. Raises NotFound."""
        if pid not in self._by_pid:
            raise NotFound(f"no process {pid} in container {self._container}")
        return self._by_pid[pid]

    def forget(self, process: Process) -> None:
        """Forget an exec that has ended. Raises NotFound when that has been done."""
        if self.find(process.pid) is not process:
            raise NotFound(f"exec {process.pid} of container {self._container} has been deleted")
        del self._by_pid[process.pid]
        self._record.remove_exec(process)

    async def settle(self) -> None:
        """Wait until none is being started."""
        if self._starting:
            await asyncio.wait(self._starting)

    async def add(
        self, runtime: Runtime, spec: ProcessSpec, process: Mapping[str, Any], stdio: Stdio
    ) -> int:
        """Have the runtime start an exec; its pid. Raises what the runtime and stdio raise."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._starting.add(started)
        try:
            with StdioBuilder(self._host.keeper, self._host.pool, stdio) as builder:
                made = Process(self._host.keeper.new_id(), 0, spec, builder.stdio)
                try:
                    await self._start(runtime, made, builder, process)
                except BaseException:
                    builder.stdio.cut()
                    self._record.remove_exec(made)
                    raise
        finally:
            self._starting.discard(started)
            started.set_result(None)
        return made.pid

    async def _start(
        self, runtime: Runtime, made: Process, builder: StdioBuilder, process: Mapping[str, Any]
    ) -> None:
        name = f"exec-{made.child_id}"
        spec_file = self._record.directory / f"{name}.spec"
        pid_file = self._record.directory / f"{name}.pid"
        spec_file.write_text(json.dumps({**process, "terminal": made.spec.terminal}))
        try:
            descriptors = await builder.open()
            command = partial(
                runtime.using(self._spawn_for(made)).exec,
                self._container, spec_file, pid_file, descriptors,
            )  # fmt: skip
            spawn = await launch(builder, self._record.directory / f"{name}.tty", command)
            try:
                made.pid = read_pid(pid_file)
                child = await self._host.keeper.track(made.pid, spawn, made.child_id)
                self.announce(made, child)
            finally:
                spawn.release()
        finally:
            spec_file.unlink(missing_ok=True)
            pid_file.unlink(missing_ok=True)

    def _spawn_for(self, made: Process) -> Callable[[Command], Awaitable[Spawn]]:
        async def spawn(command: Command) -> Spawn:
            id = self._host.keeper.new_id()
            self._record.save_exec(made, id)
            return await self._commands.spawn(command, id)

        return spawn

    def announce(self, process: Process, child: Child) -> None:
        """Tell that the exec has been added, and follow it to its end."""
        process.child = child
        self._publish(Event(self._container, EventType.EXEC_ADDED, process.pid))
        self.adopt(process)

    def adopt(self, process: Process) -> None:
        """Keep an exec that has been announced; take note of its end when it comes."""
        self._by_pid[process.pid] = process
        process.announced = True
        self._record.save_exec(process)
        if process.child is not None:
            ended = process.child.exited
            ended.add_done_callback(lambda future: self._ended(process, future.result()))

    def _ended(self, process: Process, ended: Exit) -> None:
        process.exit = ended
        process.stdio.process_ended()
        event = Event(
            self._container, EventType.EXIT, process.pid, ended.status, exited_at=ended.time
        )
        self._publish(event)
        if self._by_pid.get(process.pid) is process:
            self._record.save_exec(process)
        if process.child is not None:
            process.child.forget()

    def _publish(self, event: Event) -> None:
        if not self._record.events.holds(event):
            self._record.events.publish(event)
