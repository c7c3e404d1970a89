"""One container: what is done to it, in which order, and what is remembered of it.

Everything runs on the event loop's thread. What changes the container's state waits its turn in
`_turn`, one queue per container; what only looks, signals or resizes does not. Before a runtime
command starts, its intent is on disk with the id of its spawn, and the new state is written
before the command's record is released: a later front finds out how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from shim.errors import (
    ExecNotReady,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeFailed,
    ShimError,
)
from shim.keeper.client import Child, Held, Spawn
from shim.keeper.command import Command
from shim.model import (
    CheckpointRequest,
    ContainerState,
    Event,
    EventType,
    Exit,
    ProcessInfo,
    Status,
    Stdio,
)
from shim.runtime import Runtime
from shim.service import checkpoint, ending
from shim.service.commands import finish_command, has_succeeded
from shim.service.execs import Execs
from shim.service.host import Home
from shim.service.members import Members
from shim.service.process import Process, ProcessSpec
from shim.service.record import Facts
from shim.service.transitions import Operation, check

_STATUS = {
    "created": Status.CREATED,
    "running": Status.RUNNING,
    "paused": Status.PAUSED,
    "stopped": Status.RUNNING,  # its program has run; that it ended is learned from its exit
}

_log = logging.getLogger(__name__)


class Container:
    """A container that has been created, until it is deleted.

    `init` is its first process; its exit makes the container stopped.
    """

    def __init__(self, home: Home, facts: Facts, runtime: Runtime, init: Process) -> None:
        self.home = home
        self.facts = facts
        self.init = init
        self.runtime = runtime
        self.turn = asyncio.Lock()
        self.deleted = False
        self.execs = Execs(home, facts, self._exec_ended, self._note_kills)
        self.members = Members(home.host, facts)

    # -- looking

    @property
    def status(self) -> Status:
        """The container's state."""
        return self.facts.status if self.init.exit is None else Status.STOPPED

    def state(self) -> ContainerState:
        """From memory; no runtime is asked."""
        processes = [self.init, *self.execs.all()]
        return ContainerState(
            self.facts.id,
            self.facts.bundle,
            self.init.pid,
            self.status,
            tuple(process.info(self.status) for process in processes),
        )

    async def processes(self) -> list[ProcessInfo]:
        """The processes that the kernel has in the container's cgroup.

        A container without a cgroup of its own has those that the shim started.
        """
        known = {process.pid: process for process in self.alive()}
        pids = await self.members.pids() if self.facts.cgroup else sorted(known)
        arguments = await self.members.arguments([pid for pid in pids if pid not in known])
        return [
            known[pid].info(self.status)
            if pid in known
            else ProcessInfo(pid, self.status, arguments[pid])
            for pid in pids
        ]

    async def pids(self) -> list[tuple[int, str]]:
        """The same, as pids and the names of execs: without a look into each process."""
        known = {process.pid: process.exec_id for process in self.alive()}
        pids = await self.members.pids() if self.facts.cgroup else sorted(known)
        return [(pid, known.get(pid, "")) for pid in pids]

    def alive(self) -> list[Process]:
        """The processes that the shim has started, and that have not ended."""
        return [process for process in (self.init, *self.execs.all()) if process.alive]

    def find(self, pid: int) -> Process:
        """The init process or the exec with this pid; 0 is the init. Raises NotFound."""
        if pid in (0, self.init.pid):
            return self.init
        return self.execs.find(pid)

    def named(self, exec_id: str) -> Process:
        """The init process, or the exec of this name. Raises NotFound."""
        return self.execs.named(exec_id) if exec_id else self.init

    # -- its end, as the kernel tells it

    def adopt_init(self, child: Child) -> None:
        """Follow the init process to its end, and its cgroup for OOM kills."""
        self.init.child = child
        self._watch_memory()
        child.exited.add_done_callback(lambda future: self._init_ended(future.result()))

    def _watch_memory(self) -> None:
        try:
            self.home.host.oom.watch(self, self.facts.cgroups, self.facts.oom)
        except OSError as error:
            _log.error("container %s: OOM kills will not be told: %s", self.facts.id, error)

    def announce_init(self) -> None:
        """The start has been told; so may what has come since, and the exit."""
        self.init.announced = True
        self._note_kills()
        if self.init.child is not None and self.init.child.exited.done():
            self._init_ended(self.init.child.exited.result())

    def _init_ended(self, ended: Exit) -> None:
        if not self.init.announced or self.init.exit is not None:
            return
        self.init.exit = ended
        self.init.stdio.process_ended()
        if not self.facts.private_pids and self.facts.namespace:
            self.home.host.later(self._kill_others())
        self._exec_ended()

    async def _kill_others(self) -> None:
        """Without a pid namespace of its own, its other processes survive the init."""
        for process in self.execs.alive():
            assert process.child is not None
            await ending.kill_child(process.child)
        if not self.deleted:
            await self.members.signal_all(signal.SIGKILL)

    def _exec_ended(self) -> None:
        """The init's exit is the last one that is told, if the others end with it."""
        if self.init.exit is None or self.init.over.done():
            return
        if self.execs.alive() and (self.facts.private_pids or self.facts.namespace):
            return
        if self.execs.starting() and self.facts.namespace:
            return
        self._note_kills()
        self.init.end()
        self.commit(EventType.EXIT)

    def _note_kills(self) -> None:
        """What comes next is told whatever becomes of this."""
        try:
            self.note_oom(self.home.host.oom.check(self))
        except OSError as error:
            _log.error("container %s: OOM kills may be missing: %s", self.facts.id, error)

    def note_oom(self, kills: int) -> None:
        """The kernel counts so many OOM kills in the container's cgroup by now.

        They are told after the start, which may be under way.
        """
        if kills > self.facts.oom and self.init.announced:
            self.facts.oom = kills
            event = Event(self.facts.id, EventType.OOM, self.init.pid)
            self.home.teller.tell(event, self.init.child_id, kills)
            self.save()

    # -- what is remembered

    def save(self) -> None:
        """Write the container's state."""
        self.home.record.save(self.facts, self.init)

    def commit(self, type: EventType | None = None) -> None:
        """Tell what has happened, and write the state that goes with it."""
        if type is not None:
            ended = self.init.exit if type is EventType.EXIT else None
            status, time = (ended.status, ended.time) if ended else (0, 0)
            event = Event(self.facts.id, type, self.init.pid, status, time)
            self.home.teller.tell(event, self.init.child_id)
        self.save()

    # -- commands

    async def _command(
        self,
        operation: Operation,
        request: int,
        run: Callable[[Runtime], Awaitable[object]],
        type: EventType | None,
    ) -> None:
        """Have the runtime do something, in the container's turn, with its intent written down.

        Nothing is done when an earlier front has done it for this very `request`.
        """
        async with self.turn:
            if request and self.facts.request == request:
                return
            check(operation, self.status, self.facts.id)
            try:
                await run(self.runtime.using(self._spawn_as(operation.value, request)))
            except BaseException:
                self.facts.intent = {}
                self.save()
                raise
            self._took_effect(_LEADS_TO.get(operation, self.facts.status), type)

    def _spawn_as(self, name: str, request: int) -> Callable[[Command], Awaitable[Spawn]]:
        async def spawn(command: Command) -> Spawn:
            id = self.home.host.keeper.new_id()
            self.facts.intent = {"command": name, "spawn": id, "request": request}
            self.save()
            return await self.home.commands.spawn(command, id)

        return spawn

    def _took_effect(self, status: Status, type: EventType | None) -> None:
        """The command under way has done its work."""
        self.facts.status = status
        self.facts.request = self.facts.intent.get("request", 0)
        self.facts.intent = {}
        self.commit(type)

    async def start(self, request: int = 0) -> None:
        """Run the program of the created container. Raises FailedPrecondition, RuntimeFailed.

        request: the call, 0 if it is none that may come twice; so below.
        """
        if self.facts.restored and self.init.alive:
            self._start_restored(request)
            return
        await self._command(Operation.START, request, self._start, EventType.START)
        self.announce_init()

    async def _start(self, runtime: Runtime) -> None:
        """An exit that comes meanwhile is told after the start, or after its failure."""
        self.init.announced = False
        try:
            await runtime.start(self.facts.id)
        except BaseException:
            self.announce_init()
            raise

    def _start_restored(self, request: int) -> None:
        """A restored container runs since Create; its caller starts it all the same."""
        self.facts.restored, self.facts.request = False, request
        self.commit(EventType.START)

    async def pause(self, request: int = 0) -> None:
        """Suspend every process. Raises FailedPrecondition, RuntimeFailed."""
        await self._command(
            Operation.PAUSE, request, lambda runtime: runtime.pause(self.facts.id), EventType.PAUSED
        )

    async def resume(self, request: int = 0) -> None:
        """Let every process go on. Raises FailedPrecondition, RuntimeFailed."""
        await self._command(
            Operation.RESUME,
            request,
            lambda runtime: runtime.resume(self.facts.id),
            EventType.RESUMED,
        )

    async def update(self, resources: bytes, request: int = 0) -> None:
        """Set its resources, an OCI LinuxResources as JSON. Raises as `pause` does."""
        await self._command(
            Operation.UPDATE,
            request,
            lambda runtime: runtime.update(self.facts.id, resources),
            None,
        )

    async def checkpoint(self, asked: CheckpointRequest, request: int = 0) -> None:
        """Write an image of the container. Raises InvalidArgument, RuntimeFailed."""
        await self._command(
            Operation.CHECKPOINT,
            request,
            lambda runtime: checkpoint.write(self.home.host.pool, runtime, self.facts, asked),
            None,
        )

    # -- its processes

    async def exec(self, spec: Mapping[str, Any], stdio: Stdio) -> int:
        """Start another process in the container; its pid. Execs do not wait for each other."""
        check(Operation.EXEC, self.status, self.facts.id)
        read = ProcessSpec.read(spec, stdio.terminal)
        if not read.args or not read.cwd.startswith("/"):
            raise InvalidArgument("an exec's process needs args, and an absolute cwd")
        return await self.execs.run(self._exec_runtime(), read, spec, stdio)

    def add_exec(self, exec_id: str, spec: Mapping[str, Any], stdio: Stdio, request: int) -> None:
        """Add an exec, to be started by `start_exec`. Raises AlreadyExists."""
        check(Operation.EXEC, self.status, self.facts.id)
        self.execs.add(exec_id, spec, stdio, request)

    async def start_exec(self, exec_id: str, request: int) -> int:
        """Start an exec that was added; its pid."""
        process = self.execs.named(exec_id)
        if process.request != request:
            if self.status is Status.STOPPED:
                raise ExecNotReady(f"cannot start exec {exec_id}: the container has ended")
            check(Operation.EXEC, self.status, self.facts.id)
        await self.execs.start(self._exec_runtime(), process, request)
        return process.pid

    def close_stdin(self, exec_id: str) -> None:
        """End the shim's hold on a process's stdin, or on what is to be it. Raises NotFound."""
        if exec_id:
            self.execs.close_stdin(self.execs.named(exec_id))
        else:
            self.init.stdio.close_stdin()

    def _exec_runtime(self) -> Runtime:
        return self.runtime.using(self.home.commands.spawn)

    async def kill(self, number: int, pid: int, all: bool) -> None:
        """Signal the init process (pid 0), everything (`all`), or one process of the container.

        Raises NotFound when it has ended or is none of the container's, InvalidArgument for a
        number that is no signal.
        """
        _check_signal(number)
        if all:
            await self._kill_all(number)
        elif self.execs.knows(pid) or pid in (0, self.init.pid):
            await self._signal(self.find(pid), number)
        else:
            await self.members.signal(pid, number)
        await self._thaw_killed(number)

    async def kill_named(self, number: int, exec_id: str, all: bool, request: int) -> None:
        """Signal the init, the exec of this name, or with `all` everything.

        request: the call, which the keeper answers should the front die once it has sent the
        signal.
        """
        if number:  # 0 only asks whether it is there: kill(2)
            _check_signal(number)
        if all and not exec_id:
            await self._kill_all(number)
        else:
            process = self.named(exec_id)
            if exec_id and not process.pid and not process.over.done():
                raise ExecNotReady(f"exec {exec_id} has not been started")
            await self._signal(process, number, request)
        if not exec_id:
            await self._thaw_killed(number)

    async def _thaw_killed(self, number: int) -> None:
        if number == signal.SIGKILL and self.status is Status.PAUSED:
            with contextlib.suppress(FailedPrecondition, RuntimeFailed):
                await self.resume()  # a frozen process dies when it is thawed

    async def _signal(self, process: Process, number: int, request: int = 0) -> None:
        if process.child is None or not process.alive:
            raise NotFound(f"process {process.pid} of container {self.facts.id} has ended")
        await process.child.signal(number, request)

    async def _kill_all(self, number: int) -> None:
        """By the kernel's own list; the runtime, which freezes the cgroup, if it has none."""
        if self.facts.cgroup:
            found = await self.members.signal_all(number)
        else:
            found = self.init.alive
        if not found:
            raise NotFound(f"no process is left in container {self.facts.id}")
        if not self.facts.cgroup:
            runtime = self.runtime.using(self.home.commands.spawn)
            await runtime.kill(self.facts.id, number, all=True)

    # -- its end

    async def forget_exec(
        self, process: Process, answer: Callable[[Exit], None] = lambda _: None
    ) -> Exit:
        """Delete of an exec: drain what it wrote, then forget it.

        `answer` is called with its exit before it is forgotten: a call that the next front gets
        again must not find that there is no such exec. Raises NotFound, FailedPrecondition while
        it lives.
        """
        if process.alive:
            raise FailedPrecondition(
                f"cannot delete process {process.pid}: it is running; kill it first"
            )
        await process.stdio.drain(f"exec {process.pid} of container {self.facts.id}")
        ended = process.exit or Exit(0, 0)
        answer(ended)
        self.execs.forget(process)
        return ended

    async def delete(self, answer: Callable[[Exit], None] = lambda _: None) -> Exit:
        """Kill what is left, deliver its output, free everything; how the init process ended.

        `answer` is called with it before the last record goes. May be repeated when it failed:
        each step accepts that it is done already. Raises NotFound once it has succeeded: what
        is there then may be another container's.
        """
        return await ending.delete(self, answer)

    # -- after an earlier front

    async def settled(self) -> None:
        """Return when what an earlier front had begun has ended."""
        async with self.turn:
            await self.execs.settle()

    async def settle(self, held: Held) -> None:
        """Take the state from the runtime after a command that an earlier front had begun.

        The caller has taken the container's turn, and gives it back.
        """
        facts = self.facts
        command = facts.intent["command"]
        self.init.announced = command != Operation.START.value
        spawn = await finish_command(facts.intent["spawn"], held)
        succeeded = await has_succeeded(spawn)
        before = facts.status
        try:
            found = await self.runtime.using(self.home.commands.spawn).state(facts.id)
            now = _STATUS.get(str(found.get("status")), before)
        except (ShimError, OSError) as error:
            _log.warning("container %s: its state is not known: %s", facts.id, error)
            now = before
        if spawn is not None:
            spawn.release()
        if _happened(command, now) or succeeded:
            self._took_effect(now, _TELLS.get(command))
        else:
            facts.status, facts.intent = now, {}
            self.save()
        self.announce_init()


_LEADS_TO = {
    Operation.START: Status.RUNNING,
    Operation.PAUSE: Status.PAUSED,
    Operation.RESUME: Status.RUNNING,
}
_TELLS = {
    Operation.START.value: EventType.START,
    Operation.PAUSE.value: EventType.PAUSED,
    Operation.RESUME.value: EventType.RESUMED,
}


def _happened(command: str, now: Status) -> bool:
    """Whether the state shows that the command has had its effect."""
    if command == Operation.START.value:
        return now is not Status.CREATED
    return command == Operation.PAUSE.value and now is Status.PAUSED


def _check_signal(number: int) -> None:
    if not 1 <= number <= signal.SIGRTMAX:
        raise InvalidArgument(f"{number} is not a signal: 1 to {int(signal.SIGRTMAX)}")
