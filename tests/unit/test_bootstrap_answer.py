"""What a launcher prints, as containerd reads it."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any

from shim._pb.containerd.runtime.bootstrap.v1.bootstrap_pb2 import (
    BootstrapParams,
    BootstrapResult,
)
from shim._pb.containerd.task.v3.task_pb2 import DeleteResponse
from shim._pb.containerd.types.introspection_pb2 import RuntimeInfo
from shim.bootstrap import answer
from shim.errors import InvalidArgument

PATH = "/run/containerd/s/abc"


@pytest.mark.parametrize("task_api", ["", "ttrpc"])
def test_without_parameters_the_address_alone(task_api: str) -> None:
    assert answer.started(PATH, None, task_api) == b"unix:///run/containerd/s/abc"


@pytest.mark.parametrize("task_api", ["", "ttrpc"])
def test_with_parameters_a_message(task_api: str) -> None:
    found = BootstrapResult.FromString(answer.started(PATH, BootstrapParams(), task_api))
    assert found == BootstrapResult(version=3, address=f"unix://{PATH}", protocol="ttrpc")


@pytest.mark.parametrize(("task_api", "version"), [("", 2), ("ttrpc", 2), ("grpc", 3)])
def test_a_container_of_its_own_has_a_start_of_its_own(task_api: str, version: int) -> None:
    """From version 3 on a containerd would create the rest of the pod on the same address."""
    stdout = answer.started(PATH, BootstrapParams(), task_api, alone=True)
    assert BootstrapResult.FromString(stdout).version == version


def test_grpc_has_the_bare_path() -> None:
    found = BootstrapResult.FromString(answer.started(PATH, BootstrapParams(), "grpc"))
    assert found == BootstrapResult(version=3, address=PATH, protocol="grpc")


def test_grpc_needs_a_containerd_that_has_it() -> None:
    with pytest.raises(InvalidArgument, match="TaskAPI"):
        answer.started(PATH, None, "grpc")


def test_the_end_of_a_container() -> None:
    found = DeleteResponse.FromString(answer.deleted(7, 137, 1_500_000_000_000_000_001))
    assert (found.pid, found.exit_status) == (7, 137)
    assert found.exited_at.ToNanoseconds() == 1_500_000_000_000_000_001


def test_what_the_runtime_can() -> None:
    options = Any(type_url="x", value=b"y")
    found = RuntimeInfo.FromString(answer.info("1.2", options, b'{"hooks":[]}'))
    assert (found.name, found.version.version) == ("io.containerd.dense.v2", "1.2")
    assert found.options == options
    assert (found.features.type_url, found.features.value) == (answer.FEATURES, b'{"hooks":[]}')


def test_a_runtime_that_does_not_tell() -> None:
    found = RuntimeInfo.FromString(answer.info("1.2", None, b""))
    assert not found.HasField("options")
    assert not found.HasField("features")
