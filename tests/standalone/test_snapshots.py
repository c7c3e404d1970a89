"""The Snapshot service: a tree's way from an import to a container, and what is refused."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from shim._pb.containerd.v1.snapshot import snapshot_pb2 as pb
from tests.standalone.support import Api, StandaloneNode, refused

NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


async def info(api: Api, key: str) -> tuple[str, str, int, bool]:
    found = (await api.snapshots.Stat(pb.StatRequest(key=key))).info
    return found.name, found.parent, found.kind, found.readonly


async def listed(api: Api) -> list[str]:
    stream = api.snapshots.List(pb.ListRequest())
    return [info.name async for message in stream for info in message.info]


async def test_a_snapshot_s_life(api: Api, image: str, node: StandaloneNode) -> None:
    mounts = await api.prepare("work", image)
    assert [mount.type for mount in mounts] == ["overlay"]
    assert mounts == list((await api.snapshots.Mounts(pb.MountsRequest(key="work"))).mounts)
    assert await info(api, "work") == ("work", image, pb.ACTIVE, False)
    (upper,) = (text for text in mounts[0].options if text.startswith("upperdir="))
    (node.inside(upper.partition("=")[2]) / "new").write_text("x" * 5000)
    usage = await api.snapshots.Usage(pb.UsageRequest(key="work"))
    assert (usage.size >= 5000, usage.inodes) == (True, 2)
    await api.snapshots.Commit(pb.CommitRequest(name="done", key="work"))
    assert await info(api, "done") == ("done", image, pb.COMMITTED, True)
    view = pb.PrepareRequest(key="view", parent="done")
    assert not any(
        option.startswith("upperdir=")
        for mount in (await api.snapshots.View(view)).mounts
        for option in mount.options
    )
    assert await info(api, "view") == ("view", "done", pb.ACTIVE, True)
    assert await listed(api) == [image, "done", "view"]
    async with refused(PRECONDITION):
        await api.snapshots.Remove(pb.RemoveRequest(key="done"))
    for key in ("view", "done", image):
        await api.snapshots.Remove(pb.RemoveRequest(key=key))
    assert await listed(api) == []


async def test_what_is_refused(api: Api, image: str) -> None:
    await api.prepare("work", image)
    async with refused(grpc.StatusCode.ALREADY_EXISTS, "work"):
        await api.prepare("work", image)
    async with refused(NOT_FOUND, "nothing"):
        await api.prepare("new", "nothing")
    async with refused(PRECONDITION):
        await api.prepare("new", "work")
    async with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await api.prepare("", image)
    async with refused(PRECONDITION, "committed"):
        await api.snapshots.Mounts(pb.MountsRequest(key=image))
    async with refused(grpc.StatusCode.ALREADY_EXISTS):
        await api.snapshots.Commit(pb.CommitRequest(name=image, key="work"))
    await api.snapshots.View(pb.PrepareRequest(key="view", parent=image))
    async with refused(PRECONDITION):
        await api.snapshots.Commit(pb.CommitRequest(name="new", key="view"))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Mounts", pb.MountsRequest(key="missing")),
        ("Commit", pb.CommitRequest(name="new", key="missing")),
        ("Remove", pb.RemoveRequest(key="missing")),
        ("Stat", pb.StatRequest(key="missing")),
        ("Usage", pb.UsageRequest(key="missing")),
    ],
)
async def test_what_is_not_there(api: Api, method: str, request_: object) -> None:
    async with refused(NOT_FOUND, "missing"):
        await getattr(api.snapshots, method)(request_)


async def test_a_container_s_root_stays(api: Api, image: str) -> None:
    await api.prepare("root", image)
    await api.create_container("denseshim-test-root", rootfs="root")
    async with refused(PRECONDITION):
        await api.snapshots.Remove(pb.RemoveRequest(key="root"))
    async with refused(PRECONDITION):
        await api.snapshots.Commit(pb.CommitRequest(name="new", key="root"))


async def test_importing_again_is_refused(api: Api, image: str, tmp_path: Path) -> None:
    async with refused(grpc.StatusCode.ALREADY_EXISTS, image):
        await api.import_path(image, tmp_path)
