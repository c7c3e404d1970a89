"""`denseshim logs`, and what the host's containers print into logs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim._pb.containerd.v1.types import types_pb2
from tests.fakes.node import PROGRAM
from tests.integration.support import PATIENCE, until
from tests.standalone.support import EXIT, Api, StandaloneNode, kill_front

NewId = Callable[[], str]
Logs = Callable[..., "subprocess.CompletedProcess[bytes]"]


def log_of(id: str, query: str = "") -> dict[str, str]:
    """The outputs of a detached container."""
    return log_to(f"/var/lib/denseshim/logs/{id}/0.log", query)


def log_to(path: str, query: str = "") -> dict[str, str]:
    return dict.fromkeys(("stdout", "stderr"), f"log://{path}{query}")


@pytest.fixture
def logs(node: StandaloneNode) -> Logs:
    """Runs `denseshim logs` to its end."""
    return lambda *words: node.run(PROGRAM, "logs", *words)


@contextlib.contextmanager
def following(node: StandaloneNode, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`denseshim logs -f`, ended at the latest by the block's end."""
    command = node.command([PROGRAM, "logs", "-f", *words], Path("/"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


async def output_of(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Both streams to their ends."""
    return await asyncio.to_thread(process.communicate, timeout=PATIENCE)


async def run(api: Api, id: str, image: str, script: str, **more: object) -> int:
    """Create a container's task, not started; its pid."""
    await api.prepare(id, image)
    await api.create_container(id, ("/bin/sh", "-c", script), rootfs=id)
    return await api.create(id, **{**log_of(id), **more})


async def ended(api: Api, id: str, pid: int) -> None:
    """Start the task and return when all that it has printed is in its log."""
    async with api.events() as events:
        await api.start(id)
        await events.wait_for(EXIT, pid)


async def remove(api: Api, id: str) -> None:
    await api.delete(id)
    await api.delete_container(id)


async def test_each_stream_is_shown_on_its_own(
    api: Api, image: str, new_id: NewId, logs: Logs
) -> None:
    id = new_id()
    pid = await run(api, id, image, "echo out; echo err >&2; printf half")
    await ended(api, id, pid)
    await api.delete(id)
    shown = logs(id)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, b"out\nhalf", b"err\n")
    shown = logs("--timestamps", "--tail", "1", id)
    time, _, text = shown.stdout.partition(b" ")
    assert (len(time), time[-1:], text) == (30, b"Z", b"half")
    assert logs("--since", "1h", id).stdout == b"out\nhalf"
    assert logs("--since", "2100-01-01T00:00:00Z", id).stdout == b""
    await api.delete_container(id)


async def test_a_terminal_s_output_is_logged(
    api: Api, image: str, new_id: NewId, logs: Logs
) -> None:
    id = new_id()
    pid = await run(api, id, image, "stty -opost; tty; echo err >&2", terminal=True)
    await ended(api, id, pid)
    await api.delete(id)
    assert logs(id).stdout == b"/dev/pts/0\nerr\n"
    await api.delete_container(id)


async def test_a_log_is_followed_over_rotations_to_its_end(
    api: Api, image: str, new_id: NewId, node: StandaloneNode
) -> None:
    """Under load, from before the container is started: no line is lost, none comes twice."""
    id, count = new_id(), 200_000
    script = f"i=0; while [ $i -lt {count} ]; do echo $i; i=$((i+1)); done; echo end >&2"
    query = "?max_size=262144&max_files=100"
    await run(api, id, image, script, **log_of(id, query))
    with following(node, id) as process:
        await api.start(id)
        stdout, stderr = await output_of(process)
    assert (process.returncode, stderr) == (0, b"end\n")
    assert stdout == b"".join(b"%d\n" % number for number in range(count))
    assert len(os.listdir(node.library / "logs" / id)) > 10
    await remove(api, id)


async def test_a_log_is_followed_while_fronts_die(
    api: Api, image: str, new_id: NewId, node: StandaloneNode
) -> None:
    id = new_id()
    os.mkfifo(node.inside("/run/go"))
    await run(api, id, image, "echo first; read line; echo $line", stdin="/run/go")
    with following(node, id) as process:
        await api.start(id)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"first\n"
        await kill_front(node)
        node.inside("/run/go").write_text("last\n")
        stdout, _ = await output_of(process)
    assert (process.returncode, stdout) == (0, b"last\n")


async def test_who_follows_may_leave(
    api: Api, image: str, new_id: NewId, node: StandaloneNode
) -> None:
    id = new_id()
    await run(api, id, image, "echo first; exec sleep 1000")
    await api.start(id)
    for number in (signal.SIGINT, signal.SIGTERM):
        with following(node, id) as process:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"first\n"
            process.send_signal(number)
            assert await output_of(process) == (b"", b"")
            assert process.returncode == -number


async def test_what_cannot_be_shown_is_said(
    api: Api, image: str, new_id: NewId, logs: Logs
) -> None:
    id = new_id()
    shown = logs(id)
    assert (shown.returncode, shown.stdout) == (1, b"")
    assert b"container" in shown.stderr
    assert id.encode() in shown.stderr
    await api.prepare(id, image)
    await api.create_container(id, rootfs=id)
    for options in ((), ("-f",)):
        shown = logs(*options, id)
        assert shown.returncode == 1
        assert b"no log" in shown.stderr
        assert b"denseshim run -d" in shown.stderr
    assert b"give one as" in logs("--since", "yesterday", id).stderr
    assert b"no container's id" in logs("../x").stderr


async def test_a_log_is_shown_where_no_host_is(
    api: Api, image: str, new_id: NewId, node: StandaloneNode, logs: Logs
) -> None:
    id = new_id()
    await ended(api, id, await run(api, id, image, "echo out"))
    node.stop()
    assert logs("-f", id).stdout == b"out\n"
    assert node.left() == {}  # it has started none


@contextlib.contextmanager
def small_disk(node: StandaloneNode, size: str) -> Iterator[Path]:
    """A file system of that size at /run/small, as this process reaches it."""
    path = node.inside("/run/small")
    path.mkdir()
    done = node.run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/run/small")
    assert done.returncode == 0, done.stderr
    try:
        yield path
    finally:
        assert node.run("umount", "-l", "/run/small").returncode == 0


async def test_a_full_disk_makes_a_container_wait_and_loses_nothing(
    api: Api, image: str, new_id: NewId, node: StandaloneNode
) -> None:
    id, count = new_id(), 100_000
    script = f"i=0; while [ $i -lt {count} ]; do echo $i; i=$((i+1)); done"
    with small_disk(node, "8M") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(7800 << 10))
        await run(api, id, image, script, **log_to("/run/small/log"))
        with following(node, id) as process:
            await api.start(id)
            await until(lambda: not has_room(disk), "a full disk")
            other = new_id()
            await ended(api, other, await run(api, other, image, "echo others go on"))
            assert (await api.info(id)).status == types_pb2.RUNNING
            ballast.unlink()
            stdout, _ = await output_of(process)
        assert stdout == b"".join(b"%d\n" % number for number in range(count))
        await remove(api, id)


async def test_a_container_on_a_full_disk_can_be_ended(
    api: Api, image: str, new_id: NewId, node: StandaloneNode, logs: Logs
) -> None:
    """What has not been written then is lost; what has been is whole."""
    id = new_id()
    with small_disk(node, "128k") as disk:
        query = "?max_size=1048576"
        pid = await run(api, id, image, "yes 0123456789", **log_to("/run/small/log", query))
        async with api.events() as events:
            await api.start(id)
            await until(lambda: not has_room(disk), "a full disk")
            shown = logs(id)
            await api.kill(id)
            await events.wait_for(EXIT, pid)
        assert set(shown.stdout.splitlines()) == {b"0123456789"}
        await remove(api, id)
        for line in (disk / "log").read_bytes().splitlines():
            assert line.endswith(b" stdout F 0123456789")


def has_room(disk: Path) -> bool:
    """Whether another page can be written."""
    return os.statvfs(disk).f_bavail > 0
