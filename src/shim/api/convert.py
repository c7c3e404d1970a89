"""Between the protobuf messages of May 2017 and the domain values: pure functions, both ways.

Converting from a message raises InvalidArgument for what has no domain value. The messages are
those of proto/containerd/v1/services/shim/shim.proto and types/types.proto.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp

from shim._pb.containerd.v1.services.shim import shim_pb2
from shim._pb.containerd.v1.types import types_pb2
from shim.errors import InvalidArgument
from shim.model import (
    CheckpointRequest,
    ContainerState,
    CreateRequest,
    Event,
    EventType,
    Exit,
    Mount,
    ProcessInfo,
    RuntimeOptions,
    Status,
    Stdio,
    User,
)

PROCESS_TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"

_STATUS_TO_PB: Final = {
    Status.CREATED: types_pb2.CREATED,
    Status.RUNNING: types_pb2.RUNNING,
    Status.STOPPED: types_pb2.STOPPED,
    Status.PAUSED: types_pb2.PAUSED,
}
_STATUS_FROM_PB: Final[dict[int, Status]] = {pb: status for status, pb in _STATUS_TO_PB.items()}
_EVENT_TO_PB: Final = {
    EventType.CREATE: types_pb2.Event.CREATE,
    EventType.START: types_pb2.Event.START,
    EventType.EXEC_ADDED: types_pb2.Event.EXEC_ADDED,
    EventType.PAUSED: types_pb2.Event.PAUSED,
    EventType.OOM: types_pb2.Event.OOM,
    EventType.EXIT: types_pb2.Event.EXIT,
}
_EVENT_FROM_PB: Final[dict[int, EventType]] = {pb: kind for kind, pb in _EVENT_TO_PB.items()}


def status_to_pb(status: Status) -> types_pb2.Status:
    """The wire's number for `status`."""
    return _STATUS_TO_PB[status]


def status_from_pb(number: int) -> Status:
    """Raises InvalidArgument for UNKNOWN (0) and for numbers of later versions."""
    if number not in _STATUS_FROM_PB:
        raise InvalidArgument(f"status {number} is no state of a container or process")
    return _STATUS_FROM_PB[number]


def timestamp_to_pb(time: int) -> Timestamp:
    """A Timestamp of `time`, nanoseconds since the epoch."""
    timestamp = Timestamp()
    timestamp.FromNanoseconds(time)
    return timestamp


def mount_to_pb(mount: Mount) -> types_pb2.Mount:
    """A Mount message of `mount`."""
    return types_pb2.Mount(
        type=mount.type, source=mount.source, target=mount.target, options=mount.options
    )


def mount_from_pb(message: types_pb2.Mount) -> Mount:
    """The domain value of a Mount message."""
    return Mount(message.type, message.source, message.target, tuple(message.options))


def user_to_pb(user: User) -> types_pb2.User:
    """A User message of `user`."""
    return types_pb2.User(uid=user.uid, gid=user.gid, additional_gids=user.additional_gids)


def user_from_pb(message: types_pb2.User) -> User:
    """The domain value of a User message; absent is uid 0, gid 0."""
    return User(message.uid, message.gid, tuple(message.additional_gids))


def process_to_pb(process: ProcessInfo) -> types_pb2.Process:
    """A Process message of `process`, without runtime_data, which nobody fills."""
    return types_pb2.Process(
        pid=process.pid,
        args=process.args,
        env=process.env,
        user=user_to_pb(process.user),
        cwd=process.cwd,
        terminal=process.terminal,
        exit_status=process.exit_status,
        status=status_to_pb(process.status),
    )


def process_from_pb(message: types_pb2.Process) -> ProcessInfo:
    """The domain value of a Process message. Raises InvalidArgument for an unknown status."""
    return ProcessInfo(
        pid=message.pid,
        status=status_from_pb(message.status),
        args=tuple(message.args),
        env=tuple(message.env),
        user=user_from_pb(message.user),
        cwd=message.cwd,
        terminal=message.terminal,
        exit_status=message.exit_status,
    )


def event_to_pb(event: Event) -> types_pb2.Event:
    """An Event message of `event`; exited_at is there for EXIT only."""
    exited = event.type is EventType.EXIT
    return types_pb2.Event(
        id=event.id,
        type=_EVENT_TO_PB[event.type],
        pid=event.pid,
        exit_status=event.exit_status,
        exited_at=timestamp_to_pb(event.exited_at) if exited else None,
    )


def event_from_pb(message: types_pb2.Event) -> Event:
    """The domain value of an Event message. Raises InvalidArgument for an unknown type."""
    if message.type not in _EVENT_FROM_PB:
        raise InvalidArgument(f"event type {message.type} of container {message.id} is not known")
    return Event(
        id=message.id,
        type=_EVENT_FROM_PB[message.type],
        pid=message.pid,
        exit_status=message.exit_status,
        exited_at=message.exited_at.ToNanoseconds(),
    )


def exit_to_pb(ended: Exit) -> shim_pb2.DeleteResponse:
    """The DeleteResponse that gives back `ended`."""
    return shim_pb2.DeleteResponse(
        exit_status=ended.status, exited_at=timestamp_to_pb(ended.time)
    )


def exit_from_pb(message: shim_pb2.DeleteResponse) -> Exit:
    """How the deleted process ended."""
    return Exit(message.exit_status, message.exited_at.ToNanoseconds())


def state_to_pb(state: ContainerState) -> shim_pb2.StateResponse:
    """A StateResponse of `state`."""
    return shim_pb2.StateResponse(
        id=state.id,
        bundle=state.bundle,
        pid=state.pid,
        status=status_to_pb(state.status),
        processes=[process_to_pb(process) for process in state.processes],
    )


def state_from_pb(message: shim_pb2.StateResponse) -> ContainerState:
    """The domain value of a StateResponse. Raises InvalidArgument for an unknown status."""
    return ContainerState(
        id=message.id,
        bundle=message.bundle,
        pid=message.pid,
        status=status_from_pb(message.status),
        processes=tuple(process_from_pb(process) for process in message.processes),
    )


def create_to_pb(request: CreateRequest) -> shim_pb2.CreateRequest:
    """A CreateRequest message of `request`."""
    return shim_pb2.CreateRequest(
        id=request.id,
        bundle=request.bundle,
        runtime=request.options.runtime,
        no_pivot=request.options.no_pivot,
        terminal=request.stdio.terminal,
        stdin=request.stdio.stdin,
        stdout=request.stdio.stdout,
        stderr=request.stdio.stderr,
        rootfs=[mount_to_pb(mount) for mount in request.rootfs],
        checkpoint=request.checkpoint,
        parent_checkpoint=request.parent_checkpoint,
    )


def create_from_pb(message: shim_pb2.CreateRequest) -> CreateRequest:
    """The domain value of a CreateRequest message."""
    return CreateRequest(
        id=message.id,
        bundle=message.bundle,
        options=RuntimeOptions(runtime=message.runtime, no_pivot=message.no_pivot),
        stdio=_stdio_from_pb(message),
        rootfs=tuple(mount_from_pb(mount) for mount in message.rootfs),
        checkpoint=message.checkpoint,
        parent_checkpoint=message.parent_checkpoint,
    )


def exec_to_pb(spec: Mapping[str, Any], stdio: Stdio) -> shim_pb2.ExecRequest:
    """An ExecRequest for the OCI process `spec` (as JSON, config.md "process")."""
    return shim_pb2.ExecRequest(
        terminal=stdio.terminal,
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        spec=AnyMessage(type_url=PROCESS_TYPE_URL, value=json.dumps(spec).encode()),
    )


def exec_from_pb(message: shim_pb2.ExecRequest) -> tuple[dict[str, Any], Stdio]:
    """The OCI process and the streams of an ExecRequest. Raises what `exec_spec` raises."""
    return exec_spec(message.spec), _stdio_from_pb(message)


def exec_spec(message: AnyMessage) -> dict[str, Any]:
    """The OCI process of an exec.

    The type_url is not looked at: clients of the time differ in it. Raises InvalidArgument
    when the value is no JSON object.
    """
    try:
        spec = json.loads(message.value)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the exec's spec is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise InvalidArgument(f"the exec's spec is a JSON {type(spec).__name__}, not an object")
    return spec


def checkpoint_to_pb(request: CheckpointRequest) -> shim_pb2.CheckpointRequest:
    """A CheckpointRequest message of `request`."""
    return shim_pb2.CheckpointRequest(
        exit=request.exit,
        allow_tcp=request.allow_tcp,
        allow_unix_sockets=request.allow_unix_sockets,
        allow_terminal=request.allow_terminal,
        file_locks=request.file_locks,
        empty_namespaces=request.empty_namespaces,
        image=request.image,
    )


def checkpoint_from_pb(message: shim_pb2.CheckpointRequest) -> CheckpointRequest:
    """The domain value of a CheckpointRequest message."""
    return CheckpointRequest(
        image=message.image,
        exit=message.exit,
        allow_tcp=message.allow_tcp,
        allow_unix_sockets=message.allow_unix_sockets,
        allow_terminal=message.allow_terminal,
        file_locks=message.file_locks,
        empty_namespaces=tuple(message.empty_namespaces),
    )


def _stdio_from_pb(message: shim_pb2.CreateRequest | shim_pb2.ExecRequest) -> Stdio:
    return Stdio(message.terminal, message.stdin, message.stdout, message.stderr)
