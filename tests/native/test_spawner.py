"""The spawner: what a program starts with, and what happens when it or the spawner dies."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.keeper.command import Command, pack
from shim.keeper.records import Flag, Kind, Record
from tests.native import harness
from tests.native.harness import PATIENCE, Front, Keeper, wait_until
from tests.native.support import is_gone, is_readable, named_child, read_to_end, status_field

SPAWNER = "dense-spawner"


def output_of(front: Front, id: int, *argv: str, **options: object) -> str:
    """What the program writes to its standard output."""
    reading, writing = os.pipe()
    assert front.spawn(id, *argv, descriptors={1: writing}, **options).error == 0
    os.close(writing)
    text = read_to_end(reading).decode()
    os.close(reading)
    assert front.exited(id).status == 0
    return text


def test_signals_are_default(front: Front) -> None:
    """Nothing blocked, ignored or caught, although the keeper ignores some: design, known traps."""
    text = output_of(front, 50, "/bin/cat", "/proc/self/status")
    masks = dict(line.split(":\t") for line in text.splitlines() if line.startswith("Sig"))
    for name in ("SigBlk", "SigIgn", "SigCgt"):
        assert int(masks[name], 16) == 0, name


def test_the_keeper_itself_blocks_what_can_be_blocked(keeper: Keeper) -> None:
    """So the test above shows a difference."""
    blocked = int(status_field(keeper.pid, "SigBlk"), 16)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        assert blocked >> (number - 1) & 1


def test_a_score_that_is_lower_than_allowed_is_done_without(front: Front) -> None:
    """As much as we may have ourselves: EACCES where we lack CAP_SYS_RESOURCE."""
    own = "{ echo -1000 >/proc/self/oom_score_adj; } 2>/dev/null; cat /proc/self/oom_score_adj"
    wanted = subprocess.run(["/bin/sh", "-c", own], stdout=subprocess.PIPE, check=True).stdout
    assert output_of(
        front, 50, "/bin/cat", "/proc/self/oom_score_adj", oom_score_adj=-1000
    ) == wanted.decode()


def test_a_score_that_there_is_not(front: Front) -> None:
    assert front.spawn(50, "/bin/true", oom_score_adj=1001).error == 0
    ended = front.exited(50)
    assert (ended.error, ended.status) == (errno.EINVAL, 127)


def test_the_limit_is_the_launchers() -> None:
    """The keeper raises its soft limit of descriptors; programs get what its launcher had."""
    with harness.keeper(files=(256, 2000)) as keeper:
        assert resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE) == (2000, 2000)
        assert output_of(keeper.front, 50, "/bin/sh", "-c", "ulimit -Sn; ulimit -Hn") == (
            "256\n2000\n"
        )
        spawner = named_child(keeper, SPAWNER)
        os.kill(spawner, signal.SIGKILL)
        wait_until(lambda: named_child(keeper, SPAWNER) not in (0, spawner), "the next spawner")
        assert output_of(keeper.front, 51, "/bin/sh", "-c", "ulimit -Sn") == "256\n"


def test_the_parent_is_the_keeper(keeper: Keeper, front: Front) -> None:
    """So that the keeper learns its exit: CLONE_PARENT."""
    reply = front.spawn(50, "/bin/sleep", "1000")
    assert reply.pid in keeper.children()
    assert int(status_field(reply.pid, "PPid")) == keeper.pid
    assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGKILL).error == 0
    assert front.exited(50).status == 128 + signal.SIGKILL


def wait_for_end(pidfd: int) -> None:
    assert is_readable(pidfd), "the process did not end"
    os.close(pidfd)


def test_the_death_signal_comes_when_the_keeper_dies() -> None:
    """Only to who asked for it; and spawner and front go with the keeper."""
    with harness.keeper() as keeper:
        spawner = named_child(keeper, SPAWNER)
        mortal = keeper.front.spawn(50, "/bin/sleep", "1000", death_signal=signal.SIGKILL).pid
        other = keeper.front.spawn(51, "/bin/sleep", "1000").pid
        watched = [os.pidfd_open(mortal), os.pidfd_open(spawner)]
        survivor = os.pidfd_open(other)
        keeper.process.kill()
        keeper.process.wait(PATIENCE)
        for pidfd in watched:
            wait_for_end(pidfd)
        assert not is_gone(other)
        while keeper.front.channel.recv(1 << 16):
            pass  # up to the end
        signal.pidfd_send_signal(survivor, signal.SIGKILL)
        wait_for_end(survivor)
        keeper.process.returncode = 0
        keeper.kill()


@pytest.mark.parametrize(
    ("text", "mode", "error"),
    [
        (None, 0, errno.ENOENT),
        ("#!/bin/sh\n", 0o644, errno.EACCES),
        ("no program", 0o755, errno.ENOEXEC),
        ("#!/no/interpreter\n", 0o755, errno.ENOENT),
    ],
)
def test_what_cannot_be_executed(
    front: Front, tmp_path: Path, text: str | None, mode: int, error: int
) -> None:
    """It is started, and its exit tells the errno: wire.pxd, EXITED."""
    path = tmp_path / "program"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    assert front.spawn(50, str(path)).error == 0
    ended = front.exited(50)
    assert (ended.status, ended.error) == (127, error)
    # The slot is used again, and its errno is not the next program's.
    assert front.spawn(51, "/bin/true").error == 0
    ended = front.exited(51)
    assert (ended.status, ended.error) == (0, 0)


def test_a_folder_that_is_not_there(front: Front) -> None:
    assert front.spawn(50, "/bin/true", cwd="/no/such").error == 0
    assert front.exited(50).error == errno.ENOENT


CGROUPS = [Path("/sys/fs/cgroup", name) for name in ("pids", "freezer", "unified", "")]


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    """New cgroups, one in every hierarchy that this host has of the above."""
    made = []
    for root in CGROUPS:
        if (root / "cgroup.procs").exists():
            made.append(root / f"denseshim-test-{os.getpid()}")
            made[-1].mkdir()
    try:
        yield made
    finally:
        for folder in made:
            wait_until(lambda folder=folder: not members(folder), "the cgroup to be empty")
            folder.rmdir()


def members(cgroup: Path) -> list[int]:
    return [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]


def test_a_program_starts_in_its_cgroups(front: Front, cgroups: list[Path]) -> None:
    """It, and nobody else: the spawner stays where it is."""
    assert cgroups
    joins = tuple(str(folder / "cgroup.procs") for folder in cgroups)
    pid = front.spawn(50, "/bin/sleep", "1000", joins=joins).pid
    for folder in cgroups:
        wait_until(lambda folder=folder: members(folder) == [pid], "the program to be inside")
    assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGKILL).error == 0
    assert front.exited(50).status == 128 + signal.SIGKILL


def test_a_program_is_in_its_cgroup_from_its_first_instruction(
    front: Front, cgroups: list[Path]
) -> None:
    """Nothing that it does is outside."""
    reading, writing = os.pipe()
    joins = tuple(str(folder / "cgroup.procs") for folder in cgroups)
    command = ("/bin/cat", "/proc/self/cgroup")
    assert front.spawn(50, *command, descriptors={1: writing}, joins=joins).error == 0
    os.close(writing)
    text = read_to_end(reading).decode()
    os.close(reading)
    assert front.exited(50).status == 0
    assert text.count(f"/denseshim-test-{os.getpid()}\n") == len(cgroups)


def test_a_cgroup_that_is_gone_is_passed_over(front: Front, cgroups: list[Path]) -> None:
    """The program starts, and is in the others."""
    first, *others = (str(folder / "cgroup.procs") for folder in cgroups)
    joins = ("/sys/fs/cgroup/no-such/cgroup.procs", "", "/proc/self/status", first, "/", *others)
    pid = front.spawn(50, "/bin/sleep", "1000", joins=joins).pid
    for folder in cgroups:
        wait_until(lambda folder=folder: members(folder) == [pid], "the program to be inside")
    assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGKILL).error == 0
    assert front.exited(50).status == 128 + signal.SIGKILL


def test_a_program_with_few_descriptors_is_in_its_cgroups(cgroups: list[Path], tiny: str) -> None:
    """The command's own limit comes later; the launcher's is enough for what a command has."""
    joins = tuple(str(folder / "cgroup.procs") for folder in cgroups)
    limits = {resource.RLIMIT_NOFILE: (0, 0)}
    with harness.keeper(files=(60, 2000)) as keeper:
        reading, writing = os.pipe()
        targets = {number: reading for number in range(16)}
        options = {"descriptors": targets, "joins": joins, "limits": limits}
        pid = keeper.front.spawn(50, tiny, "read", "9", **options).pid
        os.close(reading)
        for folder in cgroups:
            wait_until(lambda folder=folder: members(folder) == [pid], "the program to be inside")
        os.close(writing)
        assert keeper.front.exited(50).status == 9


def test_a_limit_that_cannot_be_set(front: Front) -> None:
    limits = {resource.RLIMIT_NOFILE: (20, 10)}
    assert front.spawn(50, "/bin/true", limits=limits).error == 0
    assert front.exited(50).error == errno.EINVAL


def test_an_id_is_given_once(front: Front, tiny: str) -> None:
    """An id in use is refused, also for an exit that waits to be forgotten."""
    assert front.spawn(50, tiny, "exit", "3").error == 0
    front.report(Kind.EXITED, 50)
    assert front.spawn(50, "/bin/true").error == errno.EEXIST
    assert front.ask(Kind.FORGET, id=50).error == 0
    assert front.spawn(50, "/bin/true").error == 0
    assert front.exited(50).status == 0


def ask_spawns(front: Front, ids: range, first_serial: int = 10_000) -> None:
    """Send requests without waiting for their replies; the serials count with the ids."""
    memory = pack(Command(("/bin/true",), {}))
    for serial, id in enumerate(ids, first_serial):
        front.tell(Record(Kind.SPAWN, serial=serial, id=id), memory)
    os.close(memory)


def replies(front: Front, count: int) -> list[Record]:
    """The next records with serials; reports are kept."""
    found: list[Record] = []
    while len(found) < count:
        record = front.receive()
        (found if record.serial else front.reports).append(record)
    return found


def test_a_killed_spawner_is_replaced(keeper: Keeper, front: Front) -> None:
    """What it had not answered fails, each request once; the next one serves: design, spawner."""
    spawner = named_child(keeper, SPAWNER)
    os.kill(spawner, signal.SIGSTOP)
    ask_spawns(front, range(50, 60))
    assert front.ask(Kind.PONG).error == 0  # the keeper has passed all of them on
    os.kill(spawner, signal.SIGKILL)
    found = replies(front, 10)
    assert [(record.serial, record.error) for record in found] == [
        (10_000 + i, errno.EIO) for i in range(10)
    ]
    assert front.snapshot() == []
    wait_until(lambda: named_child(keeper, SPAWNER) not in (0, spawner), "the next spawner")
    assert front.spawn(50, "/bin/true").error == 0
    assert front.exited(50).status == 0
    assert is_gone(spawner)


def test_a_stopped_spawner_stops_nobody_else(keeper: Keeper, front: Front) -> None:
    """What its socket does not take is answered with EAGAIN; all others run later, once."""
    spawner = named_child(keeper, SPAWNER)
    os.kill(spawner, signal.SIGSTOP)
    ask_spawns(front, range(1_000, 2_000))
    assert front.ask(Kind.PONG).error == 0  # the keeper is not blocked
    refused = [record for record in front.reports if record.kind == Kind.SPAWN]
    assert refused
    assert {record.error for record in refused} == {errno.EAGAIN}
    front.reports = []
    os.kill(spawner, signal.SIGCONT)
    started = replies(front, 1_000 - len(refused))
    assert {record.error for record in started} == {0}
    assert {record.id for record in refused + started} == set(range(1_000, 2_000))
    for record in started:
        assert front.report(Kind.EXITED, record.id).status == 0


def gone(front: Front, id: int) -> Record:
    """How it ended, told by the snapshot or by a report after it."""
    for record in front.reports:
        if record.id == id and record.flags & Flag.GONE:
            return record
    return front.report(Kind.EXITED, id)


def lose_front(keeper: Keeper, spawner: int) -> None:
    """End the front, up to where the keeper has asked the stopped spawner for the next one."""
    (old,) = keeper.children() - {spawner}
    keeper.front.close()

    def is_settled() -> bool:
        sleeps = status_field(keeper.pid, "State").startswith("S")
        return old not in keeper.children() and sleeps

    wait_until(is_settled, "the keeper to ask for the next front")


def test_the_answer_for_a_front_that_is_gone(keeper: Keeper) -> None:
    """It does not reach the next front, whose serials begin anew; that one learns of the exit."""
    spawner = named_child(keeper, SPAWNER)
    os.kill(spawner, signal.SIGSTOP)
    ask_spawns(keeper.front, range(50, 51), first_serial=2)
    assert keeper.front.ask(Kind.PONG).error == 0
    lose_front(keeper, spawner)
    os.kill(spawner, signal.SIGCONT)
    front = keeper.front = keeper.next_front()
    assert front.ask(Kind.SNAPSHOT).kind == Kind.SNAPSHOT
    assert front.ask(Kind.SIGNAL, id=999).kind == Kind.SIGNAL  # serial 2
    assert gone(front, 50).status == 0


def test_a_spawn_that_fails_for_a_front_that_is_gone(keeper: Keeper) -> None:
    """The next front, which was told that it is held, is told its end, too."""
    spawner = named_child(keeper, SPAWNER)
    os.kill(spawner, signal.SIGSTOP)
    ask_spawns(keeper.front, range(50, 51))
    assert keeper.front.ask(Kind.PONG).error == 0
    lose_front(keeper, spawner)
    os.kill(spawner, signal.SIGKILL)
    front = keeper.front = keeper.next_front()
    assert front.ask(Kind.SNAPSHOT).error == 0
    assert [record.id for record in front.reports if record.kind == Kind.PROCESS] == [50]
    ended = gone(front, 50)
    assert (ended.error, ended.status) == (errno.EIO, 127)


def test_programs_start_without_the_keepers_descriptors(front: Front) -> None:
    """Only the standard streams, and what `ls` itself opens."""
    assert output_of(front, 50, "/bin/ls", "/proc/self/fd") == "0\n1\n2\n3\n"


def test_the_front_is_a_program_like_others(keeper: Keeper) -> None:
    """It has the channel as descriptor 3, nothing else of the keeper's."""
    fronts = keeper.children() - {named_child(keeper, SPAWNER)}
    (pid,) = fronts
    masks = [int(status_field(pid, name), 16) for name in ("SigBlk", "SigCgt")]
    assert masks[0] == 0
    # 0, 1, 2 and its link to the test, once it has handed the channel over.
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == 4, "the front to keep four")


def test_a_program_outlives_the_spawner(keeper: Keeper, front: Front, tiny: str) -> None:
    """It is the keeper's child: the spawner's death changes nothing for it."""
    spawner = named_child(keeper, SPAWNER)  # before the spawn: a new child has its name, too
    reading, writing = os.pipe()
    assert front.spawn(50, tiny, "read", "9", descriptors={0: reading}).error == 0
    os.close(reading)
    os.kill(spawner, signal.SIGKILL)
    wait_until(lambda: named_child(keeper, SPAWNER) not in (0, spawner), "the next spawner")
    os.close(writing)
    assert front.exited(50).status == 9
