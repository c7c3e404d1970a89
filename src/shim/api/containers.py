"""The Containers service over gRPC: what is recorded of containers (contract: containerd.v1)."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from shim._pb.containerd.v1.containers import containers_pb2 as pb
from shim._pb.containerd.v1.containers.containers_pb2_grpc import ContainersServicer
from shim.api.serving import answers
from shim.metadata.values import Container
from shim.standalone.machine import Machine


class ContainersService(ContainersServicer):
    """containerd.v1.Containers, as the generated code wants it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @answers
    async def Get(self, request: pb.GetContainerRequest) -> pb.GetContainerResponse:
        found = await self._machine.container(request.id)
        return pb.GetContainerResponse(container=_to_pb(found))

    @answers
    async def List(self, request: pb.ListContainersRequest) -> pb.ListContainersResponse:
        found = await self._machine.containers(request.filter)
        return pb.ListContainersResponse(containers=map(_to_pb, found))

    @answers
    async def Create(self, request: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        made = await self._machine.create_container(_from_pb(request.container))
        return pb.CreateContainerResponse(container=_to_pb(made))

    @answers
    async def Update(self, request: pb.UpdateContainerRequest) -> pb.UpdateContainerResponse:
        asked, mask = _from_pb(request.container), list(request.update_mask.paths)
        changed = await self._machine.update_container(asked, mask)
        return pb.UpdateContainerResponse(container=_to_pb(changed))

    @answers
    async def Delete(self, request: pb.DeleteContainerRequest) -> Empty:
        await self._machine.delete_container(request.id)
        return Empty()


def spec_of(container: Container) -> AnyMessage | None:
    """What the container's spec travels as; None without one."""
    return AnyMessage.FromString(container.spec) if container.spec else None


def _to_pb(container: Container) -> pb.Container:
    return pb.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=container.runtime,
        spec=spec_of(container),
        rootfs=container.rootfs,
    )


def _from_pb(message: pb.Container) -> Container:
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=message.runtime,
        spec=message.spec.SerializeToString(),
        rootfs=message.rootfs,
    )
