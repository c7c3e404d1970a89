"""The Task service over gRPC, for who asks for it: containerd 2.0 to 2.3 cannot use it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from shim._pb.containerd.runtime.bootstrap.v1.bootstrap_pb2 import (
    BootstrapParams,
    BootstrapResult,
)
from shim._pb.containerd.task.v3 import task_pb2
from shim._pb.runtimeoptions.v1.options_pb2 import Options
from shim.oci.spec import spec
from tests.containerd.conftest import PROGRAMS
from tests.containerd.containerd import Containerd
from tests.containerd.support import PATIENCE, new_id


@dataclass
class GrpcTask:
    """A container's service, as a client of gRPC calls it."""

    id: str
    bundle: Path
    channel: grpc.Channel

    def call(self, method: str, request: Message, reply: type[Message]) -> Any:
        path = f"/containerd.task.v3.Task/{method}"
        stub = self.channel.unary_unary(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        return stub(request, timeout=PATIENCE, wait_for_ready=True)


@pytest.fixture
def task(containerd: Containerd, tmp_path: Path) -> Iterator[GrpcTask]:
    id, bundle = new_id(), tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "rootfs").mkdir()
    config = spec(id, ["sleep", "1000"], rootfs=str(containerd.rootfs.path))
    (bundle / "config.json").write_text(json.dumps(config))
    answer = launch(containerd, bundle, id)
    assert (answer.version, answer.protocol) == (3, "grpc")
    assert answer.address.startswith("/run/containerd/s/"), "a bare path"
    with grpc.insecure_channel(f"unix:{containerd.machine.root}{answer.address}") as channel:
        yield GrpcTask(id, bundle, channel)


def launch(daemon: Containerd, bundle: Path, id: str) -> BootstrapResult:
    """Start as containerd 2.3 does, with options that ask for gRPC."""
    params = BootstrapParams(instance_id=id, namespace=daemon.namespace)
    params.containerd_ttrpc_address = f"{daemon.address}.ttrpc"
    options = Options(config_body=b'TaskAPI = "grpc"\n').SerializeToString()
    params.extensions.add().value.CopyFrom(
        AnyMessage(type_url="runtimeoptions.v1.Options", value=options)
    )
    line = daemon.machine.inside(
        "sh", "-c", 'cd "$0" && exec "$@"', str(bundle), str(PROGRAMS / "containerd-shim-dense-v2"),
        "-namespace", daemon.namespace, "-id", id, "-address", str(daemon.address), "start",
    )  # fmt: skip
    done = subprocess.run(
        line, input=params.SerializeToString(), capture_output=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr.decode()
    return BootstrapResult.FromString(done.stdout)


def test_a_container_s_life(task: GrpcTask) -> None:
    """Errors have their codes; the socket goes with Shutdown."""
    with pytest.raises(grpc.RpcError) as caught:
        task.call("State", task_pb2.StateRequest(id=task.id), task_pb2.StateResponse)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    create = task_pb2.CreateTaskRequest(id=task.id, bundle=str(task.bundle))
    pid = task.call("Create", create, task_pb2.CreateTaskResponse).pid
    started = task.call("Start", task_pb2.StartRequest(id=task.id), task_pb2.StartResponse)
    assert started.pid == pid
    task.call("Kill", task_pb2.KillRequest(id=task.id, signal=9), Empty)
    ended = task.call("Wait", task_pb2.WaitRequest(id=task.id), task_pb2.WaitResponse)
    assert ended.exit_status == 137
    deleted = task.call("Delete", task_pb2.DeleteRequest(id=task.id), task_pb2.DeleteResponse)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)
    task.call("Shutdown", task_pb2.ShutdownRequest(id=task.id), Empty)


def test_a_method_that_is_not_there(task: GrpcTask) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        task.call("Nothing", Empty(), Empty)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    task.call("Shutdown", task_pb2.ShutdownRequest(id=task.id), Empty)
