"""The execs of one container. They are started side by side; none waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shim.errors import AlreadyExists, FailedPrecondition, NotFound, RuntimeFailed, ShimError
from shim.keeper.client import Child, Held, Spawn
from shim.keeper.command import Command
from shim.model import Event, EventType, Exit, Stdio
from shim.runtime import Runtime, read_pid
from shim.service.commands import finish_command, has_succeeded
from shim.service.host import Home
from shim.service.launch import launch
from shim.service.process import Process, ProcessSpec
from shim.service.record import Facts

_KILLED = 128 + signal.SIGKILL

_log = logging.getLogger(__name__)


class Execs:
    """The execs that have been added and not yet been deleted, by name and by pid.

    Those of the service of 2017 have no name, and are started as they are added. A pid that the
    kernel has given again belongs to the younger process: the elder has ended. `ended` is
    called when one has, and when one that was being started is, or is not; `killed` before the
    exit of one is told that SIGKILL has ended.
    """

    def __init__(
        self,
        home: Home,
        facts: Facts,
        ended: Callable[[], None],
        killed: Callable[[], None],
    ) -> None:
        self._home = home
        self._facts = facts
        self._ended_one = ended
        self._killed_one = killed
        self._all: dict[int, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._by_name: dict[str, Process] = {}
        self._starting: dict[int, asyncio.Future[None]] = {}

    def all(self) -> list[Process]:
        """In the order in which they were added."""
        return list(self._all.values())

    def alive(self) -> list[Process]:
        """Those that run."""
        return [process for process in self._all.values() if process.alive]

    def knows(self, pid: int) -> bool:
        """Whether an exec has, or had, this pid."""
        return pid in self._by_pid

    def find(self, pid: int) -> Process:
        """The exec with this pid. Raises NotFound."""
        if pid not in self._by_pid:
            raise NotFound(f"no process {pid} in container {self._facts.id}")
        return self._by_pid[pid]

    def named(self, exec_id: str) -> Process:
        """The exec of this name. Raises NotFound."""
        if exec_id not in self._by_name:
            raise NotFound(f"no exec {exec_id[:100]!r} in container {self._facts.id}")
        return self._by_name[exec_id]

    def close_stdin(self, process: Process) -> None:
        """End the shim's hold on an exec's stdin; one that is started later gets none."""
        process.stdio.close_stdin()
        if not process.pid and process.child_id not in self._starting:
            self._home.record.save_exec(process)

    def forget(self, process: Process) -> None:
        """Forget an exec that does not run. Raises NotFound when that has been done."""
        if self._all.pop(process.child_id, None) is None:
            raise NotFound(f"exec {process.pid} of container {self._facts.id} has been deleted")
        if self._by_pid.get(process.pid) is process:
            del self._by_pid[process.pid]
        self._by_name.pop(process.exec_id, None)
        self._home.record.remove_exec(process)
        if process.child is not None:
            process.child.forget()
        process.end()

    def starting(self) -> bool:
        """Whether one is being started."""
        return bool(self._starting)

    async def settle(self) -> None:
        """Wait until none is being started."""
        if self._starting:
            await asyncio.wait(self._starting.values())

    # -- adding

    def add(self, exec_id: str, spec: Mapping[str, Any], stdio: Stdio, request: int) -> None:
        """Add an exec that `start` will start, for the call `request`.

        Raises AlreadyExists, unless that very call has done it before.
        """
        known = self._by_name.get(exec_id)
        if known is not None and known.request == request != 0:
            return
        if known is not None or exec_id == self._facts.id:
            raise AlreadyExists(f"id {exec_id}: already exists")
        process = self._make(ProcessSpec(terminal=stdio.terminal), spec, stdio, exec_id)
        process.request = request
        self._tell(EventType.EXEC_ADDED, process)
        self._home.record.save_exec(process)
        self._remember(process)

    async def run(
        self, runtime: Runtime, read: ProcessSpec, spec: Mapping[str, Any], stdio: Stdio
    ) -> int:
        """Add an exec without a name and start it; its pid. Raises what `start` does."""
        process = self._make(read, spec, stdio, "")
        try:
            await self.start(runtime, process)
        except BaseException:
            self._home.record.remove_exec(process)
            raise
        return process.pid

    def _make(
        self, read: ProcessSpec, spec: Mapping[str, Any], stdio: Stdio, exec_id: str
    ) -> Process:
        process = Process(self._home.host.keeper.new_id(), read, stdio, exec_id=exec_id)
        text = json.dumps({**spec, "terminal": stdio.terminal})
        self._home.record.spec_file(process).write_text(text)
        return process

    def _remember(self, process: Process) -> None:
        self._all[process.child_id] = process
        if process.pid:
            self._by_pid[process.pid] = process
        if process.exec_id:
            self._by_name[process.exec_id] = process

    # -- starting

    async def start(self, runtime: Runtime, process: Process, request: int = 0) -> None:
        """Have the runtime start an exec. Raises what the runtime and the streams raise.

        A named one that has failed stays, can be deleted, and is over.
        """
        while process.child_id in self._starting:
            await asyncio.wait((self._starting[process.child_id],))
        if process.pid and process.request == request != 0:
            return
        if process.pid or process.over.done():
            name = process.exec_id or process.pid
            raise FailedPrecondition(f"exec {name} has been started before, or could not be")
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._starting[process.child_id] = started
        process.request = request
        try:
            await self._start(runtime, process)
        except BaseException:
            process.stdio.cut()
            process.end()
            if process.exec_id:
                self._home.record.save_exec(process)
            raise
        finally:
            del self._starting[process.child_id]
            started.set_result(None)
            self._ended_one()

    async def _start(self, runtime: Runtime, process: Process) -> None:
        name = f"exec-{process.child_id}"
        directory = self._home.record.directory
        spec_file, pid_file = self._home.record.spec_file(process), directory / f"{name}.pid"
        try:
            with self._home.builder(self._facts, process.paths, process.exec_id) as builder:
                former, process.stdio = process.stdio, builder.stdio
                process.stdio.input_closed = former.input_closed
                self._home.record.save_exec(process)  # whoever finds it knows its streams
                descriptors = await builder.open()
                former.cut()  # of an earlier front; its client must not see an end before
                command = partial(
                    runtime.using(self._spawn_for(process)).exec,
                    self._facts.id, spec_file, pid_file, descriptors,
                )  # fmt: skip
                spawn = await launch(builder, directory / f"{name}.tty", command)
            try:
                await self._follow(process, spawn, pid_file)
            finally:
                spawn.release()
            spec_file.unlink(missing_ok=True)
        finally:
            pid_file.unlink(missing_ok=True)

    async def _follow(self, process: Process, spawn: Spawn, pid_file: Path) -> None:
        """Have the keeper follow what the runtime's command `spawn` has started, and tell it."""
        pid = read_pid(pid_file)
        child = process.child or await self._home.host.keeper.track(pid, spawn, process.child_id)
        process.pid = pid
        self.announce(process, child)

    def _spawn_for(self, process: Process) -> Callable[[Command], Awaitable[Spawn]]:
        async def spawn(command: Command) -> Spawn:
            id = self._home.host.keeper.new_id()
            self._home.record.save_exec(process, id)
            return await self._home.commands.spawn(command, id)

        return spawn

    def announce(self, process: Process, child: Child) -> None:
        """Tell that the exec runs, and follow it to its end."""
        process.child = child
        process.stdio.settle()
        self._tell(EventType.EXEC_STARTED if process.exec_id else EventType.EXEC_ADDED, process)
        self.adopt(process)

    def adopt(self, process: Process) -> None:
        """Keep an exec that has been announced; take note of its end when it comes."""
        self._remember(process)
        process.announced = True
        self._home.record.save_exec(process)
        if process.child is not None:
            ended = process.child.exited
            ended.add_done_callback(lambda future: self._ended(process, future.result()))

    def _ended(self, process: Process, ended: Exit) -> None:
        if process.exit is not None:
            return  # an earlier front has told it
        if ended.status == _KILLED:
            self._killed_one()
        process.exit = ended
        process.stdio.process_ended()
        self._tell(EventType.EXIT, process)
        process.end()
        self._ended_one()
        if process.child_id in self._all:
            self._home.record.save_exec(process)

    def _tell(self, type: EventType, process: Process) -> None:
        status, time = (process.exit.status, process.exit.time) if process.exit else (0, 0)
        event = Event(self._facts.id, type, process.pid, status, time, process.exec_id)
        # One that was only added is nothing that the keeper knows.
        self._home.teller.tell(event, process.child_id if process.child else 0)

    # -- after an earlier front

    def recover(self, process: Process, spawn: int, held: Held) -> None:
        """Go on with an exec; what became of one that was being started is found out meanwhile."""
        process.child = held.claim(process.child_id)
        if process.pid:
            process.stdio.settle()
        if process.pid or (process.exec_id and not spawn):
            self.adopt(process)
            return
        held.claim(spawn)
        self._remember(process)
        settling = asyncio.ensure_future(self._settle(process, spawn, held))
        self._starting[process.child_id] = settling
        settling.add_done_callback(lambda _: self._settled(process))

    def _settled(self, process: Process) -> None:
        del self._starting[process.child_id]
        self._ended_one()

    async def _settle(self, process: Process, spawn: int, held: Held) -> None:
        try:
            await self._settle_start(process, spawn, held)
        except (ShimError, OSError) as error:
            _log.warning("an exec in container %s did not come to be: %s", self._facts.id, error)
            self._start_failed(process)

    def _start_failed(self, process: Process) -> None:
        """It is as if it had never been started; a repeated call starts it again."""
        if process.exec_id:
            self._home.record.save_exec(process)
        else:
            process.stdio.cut()
            self.forget(process)

    async def _end_unheard(self, process: Process, command: Spawn, pid: int) -> None:
        """Nobody has been told of it, and its terminal has hung up: it would be heard by nobody."""
        child = await self._home.host.keeper.track(pid, command, process.child_id)
        with contextlib.suppress(NotFound):
            await child.signal(signal.SIGKILL)
        await child.exited
        child.forget()

    async def _settle_start(self, process: Process, spawn: int, held: Held) -> None:
        command = await finish_command(spawn, held)
        pid_file = self._home.record.directory / f"exec-{process.child_id}.pid"
        try:
            if command is None or not await has_succeeded(command):
                raise RuntimeFailed("its command did not succeed")
            if process.child is None and not process.stdio.is_whole():
                await self._end_unheard(process, command, read_pid(pid_file))
                raise RuntimeFailed("its terminal was lost")
            await self._follow(process, command, pid_file)
            self._home.record.spec_file(process).unlink(missing_ok=True)
        finally:
            if command is not None:
                command.release()
            pid_file.unlink(missing_ok=True)
