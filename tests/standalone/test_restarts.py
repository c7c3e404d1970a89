"""Fronts and keepers die at any moment: tasks go on, records stay, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from shim import door
from shim._pb.containerd.v1.containers import containers_pb2
from shim._pb.containerd.v1.snapshot import snapshot_pb2
from shim._pb.containerd.v1.types import types_pb2
from shim._pb.denseshim.host.v1 import host_pb2
from shim._pb.denseshim.machine.v1 import machine_pb2
from shim.errors import FailedPrecondition
from tests.integration.support import Gate, front_of, is_alive, until
from tests.standalone.support import (
    CREATE,
    EXIT,
    START,
    Api,
    StandaloneNode,
    door_of,
    kill_front,
    refused,
)

NewId = Callable[[], str]
SLEEP = ("sleep", "1000")


@pytest.fixture
def socket(node: StandaloneNode) -> Path:
    """Of a host that serves containers: each front's clients are its own."""
    return node.start().serve()


async def made(api: Api, rootfs: Path, id: str, **more: str) -> None:
    """A container on a snapshot of its own."""
    await api.import_path(f"image-{id}", rootfs)
    await api.prepare(id, f"image-{id}")
    await api.create_container(id, SLEEP, rootfs=id, **more)


async def test_a_task_goes_on_when_the_front_dies(
    socket: Path, node: StandaloneNode, rootfs: Path, new_id: NewId
) -> None:
    id = new_id()
    async with Api(socket) as api:
        await made(api, rootfs, id)
        pid = await api.create(id)
        await api.start(id)
        exec_pid = await api.exec(id, "sleep", "2000")
    await kill_front(node)
    async with Api(socket) as api:
        task = await api.info(id)
        assert (task.pid, task.status) == (pid, types_pb2.RUNNING)
        await api.kill(id, pid=exec_pid)
        async with refused(grpc.StatusCode.ALREADY_EXISTS):
            await api.create(id)
        await api.kill(id)
        await until(lambda: not is_alive(pid), "the task's end")
    await kill_front(node)
    async with Api(socket) as api:
        async with api.events() as events:
            await events.wait_for(EXIT, pid)
            assert events.of(id) == [CREATE, START, types_pb2.Event.EXEC_ADDED, EXIT, EXIT]
        assert (await api.delete(id)).exit_status == 128 + signal.SIGKILL
        await api.delete_container(id)
    assert node.bundles() == []


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_creation_that_is_cut_is_completed(
    socket: Path, node: StandaloneNode, rootfs: Path, new_id: NewId, tmp_path: Path, moment: str
) -> None:
    gate, id = Gate(tmp_path, "create", moment), new_id()
    async with Api(socket) as api:
        await made(api, rootfs, id, runtime=str(gate.path))
        creating = asyncio.ensure_future(api.create(id))
        await gate.reached()
        await kill_front(node)
        async with refused(grpc.StatusCode.UNAVAILABLE):
            await creating
    async with Api(socket) as api:
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "task"):
            await api.delete_container(id)
        gate.open()
        async with refused(grpc.StatusCode.ALREADY_EXISTS):
            await api.create(id)
        assert (await api.info(id)).status == types_pb2.CREATED
        await api.start(id)


async def test_a_creation_that_fails_leaves_nothing(
    socket: Path, node: StandaloneNode, rootfs: Path, new_id: NewId, tmp_path: Path
) -> None:
    gate, id = Gate(tmp_path, "create", then="exit 1"), new_id()
    async with Api(socket) as api:
        await made(api, rootfs, id, runtime=str(gate.path))
        creating = asyncio.ensure_future(api.create(id))
        await gate.reached()
        await kill_front(node)
        async with refused(grpc.StatusCode.UNAVAILABLE):
            await creating
    gate.open()
    await until(lambda: node.bundles() == [], "the bundle's end")
    async with Api(socket) as api:
        await api.create(id)


async def test_a_deletion_that_is_cut_is_finished(
    socket: Path, node: StandaloneNode, rootfs: Path, new_id: NewId, tmp_path: Path
) -> None:
    gate, id = Gate(tmp_path, "delete"), new_id()
    async with Api(socket) as api:
        await made(api, rootfs, id, runtime=str(gate.path))
        await api.create(id)
        deleting = asyncio.ensure_future(api.delete(id))
        await gate.reached()
        await kill_front(node)
        async with refused(grpc.StatusCode.UNAVAILABLE):
            await deleting
    gate.open()
    await until(lambda: node.bundles() == [], "the bundle's end")
    async with Api(socket) as api:
        async with refused(grpc.StatusCode.NOT_FOUND):
            await api.info(id)
        await api.delete_container(id)


async def test_a_commit_and_a_removal_are_done_or_not(
    socket: Path, node: StandaloneNode, rootfs: Path, new_id: NewId
) -> None:
    """The front dies as soon as it has them, a little later each time."""
    ids = [new_id() for _ in range(8)]
    async with Api(socket) as api:
        await api.import_path("busybox", rootfs)
        for id in ids:
            await api.prepare(id, "busybox")
            await api.create_container(id, SLEEP, rootfs=id)
            await api.prepare(f"work-{id}", "busybox")
    for number, id in enumerate(ids):
        front = await asyncio.to_thread(lambda: front_of(node.keeper))
        async with Api(socket) as api:
            commit = snapshot_pb2.CommitRequest(name=f"done-{id}", key=f"work-{id}")
            calls = [api.snapshots.Commit(commit), asyncio.ensure_future(api.delete_container(id))]
            await asyncio.wait(map(asyncio.ensure_future, calls), timeout=number * 0.002)
            os.kill(front, signal.SIGKILL)
            answers = await asyncio.gather(*calls, return_exceptions=True)
        async with Api(socket) as api:
            left = {info.name async for message in api.snapshots.List(snapshot_pb2.ListRequest())
                    for info in message.info}  # fmt: skip
            listed = await api.containers.List(containers_pb2.ListContainersRequest())
            there = id in [container.id for container in listed.containers]
            assert len(left & {f"done-{id}", f"work-{id}"}) == 1
            assert (id in left) == there
            committed, deleted = (not isinstance(answer, BaseException) for answer in answers)
            assert f"done-{id}" in left or not committed
            assert not (there and deleted)
            assert list((await api.machine.Check(machine_pb2.CheckRequest())).problems) == []


async def test_an_import_that_is_cut_leaves_nothing(
    socket: Path, node: StandaloneNode, tmp_path: Path
) -> None:
    source = tmp_path / "endless"
    source.mkdir()
    (source / "data").write_bytes(bytes(1 << 20))
    for number in range(2000):
        (source / f"{number}").write_bytes(b"x" * 100_000)
    async with Api(socket) as api:
        request = machine_pb2.ImportRequest(name="cut", path=str(source))
        call = api.machine.Import(request)
        await call.read()
        await kill_front(node)
        async with refused(grpc.StatusCode.UNAVAILABLE):
            while await call.read() is not grpc.aio.EOF:
                pass
    async with Api(socket) as api:
        async with refused(grpc.StatusCode.NOT_FOUND):
            await api.machine.Image(machine_pb2.ImageRequest(name="cut"))
        folder = node.library / "snapshots"
        await until(
            lambda: not [path for path in folder.iterdir() if path.name.isdigit()],
            "the end of what was copied",
        )
        assert list((await api.machine.Check(machine_pb2.CheckRequest())).problems) == []


async def test_records_outlive_the_host(
    socket: Path, node: StandaloneNode, rootfs: Path, new_id: NewId
) -> None:
    """A keeper that dies takes its tasks with it; the next host serves by itself."""
    id = new_id()
    async with Api(socket) as api:
        await made(api, rootfs, id)
        pid = await api.create(id)
        await api.start(id)
    node.kill_keeper()
    node.start()
    await until(socket.exists, "the next host's socket")
    async with Api(socket) as api:
        await until(lambda: not is_alive(pid), "the end of what the dead host ran")
        await until(lambda: node.bundles() == [], "the bundle's end")
        async with refused(grpc.StatusCode.NOT_FOUND, "no task"):
            await api.info(id)
        assert await api.create(id) != pid
        await api.start(id)


async def test_a_host_with_tasks_does_not_end(
    socket: Path, node: StandaloneNode, rootfs: Path, new_id: NewId
) -> None:
    id = new_id()
    async with Api(socket) as api:
        await made(api, rootfs, id)
        await api.create(id)
        with door_of(node) as opened, pytest.raises(FailedPrecondition, match="1 containers"):
            door.call(opened, "Stop", host_pb2.StopRequest(), host_pb2.StopResponse)
        assert (await api.info(id)).status == types_pb2.CREATED


async def test_an_upgrade_keeps_tasks_and_socket(
    socket: Path, node: StandaloneNode, rootfs: Path, new_id: NewId
) -> None:
    id = new_id()
    async with Api(socket) as api:
        await made(api, rootfs, id)
        pid = await api.create(id)
    with door_of(node) as opened:
        request = host_pb2.UpgradeRequest(python=sys.executable.encode())
        await asyncio.to_thread(door.call, opened, "Upgrade", request, host_pb2.UpgradeResponse)
    async with Api(socket) as api:
        assert (await api.info(id)).pid == pid
        await api.start(id)
