"""The front is killed, at every step; what the container and its clients may notice of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from shim.client import StartedShim, steadily
from shim.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from shim.model import CreateRequest, Event, EventType, Mount, ProcessInfo, RuntimeOptions, Status
from tests.integration.support import (
    Bundle,
    Gate,
    Reader,
    Writer,
    exec_spec,
    front_of,
    is_alive,
    kill_front,
    serving,
    until,
)

Make = Callable[..., Bundle]
MIB = 1 << 20
# Seconds: what a new front may take to answer, on a busy machine.
ANSWER = 10.0


async def begin(shim: StartedShim, bundle: Bundle, *, runtime: str = "", **streams: Any) -> int:
    """Create and start; the pid."""
    pid = await shim.create(bundle.request(runtime=runtime, **streams))
    await shim.start()
    return pid


async def answers(shim: StartedShim) -> None:
    """Return when a new front answers; the first call may still meet the old connection."""
    async with asyncio.timeout(ANSWER):
        while True:
            await shim.ready(ANSWER)
            try:
                await shim.state()
            except Unavailable:
                continue
            except (FailedPrecondition, NotFound):
                pass  # an answer, too
            return


async def interrupted(call: Awaitable[object]) -> None:
    """The front died under this call."""
    with pytest.raises(Unavailable):
        await call


async def replaced(shim: StartedShim) -> None:
    """Kill the front, and wait until its successor answers."""
    await kill_front(shim.pid)
    await answers(shim)


# ---- what goes on


async def test_output_flows_on(make_bundle: Make) -> None:
    """Demand 20: 1 GiB through stdin and stdout, while three fronts die."""
    bundle = make_bundle("cat")
    block = random.Random(1).randbytes(MIB)
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            pid = await begin(shim, bundle, stdin=True, stdout=True)
            result = asyncio.create_task(reader.digest())
            sent = hashlib.sha256()
            with Writer(bundle.fifo("stdin")) as writer:
                for turn in range(1024):
                    if turn in (120, 440, 760):
                        await kill_front(shim.pid)
                    data = turn.to_bytes(8) + block
                    sent.update(data)
                    await writer.write(data)
            await steadily(shim, lambda: shim.close_stdin(pid))
            assert await result == (1024 * (MIB + 8), sent.hexdigest())
            assert (await events.exit(pid)).status == 0


async def test_a_terminal_goes_on(make_bundle: Make) -> None:
    """Demand 20: keys, sizes and output of a terminal outlive the front."""
    script = "echo ready; read a; stty size; read b; echo $a $b; exit 6"
    bundle = make_bundle("sh", "-c", script, terminal=True)
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            request = bundle.request(stdin=True, stdout=True, terminal=True)
            pid = await shim.create(request)
            await shim.start()
            await reader.until(b"ready\r\n")
            await replaced(shim)
            await shim.pty(pid, 77, 22)
            with Writer(bundle.fifo("stdin")) as keys:
                await keys.write(b"one\n")
                assert (await reader.until(b"22 77\r\n")).endswith(b"one\r\n22 77\r\n")
                await kill_front(shim.pid)
                await keys.write(b"two\n")
                assert await reader.rest() == b"two\r\none two\r\n"
            assert (await events.exit(pid)).status == 6


async def test_a_created_container_can_be_started(make_bundle: Make) -> None:
    """Demand 20: between Create and Start."""
    bundle = make_bundle("sh", "-c", "echo here; exit 5")
    with Reader(bundle.fifo("stdout")) as reader:
        async with serving(bundle) as (shim, events):
            pid = await shim.create(bundle.request(stdout=True))
            await replaced(shim)
            state = await shim.state()
            assert (state.pid, state.status, state.id) == (pid, Status.CREATED, bundle.id)
            await shim.start()
            assert (await events.exit(pid)).status == 5
            assert await reader.rest() == b"here\n"
            assert (await shim.delete()).status == 5
            check_lives(events.seen, pid)


async def test_what_state_tells_stays_the_same(make_bundle: Make) -> None:
    """Demand 13: the new front knows what the old one knew, of ended execs, too."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        await begin(shim, bundle)
        spec = exec_spec("sh", "-c", "exit 19", env={"A": "b"}, cwd="/tmp")
        ended = await shim.exec(spec, bundle.stdio("one"))
        await shim.exec(exec_spec("sleep", "1000"), bundle.stdio("two"))
        await events.exit(ended)
        before = await shim.state()
        await replaced(shim)
        assert await shim.state() == before
        assert (await shim.delete(ended)).status == 19
        await replaced(shim)
        with pytest.raises(NotFound):
            await shim.delete(ended)
        assert len((await shim.state()).processes) == 2


# ---- during a call


def fifo_ends(path: str) -> list[str]:
    """The descriptors of other processes that are ends of this FIFO."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == path and link.parts[2] != str(os.getpid()):
                found.append(str(link))
    return found


def containers() -> list[str]:
    done = subprocess.run(["runc", "list", "-q"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def mounts_below(path: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [target for line in lines if (target := line.split()[4]).startswith(str(path))]


def rooted(bundle: Bundle, rootfs: Path, **streams: Any) -> CreateRequest:
    """A Create that mounts the root file system on the bundle's rootfs."""
    path = bundle.path / "config.json"
    path.write_text(path.read_text().replace(str(rootfs), "rootfs"))
    return bundle.request(rootfs=[Mount("bind", str(rootfs), "", ("rbind",))], **streams)


def with_runtime(request: CreateRequest, gate: Gate) -> CreateRequest:
    return replace(request, options=RuntimeOptions(runtime=str(gate.path)))


def assert_rolled_back(bundle: Bundle) -> None:
    """Nothing is left of a Create: no container, mount, open FIFO or pid file."""
    assert bundle.id not in containers()
    assert mounts_below(bundle.path) == []
    assert not (bundle.path / "init.pid").exists()
    for name in ("stdin", "stdout", "stderr"):
        assert fifo_ends(str(bundle.path / name)) == []


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_create_is_taken_back(
    make_bundle: Make, rootfs: Path, moment: str, terminal: bool
) -> None:
    """Demand 20: a Create that nobody has been told of is undone; then the id is free."""
    bundle = make_bundle("sh", "-c", "echo here; exit 5", terminal=terminal)
    streams = {"stdin": True, "stdout": True, "stderr": not terminal, "terminal": terminal}
    request = rooted(bundle, rootfs, **streams)
    gate = Gate(bundle.path, "create", moment)
    async with serving(bundle) as (shim, events):
        call = asyncio.create_task(shim.create(with_runtime(request, gate)))
        await gate.reached()
        await kill_front(shim.pid)
        gate.open()
        await interrupted(call)
        await answers(shim)
        with pytest.raises(FailedPrecondition):
            await shim.state()
        assert_rolled_back(bundle)
        assert events.seen == []
        with Reader(request.stdio.stdout) as reader:
            pid = await shim.create(request)
            await shim.start()
            assert (await events.exit(pid)).status == 5
            assert await reader.rest() == (b"here\r\n" if terminal else b"here\n")


async def test_create_is_taken_back_when_the_runtime_has_ended(
    make_bundle: Make, rootfs: Path
) -> None:
    """The front dies after the runtime's success, which it has not learned of."""
    bundle = make_bundle("sleep", "1000")
    request = rooted(bundle, rootfs, stdout=True)
    gate = Gate(bundle.path, "create", "after")
    async with serving(bundle) as (shim, events):
        call = asyncio.create_task(shim.create(with_runtime(request, gate)))
        await gate.reached()
        front = front_of(shim.pid)
        os.kill(front, signal.SIGSTOP)
        gate.open()
        pid = int((bundle.path / "init.pid").read_text())
        await until(lambda: parent(pid) == shim.pid, "the runtime's end")
        await kill_front(shim.pid)
        await interrupted(call)
        await answers(shim)
        assert_rolled_back(bundle)
        assert not is_alive(pid)
        assert events.seen == []
        await shim.create(request)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("script", ["sleep 1000", "exit 7"])
async def test_start_is_completed(make_bundle: Make, moment: str, script: str) -> None:
    """Demand 20: START once, and before EXIT, also when the program ends at once."""
    bundle = make_bundle("sh", "-c", script)
    gate = Gate(bundle.path, "start", moment)
    async with serving(bundle) as (shim, events):
        pid = await shim.create(bundle.request(runtime=str(gate.path)))
        call = asyncio.create_task(shim.start())
        await gate.reached()
        await kill_front(shim.pid)
        gate.open()
        await interrupted(call)
        await answers(shim)
        await events.wait_for(EventType.START, pid)
        if script == "sleep 1000":
            assert (await shim.state()).status is Status.RUNNING
            await shim.kill(signal.SIGKILL)
        assert (await events.exit(pid)).status == (137 if script == "sleep 1000" else 7)
        await shim.delete()
        assert events.of(pid) == [EventType.CREATE, EventType.START, EventType.EXIT]


async def test_start_that_fails_leaves_the_container_created(make_bundle: Make) -> None:
    """A dead front's Start had no effect: the next one has."""
    bundle = make_bundle("sh", "-c", "exit 7")
    gate = Gate(bundle.path, "start")
    async with serving(bundle) as (shim, events):
        pid = await shim.create(bundle.request(runtime=str(gate.path)))
        call = asyncio.create_task(shim.start())
        await gate.reached()
        (command,) = [child for child in children(shim.pid) if "runtime" in child[1]]
        await kill_front(shim.pid)
        os.kill(command[0], signal.SIGKILL)
        await interrupted(call)
        await answers(shim)
        assert (await shim.state()).status is Status.CREATED
        await shim.start()
        assert (await events.exit(pid)).status == 7
        assert events.of(pid) == [EventType.CREATE, EventType.START, EventType.EXIT]


def children(pid: int) -> list[tuple[int, str]]:
    """The children of a process, with their command lines."""
    found = []
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{word}/cmdline").read_bytes().replace(b"\0", b" ")
            found.append((int(word), line.decode()))
    return found


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("script", ["echo ran; exit 19", "echo ran; sleep 1000"])
async def test_exec_is_completed(make_bundle: Make, moment: str, script: str) -> None:
    """Demand 9 and 20: no half exec. It has run, so it is told of: added, then ended, once."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "exec", moment)
    stdio = bundle.stdio("exec", "stdout")
    async with serving(bundle) as (shim, events):
        await begin(shim, bundle, runtime=str(gate.path))
        with Reader(stdio.stdout) as reader:
            call = asyncio.create_task(shim.exec(exec_spec("sh", "-c", script), stdio))
            await gate.reached()
            await kill_front(shim.pid)
            gate.open()
            await interrupted(call)
            await answers(shim)
            pid = (await events.wait_for(EventType.EXEC_ADDED)).pid
            assert await reader.until(b"\n") == b"ran\n"
            if script.endswith("1000"):
                await shim.kill(signal.SIGKILL, pid=pid)
            assert await reader.read() == b""
        assert (await events.exit(pid)).status == (137 if script.endswith("1000") else 19)
        await shim.delete(pid)
        assert events.of(pid) == [EventType.EXEC_ADDED, EventType.EXIT]
        assert len((await shim.state()).processes) == 1


async def test_exec_that_fails_is_taken_back(make_bundle: Make) -> None:
    """Demand 20: its runtime fails after the front's death: as if it had not been called."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "exec")
    stdio = bundle.stdio("exec", "stdout")
    async with serving(bundle) as (shim, events):
        await begin(shim, bundle, runtime=str(gate.path))
        with Reader(stdio.stdout) as reader:
            call = asyncio.create_task(shim.exec(exec_spec("/no/such/program"), stdio))
            await gate.reached()
            await kill_front(shim.pid)
            gate.open()
            await interrupted(call)
            await answers(shim)
            assert await reader.rest() == b""
        assert len((await shim.state()).processes) == 1
        assert [event.type for event in events.seen] == [EventType.CREATE, EventType.START]
        assert fifo_ends(stdio.stdout) == []


async def test_exec_with_a_terminal_is_not_left_half(make_bundle: Make) -> None:
    """The console went to the dead front: the runtime fails, and nothing is left of the exec."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "exec")
    stdio = bundle.stdio("exec", "stdout", terminal=True)
    async with serving(bundle) as (shim, events):
        await begin(shim, bundle, runtime=str(gate.path))
        call = asyncio.create_task(shim.exec(exec_spec("cat", terminal=True), stdio))
        await gate.reached()
        await kill_front(shim.pid)
        gate.open()
        await interrupted(call)
        await answers(shim)
        assert len((await shim.state()).processes) == 1
        assert [event.type for event in events.seen] == [EventType.CREATE, EventType.START]
        assert fifo_ends(stdio.stdout) == []


async def test_a_command_under_way_is_waited_for(make_bundle: Make) -> None:
    """Demand 20: a dead front's runtime runs on; until it has ended, nobody knows the state."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "start")
    async with serving(bundle) as (shim, events):
        pid = await shim.create(bundle.request(runtime=str(gate.path)))
        call = asyncio.create_task(shim.start())
        await gate.reached()
        await kill_front(shim.pid)
        await interrupted(call)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await answers(shim)
        gate.open()
        await answers(shim)
        assert (await shim.state()).status is Status.RUNNING
        await events.wait_for(EventType.START, pid)


async def test_a_new_front_does_without_the_runtime(make_bundle: Make) -> None:
    """Demand 13: State is answered though the runtime is away; what needs it is refused."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "none")
    away = gate.path.with_suffix(".away")
    async with serving(bundle) as (shim, _):
        pid = await begin(shim, bundle, runtime=str(gate.path))
        gate.path.rename(away)
        await replaced(shim)
        assert (await shim.state()).pid == pid
        with pytest.raises(InvalidArgument, match="cannot execute the runtime"):
            await shim.pause()
        away.rename(gate.path)
        await shim.pause()
        await shim.resume()


async def test_a_new_front_answers_soon(make_bundle: Make) -> None:
    """Contract: a client gives up after 2 s. The best of five: the machine may be busy."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, _):
        await begin(shim, bundle)
        times = []
        for _ in range(5):
            begun = time.monotonic()
            await replaced(shim)
            times.append(time.monotonic() - begun)
        assert min(times) < 2, times


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_pause_is_completed(make_bundle: Make, moment: str) -> None:
    """Demand 20: the new front knows that the container is paused, and tells it once."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "pause", moment)
    async with serving(bundle) as (shim, events):
        pid = await begin(shim, bundle, runtime=str(gate.path))
        call = asyncio.create_task(shim.pause())
        await gate.reached()
        await kill_front(shim.pid)
        gate.open()
        await interrupted(call)
        await answers(shim)
        assert (await shim.state()).status is Status.PAUSED
        await events.wait_for(EventType.PAUSED, pid)
        await shim.resume()
        assert (await shim.state()).status is Status.RUNNING
        await shim.kill(signal.SIGKILL)
        await events.exit(pid)
        assert events.of(pid).count(EventType.PAUSED) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_delete_can_be_repeated(make_bundle: Make, rootfs: Path, moment: str) -> None:
    """Demand 20: the second Delete gives the same answer, and nothing is left."""
    bundle = make_bundle("sh", "-c", "exit 7")
    gate = Gate(bundle.path, "delete", moment)
    request = with_runtime(rooted(bundle, rootfs, stdout=True), gate)
    async with serving(bundle) as (shim, events):
        pid = await shim.create(request)
        await shim.start()
        with Reader(request.stdio.stdout):
            ended = await events.exit(pid)
        call = asyncio.create_task(shim.delete())
        await gate.reached()
        await kill_front(shim.pid)
        gate.open()
        await interrupted(call)
        await answers(shim)
        assert await shim.delete() == ended
        assert_rolled_back(bundle)
        assert events.of(pid).count(EventType.EXIT) == 1


async def test_a_deleted_container_stays_deleted(make_bundle: Make) -> None:
    """Demand 20: who asks the next front for Delete again learns that it has been done."""
    bundle = make_bundle("true")
    async with serving(bundle) as (shim, events):
        pid = await begin(shim, bundle)
        await events.exit(pid)
        await shim.delete()
        await kill_front(shim.pid)
        await answers(shim)
        with pytest.raises(NotFound, match=bundle.id):
            await shim.delete()


async def test_exit_can_be_repeated(make_bundle: Make) -> None:
    """Demand 20: Exit under which the front dies; the next one ends the shim."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "delete")
    async with serving(bundle) as (shim, _):
        await begin(shim, bundle, runtime=str(gate.path))
        call = asyncio.create_task(shim.exit())
        await gate.reached()
        await kill_front(shim.pid)
        gate.open()
        await interrupted(call)
        with contextlib.suppress(Unavailable):  # its answer may be faster than its end, or not
            await answers(shim)
            await shim.exit()
        await until(lambda: not is_alive(shim.pid), "the shim's end")
        assert bundle.id not in containers()


# ---- events


async def test_exits_without_a_front_are_told_once(make_bundle: Make) -> None:
    """Demand 1: processes that end while no front looks, with their own status each."""
    bundle = make_bundle("sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done")
    script = "trap 'exit {}' TERM; echo ready; while :; do sleep 0.05; done"
    async with serving(bundle) as (shim, events):
        init = await begin(shim, bundle)
        pids = {}
        for status in (11, 12, 13):
            stdio = bundle.stdio(f"exec{status}", "stdout")
            with Reader(stdio.stdout) as reader:
                spec = exec_spec("sh", "-c", script.format(status))
                pids[await shim.exec(spec, stdio)] = status
                await reader.until(b"ready\n")
        os.kill(front_of(shim.pid), signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        await until(lambda: not any(map(exists, pids)), "the execs' end")
        os.kill(init, signal.SIGTERM)
        await until(lambda: not exists(init), "the container's end")
        await kill_front(shim.pid)
        await answers(shim)
        assert (await events.exit(init)).status == 9
        for pid, status in pids.items():
            assert (await events.exit(pid)).status == status
        assert (await shim.delete()).status == 9
        for pid in (init, *pids):
            assert events.of(pid).count(EventType.EXIT) == 1


def exists(pid: int) -> bool:
    """Zombies, which nobody has collected, included."""
    return Path(f"/proc/{pid}").exists()


async def test_a_reader_of_events_gets_what_was_not_delivered(make_bundle: Make) -> None:
    """Contract, Events: Unavailable; then the next reader gets all that is new, in order."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        pid = await shim.create(bundle.request())
        await events.wait_for(EventType.CREATE)
        await events.close()
        async with shim.events() as stream:
            await stream.subscribed(1)
            await kill_front(shim.pid)
            with pytest.raises(Unavailable):
                await anext(stream)
        await answers(shim)
        await shim.start()
        first = await shim.exec(exec_spec("sh", "-c", "exit 1"), bundle.stdio("one"))
        await until_ended(shim, first)
        await shim.kill(signal.SIGKILL)
        await until_ended(shim, pid)
        await replaced(shim)
        seen = []
        async with shim.events() as stream:
            for _ in range(4):
                event = await anext(stream)
                seen.append((event.type, event.pid, event.exit_status))
        assert seen == [
            (EventType.START, pid, 0),
            (EventType.EXEC_ADDED, first, 0),
            (EventType.EXIT, first, 1),
            (EventType.EXIT, pid, 137),
        ]


async def until_ended(shim: StartedShim, pid: int) -> None:
    """Ask State until the process has ended: here nobody listens to events."""
    async with asyncio.timeout(ANSWER):
        state = await shim.state()
        while pid in [row.pid for row in state.processes if not stopped(row)]:
            state = await shim.state()


def stopped(process: ProcessInfo) -> bool:
    return process.status is Status.STOPPED


# ---- again and again


async def test_ten_deaths_in_a_life_with_execs(make_bundle: Make) -> None:
    """Demands 1 and 20: at ten random moments; each exec that came to be has one exit, its own."""
    dice = random.Random(20170525)
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, events):
        init = await begin(shim, bundle)
        known: dict[int, int] = {}
        done = asyncio.Event()

        async def caller(number: int) -> None:
            turn = 0
            while not done.is_set():
                turn += 1
                status = (number * 40 + turn) % 120 + 1
                spec = exec_spec("sh", "-c", f"exit {status}")
                try:
                    known[await shim.exec(spec, bundle.stdio("none"))] = status
                except Unavailable:
                    await answers(shim)

        callers = [asyncio.create_task(caller(number)) for number in range(3)]
        for _ in range(10):
            await answers(shim)
            wanted = len(known) + dice.randrange(1, 6)
            await until(partial(has_grown, known, wanted), "further execs")
            await asyncio.sleep(dice.random() / 20)  # a moment that the seed chooses
            await kill_front(shim.pid)
        done.set()
        await asyncio.gather(*callers)
        for pid, status in known.items():
            assert (await events.exit(pid)).status == status
        await steadily(shim, lambda: shim.kill(signal.SIGKILL))
        await events.exit(init)
        check_lives(events.seen, init)


def has_grown(known: dict[int, int], size: int) -> bool:
    return len(known) >= size


def check_lives(seen: list[Event], init: int) -> None:
    """Each process is added and ends, once, in that order, whether its caller knew it or not.

    The event that was on its way when a front died may come again, as the next front's first:
    a client cannot acknowledge it.
    """
    told = [event for last, event in pairwise([None, *seen]) if event and event != last]
    of: dict[int, list[EventType]] = {}
    for event in told:
        of.setdefault(event.pid, []).append(event.type)
    assert of.pop(init) == [EventType.CREATE, EventType.START, EventType.EXIT]
    assert set(map(tuple, of.values())) <= {(EventType.EXEC_ADDED, EventType.EXIT)}, of


async def test_a_hung_front_is_replaced(make_bundle: Make) -> None:
    """Design, rule 4: no answer for 5 s, none to a ping for 10 s; then another front answers."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, _):
        pid = await begin(shim, bundle)
        hung = front_of(shim.pid)
        os.kill(hung, signal.SIGSTOP)
        begun = time.monotonic()
        await interrupted(shim.state(timeout=30))
        assert 14 < time.monotonic() - begun < 20
        await answers(shim)
        assert front_of(shim.pid) != hung
        state = await shim.state()
        assert (state.pid, state.status) == (pid, Status.RUNNING)
