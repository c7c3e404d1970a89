"""What a launcher prints (contract: runtime-v2, stdout of start, delete action, -info)."""

from __future__ import annotations

from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.timestamp_pb2 import Timestamp

from shim._pb.containerd.runtime.bootstrap.v1.bootstrap_pb2 import (
    BootstrapParams,
    BootstrapResult,
)
from shim._pb.containerd.task.v3.task_pb2 import DeleteResponse
from shim._pb.containerd.types.introspection_pb2 import RuntimeInfo, RuntimeVersion
from shim.errors import InvalidArgument

RUNTIME: Final = "io.containerd.dense.v2"
FEATURES: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
KILLED: Final = 137

# Of the task service. Who answers with the second serves a pod's further containers without being
# started for each (contract: runtime-v2, 1.6).
_ALONE, _SHARED = 2, 3


def started(
    path: str, params: BootstrapParams | None, task_api: str, alone: bool = False
) -> bytes:
    """Where containerd is to call the container's service: on the socket at `path`.

    task_api: "ttrpc", "grpc", or "" for ttrpc; of gRPC there is only one version. alone: each
    container is to have a pair of its own, and so a start. Raises InvalidArgument for grpc under
    a containerd that has no such thing.
    """
    if params is None:
        if task_api == "grpc":
            raise InvalidArgument("this containerd cannot call a shim by grpc: leave out TaskAPI")
        return address(path).encode()
    # With grpc the path is dialled as it stands.
    where = path if task_api == "grpc" else address(path)
    protocol = task_api or "ttrpc"
    version = _ALONE if alone and protocol == "ttrpc" else _SHARED
    return BootstrapResult(version=version, address=where, protocol=protocol).SerializeToString()


def address(path: str) -> str:
    """The address of the ttrpc socket at `path`, as a bundle's file `address` holds it, too."""
    return f"unix://{path}"


def deleted(pid: int, status: int, time: int) -> bytes:
    """How a container has ended that the launcher removed; `time` in ns since the epoch."""
    exited_at = Timestamp()
    exited_at.FromNanoseconds(time)
    response = DeleteResponse(pid=pid, exit_status=status, exited_at=exited_at)
    return response.SerializeToString()


def info(version: str, options: Any | None, features: bytes) -> bytes:
    """What this shim of `version` is, and what its runtime can.

    features: the JSON that the runtime's `features` printed; empty when it has no such command.
    """
    found = RuntimeInfo(name=RUNTIME, version=RuntimeVersion(version=version), options=options)
    if features:
        found.features.CopyFrom(Any(type_url=FEATURES, value=features))
    return found.SerializeToString()
