"""The Machine service over gRPC: what the command line needs beyond the services of 2017."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from shim._pb.denseshim.machine.v1 import machine_pb2 as pb
from shim._pb.denseshim.machine.v1.machine_pb2_grpc import MachineServicer
from shim.api.convert import process_to_pb, timestamp_to_pb
from shim.api.serving import Context, answers, refuse
from shim.errors import InvalidArgument, ShimError
from shim.service.container import Container as Task
from shim.snapshots.imports import Wishes
from shim.standalone.imports import Step
from shim.standalone.machine import Machine
from shim.standalone.usage import Usage, usage


class MachineService(MachineServicer):
    """denseshim.machine.v1.Machine, as the generated code wants it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def Import(
        self, request: pb.ImportRequest, context: Context
    ) -> AsyncIterator[pb.ImportResponse]:
        """A caller that hangs up ends it, and nothing is left of it."""
        try:
            steps = self._machine.import_path(request.name, _path(request), _wishes(request))
            async with aclosing(steps):
                async for step in steps:
                    yield _step_to_pb(step)
        except ShimError as error:
            await refuse(context, error)

    @answers
    async def Image(self, request: pb.ImageRequest) -> pb.ImageResponse:
        found = await self._machine.image(request.name)
        return pb.ImageResponse(name=found.name, config=found.config)

    @answers
    async def Inspect(self, request: pb.InspectRequest) -> pb.InspectResponse:
        container, task = await self._machine.inspect(request.container_id)
        response = pb.InspectResponse(
            created_at=timestamp_to_pb(container.created_at),
            updated_at=timestamp_to_pb(container.updated_at),
        )
        if task is not None:
            _describe(task, response)
        return response

    @answers
    async def Usage(self, request: pb.UsageRequest) -> pb.UsageResponse:
        found = await usage(self._machine.tasks.all())
        return pb.UsageResponse(tasks=[_usage_to_pb(each) for each in found])

    @answers
    async def Check(self, request: pb.CheckRequest) -> pb.CheckResponse:
        return pb.CheckResponse(problems=await self._machine.check())


def _path(request: pb.ImportRequest) -> Path:
    path = Path(request.path)
    if not path.is_absolute() or "\0" in request.path:
        raise InvalidArgument(f"{request.path[:200]!r} is not an absolute path")
    return path


def _wishes(request: pb.ImportRequest) -> Wishes:
    return Wishes(
        devices=not request.no_devices, platform=request.platform, reference=request.reference
    )


def _step_to_pb(step: Step) -> pb.ImportResponse:
    response = pb.ImportResponse(what=step.what, done=step.done, total=step.total)
    if step.imported is not None:
        made = step.imported
        image = pb.ImageResponse(
            name=made.snapshot.key, config=made.defaults.to_bytes(), lost=made.lost
        )
        response.imported.CopyFrom(image)
    return response


def _usage_to_pb(found: Usage) -> pb.TaskUsage:
    return pb.TaskUsage(
        container_id=found.id,
        cpu=found.cpu,
        memory=found.memory,
        memory_limit=found.memory_limit,
        pids=found.pids,
        output=found.output,
    )


def _describe(task: Task, response: pb.InspectResponse) -> None:
    init = task.init
    response.pid = init.pid
    response.terminal = init.paths.terminal
    response.stdin, response.stdout = init.paths.stdin, init.paths.stdout
    response.stderr, response.bundle = init.paths.stderr, task.facts.bundle
    response.output_open = init.stdio.is_open()
    response.processes.extend(map(process_to_pb, task.state().processes))
    if init.exit is not None:
        response.exit_status = init.exit.status
        response.exited_at.CopyFrom(timestamp_to_pb(init.exit.time))
