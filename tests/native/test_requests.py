"""Requests outlive the front: each gets one answer, whoever dies, and bounds hold."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from shim.keeper.packet import Packet
from shim.keeper.records import Flag, Kind, Record
from tests.native import harness
from tests.native.frames import (
    DOOR,
    GROUP,
    HEADER,
    MOST,
    REQUEST,
    UNAVAILABLE,
    Caller,
    Frame,
    Host,
    begin,
    listening,
    request,
    status_of,
)
from tests.native.harness import PATIENCE, wait_until
from tests.native.support import background, status_field, wake_ups
from tests.native.test_supervision import SPAWNER, front_pid, named_child

OPEN = 64  # requests that a connection may have in work
BYTES = 8 << 20  # of its unanswered requests
RESERVED = 64  # descriptors that callers do not get


def resident(pid: int) -> int:
    """The process's memory in bytes."""
    return int(status_field(pid, "VmRSS").split()[0]) << 10


# ---- the front's death


def test_a_request_waits_for_a_front(host: Host) -> None:
    """Nobody is asked before it has said READY: then come those that wait, in their order."""
    with host.call() as caller:
        caller.send(request(1, b"one"), request(3, b"two"))
        caller.was_read()
        host.settle()
        assert host.front.packets == []
        host.keeper.replace_front(serves=False)
        host.settle()
        assert host.front.packets == []
        front = host.ready()
        assert [front.request().payload for _ in range(2)] == [b"one", b"two"]


def test_a_request_that_comes_while_there_is_no_front(host: Host) -> None:
    """The connection is accepted and read by the keeper, and the next front gets the request."""
    host.ready()
    os.kill(named_child(host.keeper, SPAWNER), signal.SIGSTOP)  # no front can be started
    old = front_pid(host.keeper)
    host.front.close()
    wait_until(lambda: old not in host.keeper.children(), "the front to be collected")
    with host.call() as caller:
        caller.send(request(1, b"anybody?"))
        caller.was_read()
        os.kill(named_child(host.keeper, SPAWNER), signal.SIGCONT)
        host.keeper.front = host.keeper.next_front()
        front = host.ready()
        packet = front.request()
        assert packet.payload == b"anybody?"
        assert front.respond(packet.record.id, b"yes") == 0
        assert caller.receive() == Frame(1, b"yes")


def test_a_fresh_request_is_given_to_the_next_front(host: Host) -> None:
    """The same one: its id, its time, its bytes, its descriptors."""
    front = host.ready()
    reading, writing = os.pipe()
    with host.call(door=True) as caller:
        caller.pass_on(request(1, b"again"), [writing])
        os.close(writing)
        first = front.request()
        os.close(*first.descriptors)
        front = host.keeper.replace_front()
        second = front.request()
        assert (second.record, second.payload) == (first.record, b"again")
        os.write(*second.descriptors, b"still")
        assert os.read(reading, 10) == b"still"
        os.close(*second.descriptors)
        assert front.respond(second.record.id, b"done") == 0
        assert caller.receive() == Frame(1, b"done")
        host.settle()
        assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_request_that_has_killed_two_fronts(host: Host) -> None:
    """It is refused, and harms nobody else on its connection."""
    host.ready()
    with host.call() as caller:
        caller.send(request(1, b"poison"))
        assert host.front.request().payload == b"poison"
        front = host.keeper.replace_front()
        assert front.request().payload == b"poison"
        caller.send(request(3, b"innocent"))
        assert front.request().payload == b"innocent"
        front = host.keeper.replace_front()
        refusal = caller.receive()
        assert refusal.stream == 1
        assert status_of(refusal) == (UNAVAILABLE, "the shim's front died twice over this request")
        packet = front.request()
        assert packet.payload == b"innocent"
        assert front.respond(packet.record.id) == 0
        assert caller.receive() == Frame(3, b"")


def test_only_fronts_that_had_the_request_count(host: Host) -> None:
    """Three that never served died before it was given to anybody."""
    with host.call() as caller:
        caller.send(request(1))
        caller.was_read()
        for _ in range(3):
            host.keeper.replace_front(serves=False)
        front = host.ready()
        front.request()
        front = host.keeper.replace_front()
        packet = front.request()
        assert front.respond(packet.record.id, b"kept") == 0
        assert caller.receive() == Frame(1, b"kept")


def test_a_replayable_request_outlives_ten_fronts(host: Host) -> None:
    """A Wait may wait for months: every front gets it, and one answers."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1, b"wait"))
        first = front.request()
        for _ in range(10):
            assert front.ask(Kind.REPLAYABLE, id=first.record.id).error == 0
            front = host.keeper.replace_front()
            again = front.request()
            assert (again.record, again.payload) == (first.record, b"wait")
        assert front.respond(first.record.id, b"exited") == 0
        assert caller.receive() == Frame(1, b"exited")


def test_a_replayable_request_stays_so(host: Host) -> None:
    """Also when fronts die before they say so again."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1, b"wait"))
        id = front.request().record.id
        assert front.ask(Kind.REPLAYABLE, id=id).error == 0
        for _ in range(4):
            front = host.keeper.replace_front()
            assert front.request().record.id == id


def test_an_answer_in_time(host: Host, target: int) -> None:
    """A request that has begun is answered by its front, if that lives so long."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1), request(3))
        ids = [front.request().record.id for _ in range(2)]
        begin(front, ids[0], target)
        assert front.respond(ids[0], b"fresh") == 0
        host.keeper.replace_front()
        assert caller.receive() == Frame(1, b"fresh")
        assert host.front.request().record.id == ids[1]


def test_how_a_request_may_go_on(host: Host, target: int) -> None:
    """Replayable, begun, begun again; never back to replayable."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1))
        id = front.request().record.id
        assert front.ask(Kind.REPLAYABLE, id=id).error == 0
        assert front.ask(Kind.REPLAYABLE, id=id).error == 0
        begin(front, id, target)
        begin(front, id, target)
        assert front.ask(Kind.REPLAYABLE, id=id).error == errno.EINVAL
        host.keeper.replace_front()
        assert caller.receive() == Frame(1, b"")


def test_requests_that_are_none(host: Host) -> None:
    """Unknown ids, answered ones, other keepers': ESRCH."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1))
        id = front.request().record.id
        for wrong in (0, 1, id + 1, id - 1, id ^ 1 << 40, 2**64 - 1):
            for kind in (Kind.REPLAYABLE, Kind.RESPOND):
                assert front.ask(kind, id=wrong).error == errno.ESRCH
        assert front.respond(id) == 0
        assert front.respond(id) == errno.ESRCH
        assert caller.receive() == Frame(1, b"")


def test_the_order_of_arrival_is_kept(host: Host) -> None:
    """For the next front, over all connections, whatever has been answered in between."""
    front = host.ready()
    callers = [host.call() for _ in range(5)]
    order = []
    for index in range(50):
        callers[index * 7 % 5].send(request(2 * index + 1, b"%d" % index))
        order.append(front.request())
    assert [packet.payload for packet in order] == [b"%d" % index for index in range(50)]
    for packet in order[3::4]:
        assert front.respond(packet.record.id) == 0
    for packet in order[1::4]:
        assert front.ask(Kind.REPLAYABLE, id=packet.record.id).error == 0
    callers[2].close()
    front = host.keeper.replace_front()
    left = [
        packet.payload
        for index, packet in enumerate(order)
        if index % 4 != 3 and index * 7 % 5 != 2
    ]
    assert [front.request().payload for _ in left] == left
    for caller in callers:
        caller.close()


def test_ids_are_unique(host: Host) -> None:
    """Over callers, fronts, and slots that are used again; and they grow."""
    ids = []
    front = host.ready()
    for _ in range(20):
        with host.call() as caller:
            caller.send(request(1), request(3))
            packets = [front.request(), front.request()]
            ids += [packet.record.id for packet in packets]
            for packet in packets:
                assert front.respond(packet.record.id) == 0
        front = host.keeper.replace_front()
    assert len(set(ids)) == 40
    assert ids == sorted(ids)


def test_a_silent_front_loses_its_requests(host: Host) -> None:
    """SLOW, 15 s, once: a request is something that the front owes an answer to."""
    host.ready()
    with host.call() as caller:
        caller.send(request(1, b"?"))
        old = host.front
        assert old.request().payload == b"?"
        assert old.report(Kind.PING, 0).serial == 0
        host.keeper.front = host.keeper.next_front()
        old.close()
        front = host.ready()
        packet = front.request()
        assert front.respond(packet.record.id, b"!") == 0
        assert caller.receive() == Frame(1, b"!")


def test_many_parked_requests(host: Host) -> None:
    """5,000, for a front that listens late: they wait in the keeper, and all come, in order."""
    front = host.ready()
    count = 5_000
    with host.call() as caller:
        with background(
            lambda: caller.send(*(request(2 * i + 1, b"%d" % i) for i in range(count)))
        ):
            for _ in range(count):
                front.tell(Record(Kind.REPLAYABLE, id=front.request().record.id))
        front = host.keeper.replace_front()
        host.front.tell(Record(Kind.PONG))
        before = wake_ups(host.keeper.pid)
        assert [front.request().payload for _ in range(count)] == [b"%d" % i for i in range(count)]
        assert wake_ups(host.keeper.pid) - before <= 2 * count
        host.settle()
        assert front.packets == []


# ---- signals


def test_a_signal_begins_its_request(host: Host) -> None:
    """Once it is sent, the front may die: the answer is the empty one, the signal is not resent."""
    front = host.ready()
    assert front.spawn(50, "/bin/sleep", "1000").error == 0
    with host.call() as caller:
        caller.send(request(1, b"kill"))
        id = front.request().record.id
        asked = {"id": 50, "number": signal.SIGKILL, "owner": id}
        assert front.ask(Kind.SIGNAL, **asked).error == 0
        front = host.keeper.replace_front()
        assert caller.receive() == Frame(1, b"")
        host.settle()
        assert front.packets == []
    front.snapshot()
    assert front.ask(Kind.FORGET, id=50).error == 0


def test_a_signal_that_was_not_sent_begins_nothing(host: Host) -> None:
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1, b"kill"))
        id = front.request().record.id
        asked = {"id": 50, "number": signal.SIGKILL, "owner": id}
        assert front.ask(Kind.SIGNAL, **asked).error == errno.ESRCH
        front = host.keeper.replace_front()
        assert front.request().payload == b"kill"


def test_a_signal_for_a_caller_that_has_gone(host: Host) -> None:
    """It is sent all the same."""
    front = host.ready()
    assert front.spawn(50, "/bin/sleep", "1000").error == 0
    asked = {"id": 50, "number": signal.SIGKILL, "owner": 1 << 40}
    assert front.ask(Kind.SIGNAL, **asked).error == 0
    assert front.exited(50).status == 128 + signal.SIGKILL


# ---- callers that go


def test_a_hang_up_cancels(host: Host, target: int) -> None:
    """Whatever state a request is in; its answer finds nobody; others are not concerned."""
    front = host.ready()
    with host.call() as other:
        other.send(request(1, b"other"))
        kept = front.request().record.id
        caller = host.call()
        caller.send(request(1), request(3), request(5))
        ids = [front.request().record.id for _ in range(3)]
        assert front.ask(Kind.REPLAYABLE, id=ids[0]).error == 0
        begin(front, ids[1], target)
        caller.close()
        for id in ids:
            front.report(Kind.CANCELLED, id)
            assert front.respond(id) == errno.ESRCH
        assert front.respond(kept) == 0
        assert other.receive() == Frame(1, b"")
        assert front.reports == []


def test_what_was_not_given_is_not_cancelled(host: Host) -> None:
    """The front has never heard of it."""
    with host.call() as caller:
        caller.send(request(1))
        caller.was_read()
    host.settle()
    front = host.ready()
    host.settle()
    assert (front.packets, front.reports) == ([], [])


def test_a_reset(host: Host) -> None:
    """A caller that goes with an unread answer: nothing is left of it."""
    front = host.ready()
    before = host.keeper.descriptors()
    for _ in range(10):
        caller = host.call()
        caller.send(request(1), request(3))
        first, second = front.request().record, front.request().record
        assert front.respond(first.id, b"unread") == 0
        caller.close()
        front.report(Kind.CANCELLED, second.id)
    host.settle()
    assert host.keeper.descriptors() == before


def test_an_end_without_requests(host: Host) -> None:
    """Nothing is told of it."""
    front = host.ready()
    before = host.keeper.descriptors()
    for _ in range(10):
        with host.call() as caller:
            caller.socket.shutdown(socket.SHUT_WR)
            assert caller.socket.recv(1) == b""
    host.settle()
    assert host.keeper.descriptors() == before
    assert front.reports == []


# ---- bounds


def all_given(host: Host) -> list[Packet]:
    """What the front has been given by now."""
    host.settle()
    found, host.front.packets = host.front.packets, []
    return found


def test_requests_in_work(host: Host, target: int) -> None:
    """64 of a connection; the next one is read when one of them is answered or parked."""
    front = host.ready()
    with host.call() as caller, host.call() as other:
        caller.send(*(request(2 * index + 1, b"%d" % index) for index in range(200)))
        given = [front.request() for _ in range(OPEN)]
        assert all_given(host) == []
        other.send(request(1, b"other"))
        packet = front.request()
        assert packet.payload == b"other"
        assert front.respond(given[0].record.id) == 0
        assert front.request().payload == b"64"
        assert front.ask(Kind.REPLAYABLE, id=given[1].record.id).error == 0
        assert front.request().payload == b"65"
        assert all_given(host) == []
        begin(front, given[1].record.id, target)
        assert front.respond(given[2].record.id) == 0
        assert all_given(host) == []
        assert front.respond(given[3].record.id) == 0
        assert front.request().payload == b"66"


def test_a_stalled_caller_costs_nothing(host: Host) -> None:
    """The keeper sleeps although there is more to read; and notices that the caller goes."""
    front = host.ready()
    caller = host.call()
    caller.send(*(request(2 * index + 1) for index in range(200)))
    ids = [front.request().record.id for _ in range(OPEN)]
    before = wake_ups(host.keeper.pid)
    assert front.spawn(50, "/bin/sleep", "0.3").error == 0
    assert front.exited(50).status == 0
    assert wake_ups(host.keeper.pid) - before <= 20
    caller.close()
    for id in ids:
        front.report(Kind.CANCELLED, id)


def test_bytes_in_work(host: Host) -> None:
    """8 MiB of a connection, parked or not; then it waits."""
    front = host.ready()
    size = 1 << 20
    with host.call() as caller:
        frames = b"".join(request(2 * index + 1, bytes(size)) for index in range(12))
        with background(lambda: caller.send(frames)):
            ids = []
            for _ in range(BYTES // size):
                ids.append(front.request().record.id)
                assert front.ask(Kind.REPLAYABLE, id=ids[-1]).error == 0
            assert all_given(host) == []
            for id in ids[:4]:
                assert front.respond(id) == 0
            for _ in range(4):
                front.request()
        for _ in range(4):
            assert caller.receive().body == b""


def test_a_caller_that_never_reads(host: Host) -> None:
    """Its answers wait, its further requests do, too; others go on; it gets all in the end."""
    front = host.ready()
    size = 1 << 20
    with host.call() as caller, host.call() as other:
        answered = 0
        caller.send(*(request(2 * index + 1) for index in range(30)))
        for packet in [front.request() for _ in range(30)]:
            assert front.respond(packet.record.id, bytes(size)) == 0
            answered += 1
        caller.send(request(101, b"late"))
        assert all_given(host) == []
        for stream in range(1, 100, 2):
            other.send(request(stream))
            assert front.respond(front.request().record.id) == 0
            assert other.receive() == Frame(stream, b"")
        assert all_given(host) == []
        for index in range(answered):
            assert caller.receive() == Frame(2 * index + 1, bytes(size))
        assert front.request().payload == b"late"


def fill_pool(host: Host, callers: list[Caller], most: int) -> None:
    """Each caller sends two requests of nearly 4 MiB, until the front has been given `most`; the
    keeper reads no more then."""
    frame = request(1, bytes(MOST - 100)) + request(3, bytes(MOST - 100))
    rests = {caller: memoryview(frame) for caller in callers}

    def is_full() -> bool:
        for caller, rest in rests.items():
            with contextlib.suppress(BlockingIOError):
                rests[caller] = rest[caller.socket.send(rest) :]
        host.settle()
        return len(host.front.packets) == most

    for caller in callers:
        caller.socket.setblocking(False)
    wait_until(is_full, f"{most} requests to be given")
    unread = [caller.unread() for caller in callers]
    is_full()
    assert all_given(host)[most:] == []
    assert any(unread)
    assert all(caller.unread() >= before for caller, before in zip(callers, unread, strict=True))


def test_a_full_pool(host: Host) -> None:
    """Requests wait outside until others are answered or gone; nothing is lost, and the memory
    comes back: as much fits the next time, and none is kept, though a Wait is there all along."""
    front = host.ready()
    parked = host.call()
    parked.send(request(1, b"wait"))
    assert front.ask(Kind.REPLAYABLE, id=front.request().record.id).error == 0
    before = resident(host.keeper.pid)
    for _ in range(3):
        callers = [host.call() for _ in range(10)]
        fill_pool(host, callers, 13)  # 56 of the 64 MiB are for requests
        for caller in callers:
            caller.close()
        host.settle()
        host.front.reports.clear()
    with host.call() as caller:
        caller.send(request(1, b"room again"))
        assert host.front.request().payload == b"room again"
    wait_until(lambda: resident(host.keeper.pid) < before + (4 << 20), "memory to be given back")
    parked.close()


def test_a_starved_caller_goes_on(host: Host) -> None:
    """One that waits for memory is read when another's request is answered."""
    front = host.ready()
    callers = [host.call() for _ in range(13)]
    ids = []
    for caller in callers:
        with background(lambda caller=caller: caller.send(request(1, bytes(MOST - 100)))):
            ids.append(front.request().record.id)
    with host.call() as late, background(lambda: late.send(request(1, b"late" * 1_000_000))):
        wait_until(lambda: late.unread() > 0, "the late request to begin")
        assert all_given(host) == []
        assert front.respond(ids[0]) == 0
        assert front.request().payload == b"late" * 1_000_000
    for caller in callers:
        caller.close()


def test_half_a_request_gives_its_room_back(host: Host) -> None:
    """20 callers that begin with 4 MiB and go: more than the pool holds."""
    host.ready()
    for _ in range(20):
        with host.call() as caller:
            caller.send(HEADER.pack(MOST, 1, REQUEST, 0), bytes(100))
            caller.was_read()
    with host.call() as caller, background(lambda: caller.send(request(1, bytes(MOST)))):
        assert len(host.front.request().payload) == MOST


def receive_to_end(caller: Caller) -> None:
    while True:
        caller.receive()


def test_answers_without_room(host: Host) -> None:
    """More than 64 MiB that nobody reads: that client is hung up on, the others are served."""
    front = host.ready()
    with host.call() as caller:
        caller.send(*(request(2 * index + 1) for index in range(40)))
        ids = [front.request().record.id for _ in range(40)]
        errors = [front.respond(id, bytes(MOST)) for id in ids]
        place = errors.index(errno.ENOBUFS)
        assert place in (15, 16, 17)
        assert errors[:place] == [0] * place
        assert set(errors[place + 1 :]) == {errno.ESRCH}
        for id in ids[place + 1 :]:
            front.report(Kind.CANCELLED, id)
        with pytest.raises(ConnectionResetError):
            receive_to_end(caller)
    with host.call() as caller:
        caller.send(request(1))
        assert front.respond(front.request().record.id, bytes(MOST)) == 0
        assert caller.receive() == Frame(1, bytes(MOST))


# ---- listeners


def test_listeners_come_and_go(host: Host, tmp_path: Path) -> None:
    """A new front knows them; connections stay when theirs is closed; its path is dead then."""
    front = host.ready()
    with listening(tmp_path / "new") as made:
        assert front.ask(Kind.LISTEN, made.fileno(), id=77, flags=Flag.FRAMES).error == 0
    with Caller(tmp_path / "new") as caller:
        caller.send(request(1))
        packet = front.request()
        assert packet.record.owner == 77
        front = host.keeper.replace_front()
        held = {record.id: record.flags for record in front.snapshot()}
        assert held == {GROUP: Flag.FRAMES, DOOR: Flag.FRAMES | Flag.DOOR, 77: Flag.FRAMES}
        assert front.ask(Kind.UNLISTEN, id=77).error == 0
        assert front.ask(Kind.UNLISTEN, id=77).error == errno.ESRCH
        with pytest.raises(ConnectionRefusedError):
            Caller(tmp_path / "new")
        assert front.respond(front.request().record.id, b"still here") == 0
        assert caller.receive() == Frame(1, b"still here")
        caller.send(request(3))
        packet = front.request()
        assert packet.record.owner == 77
        assert front.respond(packet.record.id) == 0
    assert {record.id for record in front.snapshot()} == {GROUP, DOOR}


def test_callers_that_came_before_their_listener(host: Host, tmp_path: Path) -> None:
    """The kernel had them in its queue."""
    front = host.ready()
    with listening(tmp_path / "new") as made, Caller(tmp_path / "new") as caller:
        caller.send(request(1, b"early"))
        assert front.ask(Kind.LISTEN, made.fileno(), id=77, flags=Flag.FRAMES).error == 0
        assert front.request().payload == b"early"


def test_many_listeners(host: Host, tmp_path: Path) -> None:
    """One for each of 200 pods, closed in another order, and their slots used again."""
    front = host.ready()
    before = host.keeper.descriptors()
    for round in range(2):
        for index in range(200):
            path = tmp_path / f"{round}-{index}"
            with listening(path) as made:
                flags = Flag.FRAMES
                assert front.ask(Kind.LISTEN, made.fileno(), id=100 + index, flags=flags).error == 0
        for index in (0, 99, 199):
            with Caller(tmp_path / f"{round}-{index}") as caller:
                caller.send(request(1))
                packet = front.request()
                assert packet.record.owner == 100 + index
                assert front.respond(packet.record.id) == 0
                assert caller.receive() == Frame(1, b"")
        for index in range(200):
            assert front.ask(Kind.UNLISTEN, id=100 + index * 73 % 200).error == 0
    host.settle()
    assert host.keeper.descriptors() == before


def test_what_is_no_listener(host: Host, tmp_path: Path) -> None:
    """It is refused with the reason, and its descriptors are closed."""
    front = host.ready()
    before = host.keeper.descriptors()
    null = os.open("/dev/null", os.O_RDONLY)
    with (
        listening(tmp_path / "new") as made,
        socket.socket(socket.AF_UNIX) as idle,
        socket.socket(socket.AF_INET) as internet,
    ):
        internet.listen()
        number = made.fileno()
        for error, descriptors, id, flags in (
            (errno.EINVAL, [], 77, Flag.FRAMES),
            (errno.EINVAL, [null], 77, Flag.FRAMES),
            (errno.EINVAL, [idle.fileno()], 77, Flag.FRAMES),
            (errno.EINVAL, [internet.fileno()], 77, Flag.FRAMES),
            (errno.EINVAL, [number, number], 77, Flag.FRAMES),
            (errno.EINVAL, [number], 0, Flag.FRAMES),
            (errno.EINVAL, [number], 77, Flag.DOOR),
            (errno.EINVAL, [number], 77, Flag.FRAMES | 1 << 20),
            (errno.EEXIST, [number], GROUP, Flag.FRAMES),
        ):
            reply = front.ask(Kind.LISTEN, *descriptors, id=id, flags=flags)
            assert reply.error == error
    place = os.open("/dev/null", os.O_PATH)
    assert front.ask(Kind.SERVE, place, id=GROUP).error == errno.EINVAL
    os.close(place)
    os.close(null)
    host.settle()
    assert host.keeper.descriptors() == before


def is_hung_up_on(caller: Caller) -> bool:
    """Whether the keeper has closed a connection on which nothing was said."""
    caller.socket.setblocking(False)
    try:
        return caller.socket.recv(1) == b""
    except BlockingIOError:
        return False
    finally:
        caller.socket.settimeout(PATIENCE)


def _are_hung_up_on(callers: list[Caller], most: int) -> bool:
    return sum(map(is_hung_up_on, callers)) >= most


def test_more_callers_than_descriptors(tmp_path: Path) -> None:
    """Those beyond the reserve are hung up on; when some have gone, there is room again."""
    with (
        listening(tmp_path / "group") as group,
        harness.keeper((group.fileno(), Flag.FRAMES), files=(300, 300)) as keeper,
    ):
        front = keeper.front
        host = Host(keeper, tmp_path)
        host.ready()
        others = keeper.descriptors()
        for _ in range(2):
            callers = [host.call() for _ in range(260)]
            beyond = 260 - (300 - RESERVED - others)
            wait_until(partial(_are_hung_up_on, callers, beyond), "the others' end")
            host.settle()
            served = [caller for caller in callers if not is_hung_up_on(caller)]
            assert len(served) == 260 - beyond
            for caller in (served[0], served[-1]):
                caller.send(request(1))
                assert front.respond(front.request().record.id) == 0
                assert caller.receive() == Frame(1, b"")
            assert front.spawn(50, "/bin/true").error == 0
            assert front.exited(50).status == 0
            for caller in callers:
                caller.close()
            wait_until(lambda: keeper.descriptors() == others, "the connections to be closed")


# ---- the end


def test_stop_delivers_what_was_answered(host: Host) -> None:
    """The keeper ends when its callers have all that was said to them."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1), request(3))
        first = front.request().record
        assert front.respond(first.id, bytes(MOST)) == 0
        front.tell(Record(Kind.STOP))
        assert caller.receive() == Frame(1, bytes(MOST))
        assert caller.socket.recv(1) == b""
    host.keeper.process.wait(PATIENCE)
    assert host.keeper.process.returncode == 0
