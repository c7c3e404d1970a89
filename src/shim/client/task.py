"""The calls about one container's task, of a host that stands on its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from shim._pb.containerd.v1.services.execution import execution_pb2
from shim._pb.denseshim.machine.v1 import machine_pb2
from shim.api import convert
from shim.client.calls import EventStream
from shim.client.channel import Caller, translated
from shim.model import (
    ContainerState,
    Event,
    Exit,
    Mount,
    ProcessInfo,
    Stdio,
)


@dataclass(frozen=True)
class TaskFacts:
    """A container's times, in ns since the epoch, and its task.

    Without a task `pid` is 0; `ended` is None while it runs. `output_open`: its output has not
    ended, or not been read to its end.
    """

    created_at: int
    updated_at: int
    pid: int
    stdio: Stdio
    ended: Exit | None
    bundle: str
    processes: tuple[ProcessInfo, ...]
    output_open: bool


class TaskEvents(EventStream):
    """The events of one task."""

    def __init__(self, call: Any, caller: Caller, id: str) -> None:
        super().__init__(call, caller.socket)
        self._id = id

    async def __anext__(self) -> Event:
        while (event := await super().__anext__()).id != self._id:
            pass
        return event


class TaskClient:
    """The task of container `id`; NotFound from all but `create` when there is none."""

    def __init__(self, id: str, caller: Caller, tasks: Any, machine: Any) -> None:
        self.id = id
        self.socket = caller.socket
        self._caller = caller
        self._tasks = tasks
        self._machine = machine

    async def ready(self, timeout: float) -> None:
        """As Caller's."""
        await self._caller.ready(timeout)

    async def create(
        self,
        stdio: Stdio,
        rootfs: Sequence[Mount] = (),
        *,
        timeout: float | None = None,
    ) -> int:
        """Create the task, not started, and return its pid. AlreadyExists: there is one."""
        request = execution_pb2.CreateRequest(
            container_id=self.id,
            rootfs=map(convert.mount_to_pb, rootfs),
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            terminal=stdio.terminal,
        )
        pid: int = (await self._answer(self._tasks.Create, request, timeout)).pid
        return pid

    async def start(self, *, timeout: float | None = None) -> None:
        """Let the task run."""
        await self._answer(
            self._tasks.Start, execution_pb2.StartRequest(container_id=self.id), timeout
        )

    async def delete(self, *, timeout: float | None = None) -> Exit:
        """Delete the task, which has ended or was never started; how it ended."""
        request = execution_pb2.DeleteRequest(container_id=self.id)
        found = await self._answer(self._tasks.Delete, request, timeout)
        return Exit(found.exit_status, found.exited_at.ToNanoseconds())

    async def facts(self, *, timeout: float | None = None) -> TaskFacts:
        """What is known of the container and its task. NotFound: there is no such container."""
        request = machine_pb2.InspectRequest(container_id=self.id)
        found = await self._answer(self._machine.Inspect, request, timeout)
        ended = found.HasField("exited_at")
        return TaskFacts(
            found.created_at.ToNanoseconds(),
            found.updated_at.ToNanoseconds(),
            found.pid,
            Stdio(found.terminal, found.stdin, found.stdout, found.stderr),
            Exit(found.exit_status, found.exited_at.ToNanoseconds()) if ended else None,
            found.bundle,
            tuple(convert.process_from_pb(process) for process in found.processes),
            found.output_open,
        )

    async def state(self, *, timeout: float | None = None) -> ContainerState:
        """The task, and every process known of it."""
        request = execution_pb2.InfoRequest(container_id=self.id)
        task = (await self._answer(self._tasks.Info, request, timeout)).task
        facts = await self.facts(timeout=timeout)
        status = convert.status_from_pb(task.status)
        return ContainerState(self.id, facts.bundle, task.pid, status, facts.processes)

    async def processes(self, *, timeout: float | None = None) -> tuple[ProcessInfo, ...]:
        """The processes in the container as the kernel sees them."""
        request = execution_pb2.ProcessesRequest(container_id=self.id)
        found = await self._answer(self._tasks.Processes, request, timeout)
        return tuple(convert.process_from_pb(process) for process in found.processes)

    def events(self, *, timeout: float | None = None) -> TaskEvents:
        """Subscribe now to the task's events, first those that nobody has read."""
        call = self._tasks.Events(execution_pb2.EventsRequest(), timeout=timeout)
        return TaskEvents(call, self._caller, self.id)

    async def kill(
        self, signal: int, *, pid: int = 0, all: bool = False, timeout: float | None = None
    ) -> None:
        """Send `signal` to the init process (pid 0), to `pid`, or to all processes."""
        request = execution_pb2.KillRequest(container_id=self.id, signal=signal)
        if all:
            request.all = True
        elif pid:
            request.pid = pid
        await self._answer(self._tasks.Kill, request, timeout)

    async def exec(
        self, spec: Mapping[str, Any], stdio: Stdio, *, timeout: float | None = None
    ) -> int:
        """Run a further process and return its pid; `spec` is an OCI process."""
        value = AnyMessage(type_url=convert.PROCESS_TYPE_URL, value=json.dumps(spec).encode())
        request = execution_pb2.ExecRequest(
            container_id=self.id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=value,
        )
        pid: int = (await self._answer(self._tasks.Exec, request, timeout)).pid
        return pid

    async def pty(self, pid: int, width: int, height: int, *, timeout: float | None = None) -> None:
        """Set the size, in characters, of the terminal of process `pid`."""
        request = execution_pb2.PtyRequest(
            container_id=self.id, pid=pid, width=width, height=height
        )
        await self._answer(self._tasks.Pty, request, timeout)

    async def close_stdin(self, pid: int, *, timeout: float | None = None) -> None:
        """End the host's hold on the stdin of process `pid`."""
        request = execution_pb2.CloseStdinRequest(container_id=self.id, pid=pid)
        await self._answer(self._tasks.CloseStdin, request, timeout)

    async def pause(self, *, timeout: float | None = None) -> None:
        """Freeze every process of the task."""
        request = execution_pb2.PauseRequest(container_id=self.id)
        await self._answer(self._tasks.Pause, request, timeout)

    async def resume(self, *, timeout: float | None = None) -> None:
        """Let a paused task go on."""
        request = execution_pb2.ResumeRequest(container_id=self.id)
        await self._answer(self._tasks.Resume, request, timeout)

    async def _answer(self, method: Any, request: Any, timeout: float | None) -> Any:
        with translated(self.socket):
            return await method(request, timeout=timeout)
