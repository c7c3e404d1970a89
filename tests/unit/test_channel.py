"""The channel's packets: payloads of every size both ways, and what cannot be understood."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shim.errors import FailedPrecondition
from shim.keeper.channel import Channel
from shim.keeper.client import Incoming, KeeperClient, LogPlace, Stream
from shim.keeper.packet import ROOM, Packet, receive, sealed_memory, send
from shim.keeper.records import MOST_INLINE, MOST_PAYLOAD, Flag, Kind, Record

SIZES = [0, 1, MOST_INLINE, MOST_INLINE + 1, MOST_PAYLOAD]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A channel without a keeper: the test is both ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


class Peer:
    """A Channel under test, and the blocking peer of it."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.reports: asyncio.Queue[Packet] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.channel = Channel(ours, self._report, self.lost.set)
        self.socket = theirs

    def _report(self, record: Record, payload: bytes, descriptors: list[int]) -> None:
        self.reports.put_nowait(Packet(record, payload, descriptors))

    def receive(self) -> Packet:
        packet = receive(self.socket, bytearray(ROOM))
        assert packet is not None
        return packet


@pytest.fixture
async def peer(pair: tuple[socket.socket, socket.socket]) -> AsyncIterator[Peer]:
    made = Peer(*pair)
    yield made
    if not made.lost.is_set():
        made.channel.close()


def is_same_file(descriptor: int, path: str) -> bool:
    """Whether it is that file; closes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), Path(path).stat())
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", SIZES)
async def test_a_payload_arrives(peer: Peer, size: int) -> None:
    """In the packet or in a memfd, with the descriptors in their order, and no flag is left."""
    data = os.urandom(size)
    null, root = os.open("/dev/null", os.O_RDONLY), os.open("/", os.O_PATH)
    send(peer.socket, Record(Kind.REQUEST, id=7, flags=5), data, [null, root])
    os.close(null)
    os.close(root)
    record, payload, descriptors = await peer.reports.get()
    assert (record, payload == data) == (Record(Kind.REQUEST, id=7, flags=5), True)
    assert [is_same_file(*pair) for pair in zip(descriptors, ("/dev/null", "/"), strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("size", SIZES)
async def test_a_payload_is_sent(peer: Peer, size: int) -> None:
    """The same the other way, beside flags that are another's business."""
    data = os.urandom(size)
    peer.channel.tell(Record(Kind.PUBLISH, id=7, flags=0x8000), data)
    record, payload, descriptors = peer.receive()
    assert (record, payload == data) == (Record(Kind.PUBLISH, id=7, flags=0x8000), True)
    assert descriptors == []


async def test_a_payload_that_is_too_long(peer: Peer) -> None:
    with pytest.raises(ValueError, match="too long"):
        peer.channel.tell(Record(Kind.RESPOND, id=7), bytes(MOST_PAYLOAD + 1))


async def test_a_full_channel_keeps_the_order(peer: Peer) -> None:
    """What the socket does not take waits, whatever its size."""
    sizes = [index * 977 % (MOST_INLINE * 2) for index in range(300)]
    for index, size in enumerate(sizes):
        peer.channel.tell(Record(Kind.RESPOND, id=index), bytes([index % 256]) * size)
    for index, size in enumerate(sizes):
        await asyncio.sleep(0)
        record, payload, _ = await asyncio.to_thread(peer.receive)
        assert (record.id, payload == bytes([index % 256]) * size) == (index, True)


async def test_a_request_that_cannot_be_sent_fails_alone(peer: Peer) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        await peer.channel.ask(Record(Kind.LISTEN, id=7), [1 << 20])
    peer.channel.tell(Record(Kind.READY))
    assert peer.receive().record.kind == Kind.READY


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param((b"x" * 10, []), id="short"),
        pytest.param((b"x" * (ROOM + 100), []), id="long"),
        pytest.param((Record(Kind.REQUEST, flags=Flag.LARGE).pack(), []), id="no memory"),
    ],
)
async def test_what_is_no_packet(peer: Peer, packet: tuple[bytes, list[int]]) -> None:
    """The keeper cannot be understood any more: the front must go."""
    peer.socket.send(packet[0])
    await asyncio.wait_for(peer.lost.wait(), 20)


async def test_more_descriptors_than_a_packet_takes(peer: Peer) -> None:
    """They are lost on the way, and none of the others is kept: the guard sees it."""
    null = os.open("/dev/null", os.O_RDONLY)
    send(peer.socket, Record(Kind.REQUEST, id=7), b"", [null] * 40)
    os.close(null)
    await asyncio.wait_for(peer.lost.wait(), 20)


def test_nobody_can_change_sealed_memory() -> None:
    memory = sealed_memory("test", b"abc")
    with pytest.raises(PermissionError):
        os.pwrite(memory, b"x", 0)
    with pytest.raises(PermissionError):
        os.truncate(memory, 1)
    os.close(memory)


async def test_a_request_as_the_front_sees_it(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each field of REQUEST under its name; what the front tells about it."""
    ours, theirs = pair
    client = KeeperClient(ours, lambda: None)
    requests: asyncio.Queue[Incoming] = asyncio.Queue()
    cancelled: asyncio.Queue[int] = asyncio.Queue()
    client.on_request = requests.put_nowait
    client.on_cancelled = cancelled.put_nowait
    sent = Record(Kind.REQUEST, id=9, owner=2, time=5, pid=77, status=1000, number=1001)
    send(theirs, sent, b"body", [])
    send(theirs, Record(Kind.CANCELLED, id=9), b"", [])
    assert await requests.get() == Incoming(9, 2, 5, 77, 1000, 1001, b"body", ())
    assert await cancelled.get() == 9
    client.replayable(9)
    client.respond(9, b"answer")
    client.publish(4, 50, b"event", mark=0x8000, number=3)
    client.forget_destination(4)
    room = bytearray(ROOM)
    assert [receive(theirs, room) for _ in range(4)] == [
        Packet(Record(Kind.REPLAYABLE, id=9), b"", []),
        Packet(Record(Kind.RESPOND, id=9), b"answer", []),
        Packet(Record(Kind.PUBLISH, id=4, owner=50, flags=0x8000, number=3), b"event", []),
        Packet(Record(Kind.UNDESTINATION, id=4), b"", []),
    ]
    client.close()


async def test_what_a_new_front_learns(pair: tuple[socket.socket, socket.socket]) -> None:
    """Listeners with their flags, destinations, the marks of a process."""
    ours, theirs = pair
    client = KeeperClient(ours, lambda: None)
    beginning = asyncio.ensure_future(client.begin())
    await asyncio.sleep(0)
    asked = receive(theirs, bytearray(ROOM))
    assert asked is not None
    for record in (
        Record(Kind.LISTENER, id=2, flags=Flag.FRAMES | Flag.DOOR),
        Record(Kind.LISTENER, id=3),
        Record(Kind.DESTINATION, id=4, number=12),
        Record(Kind.PROCESS, id=1 << 62, pid=77, number=5),
        asked.record,
    ):
        send(theirs, record, b"", [])
    held = await beginning
    assert held.listeners == {2: Flag.FRAMES | Flag.DOOR, 3: Flag(0)}
    assert held.destinations == {4}
    assert held.children[1 << 62].marks == 5
    assert client.new_id() > 1 << 62
    client.close()


async def test_a_log_as_the_keeper_sees_it(pair: tuple[socket.socket, socket.socket]) -> None:
    """Each field of LOG under its name; what is refused is the caller's, and no stream is left."""
    ours, theirs = pair
    client = KeeperClient(ours, lambda: None)
    room = bytearray(ROOM)
    null, root = os.open("/dev/null", os.O_RDONLY), os.open("/", os.O_PATH)
    place = LogPlace(id=7, directory=root, name="caf\u00e9.log", limit=1 << 40, files=5)
    for error in (0, errno.EISDIR):
        asking = asyncio.ensure_future(client.relay_to_log(9, null, place, Flag.STDERR | Flag.STAY))
        await asyncio.sleep(0)
        asked = receive(theirs, room)
        assert asked is not None
        assert asked.payload == b"caf\xc3\xa9.log"
        names = zip(asked.descriptors, ("/dev/null", "/"), strict=True)
        assert [is_same_file(*each) for each in names] == [True, True]
        flags = Flag.STDERR | Flag.STAY
        assert asked.record._replace(serial=0) == Record(
            Kind.LOG, id=9, owner=7, moved=1 << 40, number=5, flags=flags
        )
        send(theirs, asked.record._replace(error=error), b"", [])
        if error:
            with pytest.raises(FailedPrecondition, match=r"caf\u00e9.log: Is a directory"):
                await asking
        else:
            stream = await asking
            assert stream.id == 9
    os.close(null)
    os.close(root)
    client.close()


@pytest.mark.parametrize("number", [0, errno.ENOSPC])
async def test_the_trouble_of_a_log(pair: tuple[socket.socket, socket.socket], number: int) -> None:
    """The errno that the keeper tells, None where there is none or the stream has ended."""
    ours, theirs = pair
    client = KeeperClient(ours, lambda: None)
    room = bytearray(ROOM)
    for error in (0, errno.ESRCH):
        asking = asyncio.ensure_future(Stream(client, 9).trouble())
        await asyncio.sleep(0)
        asked = receive(theirs, room)
        assert asked is not None
        assert asked.record._replace(serial=0) == Record(Kind.STREAM, id=9)
        send(theirs, asked.record._replace(error=error, status=number), b"", [])
        found = await asking
        expected = 0 if error else number
        assert (found.errno if found else 0) == expected
    client.close()
