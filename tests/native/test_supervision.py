"""The front may die, hang or go mad at any time: the keeper holds all, and starts the next."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from shim.keeper.records import Flag, Kind, Record
from tests.native import harness
from tests.native.harness import PATIENCE, Front, Keeper, wait_until
from tests.native.support import (
    cpu_ticks,
    is_gone,
    is_readable,
    make_fifo,
    named_child,
    read_exactly,
    read_to_end,
    status_field,
    wake_ups,
)

SPAWNER = "dense-spawner"


def front_pid(keeper: Keeper, but: set[int] | None = None) -> int:
    """The pid of the keeper's present front."""
    (pid,) = keeper.children() - {named_child(keeper, SPAWNER)} - (but or set())
    return pid


def halt(keeper: Keeper) -> None:
    os.kill(keeper.pid, signal.SIGSTOP)
    wait_until(lambda: status_field(keeper.pid, "State").startswith("T"), "the keeper to stop")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("unread", [False, True])
def test_the_last_words_of_a_front_count(
    keeper: Keeper, tmp_path: Path, late: bool, unread: bool
) -> None:
    """Whether or not it has read what it was told; also when its death is heard of before them.

    The client sees no end of the FIFO that is among them.
    """
    front, fifo = keeper.front, make_fifo(tmp_path)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    hold = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    source, inner = os.pipe()
    os.set_blocking(source, False)
    pid = front_pid(keeper)
    other = front.spawn(50, "/bin/sleep", "1000").pid
    if unread:
        front.tell(Record(Kind.PONG, serial=7))
        assert is_readable(front.channel.fileno())
    halt(keeper)
    if late:  # who hears of one death looks for all
        os.kill(other, signal.SIGKILL)
        wait_until(lambda: is_gone(other), "the other's end")
    front.tell(Record(Kind.RELAY, id=60, flags=Flag.OUTPUT | Flag.STAY), source, sink, hold)
    for descriptor in (source, sink, hold):
        os.close(descriptor)
    front.close()
    wait_until(lambda: is_gone(pid), "the front's end")
    os.kill(keeper.pid, signal.SIGCONT)
    front = keeper.front = keeper.next_front()
    held = {record.id: record for record in front.snapshot()}
    assert held[60] == Record(Kind.STREAM, id=60, flags=Flag.OUTPUT | Flag.STAY)
    with pytest.raises(BlockingIOError):  # a writer is there
        os.read(reading, 1)
    os.write(inner, b"words")
    os.close(inner)
    assert front.ask(Kind.SETTLE, id=60).error == 0
    assert read_to_end(reading) == b"words"
    os.close(reading)
    assert bool(held[50].flags & Flag.GONE) is late
    if not late:
        assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGKILL).error == 0
        assert front.exited(50).status == 128 + signal.SIGKILL


def test_the_next_front_finds_everything(keeper: Keeper, tmp_path: Path, tiny: str) -> None:
    """Processes, alive or not, and streams: design, front."""
    front = keeper.front
    alive = front.spawn(50, "/bin/sleep", "1000")
    ended = front.spawn(51, tiny, "exit", "7")
    told = front.report(Kind.EXITED, 51)
    assert front.ask(Kind.RELEASE, id=51).error == 0
    fifo = make_fifo(tmp_path)
    inner = front.output(60, fifo)
    os.write(inner, b"before")
    front.close()
    front = keeper.front = keeper.next_front()
    os.write(inner, b" and after")
    held = {record.id: record for record in front.snapshot()}
    assert held[50] == Record(Kind.PROCESS, id=50, pid=alive.pid, flags=Flag.SPAWNED)
    assert held[51] == Record(
        Kind.PROCESS, id=51, pid=ended.pid, status=7, time=told.time, flags=Flag.GONE
    )
    assert (held[60].kind, held[60].flags) == (Kind.STREAM, Flag.OUTPUT)
    assert set(held) == {50, 51, 60}
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert read_exactly(reading, 16) == b"before and after"
    os.close(inner)
    assert front.report(Kind.ENDED, 60).moved == 16
    os.close(reading)
    assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGKILL).error == 0
    assert front.exited(50).status == 128 + signal.SIGKILL
    assert front.ask(Kind.FORGET, id=51).error == 0


def test_what_ends_while_there_is_no_front(keeper: Keeper, tmp_path: Path, tiny: str) -> None:
    """Exits and ends of streams wait for the next one."""
    reading, writing = os.pipe()
    pid = keeper.front.spawn(50, tiny, "read", "9", descriptors={0: reading}).pid
    os.close(reading)
    fifo = make_fifo(tmp_path)
    inner = keeper.front.output(60, fifo)
    client = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.kill(named_child(keeper, SPAWNER), signal.SIGSTOP)  # no front can be started
    old = front_pid(keeper, {pid})
    keeper.front.close()
    wait_until(lambda: old not in keeper.children(), "the front to be collected")
    os.write(inner, b"unheard")
    os.close(inner)
    os.close(writing)
    wait_until(lambda: pid not in keeper.children(), "the process to be collected")
    assert read_to_end(client) == b"unheard"
    os.kill(named_child(keeper, SPAWNER), signal.SIGCONT)
    front = keeper.front = keeper.next_front()
    held = {record.id: record for record in front.snapshot()}
    assert (held[50].status, held[50].flags) == (9, Flag.GONE | Flag.SPAWNED)
    assert (held[60].moved, held[60].flags & Flag.GONE) == (7, Flag.GONE)
    os.close(client)


def test_an_exit_is_told_until_it_is_forgotten(keeper: Keeper, tiny: str) -> None:
    """A front that dies between report and FORGET leaves it to the next: each front hears it."""
    assert keeper.front.spawn(50, tiny, "exit", "5").error == 0
    keeper.front.report(Kind.EXITED, 50)
    for _ in range(3):
        keeper.front.close()
        keeper.front = keeper.next_front()
        keeper.front.ask(Kind.READY)
        (held,) = keeper.front.snapshot()
        assert (held.id, held.status) == (50, 5)
    assert keeper.front.ask(Kind.FORGET, id=50).error == 0
    keeper.front.close()
    keeper.front = keeper.next_front()
    assert keeper.front.snapshot() == []


def test_a_killed_front_is_replaced(keeper: Keeper) -> None:
    """Again and again; one that had served is replaced without delay, and nothing is leaked."""
    counts = set()
    for _ in range(10):
        assert keeper.front.ask(Kind.READY).error == 0
        counts.add(keeper.descriptors())
        os.kill(front_pid(keeper), signal.SIGKILL)
        keeper.front.close()
        keeper.front = keeper.next_front()
    assert len(counts) == 1


def test_a_process_of_a_dead_front_is_heard_to_the_end(keeper: Keeper, tmp_path: Path) -> None:
    """One that opens a client's FIFO outlives it for a moment, with its channel."""
    front, old = keeper.front, front_pid(keeper)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: is_gone(old), "the front to be collected")
    inner = front.output(60, make_fifo(tmp_path), Flag.STAY)
    front.close()
    front = keeper.front = keeper.next_front()
    (held,) = front.snapshot()
    assert held == Record(Kind.STREAM, id=60, flags=Flag.OUTPUT | Flag.STAY)
    os.close(inner)


def test_a_process_of_a_dead_front_is_not_waited_for_long(keeper: Keeper) -> None:
    """It may hang for ever, in the FIFO's file system. What it says later is said to nobody."""
    os.kill(front_pid(keeper), signal.SIGKILL)
    old, keeper.front = keeper.front, keeper.next_front()
    with pytest.raises(BrokenPipeError):
        old.tell(Record(Kind.PONG))
    old.close()


def test_a_front_that_closes_its_channel_is_replaced(keeper: Keeper) -> None:
    """It can neither hear nor speak any more, so it must go."""
    old = front_pid(keeper)
    keeper.front.channel.close()
    following = keeper.next_front()
    assert is_gone(old)
    keeper.front.close()
    keeper.front = following


def test_a_silent_front_is_replaced(keeper: Keeper, tiny: str) -> None:
    """SLOW, 15 s, once: a stopped front owes an answer, is asked after 5 s, and goes 10 s later.

    Design, rule 4. The waiting is for the keeper's own acts.
    """
    os.kill(front_pid(keeper), signal.SIGSTOP)
    assert keeper.front.spawn(50, tiny, "exit", "3").error == 0
    assert keeper.front.report(Kind.EXITED, 50).status == 3
    assert keeper.front.report(Kind.PING, 0).serial == 0
    old, keeper.front = keeper.front, keeper.next_front()
    assert [record.kind for record in old.reports] == []
    old.close()
    (held,) = keeper.front.snapshot()
    assert (held.id, held.status) == (50, 3)


def test_a_front_that_owes_nothing_is_left_alone(keeper: Keeper, tiny: str) -> None:
    """No timer runs for it: the keeper sleeps until something happens."""
    assert keeper.front.spawn(50, tiny, "exit", "0").error == 0
    keeper.front.exited(50)
    before = wake_ups(keeper.pid)
    os.kill(keeper.pid, signal.SIGTERM)
    keeper.front.report(Kind.TERMINATE, 0)
    assert wake_ups(keeper.pid) - before <= 4


def test_a_front_that_does_not_listen_is_replaced() -> None:
    """Its records queue up to a bound; then it goes. The keeper never waits for it: rule 7."""
    with harness.keeper(files=(256, 256)) as keeper:
        old = keeper.front
        pid = front_pid(keeper)
        asked = Record(Kind.SIGNAL, serial=1, id=999).pack()
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                old.channel.send(asked)
                sent += 1
        assert sent > 1_000
        keeper.front = keeper.next_front()
        assert is_gone(pid)
        old.close()
        assert keeper.front.ask(Kind.PONG).error == 0


def test_a_busy_front_that_listens_late(keeper: Keeper, front: Front) -> None:
    """What its socket does not take waits in the keeper, in order: every reply comes."""
    count = 20_000
    for serial in range(1, count + 1):
        front.tell(Record(Kind.SIGNAL, serial=serial, id=999))
    assert [front.receive().serial for _ in range(count)] == list(range(1, count + 1))


def test_sigterm_is_passed_on(keeper: Keeper, front: Front) -> None:
    """The front decides; the keeper lives on, as with any signal: wire.pxd, TERMINATE."""
    os.kill(keeper.pid, signal.SIGTERM)
    front.report(Kind.TERMINATE, 0)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM}:
        os.kill(keeper.pid, number)
    assert front.ask(Kind.PONG).error == 0


def test_sigterm_while_there_is_no_front(keeper: Keeper) -> None:
    """It is not lost: the next one is told."""
    os.kill(named_child(keeper, SPAWNER), signal.SIGSTOP)
    old = front_pid(keeper)
    keeper.front.close()
    wait_until(lambda: old not in keeper.children(), "the front to be collected")
    os.kill(keeper.pid, signal.SIGTERM)
    os.kill(named_child(keeper, SPAWNER), signal.SIGCONT)
    for _ in range(3):
        keeper.front = keeper.next_front()
        assert {record.kind for record in keeper.front.snapshot()} == {Kind.TERMINATE}
        keeper.front.close()
    keeper.front = keeper.next_front()


def test_a_killed_keeper_leaves_nobody(tmp_path: Path) -> None:
    """Spawner and front learn of it at once: one by a signal, one by its channel's end."""
    keeper = Keeper(tmp_path)
    pids = [named_child(keeper, SPAWNER), front_pid(keeper)]
    inner = keeper.front.output(60, make_fifo(tmp_path))
    keeper.process.kill()
    keeper.process.wait(PATIENCE)
    with pytest.raises(BrokenPipeError):
        os.write(inner, b"x")
    os.close(inner)
    while keeper.front.channel.recv(1 << 10):
        pass
    keeper.kill()
    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid), "the keeper's children to be gone")


def test_stop_ends_it_in_good_order(tmp_path: Path) -> None:
    """Status 0, and the spawner goes with it."""
    keeper = Keeper(tmp_path)
    spawner = named_child(keeper, SPAWNER)
    before = cpu_ticks(keeper.pid)
    keeper.stop()
    assert keeper.process.returncode == 0
    assert before < 100
    wait_until(lambda: is_gone(spawner), "the spawner to be gone")
