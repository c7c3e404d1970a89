"""Events for a containerd: in order, once, whatever becomes of it, of its socket, of the front."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.keeper.records import Flag, Kind, Record
from tests.native import event_server
from tests.native.event_server import Connection, Server, field, frame, status
from tests.native.frames import HEADER, RESPONSE
from tests.native.harness import PATIENCE, Front, Keeper, wait_until
from tests.native.support import cpu_ticks, wake_ups

HERE, THERE = 70, 71
EXIT, OOM = 4, 0x8000
MIB = 1 << 20
MOST_QUEUED = 65_536
MOST_BYTES = 16 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the containerd is, or is to be."""
    return tmp_path / "containerd.ttrpc"


@pytest.fixture
def server(path: Path) -> Iterator[Server]:
    with event_server.server(path) as made:
        yield made


def set_destination(front: Front, path: Path | str, id: int = HERE) -> int:
    return front.ask(Kind.DESTINATION, id=id, payload=os.fsencode(path)).error


def publish(front: Front, body: bytes, id: int = HERE, **fields: int) -> int:
    return front.ask(Kind.PUBLISH, id=id, payload=body, **fields).error


def publish_numbers(front: Front, numbers: range) -> list[bytes]:
    """Queue an event for each number; their bodies."""
    bodies = [b"event %d" % number for number in numbers]
    for body in bodies:
        assert publish(front, body) == 0
    return bodies


def queued(front: Front, id: int = HERE) -> int | None:
    """How many events the keeper has for the destination; None when it does not know it."""
    for record in front.snapshot():
        if (record.kind, record.id) == (Kind.DESTINATION, id):
            return record.number
    return None


def is_delivered(front: Front, id: int = HERE) -> None:
    wait_until(lambda: queued(front, id) == 0, "the answer to be taken")


def test_events_arrive_in_order_one_at_a_time(front: Front, server: Server) -> None:
    """The next one is sent when the last one has been answered; stream ids are odd and rise."""
    assert set_destination(front, server.path) == 0
    bodies = publish_numbers(front, range(50))
    connection = server.accept()
    for number, body in enumerate(bodies):
        event = connection.receive()
        assert (event.stream, event.body) == (2 * number + 1, body)
        assert front.ask(Kind.PONG).error == 0
        assert connection.is_silent()
        connection.answer(event)
    is_delivered(front)


def test_destinations_do_not_wait_for_each_other(
    front: Front, server: Server, tmp_path: Path
) -> None:
    """One that does not answer delays nobody else."""
    with event_server.server(tmp_path / "other") as other:
        assert set_destination(front, server.path) == 0
        assert set_destination(front, other.path, THERE) == 0
        publish_numbers(front, range(3))
        assert publish(front, b"other", THERE) == 0
        assert other.accept().serve(1) == [b"other"]
        is_delivered(front, THERE)
        assert queued(front) == 3


@pytest.mark.parametrize("size", [1, 500, (60 << 10) + 1, 1 << 20, 4 << 20])
def test_a_long_event_is_exact(front: Front, server: Server, size: int) -> None:
    """Up to the longest message of ttrpc, to a server that reads slowly."""
    body = os.urandom(size)
    assert set_destination(front, server.path) == 0
    assert publish(front, body) == 0
    assert publish(front, b"the next") == 0
    connection = server.accept()
    assert connection.serve(2) == [body, b"the next"]
    is_delivered(front)


def test_the_next_event_after_the_server_went(front: Front, path: Path) -> None:
    """An idle connection's end costs nothing; the next event makes another."""
    with event_server.server(path) as server:
        assert set_destination(front, path) == 0
        publish_numbers(front, range(1))
        server.accept().serve(1)
    is_delivered(front)
    with event_server.server(path) as server:
        bodies = publish_numbers(front, range(1, 3))
        assert server.accept().serve(2) == bodies


def test_an_event_without_answer_is_sent_again(front: Front, path: Path) -> None:
    """The socket's file is gone and comes again, with another server behind it."""
    assert set_destination(front, path) == 0
    bodies = publish_numbers(front, range(3))
    for _ in range(3):
        with event_server.server(path) as server:
            connection = server.accept()
            event = connection.receive()
            assert (event.stream, event.body) == (1, bodies[0])
    with event_server.server(path) as server:
        assert server.accept().serve(3) == bodies
        is_delivered(front)


def test_a_long_outage(keeper: Keeper, front: Front, path: Path) -> None:
    """Events of a whole minute wait, and are delivered when the server comes back."""
    with event_server.server(path) as server:
        assert set_destination(front, path) == 0
        publish_numbers(front, range(1))
        server.accept().receive()
    bodies = [b"event 0", *publish_numbers(front, range(1, 3_000))]
    before = wake_ups(keeper.pid), cpu_ticks(keeper.pid)
    subprocess.run(["/bin/sleep", "3"], check=True)  # the time in which little may happen
    assert wake_ups(keeper.pid) - before[0] <= 20
    assert cpu_ticks(keeper.pid) - before[1] <= 5
    with event_server.server(path) as server:
        assert server.accept().serve(3_000) == bodies
        is_delivered(front)


def test_a_server_that_does_not_answer(front: Front, server: Server) -> None:
    """SLOW, 5 s: the keeper hangs up, and tries again on another connection."""
    assert set_destination(front, server.path) == 0
    began = time.monotonic()
    publish_numbers(front, range(1))
    connection = server.accept()
    connection.receive()
    assert connection.ends()
    assert 4.9 <= time.monotonic() - began <= 6
    assert server.accept().serve(1) == [b"event 0"]
    is_delivered(front)


@pytest.mark.parametrize("message", [b"", b"what the server says", b"x" * 100_000])
def test_a_refused_event_is_given_up(front: Front, server: Server, message: bytes) -> None:
    """It is tried three times, on the same connection; then the next one has its turn."""
    assert set_destination(front, server.path) == 0
    publish_numbers(front, range(2))
    connection = server.accept()
    for number in range(3):
        event = connection.receive()
        assert (event.stream, event.body) == (2 * number + 1, b"event 0")
        connection.answer(event, status(13, message))
    lost = front.report(Kind.LOST, HERE)
    assert lost.number == 1
    event = connection.receive()
    assert (event.stream, event.body) == (7, b"event 1")
    connection.answer(event, status(13, message))
    assert connection.serve(1) == [b"event 1"]
    is_delivered(front)
    assert not front.reports


def test_an_event_that_is_refused_before_its_end(front: Front, server: Server) -> None:
    """The rest of it is not sent, nor anything else on that connection."""
    body = os.urandom(4 * MIB)
    assert set_destination(front, server.path) == 0
    assert publish(front, body) == 0
    for _ in range(3):
        connection = server.accept()
        connection.socket.sendall(frame(1, status(8)))
        wait_until(connection.was_heard, "the keeper to read the answer")
        found = bytearray()
        while piece := connection.socket.recv(MIB):
            found += piece
        assert len(found) < len(body)
        assert bytes(found[10:]) == body[: len(found) - 10]
    assert front.report(Kind.LOST, HERE).number == 1


def test_a_status_without_error_is_none(front: Front, server: Server) -> None:
    """An empty status, a status of 0, and what else a server may put into its answer."""
    assert set_destination(front, server.path) == 0
    bodies = publish_numbers(front, range(4))
    connection = server.accept()
    rest = b"\x18\x01" + b"\x21" + bytes(8) + b"\x2d" + bytes(4)
    for body, answer in zip(
        bodies, [field(1, b""), status(0, b"fine"), field(2, b"payload"), rest],
        strict=True,
    ):  # fmt: skip
        event = connection.receive()
        assert event.body == body
        connection.answer(event, answer)
    is_delivered(front)


BROKEN = {
    "nothing": b"",
    "half a head": frame(1, b"")[:5],
    "a head only": frame(1, status(13))[:10],
    "half a body": frame(1, status(13))[:-1],
    "too long": HEADER.pack((4 << 20) + 1, 1, RESPONSE, 0),
    "no message": frame(1, b"\xff" * 20),
    "a field cut short": frame(1, b"\x12\x05abc"),
    "a group": frame(1, b"\x0b\x0c"),
    "a number cut short": frame(1, b"\x18\x80"),
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_is_none(front: Front, server: Server, kind: str) -> None:
    """The event is sent again, on another connection."""
    assert set_destination(front, server.path) == 0
    bodies = publish_numbers(front, range(2))
    connection = server.accept()
    connection.receive()
    connection.socket.sendall(BROKEN[kind])
    connection.socket.shutdown(socket.SHUT_WR)
    assert connection.ends()
    assert server.accept().serve(2) == bodies
    is_delivered(front)


def test_frames_that_answer_nothing_are_passed_over(front: Front, server: Server) -> None:
    """Of other streams, of other types, of any size, and before any event; byte by byte, too."""
    assert set_destination(front, server.path) == 0
    publish_numbers(front, range(1))
    connection = server.accept()
    connection.serve(1)
    is_delivered(front)
    noise = [frame(1, b""), frame(2, status(13)), frame(3, b"data", 3), frame(3, b"x" * MIB, 9)]
    for piece in noise:
        connection.socket.sendall(piece)
    bodies = publish_numbers(front, range(1, 3))
    for body in bodies:
        event = connection.receive()
        assert event.body == body
        for piece in noise[:3]:
            connection.socket.sendall(piece.replace(b"\x00\x03", b"\x00\x63"))
        for byte in frame(event.stream, field(2, b"x" * 20)):
            connection.socket.sendall(bytes([byte]))
    is_delivered(front)


def test_as_many_events_as_fit(front: Front, path: Path) -> None:
    """One more is refused and told, and those that are there stay."""
    assert set_destination(front, path) == 0
    for number in range(MOST_QUEUED):
        front.tell(Record(Kind.PUBLISH, id=HERE), payload=b"%d" % number)
    assert queued(front) == MOST_QUEUED
    assert publish(front, b"one more") == errno.ENOBUFS
    assert front.report(Kind.LOST, HERE).number == 1
    for _ in range(100):
        front.tell(Record(Kind.PUBLISH, id=HERE), payload=b"more")
    lost = 0
    while lost < 100:
        lost += front.report(Kind.LOST, HERE).number
    assert lost == 100
    with event_server.server(path) as server:
        connection = server.accept()
        assert connection.serve(3) == [b"0", b"1", b"2"]
        wait_until(lambda: queued(front) == MOST_QUEUED - 3, "the answers to be taken")
        assert publish(front, b"room again") == 0


def test_as_many_bytes_as_fit(front: Front, path: Path) -> None:
    """Long events fill the queue, too; other destinations have their own."""
    assert set_destination(front, path) == 0
    long = os.urandom(2 << 20)
    fit = MOST_BYTES // (len(long) + 4)
    for _ in range(fit):
        assert publish(front, long) == 0
    assert publish(front, long) == errno.ENOBUFS
    assert front.report(Kind.LOST, HERE).number == 1
    assert publish(front, b"short") == 0
    assert set_destination(front, path, THERE) == 0
    assert publish(front, long, THERE) == 0
    with event_server.server(path) as server:
        found = {}
        for _ in range(2):
            connection = server.accept()
            first = connection.receive()
            found[connection] = first
        assert {event.body for event in found.values()} == {long}


def test_the_memory_of_all_is_limited(front: Front, path: Path) -> None:
    """Callers keep their share of the pool; what is delivered makes room."""
    long = os.urandom(4 << 20)
    errors = []
    for id in range(100, 106):
        assert set_destination(front, path, id) == 0
        errors += [publish(front, long, id) for _ in range(3)]
    assert errors == [0] * 9 + [errno.ENOBUFS] * 9
    with event_server.server(path) as server:
        for _ in range(3):
            assert server.accept().serve(3) == [long] * 3
        assert publish(front, long, 105) == 0
        assert server.accept().serve(1) == [long]


def test_what_publish_refuses(front: Front, path: Path, tiny: str) -> None:
    assert publish(front, b"x") == errno.ESRCH
    assert publish(front, b"x", 0) == errno.ESRCH
    assert set_destination(front, path) == 0
    assert publish(front, b"") == errno.EINVAL
    assert publish(front, b"x", owner=50) == errno.ESRCH
    assert publish(front, b"x", flags=EXIT) == errno.EINVAL
    assert front.spawn(50, tiny, "exit", "0").error == 0
    front.report(Kind.EXITED, 50)
    assert publish(front, b"x", owner=50, flags=3) == errno.EINVAL
    assert publish(front, b"x", owner=50, flags=1 << 17) == errno.EINVAL
    assert publish(front, b"x" * ((4 << 20) + 1)) == errno.EMSGSIZE
    assert front.report(Kind.LOST, HERE).number == 1
    assert queued(front) == 0


def test_what_destination_refuses(front: Front, tmp_path: Path) -> None:
    assert set_destination(front, "/x", 0) == errno.EINVAL
    for text in ("", "relative", "/with\0nul"):
        assert set_destination(front, text) == errno.EINVAL
    for size in (108, 1_000, 100_000):
        assert set_destination(front, "/".ljust(size, "x")) == errno.ENAMETOOLONG
    assert set_destination(front, "/".ljust(107, "x")) == 0
    assert front.ask(Kind.UNDESTINATION, id=HERE).error == 0
    assert front.ask(Kind.UNDESTINATION, id=HERE).error == errno.ESRCH
    assert front.ask(Kind.UNDESTINATION, id=0).error == errno.ESRCH
    for id in range(1_000, 1_256):
        assert set_destination(front, "/x", id) == 0
    assert set_destination(front, "/x", 1_256) == errno.ENFILE
    assert front.ask(Kind.UNDESTINATION, id=1_100).error == 0
    assert set_destination(front, "/x", 1_256) == 0


def test_an_event_is_told_once_over_the_deaths_of_fronts(
    keeper: Keeper, server: Server, tiny: str
) -> None:
    """A front that does not know whether the one before has published does so again."""
    assert set_destination(keeper.front, server.path) == 0
    assert keeper.front.spawn(50, tiny, "exit", "7").error == 0
    keeper.front.report(Kind.EXITED, 50)
    assert publish(keeper.front, b"exit", owner=50, flags=EXIT) == 0
    for _ in range(3):
        assert keeper.front.ask(Kind.READY).error == 0
        keeper.front.close()
        front = keeper.front = keeper.next_front()
        held = {record.id: record for record in front.snapshot()}
        assert (held[50].number, held[50].flags) == (EXIT, Flag.GONE | Flag.SPAWNED)
        assert (held[HERE].kind, held[HERE].number) == (Kind.DESTINATION, 1)
        assert publish(front, b"exit", owner=50, flags=EXIT) == errno.EALREADY
    assert publish(front, b"start", owner=50, flags=2) == 0
    assert publish(front, b"unmarked", owner=50) == 0
    connection = server.accept()
    assert connection.serve(3) == [b"exit", b"start", b"unmarked"]
    is_delivered(front)
    assert publish(front, b"exit", owner=50, flags=EXIT) == errno.EALREADY
    assert front.ask(Kind.FORGET, id=50).error == 0
    assert publish(front, b"exit", owner=50, flags=EXIT) == errno.ESRCH
    # The slot's next process has no mark.
    assert front.spawn(51, tiny, "exit", "7").error == 0
    front.report(Kind.EXITED, 51)
    assert publish(front, b"exit of another", owner=51, flags=EXIT) == 0
    assert connection.serve(1) == [b"exit of another"]


def test_a_counted_mark(keeper: Keeper, server: Server) -> None:
    """Each count is told once, a lower one never: memory events are counted by the kernel."""
    front = keeper.front
    assert set_destination(front, server.path) == 0
    assert front.spawn(50, "/bin/sleep", "1000").error == 0
    counts = [0, 1, 1, 3, 2, 3, 4]
    errors = [
        publish(front, b"oom %d" % count, owner=50, flags=OOM, number=count) for count in counts
    ]
    again = errno.EALREADY
    assert errors == [again, 0, again, 0, again, again, 0]
    front.close()
    front = keeper.front = keeper.next_front()
    assert publish(front, b"oom 4", owner=50, flags=OOM, number=4) == again
    assert publish(front, b"exit", owner=50, flags=EXIT, number=1) == 0
    assert server.accept().serve(4) == [b"oom 1", b"oom 3", b"oom 4", b"exit"]
    assert front.ask(Kind.SIGNAL, id=50, number=signal.SIGKILL).error == 0
    front.exited(50)


def test_a_refused_event_sets_no_mark(front: Front, path: Path, tiny: str) -> None:
    """So that it may be published when there is room."""
    assert set_destination(front, path) == 0
    assert front.spawn(50, tiny, "exit", "7").error == 0
    front.report(Kind.EXITED, 50)
    mark = {"owner": 50, "flags": EXIT}
    assert publish(front, b"x" * ((4 << 20) + 1), **mark) == errno.EMSGSIZE
    assert publish(front, b"x", **mark) == 0
    assert publish(front, b"x", **mark) == errno.EALREADY


def test_another_path(front: Front, server: Server, tmp_path: Path) -> None:
    """What was under way is sent to the new one, too: it was not answered."""
    assert set_destination(front, server.path) == 0
    bodies = publish_numbers(front, range(3))
    connection = server.accept()
    connection.receive()
    with event_server.server(tmp_path / "other") as other:
        assert set_destination(front, other.path) == 0
        assert connection.ends()
        assert other.accept().serve(3) == bodies
        is_delivered(front)


def test_the_same_path_again(front: Front, path: Path) -> None:
    """A connection that serves stays; where there is none, the keeper tries at once."""
    assert set_destination(front, path) == 0
    bodies = publish_numbers(front, range(2))
    with event_server.server(path) as server:
        connection = server.accept()
        event = connection.receive()
        assert set_destination(front, path) == 0
        connection.answer(event)
        assert connection.serve(1) == bodies[1:]


def test_a_destination_goes_when_its_queue_is_empty(keeper: Keeper, path: Path) -> None:
    """What is queued is delivered, nothing more is taken."""
    front = keeper.front
    before = keeper.descriptors()
    assert set_destination(front, path) == 0
    bodies = publish_numbers(front, range(3))
    assert front.ask(Kind.UNDESTINATION, id=HERE).error == 0
    assert publish(front, b"more") == errno.ESRCH
    assert queued(front) is None
    assert front.ask(Kind.UNDESTINATION, id=HERE).error == errno.ESRCH
    with event_server.server(path) as server:
        connection = server.accept()
        assert connection.serve(3) == bodies
        assert connection.ends()
    assert keeper.descriptors() == before
    assert set_destination(front, path) == 0
    assert queued(front) == 0


def test_a_destination_that_is_wanted_again(front: Front, path: Path) -> None:
    """Before it has gone: it stays."""
    assert set_destination(front, path) == 0
    bodies = publish_numbers(front, range(2))
    assert front.ask(Kind.UNDESTINATION, id=HERE).error == 0
    assert set_destination(front, path) == 0
    bodies += publish_numbers(front, range(2, 3))
    with event_server.server(path) as server:
        assert server.accept().serve(3) == bodies
        is_delivered(front)


def test_a_loss_of_a_destination_that_goes(front: Front, server: Server) -> None:
    """It is told before the destination is gone."""
    assert set_destination(front, server.path) == 0
    publish_numbers(front, range(1))
    assert front.ask(Kind.UNDESTINATION, id=HERE).error == 0
    connection = server.accept()
    for _ in range(3):
        connection.answer(connection.receive(), status(5))
    assert front.report(Kind.LOST, HERE).number == 1
    assert connection.ends()


FOREIGN = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(8)
print("listening", flush=True)
for _ in range(2):
    caller, _ = listener.accept()
    print(repr(caller.recv(1 << 16)), flush=True)
"""


def test_a_server_of_another_user_is_told_nothing(front: Front, tmp_path: Path) -> None:
    """Who may put a socket there is not who may read events: it is hung up on."""
    folder = tmp_path / "foreign"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    path = folder / "s"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", FOREIGN, path], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "listening\n"
        assert set_destination(front, path) == 0
        publish_numbers(front, range(1))
        assert [other.stdout.readline() for _ in range(2)] == ["b''\n"] * 2
        assert other.wait(PATIENCE) == 0
    path.unlink()
    with event_server.server(path) as server:
        assert server.accept().serve(1) == [b"event 0"]
        is_delivered(front)


@pytest.mark.parametrize("connected", [True, False])
def test_an_idle_destination_wakes_nobody(keeper: Keeper, path: Path, connected: bool) -> None:
    """No timer runs while nothing is queued."""
    front = keeper.front
    with event_server.server(path) as server:
        assert set_destination(front, path) == 0
        publish_numbers(front, range(1))
        connection = server.accept()
        connection.serve(1)
        is_delivered(front)
        if not connected:
            server.close()
            descriptors = keeper.descriptors()
            wait_until(lambda: keeper.descriptors() <= descriptors, "the keeper to hang up")
        assert front.ask(Kind.PONG).error == 0
        before, ticks = wake_ups(keeper.pid), cpu_ticks(keeper.pid)
        subprocess.run(["/bin/sleep", "2.5"], check=True)  # in which nothing may happen
        assert wake_ups(keeper.pid) - before <= 1
        assert cpu_ticks(keeper.pid) - ticks <= 1


def test_stop_delivers_what_is_queued(keeper: Keeper, server: Server) -> None:
    """The keeper ends when the last event has been answered."""
    front = keeper.front
    assert set_destination(front, server.path) == 0
    bodies = publish_numbers(front, range(20))
    connection: Connection = server.accept()
    front.tell(Record(Kind.STOP))
    assert connection.serve(20) == bodies
    keeper.process.wait(PATIENCE)
    assert keeper.process.returncode == 0


def test_stop_does_not_wait_for_ever(keeper: Keeper, path: Path) -> None:
    """SLOW, 2 s: for a server that is gone."""
    front = keeper.front
    assert set_destination(front, path) == 0
    publish_numbers(front, range(1))
    began = time.monotonic()
    keeper.stop()
    assert keeper.process.returncode == 0
    assert time.monotonic() - began < 4
