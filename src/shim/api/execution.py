"""The Tasks service over gRPC: what runs of containers (contract: services.execution)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim import places
from shim._pb.containerd.v1.services.execution import execution_pb2 as pb
from shim._pb.containerd.v1.services.execution.execution_pb2_grpc import TasksServicer
from shim._pb.containerd.v1.types import types_pb2
from shim._pb.containerd.v1.types.descriptor_pb2 import Descriptor
from shim.api import convert
from shim.api.containers import spec_of
from shim.api.server import stream_events
from shim.api.serving import answers
from shim.errors import InvalidArgument, Unimplemented
from shim.model import CheckpointRequest, Stdio
from shim.service.container import Container
from shim.standalone.machine import Machine

# A checkpoint on the disk of this machine: its descriptor's digest is the directory's path.
CHECKPOINT: Final = "application/vnd.denseshim.checkpoint.path"


class TasksService(TasksServicer):
    """containerd.v1.services.execution.Tasks, as the generated code wants it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tasks = machine.tasks

    @answers
    async def Create(self, request: pb.CreateRequest) -> pb.CreateResponse:
        rootfs = tuple(map(convert.mount_from_pb, request.rootfs))
        checkpoint = _checkpoint(request) if request.HasField("checkpoint") else ""
        pid = await self._tasks.create(request.container_id, rootfs, _stdio(request), checkpoint)
        return pb.CreateResponse(container_id=request.container_id, pid=pid)

    @answers
    async def Start(self, request: pb.StartRequest) -> Empty:
        await self._tasks.start(request.container_id)
        return Empty()

    @answers
    async def Delete(self, request: pb.DeleteRequest) -> pb.DeleteResponse:
        ended = await self._tasks.delete(request.container_id)
        return pb.DeleteResponse(
            container_id=request.container_id,
            exit_status=ended.status,
            exited_at=convert.timestamp_to_pb(ended.time),
        )

    @answers
    async def Info(self, request: pb.InfoRequest) -> pb.InfoResponse:
        self._tasks.find(request.container_id)
        container = await self._machine.container(request.container_id)
        task = self._tasks.find(request.container_id)
        return pb.InfoResponse(task=_task_to_pb(task, spec_of(container)))

    @answers
    async def List(self, request: pb.ListRequest) -> pb.ListResponse:
        containers = await self._machine.containers()
        specs = {container.id: spec_of(container) for container in containers}
        found = sorted(self._tasks.all(), key=lambda task: task.facts.id)
        return pb.ListResponse(
            tasks=[_task_to_pb(task, specs.get(task.facts.id)) for task in found]
        )

    @answers
    async def Kill(self, request: pb.KillRequest) -> Empty:
        await self._tasks.kill(request.container_id, request.signal, request.pid, request.all)
        return Empty()

    async def Events(
        self, request: pb.EventsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        await stream_events(self._tasks.events(), context)

    @answers
    async def Exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        spec = convert.exec_spec(request.spec)
        pid = await self._tasks.exec(request.container_id, spec, _stdio(request))
        return pb.ExecResponse(pid=pid)

    @answers
    async def Pty(self, request: pb.PtyRequest) -> Empty:
        await self._tasks.resize(
            request.container_id, request.pid, request.width, request.height
        )
        return Empty()

    @answers
    async def CloseStdin(self, request: pb.CloseStdinRequest) -> Empty:
        await self._tasks.close_stdin(request.container_id, request.pid)
        return Empty()

    @answers
    async def Pause(self, request: pb.PauseRequest) -> Empty:
        await self._tasks.pause(request.container_id)
        return Empty()

    @answers
    async def Resume(self, request: pb.ResumeRequest) -> Empty:
        await self._tasks.resume(request.container_id)
        return Empty()

    @answers
    async def Processes(self, request: pb.ProcessesRequest) -> pb.ProcessesResponse:
        found = await self._tasks.processes(request.container_id)
        return pb.ProcessesResponse(processes=map(convert.process_to_pb, found))

    @answers
    async def Checkpoint(self, request: pb.CheckpointRequest) -> pb.CheckpointResponse:
        if request.parent_checkpoint:
            raise Unimplemented("a checkpoint on top of another one cannot be made")
        self._tasks.find(request.container_id)
        image = places.CHECKPOINTS / f"{request.container_id}-{time.time_ns()}"
        await self._tasks.checkpoint(request.container_id, _checkpoint_from_pb(request, image))
        descriptor = Descriptor(media_type=CHECKPOINT, digest=str(image))
        return pb.CheckpointResponse(descriptors=[descriptor])


def _stdio(message: pb.CreateRequest | pb.ExecRequest) -> Stdio:
    return Stdio(message.terminal, message.stdin, message.stdout, message.stderr)


def _checkpoint(request: pb.CreateRequest) -> str:
    if request.checkpoint.media_type != CHECKPOINT:
        raise InvalidArgument(
            f"a checkpoint of type {request.checkpoint.media_type[:100]!r} cannot be restored; "
            f"give {CHECKPOINT}, and the directory's path as the digest"
        )
    return request.checkpoint.digest


def _checkpoint_from_pb(message: pb.CheckpointRequest, image: Path) -> CheckpointRequest:
    return CheckpointRequest(
        image=str(image),
        exit=message.exit,
        allow_tcp=message.allow_tcp,
        allow_unix_sockets=message.allow_unix_sockets,
        allow_terminal=message.allow_terminal,
        file_locks=message.file_locks,
        empty_namespaces=tuple(message.empty_namespaces),
    )


def _task_to_pb(task: Container, spec: AnyMessage | None) -> types_pb2.Task:
    return types_pb2.Task(
        id=task.facts.id,
        container_id=task.facts.id,
        pid=task.init.pid,
        status=convert.status_to_pb(task.status),
        spec=spec,
    )
