"""The Tasks service: a container's task from its creation to its end, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim._pb.containerd.v1.containers import containers_pb2
from shim._pb.containerd.v1.services.execution import execution_pb2 as pb
from shim._pb.containerd.v1.types import descriptor_pb2, types_pb2
from shim._pb.denseshim.machine.v1 import machine_pb2
from shim.standalone.tasks import ENDED_KEPT
from tests.integration.support import Gate, Reader, Writer, until
from tests.standalone.support import CREATE, EXIT, START, Api, StandaloneNode, refused, spec_of

NewId = Callable[[], str]
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT
CLIENTS = 50
# Asks for more memory at once than a container of 16 MiB may have.
HOG = ("dd", "if=/dev/zero", "of=/dev/null", "bs=100M")


async def running(api: Api, image: str, id: str, *command: str, **more: Any) -> int:
    """A task that runs; its pid."""
    await api.prepare(id, image)
    await api.create_container(id, command or ("sleep", "1000"), rootfs=id)
    pid = await api.create(id, **more)
    await api.start(id)
    return pid


async def test_a_task_lives_and_ends(
    api: Api, image: str, node: StandaloneNode, new_id: NewId
) -> None:
    id = new_id()
    await api.prepare(id, image)
    await api.create_container(id, ["sleep", "1000"], rootfs=id)
    io = node.inside(f"/run/denseshim/io/{id}")
    io.mkdir(parents=True)
    async with api.events() as events:
        pid = await api.create(id)
        task = await api.info(id)
        assert (task.container_id, task.pid, task.status) == (id, pid, types_pb2.CREATED)
        assert task.spec == spec_of(id, ["sleep", "1000"])
        async with refused(grpc.StatusCode.ALREADY_EXISTS, "task"):
            await api.create(id)
        await api.start(id)
        assert (await api.info(id)).status == types_pb2.RUNNING
        async with refused(PRECONDITION, "running"):
            await api.delete(id)
        async with refused(PRECONDITION, "task"):
            await api.delete_container(id)
        await api.kill(id)
        ended = await events.wait_for(EXIT, pid)
        assert ended.exit_status == 128 + signal.SIGKILL
        answer = await api.delete(id)
        assert (answer.container_id, answer.exit_status) == (id, 128 + signal.SIGKILL)
        assert answer.exited_at == ended.exited_at
        assert events.of(id) == [CREATE, START, EXIT]
    assert node.bundles() == []
    assert not io.exists()
    async with refused(NOT_FOUND, "no task"):
        await api.info(id)
    again = await api.create(id)
    assert (await api.delete(id)).exit_status == 128 + signal.SIGKILL  # it was never started
    assert again != pid
    await api.delete_container(id)


async def test_the_root_of_a_task_stays_its_own(api: Api, image: str, new_id: NewId) -> None:
    """It is pinned by the record as long as the task is there, and nobody else's meanwhile."""
    id, other = new_id(), new_id()
    loose = containers_pb2.UpdateContainerRequest(container=containers_pb2.Container(id=id))
    loose.update_mask.paths.append("rootfs")
    async with api.events() as events:
        pid = await running(api, image, id)
        async with refused(PRECONDITION, "delete that first"):
            await api.containers.Update(loose)
        await api.create_container(other, ["true"], rootfs=id)
        async with refused(PRECONDITION, id):
            await api.create(other)
        await api.kill(id)
        await events.wait_for(EXIT, pid)
        await api.delete(id)
        assert await api.create(other) > 0
        await api.containers.Update(loose)


async def test_every_reader_gets_every_event(api: Api, image: str, new_id: NewId) -> None:
    """What happened before there was one goes to the first."""
    early, late = new_id(), new_id()
    pid = await running(api, image, early, "true")
    async with api.events() as first:
        await first.wait_for(EXIT, pid)
        assert first.of(early) == [CREATE, START, EXIT]
        async with api.events() as second:
            pid = await running(api, image, late, "true")
            await asyncio.gather(first.wait_for(EXIT, pid), second.wait_for(EXIT, pid))
            assert first.of(late) == second.of(late) == [CREATE, START, EXIT]
            assert second.of(early) == []


async def test_out_of_memory(api: Api, image: str, new_id: NewId) -> None:
    """It is told before the exit that it has caused."""
    id = new_id()
    wanted = spec_of(id, HOG)
    limited = json.loads(wanted.value)
    limited["linux"]["resources"]["memory"] = {"limit": 16 << 20}
    wanted.value = json.dumps(limited).encode()
    await api.prepare(id, image)
    container = containers_pb2.Container(id=id, rootfs=id, spec=wanted)
    await api.containers.Create(containers_pb2.CreateContainerRequest(container=container))
    async with api.events() as events:
        pid = await api.create(id)
        await api.start(id)
        assert (await events.wait_for(EXIT, pid)).exit_status == 128 + signal.SIGKILL
        assert events.of(id) == [CREATE, START, types_pb2.Event.OOM, EXIT]


async def test_streams(api: Api, image: str, new_id: NewId, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / name) for name in ("stdin", "stdout")}
    for path in paths.values():
        os.mkfifo(path)
    with Reader(paths["stdout"]) as stdout:
        id = new_id()
        await running(api, image, id, "cat", **paths)
        with Writer(paths["stdin"]) as stdin:
            await stdin.write(b"through the container\n")
        assert await stdout.until(b"\n") == b"through the container\n"
        await api.tasks.CloseStdin(pb.CloseStdinRequest(container_id=id))
        assert await stdout.rest() == b""


async def test_an_exec(api: Api, image: str, new_id: NewId, tmp_path: Path) -> None:
    id, out = new_id(), tmp_path / "out"
    os.mkfifo(out)
    await running(api, image, id)
    async with api.events() as events:
        with Reader(str(out)) as stdout:
            pid = await api.exec(id, "sh", "-c", "echo hello; exec sleep 1000", stdout=str(out))
            assert await stdout.until(b"\n") == b"hello\n"
            await events.wait_for(types_pb2.Event.EXEC_ADDED, pid)
            found = await api.tasks.Processes(pb.ProcessesRequest(container_id=id))
            assert {pid, (await api.info(id)).pid} == {one.pid for one in found.processes}
            await api.kill(id, signal.SIGTERM, pid=pid)
            ended = await events.wait_for(EXIT, pid)
            assert ended.exit_status == 128 + signal.SIGTERM
        async with refused(NOT_FOUND):
            await api.kill(id, pid=pid)


async def test_only_so_many_ended_execs_are_remembered(
    api: Api, image: str, new_id: NewId
) -> None:
    id = new_id()
    await running(api, image, id)
    pids = []
    async with api.events() as events:
        for _ in range(ENDED_KEPT + 3):
            pids.append(await api.exec(id, "true"))
            await events.wait_for(EXIT, pids[-1])

    async def known() -> list[int]:
        asked = machine_pb2.InspectRequest(container_id=id)
        return [one.pid for one in (await api.machine.Inspect(asked)).processes][1:]

    async with asyncio.timeout(20):
        while await known() != pids[-ENDED_KEPT:]:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


async def test_a_terminal(api: Api, image: str, new_id: NewId, tmp_path: Path) -> None:
    """Whatever the spec says, the call decides whether there is one."""
    id, out = new_id(), tmp_path / "out"
    os.mkfifo(out)
    script = "until stty size 2>&1 | grep -q '^50 120'; do sleep 0.01; done; echo seen"
    command = ["sh", "-c", script]
    with Reader(str(out)) as stdout:
        pid = await running(api, image, id, *command, stdout=str(out), terminal=True)
        size: dict[str, Any] = {"container_id": id, "width": 120, "height": 50}
        await api.tasks.Pty(pb.PtyRequest(pid=pid, **size))
        assert await stdout.until(b"\r\n") == b"seen\r\n"
    async with refused(INVALID, "pid"):
        await api.tasks.Pty(pb.PtyRequest(pid=0, **size))
    async with refused(INVALID, "large"):
        await api.tasks.Pty(pb.PtyRequest(container_id=id, pid=pid, width=1 << 16))


async def test_pausing(api: Api, image: str, new_id: NewId) -> None:
    id = new_id()
    await running(api, image, id)
    await api.tasks.Pause(pb.PauseRequest(container_id=id))
    assert (await api.info(id)).status == types_pb2.PAUSED
    async with refused(PRECONDITION):
        await api.tasks.Pause(pb.PauseRequest(container_id=id))
    await api.tasks.Resume(pb.ResumeRequest(container_id=id))
    assert (await api.info(id)).status == types_pb2.RUNNING


async def test_the_list(api: Api, image: str, new_id: NewId) -> None:
    first, second = new_id(), new_id()
    pids = [await running(api, image, id) for id in (first, second)]
    found = (await api.tasks.List(pb.ListRequest())).tasks
    assert [(task.container_id, task.pid) for task in found] == list(
        zip((first, second), pids, strict=True)
    )
    assert all(task.spec.value for task in found)
    await api.kill(first, all=True)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Create", pb.CreateRequest(container_id="missing")),
        ("Start", pb.StartRequest(container_id="missing")),
        ("Delete", pb.DeleteRequest(container_id="missing")),
        ("Info", pb.InfoRequest(container_id="missing")),
        ("Kill", pb.KillRequest(container_id="missing", signal=9)),
        ("Exec", pb.ExecRequest(container_id="missing", spec=AnyMessage(value=b"{}"))),
        ("Pty", pb.PtyRequest(container_id="missing", pid=1)),
        ("CloseStdin", pb.CloseStdinRequest(container_id="missing")),
        ("Pause", pb.PauseRequest(container_id="missing")),
        ("Resume", pb.ResumeRequest(container_id="missing")),
        ("Processes", pb.ProcessesRequest(container_id="missing")),
        ("Checkpoint", pb.CheckpointRequest(container_id="missing")),
    ],
)
async def test_what_is_not_there(api: Api, method: str, request_: object) -> None:
    async with refused(NOT_FOUND, "missing"):
        await getattr(api.tasks, method)(request_)


async def test_what_no_task_can_be_made_of(
    api: Api, image: str, node: StandaloneNode, new_id: NewId
) -> None:
    async with refused(INVALID, "id"):
        await api.create("../x")
    bare = new_id()
    await api.create_container(bare)
    async with refused(PRECONDITION, "no root file system"):
        await api.create(bare)
    committed = new_id()
    await api.create_container(committed, rootfs=image)
    async with refused(PRECONDITION, "prepare"):
        await api.create(committed)
    for value, text in ((b"{", "not JSON"), (b"[]", "no JSON object")):
        broken = new_id()
        wanted = containers_pb2.Container(id=broken, spec=AnyMessage(value=value))
        request = containers_pb2.CreateContainerRequest(container=wanted)
        await api.containers.Create(request)
        async with refused(PRECONDITION, text):
            await api.create(broken)
    stranger = descriptor_pb2.Descriptor(media_type="x", digest="/x")
    async with refused(INVALID, "checkpoint"):
        await api.create(committed, checkpoint=stranger)
    missing = new_id()
    await api.prepare(missing, image)
    await api.create_container(missing, ["/no/such/program"], rootfs=missing)
    async with refused(grpc.StatusCode.UNKNOWN, "no such file"):
        await api.create(missing)
        await api.start(missing)
    async with refused(INVALID, "not JSON"):
        spec = AnyMessage(value=b"{")
        await api.tasks.Exec(pb.ExecRequest(container_id=missing, spec=spec))


async def test_a_root_that_is_named(
    api: Api, image: str, rootfs: Path, new_id: NewId
) -> None:
    """By mounts in the call, or by the spec."""
    mounts = await api.prepare("mounted", image)
    first, second = new_id(), new_id()
    await api.create_container(first, ["sleep", "1000"])
    await api.create(first, rootfs=mounts)
    await api.start(first)
    spec = spec_of(second, ["sleep", "1000"])
    config = json.loads(spec.value)
    config["root"]["path"] = str(rootfs)
    spec.value = json.dumps(config).encode()
    wanted = containers_pb2.Container(id=second, spec=spec)
    await api.containers.Create(containers_pb2.CreateContainerRequest(container=wanted))
    await api.create(second)
    await api.start(second)
    assert (await api.info(second)).status == types_pb2.RUNNING


async def test_a_checkpoint_that_the_runtime_refuses(
    api: Api, image: str, new_id: NewId, tmp_path: Path
) -> None:
    """Where CRIU does not run, its error is told; one on top of another is none of ours."""
    id = new_id()
    runtime = tmp_path / "runtime"
    noted = tmp_path / "noted"
    runtime.write_text(
        f'#!/bin/sh\nif [ "$7" = checkpoint ]; then echo "$@" >{noted}; exit; fi\nexec runc "$@"\n'
    )
    runtime.chmod(0o755)
    await api.prepare(id, image)
    await api.create_container(id, ["sleep", "1000"], rootfs=id, runtime=str(runtime))
    await api.create(id)
    await api.start(id)
    asked = pb.CheckpointRequest(container_id=id, allow_tcp=True)
    (made,) = (await api.tasks.Checkpoint(asked)).descriptors
    assert made.media_type == "application/vnd.denseshim.checkpoint.path"
    words = noted.read_text().split()
    assert words[words.index("--image-path") + 1] == made.digest
    assert {"--tcp-established", "--leave-running"} <= {*words}
    async with refused(grpc.StatusCode.UNIMPLEMENTED):
        asked.parent_checkpoint = "x"
        await api.tasks.Checkpoint(asked)


async def test_records_do_not_wait_for_a_runtime(
    api: Api, image: str, new_id: NewId, tmp_path: Path
) -> None:
    """Nor does a container go while its task is being made."""
    gate = Gate(tmp_path, "create")
    id, other = new_id(), new_id()
    await api.prepare(id, image)
    await api.create_container(id, ["sleep", "1000"], rootfs=id, runtime=str(gate.path))
    creating = asyncio.ensure_future(api.create(id))
    await gate.reached()
    await api.create_container(other)
    async with refused(PRECONDITION, "task"):
        await api.delete_container(id)
    await api.delete_container(other)
    assert not creating.done()
    gate.open()
    await creating


async def test_of_fifty_clients_one_creates_the_task(
    api: Api, image: str, node: StandaloneNode, new_id: NewId
) -> None:
    id = new_id()
    await api.prepare(id, image)
    await api.create_container(id, ["sleep", "1000"], rootfs=id)
    socket = node.inside("/run/denseshim.sock")

    async def work() -> grpc.StatusCode:
        async with Api(socket) as client:
            try:
                await client.create(id)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

    codes = await asyncio.gather(*(work() for _ in range(CLIENTS)))
    assert codes.count(grpc.StatusCode.OK) == 1
    assert codes.count(grpc.StatusCode.ALREADY_EXISTS) == CLIENTS - 1
    await until(lambda: node.bundles() == [id], "the one bundle")
