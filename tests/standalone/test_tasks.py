"""The Tasks service: a container's task from its creation to its end, and what is refused."""

from __future__ import annotations

import signal
from collections.abc import Callable

import grpc

from shim._pb.containerd.v1.types import types_pb2
from tests.standalone.support import CREATE, EXIT, START, Api, StandaloneNode, refused


async def test_a_task_lives_and_ends(
    api: Api, image: str, node: StandaloneNode, new_id: Callable[[], str]
) -> None:
    id = new_id()
    await api.prepare(id, image)
    await api.create_container(id, ["sleep", "1000"], rootfs=id)
    async with api.events() as events:
        pid = await api.create(id)
        task = await api.info(id)
        assert (task.container_id, task.pid, task.status) == (id, pid, types_pb2.CREATED)
        async with refused(grpc.StatusCode.ALREADY_EXISTS, "task"):
            await api.create(id)
        await api.start(id)
        assert (await api.info(id)).status == types_pb2.RUNNING
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "running"):
            await api.delete(id)
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "task"):
            await api.delete_container(id)
        await api.kill(id)
        ended = await events.wait_for(EXIT, pid)
        assert ended.exit_status == 128 + signal.SIGKILL
        answer = await api.delete(id)
        assert (answer.container_id, answer.exit_status) == (id, 128 + signal.SIGKILL)
        assert answer.exited_at == ended.exited_at
        assert events.of(id) == [CREATE, START, EXIT]
    assert node.bundles() == []
    async with refused(grpc.StatusCode.NOT_FOUND, "no task"):
        await api.info(id)
    await api.delete_container(id)
