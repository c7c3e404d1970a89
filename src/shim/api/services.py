"""All services of the socket for containers without containerd, on one gRPC server."""

from __future__ import annotations

import grpc

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


def add_services(server: grpc.aio.Server, machine: Machine) -> None:
    """Have a server, not yet started, serve a machine."""
    add_ContainersServicer_to_server(ContainersService(machine), server)  # type: ignore[no-untyped-call]
    add_TasksServicer_to_server(TasksService(machine), server)  # type: ignore[no-untyped-call]
    add_SnapshotServicer_to_server(SnapshotService(machine.library), server)  # type: ignore[no-untyped-call]
    add_MachineServicer_to_server(MachineService(machine), server)  # type: ignore[no-untyped-call]
