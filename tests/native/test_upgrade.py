"""Another version takes over by execve: nothing is lost; where it fails, the old one goes on."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.keeper.command import pack_program
from shim.keeper.records import Flag, Kind, Record
from shim.keeper.start import keeper_program, pack_front
from tests.native import event_server, harness
from tests.native.event_server import Server
from tests.native.frames import (
    INVALID_ARGUMENT,
    REQUEST,
    Frame,
    Host,
    begin,
    request,
    status_of,
)
from tests.native.harness import PATIENCE, SOURCE, Front, Keeper, keeper_environment, wait_until
from tests.native.support import (
    background,
    close_all,
    cpu_ticks,
    make_fifo,
    named_child,
    read_exactly,
    read_some,
    read_to_end,
    wake_ups,
    write_all,
)

SPAWNER = "dense-spawner"
MIB = 1 << 20
BLOCK = random.Random(7).randbytes(MIB + 7)
DESTINATION = 70


def arguments(keeper: Keeper) -> list[str]:
    """The keeper's argv after the directory of its package: what it was to do."""
    text = Path(f"/proc/{keeper.pid}/cmdline").read_bytes()
    return [os.fsdecode(word) for word in text.split(b"\0")[5:-1]]


def took_over(keeper: Keeper) -> bool:
    """Whether the present keeper is another version's successor, not the old one, back again."""
    words = arguments(keeper)
    return words[0] == "--resume" and words[2] != "-1"


def upgrade(keeper: Keeper) -> Front:
    front = keeper.upgrade()
    assert took_over(keeper)
    return front


def test_a_program_that_is_held(keeper: Keeper, tiny: str) -> None:
    """It is signalled and collected as before; one that has ended is told; marks stay."""
    front = keeper.front
    alive = front.spawn(50, "/bin/sleep", "1000").pid
    assert front.spawn(51, tiny, "exit", "7").error == 0
    front.report(Kind.EXITED, 51)
    assert front.ask(Kind.RELEASE, id=51).error == 0
    before = front.snapshot()
    assert len(before) == 2
    front = upgrade(keeper)
    assert front.snapshot() == before
    assert front.spawn(50, "/bin/true").error == errno.EEXIST
    assert front.ask(Kind.FORGET, id=50).error == errno.EBUSY
    assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGTERM).error == 0
    ended = front.exited(50)
    assert (ended.pid, ended.status) == (alive, 128 + signal.SIGTERM)
    assert front.ask(Kind.FORGET, id=51).error == 0
    assert front.snapshot() == []
    assert front.spawn(51, tiny, "exit", "3").error == 0
    assert front.exited(51).status == 3


def test_an_exit_during_the_upgrade(keeper: Keeper, tiny: str) -> None:
    """Whichever version collects it, the new front is told."""
    for id in range(100, 120):
        reading, writing = os.pipe()
        assert keeper.front.spawn(id, tiny, "read", "9", descriptors={0: reading}).error == 0
        os.close(reading)
        memories = [pack_program(keeper_program()), pack_front(keeper.command)]
        keeper.front.tell(Record(Kind.UPGRADE), *memories)
        close_all(writing, *memories)
        keeper.front.close()
        keeper.front = keeper.next_front()
        assert took_over(keeper)
        held = {record.id: record for record in keeper.front.snapshot()}
        if not held[id].flags & Flag.GONE:
            held[id] = keeper.front.report(Kind.EXITED, id)
        assert held[id].status == 9
        assert keeper.front.ask(Kind.FORGET, id=id).error == 0


def test_an_early_exit_can_still_be_claimed(keeper: Keeper, tiny: str) -> None:
    """A spawn that has not been released began before it: reaper.pxd."""
    reading, writing = os.pipe()
    assert keeper.front.spawn(50, tiny, "orphan", "11", descriptors={1: writing}).error == 0
    os.close(writing)
    child = int(read_to_end(reading))
    os.close(reading)
    keeper.front.report(Kind.EXITED, 50)
    wait_until(lambda: child not in keeper.children(), "the orphan to be collected")
    front = upgrade(keeper)
    assert front.ask(Kind.TRACK, id=51, pid=child, owner=50).error == 0
    assert front.exited(51).status == 11
    assert front.ask(Kind.TRACK, id=52, pid=child, owner=50).error == errno.ECHILD


def test_why_a_program_could_not_be_executed(keeper: Keeper, tmp_path: Path) -> None:
    """A child that has not come to execve(2) yet tells its errno to the new version."""
    fifo = make_fifo(tmp_path)
    assert keeper.front.spawn(50, "/no/such", joins=(str(fifo),)).error == 0
    front = upgrade(keeper)
    reading = os.open(fifo, os.O_RDONLY)  # the child has stood before opening it to write
    ended = front.exited(50)
    assert (ended.status, ended.error) == (127, errno.ENOENT)
    os.close(reading)


def test_a_spawn_under_way(keeper: Keeper, tiny: str) -> None:
    """The upgrade waits for the spawner's answer."""
    spawner = named_child(keeper, SPAWNER)
    command = pack_front([tiny, "exit", "5"])
    os.kill(spawner, signal.SIGSTOP)
    devnull = os.open("/dev/null", os.O_RDONLY)
    keeper.front.tell(Record(Kind.SPAWN, serial=9, id=50), command, devnull)
    close_all(command, devnull)
    threading.Timer(0.2, os.kill, (spawner, signal.SIGCONT)).start()
    front = upgrade(keeper)
    held = {record.id: record for record in front.snapshot()}
    if not held[50].flags & Flag.GONE:
        held[50] = front.report(Kind.EXITED, 50)
    assert held[50].status == 5


def test_a_spawner_that_does_not_answer(keeper: Keeper, tiny: str) -> None:
    """SLOW, 5 s: there is no upgrade then, and the old version goes on with a new front."""
    spawner = named_child(keeper, SPAWNER)
    command = pack_front([tiny, "exit", "5"])
    os.kill(spawner, signal.SIGSTOP)
    devnull = os.open("/dev/null", os.O_RDONLY)
    keeper.front.tell(Record(Kind.SPAWN, serial=9, id=50), command, devnull)
    close_all(command, devnull)
    threading.Timer(5.5, os.kill, (spawner, signal.SIGCONT)).start()
    began = time.monotonic()
    front = keeper.upgrade()
    assert time.monotonic() - began > 5
    assert arguments(keeper)[0] != "--resume"
    assert {record.id for record in front.snapshot()} == {50}


def test_what_the_launcher_had() -> None:
    """Programs get its limit of descriptors, also from the new version's spawner."""
    with harness.keeper(files=(256, 2000)) as keeper:
        front = upgrade(keeper)
        reading, writing = os.pipe()
        argv = ("/bin/sh", "-c", "ulimit -Sn; ulimit -Hn")
        assert front.spawn(50, *argv, descriptors={1: writing}).error == 0
        os.close(writing)
        assert read_to_end(reading) == b"256\n2000\n"
        os.close(reading)
        assert front.exited(50).status == 0


def test_a_sigterm_is_repeated(keeper: Keeper) -> None:
    os.kill(keeper.pid, signal.SIGTERM)
    keeper.front.report(Kind.TERMINATE, 0)
    assert {record.kind for record in upgrade(keeper).snapshot()} == {Kind.TERMINATE}


# ---- streams


def counts(front: Front) -> dict[int, int]:
    """The bytes that each stream has moved."""
    return {record.id: record.moved for record in front.snapshot()}


def test_streams(keeper: Keeper, tmp_path: Path) -> None:
    """One that is idle, one that is full, one whose end waits for a reader, one that has ended."""
    front = keeper.front
    fifos = [make_fifo(tmp_path, str(number)) for number in range(5)]
    inner = [front.output(60 + number, fifos[number]) for number in range(4)]
    stdin = front.input(64, fifos[4])
    os.set_blocking(inner[1], False)
    os.write(inner[1], BLOCK[: 64 << 10])
    os.write(inner[2], b"the end")
    os.close(inner[2])
    moved = {61: 64 << 10, 62: 7}
    wait_until(lambda: moved.items() <= counts(front).items(), "the bytes to be moved")
    assert front.ask(Kind.CUT, id=63).error == 0
    front.report(Kind.ENDED, 63)
    before = front.snapshot()
    front = upgrade(keeper)
    assert front.snapshot() == before
    clients = [os.open(fifo, os.O_RDONLY | os.O_NONBLOCK) for fifo in fifos[:3]]
    os.write(inner[0], b"idle no more")
    assert read_exactly(clients[0], 12) == b"idle no more"
    assert read_exactly(clients[1], 64 << 10) == BLOCK[: 64 << 10]
    assert read_to_end(clients[2]) == b"the end"
    assert front.report(Kind.ENDED, 62).moved == 7
    for number in (62, 63):
        assert front.ask(Kind.FORGET, id=number).error == 0
    # The hold keeps the input open until it is closed.
    client = os.open(fifos[4], os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"input")
    assert read_exactly(stdin, 5) == b"input"
    os.close(client)
    assert front.ask(Kind.FORGET, id=64).error == errno.EBUSY
    assert front.ask(Kind.UNHOLD, id=64).error == 0
    assert read_to_end(stdin) == b""
    assert front.report(Kind.ENDED, 64).moved == 5
    close_all(inner[0], inner[1], inner[3], stdin)
    for number in (60, 61):
        front.report(Kind.ENDED, number)
    close_all(*clients)


def test_what_was_read_and_not_written(keeper: Keeper) -> None:
    """Bytes that are in the keeper's own memory go along: a pipe that took a part of them."""
    ours, source = socket.socketpair()
    client, sink = os.pipe()
    ours.setblocking(False)
    source.setblocking(False)
    os.set_blocking(sink, False)
    assert keeper.front.relay(60, source.detach(), sink).error == 0
    sent = bytearray()

    def is_full() -> bool:
        """Nothing more fits, neither here nor there, although the keeper had a turn."""
        before = len(sent)
        try:
            while True:
                sent.extend(BLOCK[: ours.send(BLOCK[:9_999])])
        except BlockingIOError:
            assert keeper.front.ask(Kind.PONG).error == 0
        return len(sent) == before

    wait_until(is_full, "everything to be full")
    upgrade(keeper)
    upgrade(keeper)
    ours.close()
    assert read_to_end(client) == bytes(sent)
    os.close(client)
    assert keeper.front.report(Kind.ENDED, 60).moved == len(sent)


def test_a_terminal(keeper: Keeper, tmp_path: Path) -> None:
    """A hang-up before the upgrade is not its end, FINISH after it is; it can be resized."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    path = tmp_path / "log"
    sink = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    name = os.ttyname(slave)
    assert keeper.front.relay(60, master, sink).error == 0
    os.write(slave, b"one ")
    os.close(slave)
    wait_until(lambda: path.read_bytes() == b"one ", "the first word")
    front = upgrade(keeper)
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"two")
    assert front.ask(Kind.RESIZE, id=60, number=30 << 16 | 100).error == 0
    assert os.get_terminal_size(slave) == (100, 30)
    wait_until(lambda: path.read_bytes() == b"one two", "the second word")
    os.close(slave)
    assert front.ask(Kind.FINISH, id=60).error == 0
    assert front.report(Kind.ENDED, 60).moved == 7


def test_a_file_on_a_full_disk(keeper: Keeper, tmp_path: Path) -> None:
    """Its bytes wait through the upgrade."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "denseshim-test", disk], check=True)
    try:
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, MIB)
        source, inner = os.pipe()
        os.set_blocking(source, False)
        sink = os.open(disk / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        assert keeper.front.relay(60, source, sink).error == 0
        os.write(inner, BLOCK[:50_000])
        os.close(inner)
        front = upgrade(keeper)
        assert front.ask(Kind.FORGET, id=60).error == errno.EBUSY
        ballast.unlink()
        assert front.report(Kind.ENDED, 60).moved == 50_000
        assert (disk / "log").read_bytes() == BLOCK[:50_000]
    finally:
        subprocess.run(["umount", disk], check=True)


def send_blocks(descriptor: int, count: int, into: list[str]) -> None:
    digest = hashlib.blake2b()
    for _ in range(count):
        write_all(descriptor, BLOCK)
        digest.update(BLOCK)
    os.close(descriptor)
    into.append(digest.hexdigest())


def take_all(descriptor: int, into: list[str]) -> None:
    digest = hashlib.blake2b()
    while piece := read_some(descriptor, MIB):
        digest.update(piece)
    os.close(descriptor)
    into.append(digest.hexdigest())


def test_a_long_stream_both_ways(keeper: Keeper, tmp_path: Path) -> None:
    """256 MiB each way arrive whole, while one version after the other takes over."""
    out, back = make_fifo(tmp_path, "out"), make_fifo(tmp_path, "in")
    inner = [keeper.front.output(60, out), keeper.front.input(61, back)]
    reading = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(back, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(writing, True)
    assert keeper.front.ask(Kind.UNHOLD, id=61).error == 0
    sent: list[str] = []
    found: list[str] = []
    with (
        background(lambda: send_blocks(inner[0], 256, sent)),
        background(lambda: take_all(reading, found)),
        background(lambda: send_blocks(writing, 256, sent)),
        background(lambda: take_all(inner[1], found)),
    ):
        count = 0
        while len(sent) < 2:
            upgrade(keeper)
            count += 1
    assert count > 5
    assert len(set(sent + found)) == 1
    ended = {record.id: record for record in keeper.front.snapshot()}
    for id in (60, 61):
        if not ended[id].flags & Flag.GONE:
            ended[id] = keeper.front.report(Kind.ENDED, id)
        assert (ended[id].moved, ended[id].error) == (256 * len(BLOCK), 0)


# ---- callers


def test_requests(host: Host, target: int) -> None:
    """One of which nothing is known, one that waits, one that has begun; in order of arrival."""
    host.ready()
    with host.call() as caller:
        for number in range(3):
            caller.send(request(2 * number + 1, b"question %d" % number))
        before = [host.front.request() for _ in range(3)]
        ids = [packet.record.id for packet in before]
        assert host.front.ask(Kind.REPLAYABLE, id=ids[1]).error == 0
        begin(host.front, ids[2], target)
        upgrade(host.keeper)
        assert caller.receive() == Frame(5, b"")
        host.ready()
        again = [host.front.request() for _ in range(2)]
        assert again == before[:2]
        caller.send(request(7, b"after"))
        packet = host.front.request()
        assert packet.payload == b"after"
        assert packet.record.id not in ids
        for each in (packet, *reversed(again)):
            assert host.front.respond(each.record.id, each.payload) == 0
        assert [caller.receive().stream for _ in range(3)] == [7, 3, 1]


def test_an_upgrade_is_no_death_over_a_request(host: Host) -> None:
    """What has killed two fronts is refused, but these the keeper has killed itself."""
    host.ready()
    with host.call() as caller:
        caller.send(request(1, b"long"))
        for _ in range(3):
            packet = host.front.request()
            upgrade(host.keeper)
            host.ready()
        host.front.request()
        host.keeper.replace_front()
        packet = host.front.request()
        assert host.front.respond(packet.record.id, b"done") == 0
        assert caller.receive() == Frame(1, b"done")


@pytest.mark.parametrize("size", [3, 10, 12, 3_000, 100_000])
def test_half_a_frame(host: Host, size: int) -> None:
    """What has come of it stays; the rest is taken by the new version."""
    body = random.Random(size).randbytes(200_000)
    data = request(1, b"first") + request(3, body)
    first = len(request(1, b"first"))
    host.ready()
    with host.call() as caller:
        caller.send(data[: first + size])
        caller.was_read()
        assert host.front.request().payload == b"first"
        upgrade(host.keeper)
        host.ready()
        caller.send(data[first + size :])
        assert [host.front.request().payload for _ in range(2)] == [b"first", body]
        # The numbers of its streams still only grow.
        caller.send(request(3, b"again"))
        assert status_of(caller.receive())[0] == INVALID_ARGUMENT


def test_half_a_frame_that_is_refused(host: Host) -> None:
    """The rest of it is skipped, by whichever version."""
    host.ready()
    with host.call() as caller:
        data = Frame(1, bytes(100_000), REQUEST).pack()
        caller.send(request(2, b"")[:10], data[:50_000])
        assert status_of(caller.receive())[0] == INVALID_ARGUMENT
        caller.was_read()
        upgrade(host.keeper)
        host.ready()
        caller.send(data[50_000:], request(3, b"next"))
        assert len(host.front.request().payload) == 100_000
        assert host.front.request().payload == b"next"


def test_descriptors_of_a_request(host: Host) -> None:
    """Of one that is whole, and of one that is not."""
    host.ready()
    pipes = [os.pipe() for _ in range(2)]
    with host.call(door=True) as caller:
        caller.pass_on(request(1, b"whole"), [pipes[0][1]])
        for descriptor in host.front.request().descriptors:
            os.close(descriptor)
        data = request(3, b"half")
        caller.pass_on(data[:12], [pipes[1][1]])
        caller.was_read()
        for _, writing in pipes:
            os.close(writing)
        upgrade(host.keeper)
        host.ready()
        caller.send(data[12:])
        for reading, _ in pipes:
            (descriptor,) = host.front.request().descriptors
            os.write(descriptor, b"x")
            os.close(descriptor)
            assert os.read(reading, 2) == b"x"
            os.close(reading)


def test_an_answer_that_is_not_read(host: Host) -> None:
    """What the client's socket did not take yet is sent by the new version."""
    host.ready()
    body = random.Random(1).randbytes(3 * MIB)
    with host.call() as caller:
        caller.send(request(1))
        assert host.front.respond(host.front.request().record.id, body) == 0
        upgrade(host.keeper)
        assert caller.receive() == Frame(1, body)
        host.ready()
        caller.send(request(3))
        assert host.front.respond(host.front.request().record.id, b"next") == 0
        assert caller.receive() == Frame(3, b"next")


def test_callers_that_come_meanwhile(host: Host) -> None:
    """They wait in the kernel's queue."""
    host.ready()
    count = 200
    answered: list[Frame] = []

    def call() -> None:
        with host.call() as caller:
            for number in range(count):
                caller.send(request(2 * number + 1, b"x"))
                answered.append(caller.receive())

    with background(call):
        for number in range(count):
            if number % 20 == 19:
                upgrade(host.keeper)
                host.ready()
            packet = host.front.request()
            assert host.front.respond(packet.record.id, packet.payload) == 0
    assert [frame.stream for frame in answered] == list(range(1, 2 * count, 2))


# ---- events


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with event_server.server(tmp_path / "containerd.ttrpc") as made:
        yield made


def publish(front: Front, body: bytes, **fields: int) -> int:
    return front.ask(Kind.PUBLISH, id=DESTINATION, payload=body, **fields).error


def test_events(keeper: Keeper, server: Server, tiny: str) -> None:
    """Queue, marks and the connection go along: what is under way is not sent twice."""
    front = keeper.front
    path = os.fsencode(server.path)
    assert front.ask(Kind.DESTINATION, id=DESTINATION, payload=path).error == 0
    assert front.spawn(50, tiny, "exit", "7").error == 0
    front.report(Kind.EXITED, 50)
    bodies = [b"event %d" % number for number in range(100)]
    assert publish(front, bodies[0], owner=50, flags=4) == 0
    for body in bodies[1:]:
        assert publish(front, body) == 0
    connection = server.accept()
    event = connection.receive()
    before = front.snapshot()
    front = upgrade(keeper)
    assert front.snapshot() == before
    assert publish(front, bodies[0], owner=50, flags=4) == errno.EALREADY
    connection.answer(event)
    found = [event.body]
    while len(found) < 100:
        found += connection.serve(9)
        front = upgrade(keeper)
    assert found == bodies
    assert publish(front, b"last") == 0
    assert connection.serve(1) == [b"last"]


def test_half_an_event(keeper: Keeper, server: Server) -> None:
    """One of which the server has taken a part goes on where it was."""
    path = os.fsencode(server.path)
    assert keeper.front.ask(Kind.DESTINATION, id=DESTINATION, payload=path).error == 0
    body = random.Random(2).randbytes(4 * MIB)
    assert publish(keeper.front, body) == 0
    connection = server.accept()
    upgrade(keeper)
    event = connection.receive()
    assert event.body == body
    connection.socket.sendall(event_server.frame(event.stream, b"")[:6])
    upgrade(keeper)
    connection.socket.sendall(event_server.frame(event.stream, b"")[6:])
    assert publish(keeper.front, b"next") == 0
    assert connection.serve(1) == [b"next"]


# ---- again and again


def inheritable(keeper: Keeper) -> set[int]:
    """The keeper's descriptors that execve(2) leaves open: proc(5), fdinfo."""
    found = set()
    for path in Path(f"/proc/{keeper.pid}/fdinfo").iterdir():
        (flags,) = [line for line in path.read_text().splitlines() if line.startswith("flags:")]
        if not int(flags.split()[1], 8) & os.O_CLOEXEC:
            found.add(int(path.name))
    return found


def test_nothing_is_leaked(host: Host, tmp_path: Path, tiny: str) -> None:
    """Fifty upgrades: as many descriptors as before, and an idle keeper at the end."""
    front = host.ready()
    inner = front.output(60, make_fifo(tmp_path))
    assert front.spawn(50, tiny, "exit", "7").error == 0
    front.report(Kind.EXITED, 50)
    assert front.ask(Kind.RELEASE, id=50).error == 0
    with host.call() as caller:
        caller.send(request(1))
        front.request()
        upgrade(host.keeper)
        before = host.front.snapshot()
        counts = set()
        for _ in range(50):
            upgrade(host.keeper)
            assert host.front.snapshot() == before
            counts.add(host.keeper.descriptors())
        assert len(counts) == 1
        assert inheritable(host.keeper) == {0, 1, 2}
        slept, ticks = wake_ups(host.keeper.pid), cpu_ticks(host.keeper.pid)
        subprocess.run(["/bin/sleep", "0.5"], check=True)  # in which nothing may happen
        assert wake_ups(host.keeper.pid) - slept <= 2
        assert cpu_ticks(host.keeper.pid) - ticks <= 1
        host.ready()
        assert host.front.respond(host.front.request().record.id) == 0
        assert caller.receive() == Frame(1, b"")
    os.close(inner)


# ---- versions that fail

FAKE = """
import sys
sys.path.insert(0, {source!r})
{text}
"""
# What a version does that fails, instead of `shim._keeper`.
FAILURES = {
    "no module": "raise ImportError('no such library')",
    "another error": "raise RuntimeError('broken')",
    "exit": "sys.exit(3)",
    "nothing there": "",
    "another version": "def resume(program, state, back): raise ValueError('unknown version')",
    "no memory": "def resume(program, state, back): raise OSError(12, 'taking over')",
}


def failing_version(folder: Path, text: str) -> list[str]:
    """The program of a version whose native module is this text."""
    package = folder / "lib" / "shim"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "_keeper.py").write_text(FAKE.format(source=SOURCE, text=text))
    return [*keeper_program()[:-1], str(package.parent)]


@pytest.mark.parametrize("kind", [*FAILURES, "late"])
def test_a_version_that_fails(
    host: Host, server: Server, tmp_path: Path, tiny: str, kind: str
) -> None:
    """The old one takes everything back, with a front of its own; and may try again later."""
    front = host.ready()
    path = os.fsencode(server.path)
    assert front.ask(Kind.DESTINATION, id=DESTINATION, payload=path).error == 0
    inner = front.output(60, make_fifo(tmp_path))
    alive = front.spawn(50, "/bin/sleep", "1000").pid
    assert front.spawn(51, tiny, "exit", "7").error == 0
    front.report(Kind.EXITED, 51)
    with host.call() as caller:
        caller.send(request(1, b"question"), request(3, b"half")[:12])
        asked = front.request()
        caller.was_read()
        assert publish(front, b"event") == 0
        connection = server.accept()
        before, count = front.snapshot(), host.keeper.descriptors()
        text = real_module() + LATE if kind == "late" else FAILURES[kind]
        program = failing_version(tmp_path, text)
        front = host.keeper.upgrade(program, ["/bin/false"])
        assert arguments(host.keeper)[2] == "-1"
        assert front.snapshot() == before
        assert host.keeper.descriptors() == count
        host.ready()
        assert front.request() == asked
        caller.send(request(3, b"half")[12:])
        assert front.request().payload == b"half"
        assert front.respond(asked.record.id, b"answer") == 0
        assert caller.receive() == Frame(1, b"answer")
        assert connection.serve(1) == [b"event"]
        upgrade(host.keeper)
    os.write(inner, b"text")
    client = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert read_exactly(client, 4) == b"text"
    close_all(inner, client)
    assert host.front.ask(Kind.SIGNAL, id=50, number=signal.SIGKILL).error == 0
    assert host.front.exited(50).pid == alive


def test_a_version_that_is_not_there(host: Host, tmp_path: Path) -> None:
    """It cannot even be executed: the present keeper goes on as if nothing had been."""
    inner = host.front.output(60, make_fifo(tmp_path))
    before, count = host.front.snapshot(), host.keeper.descriptors()
    kept = inheritable(host.keeper)
    front = host.keeper.upgrade(["/no/such/python"], ["/bin/false"])
    assert arguments(host.keeper)[0] != "--resume"
    assert front.snapshot() == before
    assert host.keeper.descriptors() == count
    assert inheritable(host.keeper) <= kept
    upgrade(host.keeper)
    os.close(inner)


def test_the_new_version_has_its_own_front(keeper: Keeper) -> None:
    """The one that came with it, also when that dies."""
    for _ in range(3):
        keeper.upgrade(front=[*keeper.command, "new"])
        for _ in range(2):
            (pid,) = keeper.children() - {named_child(keeper, SPAWNER)}
            assert Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0new\0")
            keeper.replace_front()
    upgrade(keeper)


def test_a_front_that_never_serves(host: Host, tmp_path: Path) -> None:
    """Two of them, and the old version is back, with all that was held and its own front."""
    front = host.ready()
    inner = front.output(60, make_fifo(tmp_path))
    before, count = front.snapshot(), host.keeper.descriptors()
    front = host.keeper.upgrade(front=["/bin/false"])
    assert arguments(host.keeper)[0] == "--resume"
    assert front.snapshot() == before
    assert host.keeper.descriptors() == count
    for _ in range(3):  # it is not on trial itself
        front = host.keeper.replace_front(serves=False)
    assert front.snapshot() == before
    host.ready()
    upgrade(host.keeper)
    os.close(inner)


def test_a_program_without_nul() -> None:
    with pytest.raises(ValueError, match="NUL"):
        pack_program(["/bin/true", "a\0b"])


def test_what_upgrade_refuses(keeper: Keeper) -> None:
    """It is answered, and the front lives on."""
    front = keeper.front
    program, command = pack_program(keeper_program()), pack_front(["/bin/true"])
    unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(unsealed, b"/bin/true\0")
    relative, many = pack_program(["python"]), pack_program(["/x"] * 65)
    before = keeper.descriptors()
    for descriptors in (
        (), (program,), (program, program), (command, command), (unsealed, command),
        (program, unsealed), (relative, command), (many, command), (program, command, command),
    ):  # fmt: skip
        assert front.ask(Kind.UPGRADE, *descriptors).error == errno.EINVAL
    wait_until(lambda: keeper.descriptors() == before, "the last ones to be closed")
    close_all(unsealed, relative, many)
    os.kill(keeper.pid, signal.SIGSTOP)  # so that it takes both in one turn
    front.tell(Record(Kind.STOP))
    front.tell(Record(Kind.UPGRADE, serial=77), program, command)
    os.kill(keeper.pid, signal.SIGCONT)
    close_all(program, command)
    assert front.receive() == Record(Kind.UPGRADE, serial=77, error=errno.EBUSY)
    keeper.process.wait(PATIENCE)
    assert keeper.process.returncode == 0


# ---- states

# What both of the following begin with: the real module, and sealed memory.
REAL = """
import posix
def load():
    import importlib.machinery
    import importlib.util
    name = "shim._keeper"
    spec = importlib.util.spec_from_file_location(name, {real!r})
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
def sealed(data):
    import fcntl
    memory = posix.memfd_create("state", 3)
    posix.write(memory, data)
    fcntl.fcntl(memory, 1033, 15)
    return memory
"""
# Tries copies of the state that have been tampered with, in the process that could take it over.
TAMPER = """
def resume(program, state, back):
    import random
    real = load()
    real.check(state)
    data = posix.pread(state, 1 << 26, 0)
    chosen = random.Random(11)
    tampered = [data[:size] for size in (0, 1, 31, 32, 63, len(data) // 2, len(data) - 1)]
    tampered += [data + b"x", bytes(len(data)), chosen.randbytes(len(data))]
    for _ in range(300):
        at = chosen.randrange(len(data))
        tampered.append(data[:at] + bytes([data[at] ^ chosen.randrange(1, 256)]) + data[at + 1:])
    refused = 0
    for each in tampered:
        memory = sealed(each)
        try:
            real.check(memory)
        except ValueError:
            refused += 1
        posix.close(memory)
    unsealed = posix.memfd_create("state", 3)
    posix.write(unsealed, data)
    try:
        real.check(unsealed)
    except ValueError:
        refused += 1
    posix.close(unsealed)
    with open({report!r}, "w") as report:
        report.write(f"{{refused}} of {{len(tampered) + 1}}")
    raise ValueError("seen")
"""


# A state that is well formed, but has no id for the destination, which is restored last.
LATE = """
def resume(program, state, back):
    import struct
    data = bytearray(posix.pread(state, 1 << 26, 0))
    at, found = 32, 0
    while at < len(data):
        kind, slot, fixed, more = struct.unpack_from("=IIQQ", data, at)
        if kind == 9:
            struct.pack_into("=Q", data, at + 24, 0)
            found += 1
        at += 24 + fixed + more
    assert found == 1
    total = 0
    for byte in data[32:]:
        total = (total ^ byte) * 0x100000001B3 & (1 << 64) - 1
    struct.pack_into("=Q", data, 24, total)
    real = load()
    memory = sealed(bytes(data))
    real.check(memory)
    real.resume(program, memory, back)
"""


def real_module() -> str:
    """REAL, with the path of the native module, which is not loaded here."""
    found = importlib.util.find_spec("shim._keeper")
    assert found is not None
    return REAL.format(real=found.origin)


def test_a_state_that_was_tampered_with_is_refused(host: Host, tmp_path: Path, tiny: str) -> None:
    """Cut, longer, garbage, or another byte anywhere: `check` says so, and changes nothing."""
    front = host.ready()
    inner = front.output(60, make_fifo(tmp_path))
    assert front.spawn(51, tiny, "exit", "7").error == 0
    front.report(Kind.EXITED, 51)
    with host.call() as caller:
        caller.send(request(1, b"question"), request(3, b"half")[:12])
        front.request()
        caller.was_read()
        report = tmp_path / "report"
        before = front.snapshot()
        text = real_module() + TAMPER.format(report=str(report))
        front = host.keeper.upgrade(failing_version(tmp_path, text), ["/bin/false"])
        assert report.read_text() == "311 of 311"
        assert front.snapshot() == before
    os.close(inner)


def state_form() -> tuple[int, tuple[int, ...]]:
    """The version and the sizes that the native module tells; it is not loaded here."""
    script = f"import sys; sys.path.insert(0, {SOURCE!r}); from shim import _keeper; "
    script += "print(_keeper.STATE, *_keeper.STATE_SIZES)"
    argv = [sys.executable, "-I", "-S", "-c", script]
    asked = subprocess.run(argv, env=keeper_environment(), capture_output=True, check=True)
    version, *sizes = map(int, asked.stdout.split())
    return version, tuple(sizes)


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [*keeper_program(), *arguments]
    return subprocess.run(argv, env=keeper_environment(), capture_output=True, text=True)


def test_check_before_an_upgrade() -> None:
    """`--check` says whether the version's states can be read, and that the module loads."""
    version, _ = state_form()
    assert run_program("--check", str(version)).returncode == 0
    refused = run_program("--check", str(version + 1))
    assert refused.returncode == 1
    assert "takes over states of version" in refused.stderr


def test_what_a_state_is_made_of() -> None:
    """A change of these sizes is another form of the state: raise STATE_VERSION in upgrade.pxd.

    The keeper, what is not fixed, a process, log, stream, listener, connection, request,
    destination.
    """
    assert state_form() == (4, (64, 0, 64, 296, 112, 24, 144, 80, 1208))
