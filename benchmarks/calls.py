"""Calls to shims, past containerd: prebuilt requests, sent over the shims' own sockets."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import any_pb2
from google.protobuf.message import Message

from benchmarks._pb import containerd_pb2 as pb
from benchmarks.load import Pump
from benchmarks.place import CONTAINERS
from shim._pb import ttrpc_pb2
from shim._pb.containerd.task.v3 import task_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.session import Session

_HEADER: Final = struct.Struct(">IIBB")  # length, stream, type, flags: ttrpc's PROTOCOL.md
_REQUEST: Final = 1
_PROCESS: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_EXEC: Final = "exec"
# In the metadata of every request of containerd's.
_NAMESPACE: Final = "containerd-namespace-ttrpc"

Request = tuple[str, Message]


class TaskService:
    """The requests of a shim of containerd's today (containerd.task.v2)."""

    service = "containerd.task.v2.Task"
    folder = "io.containerd.runtime.v2.task"

    def state(self, id: str) -> list[Request]:
        return [("State", task_pb2.StateRequest(id=id))]

    def pids(self, id: str) -> list[Request]:
        return [("Pids", task_pb2.PidsRequest(id=id))]

    def kill(self, id: str, signal: int) -> list[Request]:
        return [("Kill", task_pb2.KillRequest(id=id, signal=signal))]

    def stats(self, id: str) -> list[Request]:
        return [("Stats", task_pb2.StatsRequest(id=id))]

    def exec(self, id: str, process: dict[str, Any]) -> list[Request]:
        """Run another process in the container, and wait for its end."""
        return [
            ("Exec", task_pb2.ExecProcessRequest(id=id, exec_id=_EXEC, spec=_any(process))),
            ("Start", task_pb2.StartRequest(id=id, exec_id=_EXEC)),
            ("Wait", task_pb2.WaitRequest(id=id, exec_id=_EXEC)),
            ("Delete", task_pb2.DeleteRequest(id=id, exec_id=_EXEC)),
        ]


class ShimService(TaskService):
    """Those of a shim of before (containerd.runtime.linux.shim.v1), which has no Stats."""

    service = "containerd.runtime.linux.shim.v1.Shim"
    folder = "io.containerd.runtime.v1.linux"

    def pids(self, id: str) -> list[Request]:
        return [("ListPids", pb.ShimRequest(id=id))]

    def kill(self, id: str, signal: int) -> list[Request]:
        return [("Kill", pb.ShimKillRequest(id=id, signal=signal))]

    def stats(self, id: str) -> list[Request]:
        return []

    def exec(self, id: str, process: dict[str, Any]) -> list[Request]:
        return [
            ("Exec", pb.ShimExecRequest(id=_EXEC, spec=_any(process))),
            ("Start", pb.ShimRequest(id=_EXEC)),
            ("Wait", pb.ShimRequest(id=_EXEC)),
            ("DeleteProcess", pb.ShimRequest(id=_EXEC)),
        ]


def service_of(session: Session) -> TaskService:
    """What the session's shims speak."""
    is_old = session.system.runtime == ShimService.folder
    return ShimService() if is_old else TaskService()


def socket_of(session: Session, service: TaskService, id: str) -> Path:
    """Where the container's shim listens, as this process finds it."""
    folder = session.daemon.state / service.folder / CONTAINERS / id
    address = session.place.outside(folder / "address").read_text()
    return session.place.outside(address.removeprefix("unix://"))


def write_frames(file: Path, service: str, requests: Sequence[Request]) -> None:
    """Requests as they are on the wire; whoever sends them gives each a stream of its own."""
    file.write_bytes(b"".join(_frame(service, *request) for request in requests))


def ask(rootfs: Path, times: int, clients: Sequence[tuple[Path, Path]]) -> list[float]:
    """Seconds of each time, of all clients at once: (frames, socket). Raises as Pump.output."""
    pairs = [path for client in clients for path in client]
    with Pump(rootfs, "ask", times, *pairs) as pump:
        return pump.times()


def _frame(service: str, method: str, request: Message) -> bytes:
    namespace = ttrpc_pb2.KeyValue(key=_NAMESPACE, value=CONTAINERS)
    call = ttrpc_pb2.Request(
        service=service,
        method=method,
        payload=request.SerializeToString(),
        metadata=[namespace],
    ).SerializeToString()
    return _HEADER.pack(len(call), 1, _REQUEST, 0) + call


def _any(process: dict[str, Any]) -> any_pb2.Any:
    return any_pb2.Any(type_url=_PROCESS, value=json.dumps(process).encode())
