"""ttrpc's frames: the keeper takes what a client may send, refuses the rest, and stays."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import time

import pytest

from shim.keeper.records import Flag, Kind
from tests.native.frames import (
    DATA,
    DOOR,
    GROUP,
    HEADER,
    INVALID_ARGUMENT,
    MOST,
    REQUEST,
    RESOURCE_EXHAUSTED,
    RESPONSE,
    Frame,
    Host,
    request,
    status_of,
)
from tests.native.harness import PATIENCE
from tests.native.support import background


def test_a_call(host: Host) -> None:
    """The request comes whole, with who sent it and when; the answer goes to its stream."""
    front = host.ready()
    with host.call() as caller:
        before = time.time_ns()
        caller.send(request(1, b"question"))
        record, payload, descriptors = front.request()
        assert (record.owner, record.pid) == (GROUP, os.getpid())
        assert (record.status, record.number) == (os.getuid(), os.getgid())
        assert before < record.time < time.time_ns()
        assert (payload, descriptors) == (b"question", [])
        assert front.respond(record.id, b"answer") == 0
        assert caller.receive() == Frame(1, b"answer")


def test_an_empty_call(host: Host) -> None:
    """Neither side needs a body."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1, b""))
        record, payload, _ = front.request()
        assert payload == b""
        assert front.respond(record.id) == 0
        assert caller.receive() == Frame(1, b"")


def test_frames_split_at_every_byte(host: Host) -> None:
    """Three requests, cut in two at each place."""
    front = host.ready()
    bodies = [b"first", b"", b"third one"]
    data = b"".join(request(2 * index + 1, body) for index, body in enumerate(bodies))
    for place in range(1, len(data)):
        with host.call() as caller:
            caller.send(data[:place])
            caller.was_read()
            caller.send(data[place:])
            for index, body in enumerate(bodies):
                record, payload, _ = front.request()
                assert payload == body
                assert front.respond(record.id, bytes([index])) == 0
            assert [caller.receive().stream for _ in bodies] == [1, 3, 5]


def test_a_frame_byte_by_byte(host: Host) -> None:
    front = host.ready()
    with host.call() as caller:
        for byte in request(7, b"slowly"):
            caller.send(bytes([byte]))
            caller.was_read()
        assert front.request().payload == b"slowly"


def test_many_at_once(host: Host) -> None:
    """10,000 requests without waiting for an answer: each is served once, in order."""
    front = host.ready()
    count = 10_000
    data = b"".join(request(2 * index + 1, b"%d" % index) for index in range(count))
    ids = set()
    with host.call() as caller, background(lambda: caller.send(data)):
        for index in range(count):
            record, payload, _ = front.request()
            assert payload == b"%d" % index
            ids.add(record.id)
            assert front.respond(record.id, payload) == 0
            assert caller.receive() == Frame(2 * index + 1, payload)
    assert len(ids) == count


def test_answers_in_any_order(host: Host) -> None:
    front = host.ready()
    with host.call() as caller:
        caller.send(*(request(stream) for stream in (1, 3, 5, 7)))
        ids = [front.request().record.id for _ in range(4)]
        for id in reversed(ids):
            assert front.respond(id, b"%d" % id) == 0
        assert [caller.receive().stream for _ in ids] == [7, 5, 3, 1]


def test_several_callers(host: Host) -> None:
    """Their streams have the same numbers, their requests do not."""
    front = host.ready()
    with host.call() as first, host.call() as second, host.call(door=True) as third:
        for caller in (first, second, third):
            caller.send(request(1, b"%d" % caller.socket.fileno()))
        ids = {}
        for _ in range(3):
            record, payload, _ = front.request()
            ids[record.id] = record.owner
            assert front.respond(record.id, payload) == 0
        for caller in (first, second, third):
            assert caller.receive() == Frame(1, b"%d" % caller.socket.fileno())
        assert sorted(ids.values()) == [GROUP, GROUP, DOOR]


@pytest.mark.parametrize("size", [1, 503, 504, 505, 60 << 10, (60 << 10) + 1, MOST - 1, MOST])
def test_sizes(host: Host, size: int) -> None:
    """Around what a block and a packet hold, and the largest: each byte arrives, both ways."""
    front = host.ready()
    question, answer = random.Random(size).randbytes(size), random.Random(-size).randbytes(size)
    with host.call() as caller:
        with background(lambda: caller.send(request(1, question))):
            record, payload, descriptors = front.request()
        assert payload == question
        assert descriptors == []
        assert front.respond(record.id, answer) == 0
        assert caller.receive() == Frame(1, answer)


@pytest.mark.parametrize("size", [MOST + 1, MOST + 100_000])
@pytest.mark.parametrize("type", [REQUEST, DATA, 9])
def test_a_message_that_is_too_long(host: Host, size: int, type: int) -> None:
    """Its body is thrown away; the connection stays."""
    front = host.ready()
    with host.call() as caller:
        caller.send(Frame(1, bytes(size), type).pack(), request(3, b"next"))
        refusal = caller.receive()
        assert (refusal.stream, status_of(refusal)[0]) == (1, RESOURCE_EXHAUSTED)
        record, payload, _ = front.request()
        assert payload == b"next"
        assert front.respond(record.id) == 0
        assert caller.receive() == Frame(3, b"")


def test_the_longest_length(host: Host) -> None:
    """4 GiB is only a number: it costs nothing, and the rest is thrown away as it comes."""
    host.ready()
    with host.call() as caller:
        caller.send(HEADER.pack(2**32 - 1, 1, REQUEST, 0), bytes(1 << 20))
        assert status_of(caller.receive())[0] == RESOURCE_EXHAUSTED
        caller.was_read()


@pytest.mark.parametrize("stream", [0, 2, 2**32 - 2])
@pytest.mark.parametrize("type", [REQUEST, RESPONSE, DATA, 200])
def test_an_even_stream(host: Host, stream: int, type: int) -> None:
    front = host.ready()
    with host.call() as caller:
        caller.send(Frame(stream, b"x" * 30, type).pack(), request(1))
        refusal = caller.receive()
        assert (refusal.stream, status_of(refusal)[0]) == (stream, INVALID_ARGUMENT)
        assert front.request().payload == b"body"


def test_a_stream_that_was_used(host: Host) -> None:
    """Whether its request is answered or not; the highest number is the measure."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(5), request(5), request(3))
        refusals = [caller.receive(), caller.receive()]
        assert [(one.stream, status_of(one)[0]) for one in refusals] == [
            (5, INVALID_ARGUMENT),
            (3, INVALID_ARGUMENT),
        ]
        assert front.respond(front.request().record.id) == 0
        assert caller.receive() == Frame(5, b"")
        caller.send(request(5), request(2**32 - 1))
        assert status_of(caller.receive())[0] == INVALID_ARGUMENT
        front.request()


@pytest.mark.parametrize("type", [0, RESPONSE, 4, 255])
def test_a_type_that_nobody_knows(host: Host, type: int) -> None:
    """It is passed over without an answer."""
    front = host.ready()
    with host.call() as caller:
        caller.send(Frame(1, b"y" * 100, type).pack(), Frame(3, b"", type).pack(), request(1))
        assert front.respond(front.request().record.id) == 0
        assert caller.receive() == Frame(1, b"")


def test_data(host: Host) -> None:
    """For a stream that is none it is refused; for a request's it is passed over."""
    front = host.ready()
    with host.call() as caller:
        caller.send(Frame(1, b"z", DATA).pack())
        refusal = caller.receive()
        assert (refusal.stream, status_of(refusal)[0]) == (1, INVALID_ARGUMENT)
        caller.send(request(1), Frame(1, b"z" * 100, DATA, flags=1).pack(), request(3))
        records = [front.request().record, front.request().record]
        for record in records:
            assert front.respond(record.id) == 0
        assert [caller.receive(), caller.receive()] == [Frame(1, b""), Frame(3, b"")]
        caller.send(Frame(1, b"", DATA).pack())
        assert status_of(caller.receive())[0] == INVALID_ARGUMENT


@pytest.mark.parametrize("flags", [0, 1, 2, 255])
def test_flags_of_a_request(host: Host, flags: int) -> None:
    """Every call is served as a unary one."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1, b"body", flags))
        assert front.request().payload == b"body"


def test_random_bytes(host: Host) -> None:
    """Whatever a caller says, others are served, and nothing is left of it."""
    front = host.ready()
    chance = random.Random(3)
    with host.call() as witness:
        witness.send(request(1))
        assert front.respond(front.request().record.id) == 0
        assert witness.receive() == Frame(1, b"")
        before = host.keeper.descriptors()
        for round in range(1, 200):
            with host.call(door=round % 2 == 0) as caller:
                data = bytearray(chance.randbytes(chance.randrange(1, 3000)))
                for place in range(0, len(data) - HEADER.size, 40):
                    if chance.random() < 0.7:
                        head = (chance.randrange(60), chance.randrange(50), chance.randrange(4), 0)
                        HEADER.pack_into(data, place, *head)
                caller.send(bytes(data))
                caller.was_read()
            witness.send(request(2 * round + 1, b"witness"))
            while (packet := front.request()).payload != b"witness":
                front.respond(packet.record.id)
            assert front.respond(packet.record.id) == 0
            assert witness.receive() == Frame(2 * round + 1, b"")
        host.settle()
        assert host.keeper.descriptors() == before


def test_an_answer_that_is_too_long(host: Host) -> None:
    """A frame of more than 4 MiB would be the client's end: it gets a status instead."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1))
        assert front.respond(front.request().record.id, bytes(MOST + 1)) == 0
        refusal = caller.receive()
        assert (refusal.stream, status_of(refusal)[0]) == (1, RESOURCE_EXHAUSTED)
        caller.send(request(3))
        assert front.respond(front.request().record.id) == 0
        assert caller.receive() == Frame(3, b"")


CALL = """
import os, socket, struct, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
link = socket.socket(socket.AF_UNIX)
link.settimeout(20)
link.connect(sys.argv[1])
try:
    link.sendall(struct.pack(">IIBB", 0, 1, 1, 0))
    print("answered" if link.recv(10) else "hung up")
except ConnectionError:
    print("hung up")
"""


def test_another_user_is_hung_up_on(host: Host) -> None:
    """Although the file's mode lets it connect; root is served."""
    front = host.ready()
    path = host.folder / "group"
    path.chmod(0o777)
    command = [sys.executable, "-c", CALL, str(path)]
    with subprocess.Popen([*command, "65534"], stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.communicate(timeout=PATIENCE)[0] == "hung up\n"
    host.settle()
    assert front.packets == []
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as root:
        record = front.request().record
        assert (record.pid, record.status, record.number) == (root.pid, 0, 0)
        assert front.respond(record.id) == 0
        assert root.communicate(timeout=PATIENCE)[0] == "answered\n"


# ---- descriptors


def open_some(count: int) -> list[int]:
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]


def close_some(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("size", [10, 100_000])
def test_descriptors_over_the_door(host: Host, count: int, size: int) -> None:
    """They come with their request, however long it is, and the keeper keeps none when it is
    answered."""
    front = host.ready()
    body = random.Random(count).randbytes(size)
    with host.call(door=True) as caller:
        caller.send(request(1, b"none"))
        assert front.request().descriptors == []
        before = host.keeper.descriptors()
        reading, writing = os.pipe()
        others = open_some(count - 1)
        with background(lambda: caller.pass_on(request(3, body), [writing, *others])):
            record, payload, found = front.request()
        assert (payload, len(found)) == (body, count)
        os.close(writing)
        os.write(found[0], b"through the door")
        assert os.read(reading, 100) == b"through the door"
        host.settle()
        assert host.keeper.descriptors() == before + count
        assert front.respond(record.id) == 0
        assert host.keeper.descriptors() == before
        close_some([*found, *others])
        assert os.read(reading, 1) == b""
        os.close(reading)


def test_descriptors_in_pieces(host: Host) -> None:
    """Those that come with any byte of a frame are that frame's, and not the next one's."""
    front = host.ready()
    passed = open_some(4)
    with host.call(door=True) as caller:
        data = request(1, b"with descriptors")
        for descriptor, piece in zip(
            passed, (data[:3], data[3:10], data[10:15], data[15:]), strict=True
        ):
            caller.pass_on(piece, [descriptor])
        caller.send(request(3, b"without"))
        first, second = front.request(), front.request()
        assert (len(first.descriptors), second.descriptors) == (4, [])
        close_some(first.descriptors)
    close_some(passed)


@pytest.mark.parametrize("pieces", [1, 2])
def test_too_many_descriptors(host: Host, pieces: int) -> None:
    """Five are refused as a whole, and none is kept."""
    front = host.ready()
    passed = open_some(5)
    with host.call(door=True) as caller:
        caller.send(request(1))
        front.request()
        before = host.keeper.descriptors()
        data = request(3, b"five")
        if pieces == 1:
            caller.pass_on(data, passed)
        else:
            caller.pass_on(data[:12], passed[:3])
            caller.pass_on(data[12:], passed[3:])
        refusal = caller.receive()
        assert (refusal.stream, status_of(refusal)[0]) == (3, RESOURCE_EXHAUSTED)
        assert host.keeper.descriptors() == before
        caller.send(request(5, b"next"))
        assert front.request().payload == b"next"
    close_some(passed)


def test_descriptors_of_refused_frames(host: Host) -> None:
    """They are closed, and none goes to the next request."""
    front = host.ready()
    (passed,) = open_some(1)
    with host.call(door=True) as caller:
        caller.send(request(1))
        front.request()
        before = host.keeper.descriptors()
        for data in (
            request(2, b"even"),
            Frame(3, b"unknown", 77).pack(),
            Frame(5, bytes(MOST + 1), REQUEST).pack(),
        ):
            caller.pass_on(data, [passed])
        caller.send(request(7, b"next"))
        record, _, found = front.request()
        assert found == []
        assert host.keeper.descriptors() == before
        assert front.respond(record.id) == 0
    os.close(passed)


def test_descriptors_elsewhere(host: Host) -> None:
    """A group's socket takes none: they are closed, the request is served."""
    front = host.ready()
    passed = open_some(3)
    with host.call() as caller:
        caller.send(request(1))
        front.request()
        before = host.keeper.descriptors()
        caller.pass_on(request(3, b"with"), passed)
        _, payload, found = front.request()
        assert (payload, found) == (b"with", [])
        assert host.keeper.descriptors() == before
    close_some(passed)


def test_a_caller_that_goes_with_descriptors_on_the_way(host: Host) -> None:
    """Half a request is no request; nothing of it is kept."""
    host.ready()
    before = host.keeper.descriptors()
    passed = open_some(4)
    for _ in range(20):
        with host.call(door=True) as caller:
            caller.pass_on(request(1, bytes(1000))[:500], passed)
            caller.was_read()
    close_some(passed)
    host.settle()
    assert host.keeper.descriptors() == before


def test_a_flag_of_large_is_not_told_of(host: Host) -> None:
    """The payload is the packet's business, not the front's."""
    front = host.ready()
    with host.call() as caller:
        with background(lambda: caller.send(request(1, bytes(100_000)))):
            record = front.request().record
        assert record.flags & Flag.LARGE == 0
        assert front.ask(Kind.RESPOND, id=record.id, payload=bytes(200_000)).flags == 0
        assert len(caller.receive().body) == 200_000


def test_header_layout() -> None:
    """As the contract has it: length and stream in network order, type, flags."""
    assert request(3, b"ab", 1) == struct.pack("!IIBB", 2, 3, 1, 1) + b"ab"


def test_a_half_closed_caller(host: Host) -> None:
    """Its end is the end of what it waits for, but what was answered comes."""
    front = host.ready()
    with host.call() as caller:
        caller.send(request(1), request(3))
        first, second = front.request().record, front.request().record
        assert front.respond(first.id, bytes(MOST)) == 0
        caller.socket.shutdown(socket.SHUT_WR)
        assert front.report(Kind.CANCELLED, second.id).error == 0
        assert len(caller.receive().body) == MOST
        assert caller.socket.recv(1) == b""
