"""The calls of a host that stands on its own: containers, their tasks, snapshots, the machine.

Every call raises the class of shim.errors that the host's status code stands for, with its
message; `timeout` is in seconds (None: no limit, DeadlineExceeded when it passes). A call under way
when the host's front dies raises Unavailable; the next one dials again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask

from shim._pb.containerd.v1.containers import containers_pb2, containers_pb2_grpc
from shim._pb.containerd.v1.services.execution import execution_pb2, execution_pb2_grpc
from shim._pb.containerd.v1.snapshot import snapshot_pb2, snapshot_pb2_grpc
from shim._pb.denseshim.machine.v1 import machine_pb2, machine_pb2_grpc
from shim.api import convert
from shim.client.calls import EventStream
from shim.client.channel import Caller, translated
from shim.client.task import TaskClient
from shim.metadata.values import Container, Kind
from shim.model import Mount, Status

_KINDS: Final = {snapshot_pb2.ACTIVE: Kind.ACTIVE, snapshot_pb2.COMMITTED: Kind.COMMITTED}


@dataclass(frozen=True)
class Image:
    """A committed snapshot. `config`: what its image asks of containers, as
    shim.snapshots.image.Defaults has it. `lost`: extended attributes that could not be kept.
    """

    name: str
    config: bytes
    lost: int


@dataclass(frozen=True)
class ImportStep:
    """How far an import is, in bytes; `total` is 0 while nobody knows. The last has `imported`."""

    what: str
    done: int
    total: int
    imported: Image | None


@dataclass(frozen=True)
class SnapshotInfo:
    """What a snapshot is; `parent` may be empty."""

    key: str
    parent: str
    kind: Kind
    readonly: bool


@dataclass(frozen=True)
class SnapshotUsage:
    """What a snapshot itself takes: bytes, and files."""

    size: int
    inodes: int


@dataclass(frozen=True)
class TaskInfo:
    """A task in a list."""

    id: str
    pid: int
    status: Status


@dataclass(frozen=True)
class TaskUsage:
    """What a task uses: ns of CPU, bytes of memory and their limit (0: none), bytes written."""

    id: str
    cpu: int
    memory: int
    memory_limit: int
    pids: int
    output: int


class HostClient(Caller):
    """A host, by the path of its socket. An async context manager: calls go inside."""

    def _bind(self, channel: grpc.aio.Channel) -> None:
        containers: Any = containers_pb2_grpc.ContainersStub
        tasks: Any = execution_pb2_grpc.TasksStub
        snapshots: Any = snapshot_pb2_grpc.SnapshotStub
        machine: Any = machine_pb2_grpc.MachineStub
        self._containers: Any = containers(channel)
        self._tasks: Any = tasks(channel)
        self._snapshots: Any = snapshots(channel)
        self._machine: Any = machine(channel)

    def task(self, id: str) -> TaskClient:
        """The calls about container `id`'s task; it need not be there yet."""
        return TaskClient(id, self, self._tasks, self._machine)

    # -- containers

    async def get(self, id: str, *, timeout: float | None = None) -> Container:
        """The record of a container."""
        request = containers_pb2.GetContainerRequest(id=id)
        return _container((await self._answer(self._containers.Get, request, timeout)).container)

    async def containers(
        self, filter: str = "", *, timeout: float | None = None
    ) -> list[Container]:
        """The containers that match, such as `labels.tier==front,image~=^web`."""
        request = containers_pb2.ListContainersRequest(filter=filter)
        found = await self._answer(self._containers.List, request, timeout)
        return [_container(message) for message in found.containers]

    async def create(self, container: Container, *, timeout: float | None = None) -> Container:
        """Record a new container. AlreadyExists; NotFound when its `rootfs` is no snapshot."""
        request = containers_pb2.CreateContainerRequest(container=_to_pb(container))
        made = await self._answer(self._containers.Create, request, timeout)
        return _container(made.container)

    async def update(
        self, container: Container, mask: Sequence[str] = (), *, timeout: float | None = None
    ) -> Container:
        """Change the fields that `mask` names, such as labels.KEY; all when it is empty."""
        request = containers_pb2.UpdateContainerRequest(
            container=_to_pb(container), update_mask=FieldMask(paths=mask)
        )
        changed = await self._answer(self._containers.Update, request, timeout)
        return _container(changed.container)

    async def delete(self, id: str, *, timeout: float | None = None) -> None:
        """Drop the record, and what it alone used. FailedPrecondition when it has a task."""
        request = containers_pb2.DeleteContainerRequest(id=id)
        await self._answer(self._containers.Delete, request, timeout)

    # -- all tasks

    async def tasks(self, *, timeout: float | None = None) -> list[TaskInfo]:
        """All tasks."""
        found = await self._answer(self._tasks.List, execution_pb2.ListRequest(), timeout)
        return [
            TaskInfo(task.container_id, task.pid, convert.status_from_pb(task.status))
            for task in found.tasks
        ]

    def events(self, *, timeout: float | None = None) -> EventStream:
        """Subscribe now to the events of all tasks, first those that nobody has read."""
        call = self._tasks.Events(execution_pb2.EventsRequest(), timeout=timeout)
        return EventStream(call, self.socket)

    async def usage(self, *, timeout: float | None = None) -> list[TaskUsage]:
        """What each task uses."""
        found = await self._answer(self._machine.Usage, machine_pb2.UsageRequest(), timeout)
        return [
            TaskUsage(
                row.container_id, row.cpu, row.memory, row.memory_limit, row.pids, row.output
            )
            for row in found.tasks
        ]

    # -- images and snapshots

    async def import_path(
        self,
        name: str,
        path: str,
        *,
        platform: str = "",
        reference: str = "",
        devices: bool = True,
    ) -> AsyncGenerator[ImportStep]:
        """Make the image `name` of a directory, a tar or an OCI layout at the absolute `path`.

        Ends undone when the iteration is left. AlreadyExists, InvalidArgument,
        ResourceExhausted for a full disk.
        """
        call = self._machine.Import(
            machine_pb2.ImportRequest(
                name=name,
                path=path,
                platform=platform,
                reference=reference,
                no_devices=not devices,
            )
        )
        try:
            with translated(self.socket):
                async for step in call:
                    image = _image(step.imported) if step.HasField("imported") else None
                    yield ImportStep(step.what, step.done, step.total, image)
        finally:
            call.cancel()

    async def image(self, name: str, *, timeout: float | None = None) -> Image:
        """The image `name`. Raises NotFound."""
        request = machine_pb2.ImageRequest(name=name)
        return _image(await self._answer(self._machine.Image, request, timeout))

    async def prepare(
        self, key: str, parent: str, *, timeout: float | None = None
    ) -> tuple[Mount, ...]:
        """Make a snapshot to write to, of what `parent` shows; the mounts that show it."""
        request = snapshot_pb2.PrepareRequest(key=key, parent=parent)
        found = await self._answer(self._snapshots.Prepare, request, timeout)
        return tuple(convert.mount_from_pb(mount) for mount in found.mounts)

    async def commit(self, name: str, key: str, *, timeout: float | None = None) -> None:
        """Make the prepared snapshot `key` a committed one, under another name."""
        request = snapshot_pb2.CommitRequest(name=name, key=key)
        await self._answer(self._snapshots.Commit, request, timeout)

    async def remove(self, key: str, *, timeout: float | None = None) -> None:
        """Remove a snapshot that nothing uses."""
        request = snapshot_pb2.RemoveRequest(key=key)
        await self._answer(self._snapshots.Remove, request, timeout)

    async def snapshots(self, *, timeout: float | None = None) -> list[SnapshotInfo]:
        """All snapshots."""
        call = self._snapshots.List(snapshot_pb2.ListRequest(), timeout=timeout)
        with translated(self.socket):
            return [
                SnapshotInfo(info.name, info.parent, _KINDS[info.kind], info.readonly)
                async for message in call
                for info in message.info
            ]

    async def snapshot_usage(self, key: str, *, timeout: float | None = None) -> SnapshotUsage:
        """What the snapshot takes on disk, without its parents."""
        request = snapshot_pb2.UsageRequest(key=key)
        found = await self._answer(self._snapshots.Usage, request, timeout)
        return SnapshotUsage(found.size, found.inodes)

    async def check(self, *, timeout: float | None = None) -> list[str]:
        """What is damaged in the host's records; nothing when they are sound."""
        found = await self._answer(self._machine.Check, machine_pb2.CheckRequest(), timeout)
        return list(found.problems)


def _container(message: containers_pb2.Container) -> Container:
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=message.runtime,
        spec=message.spec.SerializeToString(),
        rootfs=message.rootfs,
    )


def _to_pb(container: Container) -> containers_pb2.Container:
    return containers_pb2.Container(
        id=container.id,
        labels=container.labels,
        image=container.image,
        runtime=container.runtime,
        spec=AnyMessage.FromString(container.spec),
        rootfs=container.rootfs,
    )


def _image(message: machine_pb2.ImageResponse) -> Image:
    return Image(message.name, message.config, message.lost)
