"""A real host that stands on its own, and a plain client of its services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import door
from shim._pb.containerd.v1.containers import containers_pb2, containers_pb2_grpc
from shim._pb.containerd.v1.services.execution import execution_pb2, execution_pb2_grpc
from shim._pb.containerd.v1.snapshot import snapshot_pb2, snapshot_pb2_grpc
from shim._pb.containerd.v1.types import types_pb2
from shim._pb.denseshim.host.v1 import host_pb2
from shim._pb.denseshim.machine.v1 import machine_pb2, machine_pb2_grpc
from shim.detach import READY
from shim.oci.spec import process, spec
from tests.fakes.node import Node, names, wait_for_end
from tests.integration.support import PATIENCE, front_of, is_alive, until

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
CREATE, START, EXIT = (types_pb2.Event.CREATE, types_pb2.Event.START, types_pb2.Event.EXIT)


class StandaloneNode(Node):
    """A machine without containerd: a mount namespace with /run and /var/lib of its own.

    Closing it ends the host, with all tasks; then nothing but /var/lib/denseshim may be left.
    """

    PRIVATE = ("/run", "/var/lib")

    def __init__(self) -> None:
        super().__init__()
        self._host: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> Self:
        """Start a host in the foreground; return when its door is open."""
        ready, theirs = os.pipe()
        command = self.command([sys.executable, "-I", "-m", "shim.host", "--ready", str(theirs),
                                "--own-cgroup", *options])  # fmt: skip
        try:
            self._host = subprocess.Popen(command, pass_fds=[theirs], stdin=subprocess.DEVNULL)
        finally:
            os.close(theirs)
        with open(ready, "rb") as said:
            answer = said.read()
        assert answer == READY, answer
        return self

    def serve(self) -> Path:
        """Have the host serve containers; its socket, as this process reaches it."""
        with door_of(self) as opened:
            answer = door.call(opened, "Api", host_pb2.ApiRequest(), host_pb2.ApiResponse)
        return self.inside(answer.socket)

    def stop(self) -> None:
        with door_of(self) as opened:
            door.call(opened, "Stop", host_pb2.StopRequest(force=True), host_pb2.StopResponse)
            assert opened.recv(1) == b""
        self._reap()

    @property
    def keeper(self) -> int:
        with door_of(self) as opened:
            asked = host_pb2.StatusRequest()
            return door.call(opened, "Status", asked, host_pb2.StatusResponse).keeper_pid

    def inside(self, path: str | Path) -> Path:
        """How this process reaches a path of the machine's."""
        return self.run_folder.parent / str(path).lstrip("/")

    @property
    def library(self) -> Path:
        """/var/lib/denseshim there."""
        return self.inside("/var/lib/denseshim")

    def bundles(self) -> list[str]:
        """The containers that have a bundle."""
        return names(self.state / "bundles")

    def kill_keeper(self) -> None:
        """End the host as a crash does, with everything that it runs."""
        os.kill(self.keeper, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            wait_for_end(host.pid)
            host.wait()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._reap()


@contextlib.contextmanager
def door_of(node: Node) -> Any:
    """A connection to the host's door, made as from inside."""
    with socket.socket(socket.AF_UNIX) as opened:
        opened.settimeout(PATIENCE)
        opened.connect(os.fspath(node.state / "door"))
        yield opened


class Api:
    """The stubs of all services behind one socket; requests as the generated code has them."""

    def __init__(self, socket: Path) -> None:
        """Calls wait until there is a front; what one was given ends with it."""
        waits = json.dumps({"methodConfig": [{"name": [{}], "waitForReady": True}]})
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", waits)]
        self.channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)
        self.containers: Any = containers_pb2_grpc.ContainersStub(self.channel)  # type: ignore[no-untyped-call]
        self.tasks: Any = execution_pb2_grpc.TasksStub(self.channel)  # type: ignore[no-untyped-call]
        self.snapshots: Any = snapshot_pb2_grpc.SnapshotStub(self.channel)  # type: ignore[no-untyped-call]
        self.machine: Any = machine_pb2_grpc.MachineStub(self.channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    # -- shorter ways

    async def import_path(self, name: str, path: Path, **more: Any) -> machine_pb2.ImageResponse:
        """Import and return what the last message says."""
        request = machine_pb2.ImportRequest(name=name, path=str(path), **more)
        steps = [step async for step in self.machine.Import(request)]
        imported: machine_pb2.ImageResponse = steps[-1].imported
        return imported

    async def prepare(self, key: str, parent: str = "") -> list[types_pb2.Mount]:
        """Prepare a snapshot; its mounts."""
        request = snapshot_pb2.PrepareRequest(key=key, parent=parent)
        return list((await self.snapshots.Prepare(request)).mounts)

    async def create_container(
        self, id: str, command: Sequence[str] = ("true",), rootfs: str = "", **more: Any
    ) -> containers_pb2.Container:
        """Record a container that runs `command` on the snapshot `rootfs`."""
        labels: Mapping[str, str] = more.pop("labels", {})
        wanted = containers_pb2.Container(
            id=id, rootfs=rootfs, labels=labels, spec=spec_of(id, command), **more
        )
        request = containers_pb2.CreateContainerRequest(container=wanted)
        made: containers_pb2.Container = (await self.containers.Create(request)).container
        return made

    async def delete_container(self, id: str) -> None:
        """Forget it."""
        await self.containers.Delete(containers_pb2.DeleteContainerRequest(id=id))

    async def create(self, id: str, **more: Any) -> int:
        """Create the container's task; its pid."""
        request = execution_pb2.CreateRequest(container_id=id, **more)
        return int((await self.tasks.Create(request)).pid)

    async def start(self, id: str) -> None:
        """Start the task."""
        await self.tasks.Start(execution_pb2.StartRequest(container_id=id))

    async def kill(self, id: str, number: int = signal.SIGKILL, **more: Any) -> None:
        """Signal the task's init."""
        request = execution_pb2.KillRequest(container_id=id, signal=number, **more)
        await self.tasks.Kill(request)

    async def delete(self, id: str) -> execution_pb2.DeleteResponse:
        """Delete the task."""
        answer: execution_pb2.DeleteResponse = await self.tasks.Delete(
            execution_pb2.DeleteRequest(container_id=id)
        )
        return answer

    async def info(self, id: str) -> types_pb2.Task:
        """The task."""
        task: types_pb2.Task = (
            await self.tasks.Info(execution_pb2.InfoRequest(container_id=id))
        ).task
        return task

    async def exec(self, id: str, *args: str, **more: Any) -> int:
        """Start another process; its pid."""
        value = json.dumps(process(args, terminal=more.get("terminal", False))).encode()
        spec = AnyMessage(type_url=PROCESS_TYPE, value=value)
        request = execution_pb2.ExecRequest(container_id=id, spec=spec, **more)
        return int((await self.tasks.Exec(request)).pid)

    @contextlib.asynccontextmanager
    async def events(self) -> AsyncIterator[TaskEvents]:
        """All events of tasks from now on, and those that nobody has had."""
        stream = self.tasks.Events(execution_pb2.EventsRequest())
        await stream.initial_metadata()
        collected = TaskEvents(stream)
        try:
            yield collected
        finally:
            await collected.close()


class TaskEvents:
    """Collects the events of one stream."""

    def __init__(self, stream: Any) -> None:
        self.seen: list[types_pb2.Event] = []
        self._stream = stream
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for event in self._stream:
            async with self._changed:
                self.seen.append(event)
                self._changed.notify_all()

    async def wait_for(self, type: int, pid: int) -> types_pb2.Event:
        """The first event of that type about that process, seen or to come."""
        async with asyncio.timeout(PATIENCE), self._changed:
            while True:
                for event in self.seen:
                    if (event.type, event.pid) == (type, pid):
                        return event
                await self._changed.wait()

    def of(self, id: str) -> list[int]:
        """The types of this container's events so far."""
        return [event.type for event in self.seen if event.id == id]

    async def close(self) -> None:
        self._stream.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def spec_of(id: str, command: Sequence[str]) -> AnyMessage:
    """The spec that runs `command`."""
    return AnyMessage(type_url=SPEC_TYPE, value=json.dumps(spec(id, command)).encode())


@contextlib.asynccontextmanager
async def refused(code: grpc.StatusCode, *texts: str) -> AsyncIterator[None]:
    """The block fails with that status, and the message has these texts."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        yield
    assert refusal.value.code() is code, refusal.value.details()
    for text in texts:
        assert text in (refusal.value.details() or ""), refusal.value.details()


async def kill_front(node: StandaloneNode) -> None:
    """SIGKILL the host's front, and return when it has ended."""
    keeper = await asyncio.to_thread(lambda: node.keeper)
    front = front_of(keeper)
    assert front, "there is no front to kill"
    os.kill(front, signal.SIGKILL)
    await until(lambda: not is_alive(front), "the front's end")
