"""Many processes at once (demands 1, 3, 9 and 15)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial

from shim.client import StartedShim
from shim.errors import FailedPrecondition, NotFound, ShimError
from shim.model import EventType, Status, Stdio
from tests.integration.support import Bundle, Events, Reader, exec_spec, serving, until

Make = Callable[..., Bundle]
NO_STDIO = Stdio()
ONCE = [EventType.EXEC_ADDED, EventType.EXIT]


async def begin(shim: StartedShim, bundle: Bundle) -> int:
    """Create and start; the pid."""
    pid = await shim.create(bundle.request())
    await shim.start()
    return pid


async def test_300_execs_that_end_at_once(make_bundle: Make) -> None:
    """Demand 9: added, then ended, with 19, once, however early the end."""
    bundle = make_bundle("sleep", "1000")
    spec = exec_spec("sh", "-c", "exit 19")
    async with serving(bundle) as (shim, events):
        init = await begin(shim, bundle)

        async def caller(count: int) -> list[int]:
            pids = []
            for _ in range(count):
                pids.append(await shim.exec(spec, NO_STDIO))
                await events.exit(pids[-1])
                assert (await shim.delete(pids[-1])).status == 19
            return pids

        batches = await asyncio.gather(*(caller(30) for _ in range(10)))
        pids = [pid for batch in batches for pid in batch]
        assert len(set(pids)) == len(pids) == 300
        assert_each_ended_once(events, set(pids), 19)
        assert [row.pid for row in (await shim.state()).processes] == [init]


def assert_each_ended_once(events: Events, pids: set[int], status: int) -> None:
    told: dict[int, list[EventType]] = {pid: [] for pid in pids}
    for event in events.seen:
        if event.pid in told:
            told[event.pid].append(event.type)
            assert event.type is EventType.EXEC_ADDED or event.exit_status == status
    assert {pid: types for pid, types in told.items() if types != ONCE} == {}


async def test_50_execs_killed_at_once(make_bundle: Make) -> None:
    """Demand 1: one SIGCHLD stands for many."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        await begin(shim, bundle)
        spec = exec_spec("sleep", "1000")
        pids = await asyncio.gather(*(shim.exec(spec, NO_STDIO) for _ in range(50)))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            assert (await events.exit(pid)).status == 137
        ended = await asyncio.gather(*map(shim.delete, pids))
        assert {exit.status for exit in ended} == {137}
        assert_each_ended_once(events, set(pids), 137)


async def test_the_init_is_killed_under_16_exec_loops(make_bundle: Make) -> None:
    """Demand 1: every exec that came to be ends once; every call comes back."""
    bundle = make_bundle("sleep", "1000")
    for _ in range(3):
        async with serving(bundle) as (shim, events):
            init = await begin(shim, bundle)
            calls = [asyncio.create_task(exec_loop(shim)) for _ in range(16)]
            await until(partial(many_ended, events), "some execs")
            await shim.kill(signal.SIGKILL)
            async with asyncio.timeout(30):
                pids = {pid for known in await asyncio.gather(*calls) for pid in known}
            assert (await events.exit(init)).status == 137
            for pid in pids:
                assert (await events.exit(pid)).status in (0, 137)
            assert (await shim.delete()).status == 137
            check_all_ended_once(events, init)


def many_ended(events: Events) -> bool:
    return sum(event.type is EventType.EXIT for event in events.seen) >= 16


async def exec_loop(shim: StartedShim) -> list[int]:
    """Execs, until the container is gone; their pids. Only a refusal may end the loop."""
    pids = []
    while True:
        try:
            pids.append(await shim.exec(exec_spec("true"), NO_STDIO))
        except (FailedPrecondition, NotFound):
            return pids
        except ShimError:
            # The runtime found the container dying: it has words of its own for each step.
            state = await shim.state()
            async with asyncio.timeout(10):
                while state.status is not Status.STOPPED:
                    state = await shim.state()
            return pids


def check_all_ended_once(events: Events, init: int) -> None:
    told: dict[int, list[EventType]] = {}
    for event in events.seen:
        told.setdefault(event.pid, []).append(event.type)
    assert told.pop(init) == [EventType.CREATE, EventType.START, EventType.EXIT]
    assert {pid: types for pid, types in told.items() if types != ONCE} == {}


async def test_terminals_leave_nothing_open(make_bundle: Make) -> None:
    """Demand 15: 30 terminals in three waves; descriptors and terminals as before."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        await begin(shim, bundle)
        await wave(shim, events, bundle)  # what is made once is made now
        before = descriptors(shim.pid)
        for _ in range(3):
            await wave(shim, events, bundle)
            await until(lambda: descriptors(shim.pid) == before, "the descriptors' end")
        assert not any(name.startswith("/dev/ptmx") for name in before)


def descriptors(pid: int) -> list[str]:
    """What a process has open; sockets' and pipes' numbers change, their count must not."""
    folder = f"/proc/{pid}/fd"
    names = [os.readlink(f"{folder}/{number}") for number in os.listdir(folder)]
    return sorted(name.partition(":")[0] for name in names)


async def wave(shim: StartedShim, events: Events, bundle: Bundle) -> None:
    """Ten execs with terminals at once, of which some are left alone by their readers."""

    async def one(number: int) -> None:
        stdio = bundle.stdio(f"exec{number}", "stdin", "stdout", terminal=True)
        spec = exec_spec("sh", "-c", "echo ready; read line", terminal=True)
        with Reader(stdio.stdout) as reader:
            pid = await shim.exec(spec, stdio)
            assert await reader.until(b"ready\r\n") == b"ready\r\n"
            await shim.kill(signal.SIGKILL, pid=pid)
            assert (await events.exit(pid)).status == 137
            if number % 2:
                assert await reader.rest() == b""
            await shim.delete(pid)

    await asyncio.gather(*map(one, range(10)))
