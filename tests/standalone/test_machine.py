"""The socket itself and the Machine service: imports, who may call, what is served."""

from __future__ import annotations

import asyncio
import grp
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from shim._pb.containerd.v1.snapshot import snapshot_pb2
from shim._pb.containerd.v1.types import types_pb2
from shim._pb.denseshim.machine.v1 import machine_pb2 as pb
from shim.errors import FailedPrecondition, Unavailable
from shim.snapshots.image import Defaults
from tests.integration.support import until
from tests.standalone.support import Api, StandaloneNode, refused

NAMES = {
    "containerd.v1.Containers",
    "containerd.v1.services.execution.Tasks",
    "containerd.v1.snapshot.Snapshot",
    "denseshim.machine.v1.Machine",
}
LIBRARY = "/var/lib/denseshim"
# Prints what became of a call: at once hung up on, or answered.
CALL = """
import os, sys
import grpc
from shim._pb.denseshim.machine.v1 import machine_pb2, machine_pb2_grpc
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(65534)
with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    stub = machine_pb2_grpc.MachineStub(channel)
    try:
        stub.Check(machine_pb2.CheckRequest(), timeout=20)
        print("answered")
    except grpc.RpcError as error:
        print(error.code().name)
"""


async def test_a_host_serves_nothing_before_it_is_asked(node: StandaloneNode) -> None:
    node.start()
    assert not node.inside("/run/denseshim.sock").exists()
    assert not node.library.exists()
    socket = node.serve()
    assert socket == node.serve()
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.library.stat().st_mode) == 0o700
    async with Api(socket) as api:
        assert list((await api.machine.Check(pb.CheckRequest())).problems) == []
    node.stop()
    assert not socket.exists()
    assert node.library.exists()


def test_a_front_that_serves_containerd_alone_does_not_load_it() -> None:
    ours = ("shim.metadata", "shim.snapshots")
    heavy = ("sqlite3", "re2", "grpc", *ours)
    program = f"import sys, shim.front; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


async def test_a_socket_that_somebody_removed_is_made_again(
    node: StandaloneNode, rootfs: Path, new_id: Callable[[], str]
) -> None:
    socket, id = node.start().serve(), new_id()
    async with Api(socket) as api:
        await api.import_path("busybox", rootfs)
        await api.prepare(id, "busybox")
        await api.create_container(id, ["sleep", "1000"], rootfs=id)
        pid = await api.create(id)
        socket.unlink()
    assert await asyncio.gather(*(asyncio.to_thread(node.serve) for _ in range(3))) == [socket] * 3
    async with Api(socket) as api:
        assert (await api.info(id)).pid == pid
    node.stop()


def test_a_socket_that_cannot_be_made(node: StandaloneNode) -> None:
    """It is told what is in the way; once that is gone, it can."""
    in_the_way = node.start().inside("/run/denseshim.sock")
    in_the_way.mkdir()
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match=r"/run/denseshim.sock"):
            node.serve()
    in_the_way.rmdir()
    assert node.serve().is_socket()
    node.stop()


async def test_health_and_reflection(api: Api) -> None:
    health = health_pb2_grpc.HealthStub(api.channel)
    for name in ("", *NAMES):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    wanted = reflection_pb2.ServerReflectionRequest(list_services="")
    stream = reflection.ServerReflectionInfo(iter([wanted]))
    found = [service.name for answer in [await stream.read()]
             for service in answer.list_services_response.service]  # fmt: skip
    assert {*found} > NAMES
    stream.cancel()


async def test_the_members_of_a_group_may_call(node: StandaloneNode) -> None:
    group = grp.getgrgid(65534)
    socket = node.start(f"--group={group.gr_name}").serve()
    assert (stat.S_IMODE(socket.stat().st_mode), socket.stat().st_gid) == (0o660, group.gr_gid)
    there = "/run/denseshim.sock"
    answers = [
        await asyncio.to_thread(node.run, sys.executable, "-c", CALL, there, gid)
        for gid in (str(group.gr_gid), "60000")
    ]
    assert [answer.stdout for answer in answers] == [b"answered\n", b"UNAVAILABLE\n"]


async def test_what_an_import_says(api: Api, rootfs: Path) -> None:
    made = await api.import_path("busybox", rootfs)
    assert (made.name, Defaults.from_bytes(made.config)) == ("busybox", Defaults())
    image = await api.machine.Image(pb.ImageRequest(name="busybox"))
    assert image.name == "busybox"
    async with refused(grpc.StatusCode.NOT_FOUND, "missing"):
        await api.machine.Image(pb.ImageRequest(name="missing"))
    for path in ("relative", ""):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "absolute"):
            await api.import_path("other", Path(path))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "/nothing"):
        await api.import_path("other", Path("/nothing"))


async def test_an_import_ends_undone_when_its_caller_goes(
    api: Api, node: StandaloneNode, tmp_path: Path
) -> None:
    """It reads a file that is as large as one can be; nothing of it is left."""
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "hole").open("wb") as hole:
        hole.truncate(100 << 30)
    (tree / "data").write_bytes(os.urandom(64 << 20))
    for number in range(20):
        os.link(tree / "data", tree / f"other{number}")
    call = api.machine.Import(pb.ImportRequest(name="endless", path=str(tree)))
    first = await call.read()
    assert first.what == "files"
    call.cancel()
    snapshots = node.library / "snapshots"
    await until(
        lambda: not [name for name in os.listdir(snapshots) if name.isdigit()], "its files' end"
    )
    async with refused(grpc.StatusCode.NOT_FOUND):
        await api.machine.Image(pb.ImageRequest(name="endless"))


async def test_a_full_disk_is_emptied_by_removing_things(
    node: StandaloneNode, rootfs: Path, new_id: Callable[[], str]
) -> None:
    """Also by a host that has begun on it."""
    small_library(node)
    try:
        ids = [new_id(), new_id()]
        async with Api(node.start().serve()) as api:
            await api.import_path("busybox", rootfs)
            for id in ids:
                mounts = await api.prepare(id, "busybox")
                await api.create_container(id, rootfs=id)
            fill(files_of(node, mounts) / "large")
            async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
                await api.import_path("other", rootfs)
            await api.delete_container(ids[0])
            fill(node.library / "filler")
            node.stop()
        async with Api(node.start().serve()) as api:
            await api.delete_container(ids[1])
            (node.library / "filler").unlink()
            await api.import_path("other", rootfs)
            reserve = node.library / "metadata.db-reserve"
            assert reserve.stat().st_blocks * 512 == 1 << 20
        node.stop()
    finally:
        assert node.run("umount", "-l", LIBRARY).returncode == 0


def small_library(node: StandaloneNode) -> None:
    """A disk of 16 MiB; who has asked for it unmounts it."""
    mount = f"mkdir {LIBRARY} && mount -t tmpfs -o size=16m denseshim {LIBRARY}"
    done = node.run("sh", "-c", mount)
    assert done.returncode == 0, done.stderr


def files_of(node: StandaloneNode, mounts: list[types_pb2.Mount]) -> Path:
    """Where what is written to a snapshot goes."""
    (upper,) = (text for text in mounts[0].options if text.startswith("upperdir="))
    return node.inside(upper.partition("=")[2])


def fill(path: Path) -> None:
    """Take what is left on the disk."""
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        _write_on(file)


def _write_on(file: io.FileIO) -> None:
    while True:
        file.write(bytes(4096))


async def test_a_commit_on_a_full_disk_changes_nothing(
    node: StandaloneNode, rootfs: Path
) -> None:
    small_library(node)
    try:
        async with Api(node.start().serve()) as api:
            await api.import_path("busybox", rootfs)
            keys = [f"work-{number}" for number in range(100)]
            for key in keys:
                await api.prepare(key, "busybox")
            fill(node.library / "filler")
            done_keys = []
            async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "metadata.db is full"):
                for key in keys:
                    await commit(api, key)
                    done_keys.append(key)
            listed = {info.name async for message in api.snapshots.List(snapshot_pb2.ListRequest())
                      for info in message.info}  # fmt: skip
            kept = {f"done-{key}" for key in done_keys}
            assert listed == {"busybox", *kept, *keys[len(done_keys) :]}
            (node.library / "filler").unlink()
            await commit(api, keys[len(done_keys)])
        node.stop()
    finally:
        assert node.run("umount", "-l", LIBRARY).returncode == 0


async def commit(api: Api, key: str) -> None:
    await api.snapshots.Commit(snapshot_pb2.CommitRequest(name=f"done-{key}", key=key))


async def test_two_hosts_that_want_one_library(
    node: StandaloneNode, rootfs: Path, tmp_path: Path
) -> None:
    """The second one is told, and has it once the first has ended."""
    other = StandaloneNode()
    try:
        share_library(tmp_path, node, other)
        async with Api(node.start().serve()) as api:
            await api.import_path("busybox", rootfs)
        other.start()
        with pytest.raises(Unavailable, match=f"{LIBRARY} is in use by another host"):
            await asyncio.to_thread(other.serve)
        node.stop()
        async with Api(other.serve()) as api:
            assert (await api.machine.Image(pb.ImageRequest(name="busybox"))).name == "busybox"
        other.stop()
        for machine in (node, other):
            assert machine.run("umount", LIBRARY).returncode == 0
    finally:
        other.close()


def share_library(path: Path, *machines: StandaloneNode) -> None:
    for machine in machines:
        done = machine.run("sh", "-c", f"mkdir {LIBRARY} && mount --bind {path} {LIBRARY}")
        assert done.returncode == 0, done.stderr


async def test_inspect(api: Api, image: str, new_id: Callable[[], str]) -> None:
    id = new_id()
    await api.prepare(id, image)
    await api.create_container(id, ["sleep", "1000"], rootfs=id)
    asked = pb.InspectRequest(container_id=id)
    found = await api.machine.Inspect(asked)
    assert (found.pid, found.HasField("exited_at")) == (0, False)
    assert found.created_at == found.updated_at
    pid = await api.create(id)
    await api.start(id)
    found = await api.machine.Inspect(asked)
    assert (found.pid, found.terminal, found.output_open) == (pid, False, False)
    assert [one.args for one in found.processes] == [["sleep", "1000"]]
    assert Path(found.bundle).name == id
    async with refused(grpc.StatusCode.NOT_FOUND):
        await api.machine.Inspect(pb.InspectRequest(container_id=new_id()))
