"""The Task service of runtime v2: messages to values and back (contract: runtime-v2, 3).

v2 and v3 have the same methods and messages; only the package's name differs. The same methods
are served over ttrpc and, where that is asked for, over gRPC.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shim._pb.containerd.runc.v1 import options_pb2 as runc_pb2
from shim._pb.containerd.task.v3 import task_pb2
from shim._pb.containerd.v2.types import task_pb2 as types_pb2
from shim.api import anys
from shim.api.calls import Call, Handler, Method
from shim.bootstrap.arguments import check_identifier
from shim.bootstrap.options import decode, decode_checkpoint
from shim.errors import (
    ExecNotReady,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeFailed,
)
from shim.model import CreateRequest, Exit, Mount, Status, Stdio
from shim.service.container import Container
from shim.service.groups import Group, Groups
from shim.service.tasks import Tasks

SERVICES: Final = ("containerd.task.v2.Task", "containerd.task.v3.Task")
DETAILS: Final = "containerd.runc.v1.ProcessDetails"

# What a window's size is cut to: struct winsize, ioctl_tty(2).
LARGEST_SIDE: Final = 0xFFFF
# Go's zero time: a process that has not ended (contract: 3.1).
NEVER: Final = Timestamp(seconds=-62135596800)

_STATUS: Final = {
    Status.CREATED: types_pb2.CREATED,
    Status.RUNNING: types_pb2.RUNNING,
    Status.STOPPED: types_pb2.STOPPED,
    Status.PAUSED: types_pb2.PAUSED,
}


class TaskService:
    """The methods of one front, for the containers of all its groups."""

    def __init__(self, tasks: Tasks, groups: Groups) -> None:
        self._tasks = tasks
        self._groups = groups

    def methods(self) -> Mapping[str, Method]:
        """By name, as either version has them."""
        return {name: replace(method, handler=_judged(method)) for name, method in self._all()}

    def _all(self) -> Iterable[tuple[str, Method]]:
        return {
            "Create": Method(task_pb2.CreateTaskRequest, self.create),
            "Start": Method(task_pb2.StartRequest, self.start),
            "Delete": Method(task_pb2.DeleteRequest, self.delete),
            "Exec": Method(task_pb2.ExecProcessRequest, self.exec),
            "ResizePty": Method(task_pb2.ResizePtyRequest, self.resize_pty),
            "State": Method(task_pb2.StateRequest, self.state),
            "Pids": Method(task_pb2.PidsRequest, self.pids),
            "Kill": Method(task_pb2.KillRequest, self.kill),
            "CloseIO": Method(task_pb2.CloseIORequest, self.close_io),
            "Pause": Method(task_pb2.PauseRequest, self.pause),
            "Resume": Method(task_pb2.ResumeRequest, self.resume),
            "Checkpoint": Method(task_pb2.CheckpointTaskRequest, self.checkpoint),
            "Update": Method(task_pb2.UpdateTaskRequest, self.update),
            "Wait": Method(task_pb2.WaitRequest, self.wait, parks=True),
            "Stats": Method(task_pb2.StatsRequest, self.stats),
            "Connect": Method(task_pb2.ConnectRequest, self.connect),
            "Shutdown": Method(task_pb2.ShutdownRequest, self.shutdown),
        }.items()

    def _group(self, call: Call) -> Group:
        group = self._groups.get(call.listener)
        if group is None:
            raise NotFound("this group of containers has been shut down")
        return group

    def _find(self, call: Call, id: str) -> Container:
        return self._tasks.find(self._group(call), id)

    # -- life

    async def create(
        self, call: Call, request: task_pb2.CreateTaskRequest
    ) -> task_pb2.CreateTaskResponse:
        group = self._group(call)
        check_identifier(request.id, "container id")
        container = await self._tasks.create(group, _create_from_pb(request), call.id)
        return task_pb2.CreateTaskResponse(pid=container.init.pid)

    async def start(self, call: Call, request: task_pb2.StartRequest) -> task_pb2.StartResponse:
        container = self._find(call, request.id)
        if request.exec_id:
            pid = await container.start_exec(request.exec_id, call.id)
            return task_pb2.StartResponse(pid=pid)
        await container.start(call.id)
        return task_pb2.StartResponse(pid=container.init.pid)

    async def delete(self, call: Call, request: task_pb2.DeleteRequest) -> task_pb2.DeleteResponse:
        container = self._find(call, request.id)
        process = container.named(request.exec_id)

        def answer(ended: Exit) -> None:
            call.answer(_deleted(process.pid, ended))

        if request.exec_id:
            ended = await container.forget_exec(process, answer)
        else:
            ended = await self._tasks.delete(container, answer)
        return _deleted(process.pid, ended)

    async def exec(self, call: Call, request: task_pb2.ExecProcessRequest) -> Empty:
        container = self._find(call, request.id)
        check_identifier(request.exec_id, "exec id")
        stdio = Stdio(request.terminal, request.stdin, request.stdout, request.stderr)
        container.add_exec(request.exec_id, _json(request.spec.value), stdio, call.id)
        return Empty()

    async def pause(self, call: Call, request: task_pb2.PauseRequest) -> Empty:
        await self._find(call, request.id).pause(call.id)
        return Empty()

    async def resume(self, call: Call, request: task_pb2.ResumeRequest) -> Empty:
        await self._find(call, request.id).resume(call.id)
        return Empty()

    async def update(self, call: Call, request: task_pb2.UpdateTaskRequest) -> Empty:
        container = self._find(call, request.id)
        _json(request.resources.value)
        await container.update(request.resources.value, call.id)
        return Empty()

    async def checkpoint(self, call: Call, request: task_pb2.CheckpointTaskRequest) -> Empty:
        container = self._find(call, request.id)
        options = request.options if request.HasField("options") else None
        asked = decode_checkpoint(options, request.path)
        await container.checkpoint(asked, call.id)
        return Empty()

    # -- processes

    async def kill(self, call: Call, request: task_pb2.KillRequest) -> Empty:
        container = self._find(call, request.id)
        await container.kill_named(request.signal, request.exec_id, request.all, call.id)
        return Empty()

    async def wait(self, call: Call, request: task_pb2.WaitRequest) -> task_pb2.WaitResponse:
        process = self._find(call, request.id).named(request.exec_id)
        ended = await asyncio.shield(process.over)
        return task_pb2.WaitResponse(exit_status=ended.status, exited_at=_time(ended))

    async def close_io(self, call: Call, request: task_pb2.CloseIORequest) -> Empty:
        container = self._find(call, request.id)
        container.named(request.exec_id)
        if request.stdin:
            container.close_stdin(request.exec_id)
        return Empty()

    async def resize_pty(self, call: Call, request: task_pb2.ResizePtyRequest) -> Empty:
        process = self._find(call, request.id).named(request.exec_id)
        width, height = request.width & LARGEST_SIDE, request.height & LARGEST_SIDE
        await process.stdio.resize(width, height)
        return Empty()

    # -- looking

    async def state(self, call: Call, request: task_pb2.StateRequest) -> task_pb2.StateResponse:
        container = self._find(call, request.id)
        process = container.named(request.exec_id)
        response = task_pb2.StateResponse(
            id=request.exec_id or container.facts.id,
            bundle=container.facts.bundle,
            pid=process.pid,
            status=_STATUS[process.status(container.status)],
            stdin=process.paths.stdin,
            stdout=process.paths.stdout,
            stderr=process.paths.stderr,
            terminal=process.paths.terminal,
            exited_at=NEVER,
        )
        if process.exit is not None:
            response.exit_status = process.exit.status
            response.exited_at.FromNanoseconds(process.exit.time)
        return response

    async def pids(self, call: Call, request: task_pb2.PidsRequest) -> task_pb2.PidsResponse:
        found = await self._find(call, request.id).pids()
        return task_pb2.PidsResponse(processes=[_process_to_pb(*one) for one in found])

    async def stats(self, call: Call, request: task_pb2.StatsRequest) -> task_pb2.StatsResponse:
        container = self._find(call, request.id)
        message, url = container.home.host.gauges.read(container, container.facts.cgroups)
        return task_pb2.StatsResponse(stats=anys.pack(message, url))

    async def connect(
        self, call: Call, request: task_pb2.ConnectRequest
    ) -> task_pb2.ConnectResponse:
        try:
            pid = self._find(call, request.id).init.pid
        except NotFound:
            pid = 0
        return task_pb2.ConnectResponse(shim_pid=os.getppid(), task_pid=pid)

    async def shutdown(self, call: Call, request: task_pb2.ShutdownRequest) -> Empty:
        """The group goes, unless it still has containers."""
        group = self._groups.get(call.listener)
        if group is not None and not self._tasks.uses(group):
            call.answer(Empty())
            await self._groups.close(group)
        return Empty()


def _create_from_pb(message: task_pb2.CreateTaskRequest) -> CreateRequest:
    options = decode(message.options if message.HasField("options") else None)
    return CreateRequest(
        id=message.id,
        bundle=message.bundle,
        stdio=Stdio(message.terminal, message.stdin, message.stdout, message.stderr),
        options=options.runtime,
        rootfs=tuple(
            Mount(mount.type, mount.source, mount.target, tuple(mount.options))
            for mount in message.rootfs
        ),
        checkpoint=message.checkpoint,
        parent_checkpoint=message.parent_checkpoint,
    )


def _json(value: bytes) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the request's JSON cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise InvalidArgument(f"the request has a JSON {type(found).__name__}, not an object")
    return found


def _deleted(pid: int, ended: Exit) -> task_pb2.DeleteResponse:
    return task_pb2.DeleteResponse(pid=pid, exit_status=ended.status, exited_at=_time(ended))


def _time(ended: Exit) -> Timestamp:
    """When it ended; never, for what was not even started."""
    if not ended.time:
        return NEVER
    stamp = Timestamp()
    stamp.FromNanoseconds(ended.time)
    return stamp


def _process_to_pb(pid: int, exec_id: str) -> types_pb2.ProcessInfo:
    message = types_pb2.ProcessInfo(pid=pid)
    if exec_id:
        details = runc_pb2.ProcessDetails(exec_id=exec_id)
        message.info.CopyFrom(anys.pack(details, DETAILS))
    return message


def _judged(method: Method) -> Handler:
    """The handler, whose errors for a wrong state are UNKNOWN (contract: runtime-v2, 3.2)."""

    async def handler(call: Call, request: Any) -> Message:
        try:
            return await method.handler(call, request)
        except ExecNotReady:
            raise
        except FailedPrecondition as error:
            raise RuntimeFailed(str(error)) from error

    return handler
