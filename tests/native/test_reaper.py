"""Exits: each is learned once, with its status, whenever it happens and whoever asks when."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shim.keeper.command import Command, pack
from shim.keeper.records import Kind, Record
from tests.native import harness
from tests.native.harness import Front, Keeper, wait_until
from tests.native.support import is_gone, read_to_end

FATAL = [
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGILL, signal.SIGABRT, signal.SIGFPE,
    signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE, signal.SIGALRM, signal.SIGTERM, signal.SIGUSR1,
    signal.SIGRTMIN, signal.SIGRTMAX,
]  # fmt: skip
AT_ONCE = 64


class Spawns:
    """Many spawns under way at once; notes the order of what the keeper tells of each."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.told: dict[int, list[Record]] = {}

    def start(self, id: int, memory: int, *descriptors: int) -> None:
        self.told[id] = []
        self.front.tell(Record(Kind.SPAWN, serial=id, id=id), memory, *descriptors)

    def next(self) -> Record:
        record = self.front.receive()
        if record.kind in (Kind.SPAWN, Kind.EXITED):
            self.told[record.id].append(record)
        return record

    def wait(self, id: int) -> None:
        """Until the exit of that one is known; it is forgotten then, as the shim does."""
        while not self.told[id] or self.told[id][-1].kind != Kind.EXITED:
            self.next()
        self.front.tell(Record(Kind.RELEASE, id=id))
        self.front.tell(Record(Kind.FORGET, id=id))

    def check(self, id: int, status: int) -> None:
        """The reply came first, then the exit, and nothing else."""
        told = self.told[id]
        assert [record.kind for record in told] == [Kind.SPAWN, Kind.EXITED]
        assert (told[0].error, told[1].error) == (0, 0)
        assert told[1].status == status
        assert told[0].pid == told[1].pid


def run_many(front: Front, commands: list[tuple[str, ...]], first: int = 1_000) -> Spawns:
    """Run all, AT_ONCE at a time."""
    spawns = Spawns(front)
    for index, argv in enumerate(commands):
        if index >= AT_ONCE:
            spawns.wait(first + index - AT_ONCE)
        memory = pack(Command(argv, {}))
        spawns.start(first + index, memory)
        os.close(memory)
    for index in range(max(0, len(commands) - AT_ONCE), len(commands)):
        spawns.wait(first + index)
    assert front.ask(Kind.PONG).error == 0
    return spawns


def test_every_status(front: Front, tiny: str) -> None:
    """0 to 255 as the program gives it."""
    spawns = run_many(front, [(tiny, "exit", str(status)) for status in range(256)])
    for status in range(256):
        spawns.check(1_000 + status, status)
    assert front.snapshot() == []


def test_every_signal(front: Front, tiny: str) -> None:
    """128 + n for signal n, as a shell has it."""
    spawns = run_many(front, [(tiny, "signal", str(int(number))) for number in FATAL])
    for index, number in enumerate(FATAL):
        spawns.check(1_000 + index, 128 + number)


def test_ten_thousand_fast_programs(front: Front, tiny: str) -> None:
    """Each ends before or after its spawn is answered, as it happens; none is lost or doubled."""
    count = 10_000
    memory = pack(Command((tiny, "exit", "19"), {}))
    spawns = Spawns(front)
    for index in range(count):
        if index >= AT_ONCE:
            spawns.wait(1_000 + index - AT_ONCE)
        spawns.start(1_000 + index, memory)
    os.close(memory)
    for index in range(count - AT_ONCE, count):
        spawns.wait(1_000 + index)
    assert front.snapshot() == []
    for index in range(count):
        spawns.check(1_000 + index, 19)


def start_orphan(front: Front, id: int, argv: tuple[str, ...], stdin: int | None) -> int:
    """Run a program that leaves a child to the keeper; the child's pid. `id` is not released."""
    reading, writing = os.pipe()
    descriptors = {1: writing} if stdin is None else {0: stdin, 1: writing}
    assert front.spawn(id, *argv, descriptors=descriptors).error == 0
    os.close(writing)
    pid = int(os.read(reading, 20))
    assert front.report(Kind.EXITED, id).status == 0
    os.close(reading)
    return pid


def test_exits_before_they_are_followed(keeper: Keeper, front: Front, tiny: str) -> None:
    """300 orphans that end at once; the keeper keeps each exit for who asks: design, Tracking."""
    pids = {}
    for id in range(1_000, 1_300):
        pids[id] = start_orphan(front, id, (tiny, "orphan", "19"), None)
    wait_until(lambda: not keeper.children() & set(pids.values()), "the orphans to be collected")
    for id, pid in pids.items():
        assert front.ask(Kind.TRACK, id=id + 5_000, pid=pid, owner=id).error == 0
        assert front.report(Kind.EXITED, id + 5_000).status == 19
        # The exit has been claimed: there is none for a second one.
        assert front.ask(Kind.TRACK, id=id + 9_000, pid=pid, owner=id).error == errno.ECHILD
        assert front.ask(Kind.FORGET, id=id + 5_000).error == 0
    assert not [record for record in front.reports if record.kind == Kind.EXITED]


def test_exits_while_they_are_followed(front: Front, tiny: str) -> None:
    """300 orphans that end at any moment, before or after TRACK: each told once."""
    for id in range(1_000, 1_300):
        pid = start_orphan(front, id, (tiny, "orphan", "19"), None)
        assert front.ask(Kind.TRACK, id=id + 5_000, pid=pid, owner=id).error == 0
        assert front.ask(Kind.RELEASE, id=id).error == 0
        assert front.ask(Kind.FORGET, id=id).error == 0
        assert front.exited(id + 5_000).status == 19
    assert front.snapshot() == []
    assert not [record for record in front.reports if record.kind == Kind.EXITED]


def test_exits_after_they_are_followed(front: Front, tiny: str) -> None:
    """The usual case: the process lives when it is followed, and can be signalled."""
    reading, writing = os.pipe()
    pids = {}
    for id in range(1_000, 1_020):
        pids[id] = start_orphan(front, id, (tiny, "later", "19"), reading)
    os.close(reading)
    for id, pid in pids.items():
        assert front.ask(Kind.TRACK, id=id + 5_000, pid=pid, owner=id).error == 0
        assert front.ask(Kind.TRACK, id=id + 9_000, pid=pid, owner=id).error == errno.EEXIST
        assert front.ask(Kind.FORGET, id=id + 5_000).error == errno.EBUSY
    assert front.ask(Kind.SIGNAL, id=6_000, number=signal.SIGKILL).error == 0
    assert front.exited(6_000).status == 128 + signal.SIGKILL
    os.close(writing)
    assert {front.exited(id + 5_000).status for id in pids if id != 1_000} == {19}


def test_who_may_be_followed(keeper: Keeper, front: Front) -> None:
    """Only children of the keeper that came to life during an unfinished spawn."""
    assert front.spawn(50, "/bin/true").error == 0
    front.report(Kind.EXITED, 50)
    expected = {1: errno.EINVAL, 0: errno.EINVAL, -1: errno.EINVAL, os.getpid(): errno.ECHILD,
                keeper.pid: errno.ECHILD}  # fmt: skip
    for pid, error in expected.items():
        assert front.ask(Kind.TRACK, id=51, pid=pid, owner=50).error == error, pid
    stranger = subprocess.Popen(["sleep", "1000"])
    assert front.ask(Kind.TRACK, id=51, pid=stranger.pid, owner=50).error == errno.ECHILD
    stranger.kill()
    stranger.wait()
    assert front.ask(Kind.TRACK, id=51, pid=stranger.pid, owner=50).error == errno.ECHILD
    before = keeper.descriptors()
    assert front.ask(Kind.RELEASE, id=50).error == 0
    assert front.ask(Kind.TRACK, id=51, pid=stranger.pid, owner=50).error == errno.ESRCH
    assert front.ask(Kind.TRACK, id=51, pid=stranger.pid, owner=49).error == errno.ESRCH
    assert front.ask(Kind.RELEASE, id=49).error == errno.ESRCH
    assert keeper.descriptors() == before


def test_a_storm_of_exits(keeper: Keeper, front: Front, tiny: str) -> None:
    """1,000 processes end at once: one SIGCHLD may stand for many, none is lost."""
    reading, writing = os.pipe()
    command = Command((tiny, "read", "7"), {}, descriptors={0: reading})
    memory = pack(command)
    for id in range(1_000, 2_000):
        assert front.ask(Kind.SPAWN, memory, reading, id=id).error == 0
    os.close(memory)
    os.close(reading)
    before = keeper.descriptors()
    os.close(writing)
    ended = Counter[int]()
    while len(ended) < 1_000:
        record = front.receive()
        assert (record.kind, record.status) == (Kind.EXITED, 7)
        ended[record.id] += 1
    assert front.ask(Kind.PONG).error == 0
    assert ended == Counter(range(1_000, 2_000))
    assert not front.reports
    assert keeper.descriptors() == before - 1_000  # the pidfds


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGKILL])
def test_no_signal_after_the_exit(front: Front, tiny: str, number: int) -> None:
    """ESRCH, so that nobody is hit who has got the pid since."""
    assert front.spawn(50, tiny, "exit", "0").error == 0
    front.report(Kind.EXITED, 50)
    assert front.ask(Kind.SIGNAL, id=50, number=number).error == errno.ESRCH
    assert front.ask(Kind.FORGET, id=50).error == 0
    assert front.ask(Kind.SIGNAL, id=50, number=number).error == errno.ESRCH


def test_a_signal_that_there_is_not(front: Front) -> None:
    assert front.spawn(50, "/bin/sleep", "1000").error == 0
    assert front.ask(Kind.SIGNAL, id=50, number=999).error == errno.EINVAL
    assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGTERM).error == 0
    assert front.exited(50).status == 128 + signal.SIGTERM


def test_grandchildren_are_collected(keeper: Keeper, front: Front, tiny: str) -> None:
    """Orphans whom nobody follows leave no zombie: the keeper is their subreaper."""
    pid = start_orphan(front, 50, (tiny, "orphan", "3"), None)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the orphan to be collected")
    assert front.ask(Kind.RELEASE, id=50).error == 0
    assert is_gone(pid)
    assert not [record for record in front.reports if record.pid == pid]


REUSE = """
import os, sys
from pathlib import Path
from shim.keeper.records import Kind
from tests.native import harness
from tests.native.test_reaper import start_orphan

tiny = sys.argv[1]
with harness.keeper() as keeper:
    front = keeper.front
    pid = start_orphan(front, 50, (tiny, "orphan", "3"), None)
    harness.wait_until(lambda: pid not in keeper.children(), "the orphan to be collected")
    reading, writing = os.pipe()
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    reply = front.spawn(51, tiny, "read", "4", descriptors={0: reading})
    assert reply.pid == pid, (reply.pid, pid)
    assert front.ask(Kind.SIGNAL, id=51, number=0).error == 0, "taken for ended"
    os.close(writing)
    assert front.exited(51).status == 4
    os.close(reading)
"""


def test_a_pid_that_is_used_again(tiny: str) -> None:
    """An exit that nobody claimed is not a later spawn's with the same pid. Own pid namespace."""
    unshare = ["unshare", "--pid", "--fork", "--mount", "--mount-proc"]
    child = [sys.executable, "-c", REUSE, tiny]
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": f"{root}/src:{root}"}
    subprocess.run([*unshare, *child], env=env, cwd=root, check=True, timeout=60)


CLOCK = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static long back;
    int result = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec -= ++back;
    return result;
}
"""


def test_the_clock_may_be_set_back(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exits are paired with their spawns although each one's time is before the last one's."""
    (tmp_path / "clock.c").write_text(CLOCK)
    library = tmp_path / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c"], check=True)
    monkeypatch.setattr(harness, "PRELOAD", f"{harness.PRELOAD} {library}".strip())
    with harness.keeper() as keeper:
        pid = start_orphan(keeper.front, 50, (tiny, "orphan", "19"), None)
        wait_until(lambda: pid not in keeper.children(), "the orphan to be collected")
        assert keeper.front.ask(Kind.TRACK, id=51, pid=pid, owner=50).error == 0
        assert keeper.front.exited(51).status == 19


def test_the_output_of_an_orphan_ends(front: Front, tiny: str) -> None:
    """Nothing of the keeper holds an orphan's pipe open."""
    reading, writing = os.pipe()
    assert front.spawn(50, tiny, "orphan", "0", descriptors={1: writing}).error == 0
    os.close(writing)
    assert read_to_end(reading).strip().isdigit()
    os.close(reading)
    assert front.exited(50).status == 0
