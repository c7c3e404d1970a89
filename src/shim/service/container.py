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
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shim.cgroup import Cgroup
from shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeFailed,
    ShimError,
)
from shim.keeper.client import Child, Spawn
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
from shim.mounts import unmount_all
from shim.runtime import Runtime
from shim.service import checkpoint
from shim.service.commands import Commands
from shim.service.execs import Execs
from shim.service.host import Host
from shim.service.process import Process, ProcessSpec
from shim.service.record import ContainerRecord, Facts
from shim.service.transitions import Operation, check

# Seconds for the kernel to end killed processes, and for a call that may hang in a file system.
KILL_LIMIT = 10.0
FILE_LIMIT = 10.0
# Between two looks at a cgroup that empties itself: no version of cgroups tells of every exit.
LOOK_AGAIN = 0.01

_log = logging.getLogger(__name__)


class Container:
    """A container that has been created, until it is deleted.

    `init` is its first process; its exit makes the container stopped.
    """

    def __init__(
        self, host: Host, record: ContainerRecord, facts: Facts, runtime: Runtime, init: Process
    ) -> None:
        self.facts = facts
        self.init = init
        self._host = host
        self._record = record
        self._runtime = runtime
        self._turn = asyncio.Lock()
        self._deleted = False
        self._commands = Commands(host.keeper)
        self.execs = Execs(host, record, facts.id, self._commands)

    # -- looking

    @property
    def status(self) -> Status:
        """The container's state."""
        return self.facts.status if self.init.alive else Status.STOPPED

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
        pids = await self._pids()
        known = {process.pid: process for process in self._alive()}
        strangers = [pid for pid in pids if pid not in known]
        arguments = await self._host.pool.run(
            "read the processes' arguments", FILE_LIMIT, _arguments, strangers
        )
        return [
            known[pid].info(self.status)
            if pid in known
            else ProcessInfo(pid, self.status, arguments[pid])
            for pid in pids
        ]

    def _alive(self) -> list[Process]:
        return [process for process in (self.init, *self.execs.all()) if process.alive]

    async def _pids(self) -> list[int]:
        if not self.facts.cgroup:
            return sorted(process.pid for process in self._alive())
        look = Cgroup(self.facts.cgroup).pids
        return await self._host.pool.run("list the container's processes", FILE_LIMIT, look)

    def find(self, pid: int) -> Process:
        """The init process or the exec with this pid; 0 is the init. Raises NotFound."""
        if pid in (0, self.init.pid):
            return self.init
        return self.execs.find(pid)

    # -- the container's life

    def adopt_init(self, child: Child) -> None:
        """Follow the init process to its end."""
        self.init.child = child
        child.exited.add_done_callback(lambda future: self._init_ended(future.result()))

    def announce_init(self) -> None:
        """The start has been told; so may the exit."""
        self.init.announced = True
        if self.init.child is not None and self.init.child.exited.done():
            self._init_ended(self.init.child.exited.result())

    def _init_ended(self, ended: Exit) -> None:
        if not self.init.announced or not self.init.alive:
            return
        self.init.exit = ended
        self.init.stdio.process_ended()
        event = Event(
            self.facts.id, EventType.EXIT, self.init.pid, ended.status, exited_at=ended.time
        )
        self.commit(event)
        if self.init.child is not None:
            self.init.child.forget()

    def commit(self, event: Event | None = None) -> None:
        """Journal and tell the event, and write the state that goes with it."""
        if event is not None and not self._record.events.holds(event):
            self._record.events.publish(event)
        self._record.save(self.facts, self.init)

    @contextlib.asynccontextmanager
    async def _command(self, operation: Operation) -> AsyncIterator[Runtime]:
        """The container's turn, checked against its state, with its intent written down."""
        async with self._turn:
            check(operation, self.status, self.facts.id)
            try:
                yield self._runtime.using(self._spawn_as(operation.value))
            finally:
                self.facts.intent = {}
                self._record.save(self.facts, self.init)

    def _spawn_as(self, name: str) -> Any:
        async def spawn(command: Command) -> Spawn:
            id = self._host.keeper.new_id()
            self.facts.intent = {"command": name, "spawn": id}
            self._record.save(self.facts, self.init)
            return await self._commands.spawn(command, id)

        return spawn

    async def start(self) -> None:
        """Run the program of the created container. Raises FailedPrecondition, RuntimeFailed."""
        if self.facts.restored and self.init.alive:
            self._start_restored()
            return
        async with self._command(Operation.START) as runtime:
            self.init.announced = False
            try:
                await runtime.start(self.facts.id)
                self.started()
            finally:
                self.announce_init()

    def _start_restored(self) -> None:
        """A restored container runs since Create; its caller starts it all the same."""
        self.facts.restored = False
        self.commit(Event(self.facts.id, EventType.START, self.init.pid))

    def started(self) -> None:
        """Its program runs, or has run already."""
        self.facts.status = Status.RUNNING
        self.facts.intent = {}
        self.commit(Event(self.facts.id, EventType.START, self.init.pid))

    async def pause(self) -> None:
        """Suspend every process. Raises FailedPrecondition, RuntimeFailed."""
        async with self._command(Operation.PAUSE) as runtime:
            await runtime.pause(self.facts.id)
            self.paused()

    def paused(self) -> None:
        """Its processes are suspended."""
        self.facts.status = Status.PAUSED
        self.commit(Event(self.facts.id, EventType.PAUSED, self.init.pid))

    async def resume(self) -> None:
        """Let every process go on. Raises FailedPrecondition, RuntimeFailed."""
        async with self._command(Operation.RESUME) as runtime:
            await runtime.resume(self.facts.id)
            self.facts.status = Status.RUNNING

    async def checkpoint(self, request: CheckpointRequest) -> None:
        """Write an image of the container. Raises InvalidArgument, RuntimeFailed."""
        async with self._command(Operation.CHECKPOINT) as runtime:
            await checkpoint.write(self._host.pool, runtime, self.facts, request)

    # -- its processes

    async def exec(self, spec: Mapping[str, Any], stdio: Stdio) -> int:
        """Start another process in the container; its pid. Execs do not wait for each other."""
        check(Operation.EXEC, self.status, self.facts.id)
        read = ProcessSpec.read(spec, stdio.terminal)
        if not read.args or not read.cwd.startswith("/"):
            raise InvalidArgument("an exec's process needs args, and an absolute cwd")
        return await self.execs.add(self._runtime, read, spec, stdio)

    async def kill(self, number: int, pid: int, all: bool) -> None:
        """Signal the init process (pid 0), everything (`all`), or one process of the container.

        Raises NotFound when it has ended or is none of the container's, InvalidArgument for a
        number that is no signal.
        """
        if not 1 <= number <= signal.SIGRTMAX:
            raise InvalidArgument(f"{number} is not a signal: 1 to {int(signal.SIGRTMAX)}")
        if all:
            await self._kill_all(number)
        elif self.execs.knows(pid) or pid in (0, self.init.pid):
            await self._signal(self.find(pid), number)
        else:
            await self._signal_stranger(pid, number)
        if number == signal.SIGKILL and self.status is Status.PAUSED:
            with contextlib.suppress(FailedPrecondition, RuntimeFailed):
                await self.resume()  # a frozen process dies when it is thawed

    async def _signal(self, process: Process, number: int) -> None:
        if process.child is None or not process.alive:
            raise NotFound(f"process {process.pid} of container {self.facts.id} has ended")
        await process.child.signal(number)

    async def _signal_stranger(self, pid: int, number: int) -> None:
        """A process that the shim did not start: look, hold it, look again, signal it."""
        missing = NotFound(f"no process {pid} in container {self.facts.id}")
        if pid not in await self._pids():
            raise missing
        try:
            held = os.pidfd_open(pid)
        except OSError as error:
            raise missing from error
        try:
            if pid not in await self._pids():
                raise missing
            signal.pidfd_send_signal(held, number)
        except ProcessLookupError as error:
            raise missing from error
        finally:
            os.close(held)

    async def _kill_all(self, number: int) -> None:
        if not self.init.alive and not await self._pids():
            raise NotFound(f"no process is left in container {self.facts.id}")
        runtime = self._runtime.using(self._commands.spawn)
        await runtime.kill(self.facts.id, number, all=True)

    # -- its end

    async def forget_exec(self, pid: int) -> Exit:
        """Delete of an exec: drain what it wrote, then forget it. Raises NotFound,
        FailedPrecondition while it lives."""
        process = self.execs.find(pid)
        if process.exit is None:
            raise FailedPrecondition(f"cannot delete process {pid}: it is running; kill it first")
        await process.stdio.drain(f"exec {pid} of container {self.facts.id}")
        self.execs.forget(process)
        return process.exit

    async def delete(self) -> Exit:
        """Kill what is left, deliver its output, free everything; how the init process ended.

        May be repeated when it failed: each step accepts that it is done already. Raises
        NotFound once it has succeeded: what is there then may be another container's.
        """
        async with self._last_turn():
            if self._deleted:
                raise NotFound(f"container {self.facts.id} has been deleted")
            await self._end_processes()
            await self._drain()
            runtime = self._runtime.using(self._commands.spawn)
            with contextlib.suppress(NotFound):
                await runtime.delete(self.facts.id)
            await self._free()
            self._deleted = True
            assert self.init.exit is not None
            return self.init.exit

    @contextlib.asynccontextmanager
    async def _last_turn(self) -> AsyncIterator[None]:
        """The container's turn; a runtime command that keeps it is killed after KILL_LIMIT."""
        turn = asyncio.ensure_future(self._turn.acquire())
        await asyncio.wait((turn,), timeout=KILL_LIMIT)
        if not turn.done():
            _log.warning("container %s: killing a command that hangs", self.facts.id)
            await self._commands.kill()
        await turn
        try:
            yield
        finally:
            self._turn.release()

    async def _drain(self) -> None:
        """All at once: each takes its time where nobody reads."""
        drains = [
            process.stdio.drain(f"process {process.pid} of container {self.facts.id}")
            for process in (*self.execs.all(), self.init)
        ]
        await asyncio.gather(*drains)

    async def _free(self) -> None:
        rootfs = Path(self.facts.bundle) / "rootfs"
        unmount = partial(unmount_all, rootfs, self.facts.mounts)
        await self._host.pool.run(f"unmount {rootfs}", FILE_LIMIT, unmount)
        self._runtime.pid_file.unlink(missing_ok=True)
        self._record.clear(deleted=self.facts.id)

    async def _end_processes(self) -> None:
        """SIGKILL until the kernel has none left."""
        if self.init.alive and self.init.child is not None:
            with contextlib.suppress(NotFound):
                await self.init.child.signal(signal.SIGKILL)
        if self.facts.status is Status.PAUSED:
            with contextlib.suppress(ShimError):    # it may have died meanwhile; the wait tells
                await self._runtime.using(self._commands.spawn).resume(self.facts.id)
            self.facts.status = Status.RUNNING
        try:
            async with asyncio.timeout(KILL_LIMIT):
                await self._wait_for_exits()
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"cannot delete container {self.facts.id}: its processes do not end, though "
                f"killed {KILL_LIMIT:g} s ago; look for one that waits for a device or file system"
            ) from error

    async def _empty_cgroup(self) -> None:
        while self.facts.cgroup and (pids := await self._pids()):
            for pid in pids:
                with contextlib.suppress(NotFound):
                    await self._signal_stranger(pid, signal.SIGKILL)
            await asyncio.sleep(LOOK_AGAIN)

    async def _wait_for_exits(self) -> None:
        """The init first: once it has ended no exec can begin."""
        if self.init.child is not None:
            await self.init.child.wait()
        await self._commands.kill()
        await self.execs.settle()
        await self._empty_cgroup()
        for process in self._alive():
            if process.child is not None:
                await process.child.wait()


def _arguments(pids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """The arguments of processes that the shim did not start; () for one that has ended.

    Reading them waits for a process that holds its memory map's lock (proc_pid_cmdline(5)).
    """
    return {pid: _arguments_of(pid) for pid in pids}


def _arguments_of(pid: int) -> tuple[str, ...]:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(text.decode(errors="replace").rstrip("\0").split("\0"))
