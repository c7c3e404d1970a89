"""containerd's own API over gRPC: one connection, where many `ctr` would cost more than the shims.

Every call raises grpc.RpcError. May be used by several threads.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import Message

from benchmarks._pb import containerd_pb2 as pb
from benchmarks.place import CONTAINERS

_SPEC: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_PROCESS: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_METADATA: Final = (("containerd-namespace", CONTAINERS),)
_CONTAINERS: Final = "containerd.services.containers.v1.Containers"
_TASKS: Final = "containerd.services.tasks.v1.Tasks"
_EVENTS: Final = "containerd.services.events.v1.Events"
_VERSION: Final = "containerd.services.version.v1.Version"
# Seconds; a thousand containers' calls may wait for each other.
_LIMIT: Final = 120.0


class Api:
    """To be closed."""

    def __init__(self, socket: Path) -> None:
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: Message, answer: type[Message] = empty_pb2.Empty) -> Any:
        call: Callable[..., Any] = self._channel.unary_unary(
            f"/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=_LIMIT, metadata=_METADATA)

    def version(self) -> str:
        """containerd's."""
        return str(self._call(f"{_VERSION}/Version", empty_pb2.Empty(), pb.VersionResponse).version)

    def create_container(self, id: str, runtime: str, spec: Mapping[str, Any]) -> None:
        """Tell containerd of a container; no shim is asked."""
        container = pb.Container(id=id, runtime=pb.Runtime(name=runtime), spec=_any(_SPEC, spec))
        self._call(f"{_CONTAINERS}/Create", pb.CreateContainerRequest(container=container))

    def delete_container(self, id: str) -> None:
        """Forget a container without a task; no shim is asked."""
        self._call(f"{_CONTAINERS}/Delete", pb.DeleteContainerRequest(id=id))

    def create(
        self,
        id: str,
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
    ) -> int:
        """Create the container's task, with FIFOs for its streams; its pid."""
        request = pb.CreateTaskRequest(
            container_id=id, stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal
        )
        return int(self._call(f"{_TASKS}/Create", request, pb.CreateTaskResponse).pid)

    def start(self, id: str, exec: str = "") -> int:
        """Let a task or an exec run; its pid."""
        request = pb.ProcessRequest(container_id=id, exec_id=exec)
        return int(self._call(f"{_TASKS}/Start", request, pb.StartResponse).pid)

    def wait(self, id: str, exec: str = "") -> int:
        """The exit status, once it has ended."""
        request = pb.ProcessRequest(container_id=id, exec_id=exec)
        return int(self._call(f"{_TASKS}/Wait", request, pb.WaitResponse).exit_status)

    def state(self, id: str, exec: str = "") -> pb.Process:
        """What containerd says of a process: it asks the shim (State)."""
        request = pb.ProcessRequest(container_id=id, exec_id=exec)
        found = self._call(f"{_TASKS}/Get", request, pb.GetResponse).process
        assert isinstance(found, pb.Process)
        return found

    def tasks(self) -> list[pb.Process]:
        """All tasks; each shim is asked."""
        return list(self._call(f"{_TASKS}/List", pb.ListTasksRequest(), pb.ListTasksResponse).tasks)

    def kill(self, id: str, signal: int = 9, *, exec: str = "", all: bool = False) -> None:
        """Send a signal."""
        request = pb.KillRequest(container_id=id, exec_id=exec, signal=signal, all=all)
        self._call(f"{_TASKS}/Kill", request)

    def exec(self, id: str, name: str, process: Mapping[str, Any], *, stdout: str = "") -> None:
        """Add a process to a task; `start` lets it run, `delete_exec` forgets it."""
        request = pb.ExecProcessRequest(
            container_id=id, exec_id=name, stdout=stdout, spec=_any(_PROCESS, process)
        )
        self._call(f"{_TASKS}/Exec", request)

    def delete_exec(self, id: str, name: str) -> None:
        """Forget an exec that has ended."""
        request = pb.ProcessRequest(container_id=id, exec_id=name)
        self._call(f"{_TASKS}/DeleteProcess", request, pb.DeleteResponse)

    def pids(self, id: str) -> None:
        """Ask which processes a task has."""
        self._call(f"{_TASKS}/ListPids", pb.ListPidsRequest(container_id=id))

    def metrics(self, id: str) -> None:
        """Ask what a task uses."""
        self._call(f"{_TASKS}/Metrics", pb.MetricsRequest(filters=[f"id=={id}"]))

    def delete(self, id: str) -> int:
        """Delete a task that has ended; its exit status."""
        request = pb.DeleteTaskRequest(container_id=id)
        return int(self._call(f"{_TASKS}/Delete", request, pb.DeleteResponse).exit_status)

    @contextlib.contextmanager
    def events(self, topic: str) -> Iterator[Iterator[pb.Envelope]]:
        """The events of a topic from now on; iteration ends with the block."""
        subscribe: Callable[..., Any] = self._channel.unary_stream(
            f"/{_EVENTS}/Subscribe",
            request_serializer=pb.SubscribeRequest.SerializeToString,
            response_deserializer=pb.Envelope.FromString,
        )
        call = subscribe(pb.SubscribeRequest(filters=[f'topic=="{topic}"']))
        try:
            yield call
        finally:
            call.cancel()


def _any(kind: str, value: Mapping[str, Any]) -> any_pb2.Any:
    return any_pb2.Any(type_url=kind, value=json.dumps(value).encode())
