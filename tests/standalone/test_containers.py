"""The Containers service: what is recorded, changed, found, refused and forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask

from shim._pb.containerd.v1.containers import containers_pb2 as pb
from shim._pb.containerd.v1.snapshot import snapshot_pb2
from tests.standalone.support import Api, StandaloneNode, refused

CLIENTS = 50
NewId = Callable[[], str]


async def get(api: Api, id: str) -> pb.Container:
    found: pb.Container = (await api.containers.Get(pb.GetContainerRequest(id=id))).container
    return found


async def listed(api: Api, filter: str = "") -> list[str]:
    answer = await api.containers.List(pb.ListContainersRequest(filter=filter))
    return [container.id for container in answer.containers]


async def update(api: Api, container: pb.Container, *paths: str) -> pb.Container:
    request = pb.UpdateContainerRequest(container=container)
    if paths:
        request.update_mask.CopyFrom(FieldMask(paths=paths))
    changed: pb.Container = (await api.containers.Update(request)).container
    return changed


async def test_what_is_created_is_there_until_it_is_deleted(api: Api, new_id: NewId) -> None:
    id = new_id()
    made = await api.create_container(id, labels={"tier": "front"}, image="web", runtime="runc")
    assert made == await get(api, id)
    assert (dict(made.labels), made.image, made.runtime) == ({"tier": "front"}, "web", "runc")
    assert made.spec.type_url.endswith("/Spec")
    async with refused(grpc.StatusCode.ALREADY_EXISTS, id):
        await api.create_container(id)
    await api.delete_container(id)
    async with refused(grpc.StatusCode.NOT_FOUND, id):
        await get(api, id)
    async with refused(grpc.StatusCode.NOT_FOUND, id):
        await api.delete_container(id)


async def test_what_cannot_be_recorded(api: Api, new_id: NewId) -> None:
    for id in ("", "../x", "a b", "x" * 300):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "id"):
            await api.create_container(id)
    async with refused(grpc.StatusCode.NOT_FOUND, "missing"):
        await api.create_container(new_id(), rootfs="missing")
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await api.create_container(new_id(), labels={"": "no key"})
    assert await listed(api) == []


async def test_a_spec_is_kept_as_it_is(api: Api, new_id: NewId) -> None:
    """Its type is the client's matter; none is another thing than an empty one."""
    specs = [None, AnyMessage(type_url="example.com/x", value=b"\0\xff")]
    for spec in specs:
        id = new_id()
        wanted = pb.Container(id=id, spec=spec)
        await api.containers.Create(pb.CreateContainerRequest(container=wanted))
        assert await get(api, id) == wanted


async def test_a_mask_names_what_is_changed(api: Api, new_id: NewId) -> None:
    id = new_id()
    await api.create_container(id, labels={"a": "1", "b": "2"}, image="old")
    new = pb.Container(id=id, labels={"a": "3", "c": "4"}, image="new")
    changed = await update(api, new, "labels.a", "labels.b")
    assert (dict(changed.labels), changed.image) == ({"a": "3"}, "old")
    changed = await update(api, new, "image")
    assert (dict(changed.labels), changed.image) == ({"a": "3"}, "new")
    assert changed.spec.value
    changed = await update(api, new)
    assert (dict(changed.labels), changed.HasField("spec")) == ({"a": "3", "c": "4"}, False)
    for path in ("id", "size", "labels.", "created_at"):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await update(api, new, path)
    async with refused(grpc.StatusCode.NOT_FOUND):
        await update(api, pb.Container(id=new_id()), "image")
    assert await get(api, id) == changed


async def test_filters(api: Api, new_id: NewId) -> None:
    first, second = new_id(), new_id()
    await api.create_container(first, labels={"tier": "front", "a.b": "x"}, image="web")
    await api.create_container(second, labels={"tier": "back"}, runtime="crun")
    assert await listed(api) == sorted([first, second])
    assert await listed(api, "labels.tier==front") == [first]
    assert await listed(api, 'labels."a.b"==x,image==web') == [first]
    assert await listed(api, "labels.tier!=front") == [second]
    assert await listed(api, "runtime~=^c.un$") == [second]
    assert await listed(api, f"id=={second}") == [second]
    for wrong in ("labels.tier=front", "size==1", "labels.tier~=(", "id==,"):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await listed(api, wrong)


async def test_deleting_frees_what_only_the_container_used(
    api: Api, image: str, new_id: NewId, node: StandaloneNode
) -> None:
    id, other = new_id(), new_id()
    await api.prepare("shared", image)
    await api.create_container(id, rootfs="shared")
    await api.create_container(other, rootfs="shared")
    logs = node.library / "logs"
    (logs / id).mkdir()
    (logs / other).mkdir()
    await api.delete_container(id)
    assert [path.name for path in logs.iterdir()] == [other]
    stat = snapshot_pb2.StatRequest(key="shared")
    assert (await api.snapshots.Stat(stat)).info.name == "shared"
    before = directories(node)
    await api.delete_container(other)
    async with refused(grpc.StatusCode.NOT_FOUND, "shared"):
        await api.snapshots.Stat(stat)
    assert len(directories(node)) == len(before) - 1
    assert (await api.snapshots.Stat(snapshot_pb2.StatRequest(key=image))).info.name == image


def directories(node: StandaloneNode) -> list[str]:
    found = (node.library / "snapshots").iterdir()
    return sorted(path.name for path in found if path.name.isdigit())


async def test_fifty_clients_at_once(api: Api, node: StandaloneNode, new_id: NewId) -> None:
    """Each on a connection of its own; of those that want the same id one gets it."""
    contested = new_id()
    socket = node.inside("/run/denseshim.sock")

    async def work(number: int) -> bool:
        async with Api(socket) as client:
            id = f"{contested}-{number}"
            await client.create_container(id, labels={"number": str(number)})
            await update(client, pb.Container(id=id, image="x"), "image")
            assert await listed(client, f"labels.number=={number}") == [id]
            try:
                await client.create_container(contested)
                won = True
            except grpc.aio.AioRpcError as error:
                won = error.code() is not grpc.StatusCode.ALREADY_EXISTS
            await client.delete_container(id)
            return won

    won = await asyncio.gather(*map(work, range(CLIENTS)))
    assert sum(won) == 1
    assert await listed(api) == [contested]
