"""All services of the socket for containers without containerd, on one gRPC server."""

from __future__ import annotations

from typing import Final

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from shim._pb.containerd.v1.containers.containers_pb2_grpc import add_ContainersServicer_to_server
from shim._pb.containerd.v1.services.execution.execution_pb2_grpc import (
    add_TasksServicer_to_server,
)
from shim._pb.containerd.v1.snapshot.snapshot_pb2_grpc import add_SnapshotServicer_to_server
from shim._pb.denseshim.machine.v1.machine_pb2_grpc import add_MachineServicer_to_server
from shim.api.containers import ContainersService
from shim.api.execution import TasksService
from shim.api.machine import MachineService
from shim.api.snapshot import SnapshotService
from shim.standalone.machine import Machine

# Health's answer for the server as a whole.
_WHOLE: Final = ""
_NAMES: Final = (
    "containerd.v1.Containers",
    "containerd.v1.services.execution.Tasks",
    "containerd.v1.snapshot.Snapshot",
    "denseshim.machine.v1.Machine",
)


async def add_services(server: grpc.aio.Server, machine: Machine) -> None:
    """Have a server, not yet started, serve a machine, and tell what it serves."""
    add_ContainersServicer_to_server(ContainersService(machine), server)  # type: ignore[no-untyped-call]
    add_TasksServicer_to_server(TasksService(machine), server)  # type: ignore[no-untyped-call]
    add_SnapshotServicer_to_server(SnapshotService(machine.library), server)  # type: ignore[no-untyped-call]
    add_MachineServicer_to_server(MachineService(machine), server)  # type: ignore[no-untyped-call]
    servicer = health.HealthServicer()
    for name in (_WHOLE, *_NAMES):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(servicer, server)
    names = (*_NAMES, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
