"""`denseshim top` on a real host: its numbers, and its screen."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

from shim._pb.denseshim.machine.v1 import machine_pb2
from tests.fakes.node import PROGRAM
from tests.integration.support import PATIENCE
from tests.standalone.support import Api, StandaloneNode

NewId = Callable[[], str]
# A loop that takes a CPU, and prints.
BUSY = "while :; do echo 0123456789; done"


async def run(api: Api, id: str, image: str, script: str) -> None:
    """Start a container that logs."""
    await api.prepare(id, image)
    await api.create_container(id, ("/bin/sh", "-c", script), rootfs=id)
    log = f"log:///var/lib/denseshim/logs/{id}/0.log"
    await api.create(id, stdout=log, stderr=log)
    await api.start(id)


async def test_what_each_task_uses_is_told(api: Api, image: str, new_id: NewId) -> None:
    idle, talking = new_id(), new_id()
    await run(api, idle, image, "exec sleep 1000")
    await run(api, talking, image, "printf 12345; sleep 1000; :")
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = await api.machine.Usage(machine_pb2.UsageRequest())
            usage = {each.container_id: each for each in answer.tasks}
            if usage[talking].pids == 2:
                break
    assert usage.keys() == {idle, talking}
    assert (usage[idle].pids, usage[idle].output) == (1, 0)
    for each in usage.values():
        assert 10**5 < each.cpu < 10**11
        assert 4096 <= each.memory < 1 << 30
        assert each.memory_limit == 0


async def test_the_busy_one_comes_first(
    api: Api, image: str, new_id: NewId, node: StandaloneNode
) -> None:
    idle, busy = new_id(), new_id()
    await run(api, idle, image, "exec sleep 1000")
    await run(api, busy, image, BUSY)
    done = node.run(PROGRAM, "top", "--once", "--interval", "0.5", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    first, second = json.loads(done.stdout)
    assert (first["id"], second["id"]) == (busy, idle)
    assert 5 < first["cpu"] < 250
    assert first["output"] > 10_000
    assert (second["cpu"] < 5, second["output"]) == (True, 0)
    done = node.run(PROGRAM, "top", "--once", "--interval", "0.1")
    head, *rows = done.stdout.decode().splitlines()
    assert head.split() == ["CONTAINER", "CPU", "%", "MEMORY", "LIMIT", "PIDS", "OUTPUT/S"]
    assert [row.split()[0] for row in rows] == [busy, idle]


async def test_the_terminal_is_drawn_anew_and_put_in_order(
    api: Api, image: str, new_id: NewId, node: StandaloneNode
) -> None:
    id = new_id()
    await run(api, id, image, BUSY)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (10, 100))
    before = termios.tcgetattr(slave)
    with top_on(node, slave) as process:
        shown = await asyncio.to_thread(_read_until, master, b"KiB", b"?1049h", id.encode())
        process.send_signal(signal.SIGINT)
        shown += await asyncio.to_thread(_read_until, master, b"?1049l")
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    assert b"\x1b[?25h" in shown  # the cursor is there again
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def top_on(node: StandaloneNode, terminal: int) -> subprocess.Popen[bytes]:
    command = node.command([PROGRAM, "top", "--interval", "0.1"], Path("/"))
    environment = {**os.environ, "TERM": "xterm"}
    return subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )


def _read_until(master: int, *texts: bytes) -> bytes:
    """What is shown until all of these were."""
    shown = b""
    while not all(text in shown for text in texts):
        shown += os.read(master, 65536)
    return shown


async def test_no_container_is_an_empty_table(api: Api, node: StandaloneNode) -> None:
    done = node.run(PROGRAM, "top", "--once", "--interval", "0.1")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
