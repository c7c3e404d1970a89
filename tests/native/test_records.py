"""The channel's records and the commands: both descriptions of each layout agree, and nothing
that comes through the channel harms the keeper."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.keeper import command as command_module
from shim.keeper.command import MAX_DESCRIPTORS, MAX_LIMITS, MAX_SIZE, Command, pack
from shim.keeper.records import LAYOUT, Flag, Kind, Record
from tests.native import harness
from tests.native.harness import SOURCE, Front, Keeper, keeper_environment, wait_until
from tests.native.support import close_all, non_blocking_pipe, read_to_end

CHILD = """
import ctypes, os, resource, sys
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number))
umask = os.umask(0)
seen = {
    "argv": open("/proc/self/cmdline", "rb").read(),
    "env": open("/proc/self/environ", "rb").read(),
    "cwd": os.getcwd(),
    "umask": umask,
    "limits": {n: resource.getrlimit(n) for n in map(int, sys.argv[2].split(","))},
    "death_signal": number.value,
    "oom_score_adj": int(open("/proc/self/oom_score_adj").read()),
    "inodes": {},
}
report = int(sys.argv[1])
for name in os.listdir("/proc/self/fd"):
    try:
        seen["inodes"][int(name)] = os.fstat(int(name)).st_ino
    except OSError:
        pass
os.write(report, repr(seen).encode())
"""
LIMITS = (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_SIGPENDING)
REPORT = 34  # the child's descriptor for what it has seen


def test_both_layouts_have_one_size() -> None:
    """A record in Python is as long as the keeper's: design, Channel."""
    script = f"import sys; sys.path.insert(0, {SOURCE!r}); from shim import _keeper; "
    asked = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script + "print(_keeper.RECORD_SIZE)"],
        env=keeper_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(asked.stdout) == LAYOUT.size


def test_unknown_kind_comes_back_whole(front: Front) -> None:
    """The reply to what the keeper does not know is the request with EPROTO: no field moves."""
    fields: dict[str, Any] = {
        "id": 2**63 + 3, "owner": 2**62 + 5, "time": 2**61 + 7, "moved": 2**60 + 9,
        "pid": -11, "status": 13, "number": 2**32 - 15, "flags": 2**31 + 17,
    }  # fmt: skip
    front.tell(Record(2**32 - 1, error=19, serial=2**64 - 21, **fields))
    assert front.receive() == Record(2**32 - 1, errno.EPROTO, 2**64 - 21, **fields)


def test_fields_mean_the_same(keeper: Keeper, front: Front, tiny: str) -> None:
    """Each field that the keeper fills in is read back where Python expects it."""
    before = time.time_ns()
    reply = front.spawn(77, tiny, "exit", "31")
    ended = front.report(Kind.EXITED, 77)
    assert (reply.kind, reply.error, reply.id) == (Kind.SPAWN, 0, 77)
    assert (ended.pid, ended.status, ended.serial) == (reply.pid, 31, 0)
    assert before < ended.time < time.time_ns()
    held = [record for record in front.snapshot() if record.kind == Kind.PROCESS]
    flags = Flag.GONE | Flag.SPAWNED
    assert held == [Record(Kind.PROCESS, id=77, pid=reply.pid, status=31, time=ended.time,
                           flags=flags)]  # fmt: skip
    assert front.ask(Kind.SIGNAL, id=78, number=9).error == errno.ESRCH


@pytest.fixture(scope="module")
def shared() -> Iterator[Keeper]:
    """One keeper for many examples."""
    with harness.keeper() as made:
        yield made


TEXT = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=40)
NAMES = st.text(st.characters(categories=["L"]), min_size=1, max_size=8)
SOFT = {number: resource.getrlimit(number)[1] for number in LIMITS}


OUR_SCORE = int(Path("/proc/self/oom_score_adj").read_text())


def limit_pairs() -> st.SearchStrategy[dict[int, tuple[int, int]]]:
    def pair(number: int) -> st.SearchStrategy[tuple[int, int]]:
        most = SOFT[number] if SOFT[number] != resource.RLIM_INFINITY else 2**40
        return st.integers(256, most).flatmap(
            lambda hard: st.tuples(st.integers(128, hard), st.just(hard))
        )

    return st.fixed_dictionaries({}, optional={number: pair(number) for number in LIMITS})


COMMANDS: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    extra=st.lists(TEXT, max_size=5),
    env=st.dictionaries(NAMES, TEXT, max_size=5),
    cwd=st.sampled_from(["/", "/tmp", "/proc/self/.."]),
    umask=st.integers(0, 0o777),
    limits=limit_pairs(),
    death_signal=st.sampled_from([0, signal.SIGKILL, signal.SIGTERM, 64]),
    targets=st.sets(st.integers(0, REPORT - 1), max_size=MAX_DESCRIPTORS - 1),
    joins=st.lists(TEXT.map("/no/such/".__add__), max_size=3).map(tuple),
    oom_score_adj=st.none() | st.integers(OUR_SCORE, 1000),
)


def run_child(front: Front, id: int, asked: dict[str, Any]) -> dict[str, Any]:
    """Start CHILD with that shape, and return what it sees; its descriptors as inodes."""
    asked = dict(asked)
    reading, writing = os.pipe()
    files = {number: os.memfd_create(str(number)) for number in asked.pop("targets")}
    numbers = ",".join(map(str, LIMITS))
    extra = asked.pop("extra")
    argv = (sys.executable, "-I", "-S", "-c", CHILD, str(REPORT), numbers, *extra)
    command = Command(argv, descriptors={**files, REPORT: writing}, **asked)
    memory = pack(command)
    try:
        reply = front.ask(Kind.SPAWN, memory, *command.descriptors.values(), id=id)
        assert reply.error == 0
        os.close(writing)
        seen: dict[str, Any] = ast.literal_eval(read_to_end(reading).decode())
        wanted = {number: os.fstat(file).st_ino for number, file in files.items()}
        wanted[REPORT] = os.fstat(reading).st_ino
        seen["wanted"] = wanted
        seen["command"] = command
        return seen
    finally:
        close_all(reading, memory, *files.values())
        assert front.report(Kind.EXITED, id).status == 0
        assert front.ask(Kind.RELEASE, id=id).error == 0
        assert front.ask(Kind.FORGET, id=id).error == 0


def joined(texts: list[str]) -> bytes:
    return b"".join(os.fsencode(text) + b"\0" for text in texts)


@settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(asked=COMMANDS)
def test_a_program_sees_what_was_packed(shared: Keeper, asked: dict[str, Any]) -> None:
    """pack() and the spawner's parser agree on every part of a command: `shim.keeper.command`."""
    shared.front.ids = ids = getattr(shared.front, "ids", 100) + 1  # type: ignore[attr-defined]
    seen = run_child(shared.front, ids, asked)
    command: Command = seen["command"]
    assert seen["argv"] == joined(list(command.argv))
    assert seen["env"] == joined([f"{name}={value}" for name, value in command.env.items()])
    assert seen["cwd"] == os.path.realpath(command.cwd)
    assert seen["umask"] == command.umask
    assert seen["death_signal"] == command.death_signal
    wanted = OUR_SCORE if command.oom_score_adj is None else command.oom_score_adj
    assert seen["oom_score_adj"] == wanted
    for number, pair in command.limits.items():
        assert seen["limits"][number] == pair
    given_ = {number: seen["inodes"].get(number) for number in seen["wanted"]}
    assert given_ == seen["wanted"]
    # What else there is: the standard streams, and what the child opened to look at itself.
    others = set(seen["inodes"]) - set(seen["wanted"]) - {0, 1, 2}
    assert not others


# ---- hostile commands

HEAD = command_module._HEAD
PLAIN = command_module._pack_bytes(Command(("/bin/true",), {"A": "b"}))
ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def memory_of(data: bytes, seals: int = ALL_SEALS) -> int:
    memory = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(memory, len(data))
    os.pwrite(memory, data, 0)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    return memory


def with_head(**changes: int) -> bytes:
    """PLAIN, but with a head that lies."""
    names = ["argc", "envc", "descriptors", "umask", "limits", "joins"]
    names += ["death_signal", "oom_score_adj", "first_target"]
    values = list(HEAD.unpack_from(PLAIN))
    for name, value in changes.items():
        values[names.index(name)] = value
    return HEAD.pack(*values) + PLAIN[HEAD.size :]


def unlimited_strings() -> bytes:
    count = (1 << 20) - 2
    return with_head(envc=count)[: -len(b"A=b\0")] + b"\0" * count


def another_file(path: str) -> Callable[[], int]:
    return lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC)


HOSTILE: dict[str, Callable[[], int]] = {
    "unsealed": lambda: memory_of(PLAIN, 0),
    "may be written": lambda: memory_of(PLAIN, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
    "may shrink": lambda: memory_of(PLAIN, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW),
    "empty": lambda: memory_of(b""),
    "half a head": lambda: memory_of(PLAIN[: HEAD.size // 2]),
    "a head only": lambda: memory_of(PLAIN[: HEAD.size + 24 * MAX_LIMITS]),
    "cut short": lambda: memory_of(PLAIN[:-2]),
    "no NUL at the end": lambda: memory_of(PLAIN[:-1] + b"x"),
    "a page without NUL": lambda: memory_of(PLAIN[:-1].ljust(4096, b"x")),
    "more than is told": lambda: memory_of(PLAIN + b"C=d\0"),
    "no arguments": lambda: memory_of(with_head(argc=0)),
    "too few arguments": lambda: memory_of(with_head(argc=2)),
    "most arguments": lambda: memory_of(with_head(argc=2**32 - 1)),
    "all overflow": lambda: memory_of(with_head(argc=2**32 - 1, envc=2**32 - 1)),
    "most environment": lambda: memory_of(with_head(envc=2**32 - 1)),
    "no environment": lambda: memory_of(with_head(envc=0)),
    "a descriptor too many": lambda: memory_of(with_head(descriptors=1)),
    "17 descriptors": lambda: memory_of(with_head(descriptors=MAX_DESCRIPTORS + 1)),
    "most descriptors": lambda: memory_of(with_head(descriptors=2**32 - 1)),
    "17 limits": lambda: memory_of(with_head(limits=MAX_LIMITS + 1)),
    "most limits": lambda: memory_of(with_head(limits=2**32 - 1)),
    "a cgroup too many": lambda: memory_of(with_head(joins=1)),
    "most cgroups": lambda: memory_of(with_head(joins=2**32 - 1)),
    "too many strings": lambda: memory_of(unlimited_strings()),
    "too long": lambda: memory_of(PLAIN[:-1].ljust(MAX_SIZE, b"x") + b"\0"),
    "a device": another_file("/dev/zero"),
    "a directory": another_file("/"),
    "a file of proc": another_file("/proc/self/cmdline"),
    "a socket": lambda: socket.socket().detach(),
}


def serves(keeper: Keeper, id: int = 9_999) -> None:
    """The keeper still starts programs and tells their end."""
    front = keeper.front
    assert front.spawn(id, "/bin/true").error == 0
    assert front.exited(id).status == 0


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_command_is_refused(shared: Keeper, kind: str) -> None:
    """It is answered with EINVAL, starts nothing and leaves nothing: spawner.pxd."""
    front = shared.front
    before = shared.descriptors()
    memory = HOSTILE[kind]()
    try:
        reply = front.ask(Kind.SPAWN, memory, id=50)
    finally:
        os.close(memory)
    assert reply.error == errno.EINVAL
    serves(shared)
    wait_until(lambda: shared.descriptors() == before, "the descriptors to be closed")


def test_a_spawn_without_descriptors_is_refused(shared: Keeper) -> None:
    """Not even the command's memfd came."""
    assert shared.front.ask(Kind.SPAWN, id=50).error == errno.EINVAL
    serves(shared)


@pytest.mark.parametrize(
    ("count", "error"),
    [(17, errno.EINVAL), (18, errno.EMFILE), (19, errno.EMFILE), (253, errno.EMFILE)],
)
def test_more_descriptors_than_a_record_takes(shared: Keeper, count: int, error: int) -> None:
    """17 is the most; more are lost as a whole, and nothing is left of them: wire.pxd."""
    before = shared.descriptors()
    memory = memory_of(PLAIN)
    passed = [memory] + [os.open("/dev/null", os.O_RDONLY) for _ in range(count - 1)]
    try:
        assert shared.front.ask(Kind.SPAWN, *passed, id=50).error == error
        assert shared.front.ask(Kind.PONG, *passed).error == (0 if count == 17 else error)
    finally:
        close_all(*passed)
    serves(shared)
    wait_until(lambda: shared.descriptors() == before, "the descriptors to be closed")


@pytest.mark.parametrize("target", [-1, 35, 2**31 - 1])
def test_a_descriptor_for_a_number_out_of_range(shared: Keeper, target: int) -> None:
    """The child tells EINVAL and never runs the program."""
    memory = memory_of(with_head(descriptors=1, first_target=target))
    try:
        assert shared.front.ask(Kind.SPAWN, memory, memory, id=51).error == 0
    finally:
        os.close(memory)
    ended = shared.front.exited(51)
    assert (ended.error, ended.status) == (errno.EINVAL, 127)


def test_random_heads(shared: Keeper) -> None:
    """500 commands with random bytes in the head: each is refused, or ends."""
    chance = random.Random(7)
    before = shared.descriptors()
    for id in range(1_000, 1_500):
        data = bytearray(PLAIN)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(HEAD.size)] = chance.choice([0, 1, 2, 127, 255])
        memory = memory_of(bytes(data))
        reply = shared.front.ask(Kind.SPAWN, memory, id=id)
        os.close(memory)
        assert reply.error in (0, errno.EINVAL)
        if not reply.error:
            shared.front.exited(id)
    serves(shared)
    wait_until(lambda: shared.descriptors() == before, "the descriptors to be closed")


# ---- garbage

KINDS = [kind for kind in range(45) if kind not in (Kind.STOP, Kind.UPGRADE)]


def random_record(chance: random.Random, serial: int) -> Record:
    def small() -> int:
        return chance.choice([0, 1, 2, 3, 50, 51, 52, 2**32 - 1])

    return Record(
        chance.choice([*KINDS, chance.randrange(2**32)]), small(), serial,
        chance.choice([small() % 100 + 2, 2**64 - 1]), small(), small(), small(),
        chance.choice([-1, 0, 2**31 - 1]), small(), chance.choice([0, 65, 2**32 - 1]), small(),
    )  # fmt: skip


def some_descriptors(chance: random.Random) -> list[int]:
    """Up to 18 descriptors of many kinds, all of them non-blocking."""
    found: list[int] = []
    for _ in range(chance.choice([0, 0, 0, 1, 2, 3, 4, 9])):
        pair = socket.socketpair()
        for end in pair:
            end.setblocking(False)
        null = os.open("/dev/null", os.O_RDWR | os.O_NONBLOCK)
        kinds = [non_blocking_pipe(), (pair[0].detach(), pair[1].detach()), (null, os.dup(null))]
        chosen = kinds.pop(chance.randrange(3))
        found += chosen
        for rest in kinds:
            close_all(*rest)
    return found


def test_garbage_is_answered(keeper: Keeper, front: Front) -> None:
    """2,000 records with random kinds, ids and descriptors: each answered, nothing is leaked."""
    chance = random.Random(11)
    before = keeper.descriptors()
    for serial in range(1, 2_001):
        passed = some_descriptors(chance)
        front.tell(random_record(chance, serial), *passed)
        close_all(*passed)
        while front.receive().serial != serial:
            pass
    for record in front.snapshot():
        if record.kind == Kind.STREAM:
            front.ask(Kind.CUT, id=record.id)
            assert front.ask(Kind.FORGET, id=record.id).error == 0
    serves(keeper)
    wait_until(lambda: keeper.descriptors() == before, "the descriptors to be closed")


@pytest.mark.parametrize("size", [1, LAYOUT.size - 1, LAYOUT.size + 1, 4096])
def test_a_packet_of_the_wrong_size(keeper: Keeper, front: Front, size: int) -> None:
    """It is no record: nothing is done, its descriptors are closed."""
    before = keeper.descriptors()
    null = os.open("/dev/null", os.O_RDONLY)
    data = Record(Kind.STOP).pack().ljust(size, b"\0")[:size]
    for _ in range(20):
        socket.send_fds(front.channel, [data], [null] * 3)
    os.close(null)
    serves(keeper)
    wait_until(lambda: keeper.descriptors() == before, "the descriptors to be closed")


def test_a_keeper_without_work() -> None:
    """A keeper that was asked nothing holds nothing, and ends in good order."""
    with harness.keeper() as made:
        assert made.front.snapshot() == []
