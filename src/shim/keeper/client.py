"""What the front knows of the keeper: processes and streams as objects."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from shim.errors import FailedPrecondition, NotFound, ResourceExhausted, ShimError, Unavailable
from shim.keeper.channel import Channel
from shim.keeper.command import Command, pack, pack_program
from shim.keeper.records import Flag, Kind, Record
from shim.model import Exit

# Requests to the spawner that may be under way at once: less than its socket holds.
MOST_SPAWNS = 64

_log = logging.getLogger(__name__)


def explain(error: OSError, what: str) -> ShimError:
    """The answer to a caller for what the keeper's kernel refused."""
    text = f"{what}: {os.strerror(error.errno or 0)}"
    if isinstance(error, ConnectionError):
        return Unavailable(f"{what}: {error}")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        return ResourceExhausted(f"{text}; raise the shim's limits or end other containers")
    if error.errno in (errno.ESRCH, errno.ECHILD):
        return NotFound(text)
    return FailedPrecondition(text)


class Child:
    """A process that the keeper follows. `id` is the front's, unique for the keeper's life."""

    def __init__(self, client: KeeperClient, id: int, pid: int, marks: int = 0) -> None:
        self._client = client
        self.id = id
        self.pid = pid
        self.marks = marks  # of events that earlier fronts have published about it
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._failure: OSError | None = None

    async def wait(self) -> Exit:
        """How it ended, once it has. Raises OSError when it could not even be executed."""
        ended = await asyncio.shield(self.exited)
        if self._failure is not None:
            raise self._failure
        return ended

    async def signal(self, number: int, request: int = 0) -> None:
        """Send a signal through the pidfd. Raises NotFound when the process has ended.

        `request` has begun once the signal is sent: its answer is then the empty one.
        """
        record = Record(Kind.SIGNAL, id=self.id, number=number, owner=request)
        await self._client.ask(record, f"signal {number} to pid {self.pid}")

    def forget(self) -> None:
        """The exit has been taken note of; the keeper need not keep it any longer."""
        self._client.drop_child(self.id)

    def settle(self, record: Record) -> None:
        """The keeper has reported the end of this process."""
        if record.error:
            self._failure = OSError(record.error, os.strerror(record.error))
        if not self.exited.done():
            self.exited.set_result(Exit(record.status, record.time))


class Spawn(Child):
    """A program that the front has started."""

    def release(self) -> None:
        """End the time in which exits of its unknown children are kept, and forget its own."""
        self._client.tell(Record(Kind.RELEASE, id=self.id))
        self.exited.add_done_callback(lambda _: self.forget())


class Stream:
    """Bytes on their way from one descriptor to another."""

    def __init__(self, client: KeeperClient, id: int) -> None:
        self._client = client
        self.id = id
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        """Return when the last byte has been delivered, or the stream was cut."""
        await asyncio.shield(self.ended)

    def unhold(self) -> None:
        """Close an input's hold, so that it ends when its last writer has gone."""
        self._client.tell(Record(Kind.UNHOLD, id=self.id))

    def settle(self) -> None:
        """Stay no longer (Flag.STAY): the process is there that reads it, or writes to it."""
        self._client.tell(Record(Kind.SETTLE, id=self.id))

    def finish(self) -> None:
        """End the stream when nothing more can be read at the moment."""
        self._client.tell(Record(Kind.FINISH, id=self.id))

    def cut(self) -> None:
        """End the stream at once; what has not been delivered is lost."""
        self._client.tell(Record(Kind.CUT, id=self.id))

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in columns and rows. Nothing happens once it has ended."""
        record = Record(Kind.RESIZE, id=self.id, number=height << 16 | width)
        try:
            await self._client.ask(record, "resizing the terminal")
        except NotFound:
            return

    async def delivered(self) -> int | None:
        """The bytes that the client has read so far; None when there is nothing left to read."""
        try:
            reply = await self._client.ask(Record(Kind.STREAM, id=self.id), "asking a stream")
        except NotFound:
            return None
        return None if reply.number else reply.moved

    async def trouble(self) -> OSError | None:
        """Why a log does not take lines now, or grows on although it is full; None: all is well.

        ENOSPC and EDQUOT: its lines wait, and so does the writer, until there is room.
        """
        try:
            reply = await self._client.ask(Record(Kind.STREAM, id=self.id), "asking a stream")
        except NotFound:
            return None
        return OSError(reply.status, os.strerror(reply.status)) if reply.status else None

    def note_end(self) -> None:
        """The keeper has reported the end of this stream."""
        if not self.ended.done():
            self.ended.set_result(None)


@dataclass(frozen=True)
class LogPlace:
    """The files of a log: `name`, the newest, `name`.1 and so on, `files` in all (1 to 100).

    id: of the log, unique for the keeper's life (`KeeperClient.new_id`); the streams of one
    process name the same one. directory: a descriptor, O_PATH is enough; borrowed. name: at most
    200 bytes. limit: bytes of one file, at least 32 KiB.
    """

    id: int
    directory: int
    name: str
    limit: int
    files: int


@dataclass(frozen=True)
class Incoming:
    """A ttrpc request that the keeper has taken. The receiver owns the descriptors."""

    id: int  # unique for the keeper's life
    listener: int
    time: int  # of its first arrival, nanoseconds since the epoch
    pid: int
    uid: int
    gid: int
    body: bytes  # a ttrpc Request
    descriptors: tuple[int, ...]


@dataclass
class Held:
    """What the keeper holds when a front begins: what earlier fronts have left to it."""

    children: dict[int, Spawn] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    listeners: dict[int, Flag] = field(default_factory=dict)
    destinations: set[int] = field(default_factory=set)
    claimed: set[int] = field(default_factory=set)

    def claim(self, id: int) -> Spawn | None:
        """A process that somebody goes on with; None when the keeper does not have it."""
        self.claimed.add(id)
        return self.children.get(id)

    def release_rest(self) -> None:
        """Nobody waits for the others any more: let them end, and forget them."""
        for id, child in self.children.items():
            if id not in self.claimed:
                child.release()


class KeeperClient:
    """The keeper, as the front uses it. Takes the channel's socket.

    `on_request` and `on_cancelled` are the front's, set before `begin`; requests come after
    `ready`, those that earlier fronts have not answered first.
    """

    on_request: Callable[[Incoming], None]
    on_cancelled: Callable[[int], None]

    def __init__(self, sock: socket.socket, lost: Callable[[], None]) -> None:
        self._channel = Channel(sock, self._report, lost)
        self._children: dict[int, Spawn] = {}
        self._streams: dict[int, Stream] = {}
        self._held = Held()
        self._ids = itertools.count(time.time_ns())
        self._spawns = asyncio.Semaphore(MOST_SPAWNS)
        self.on_request = _refuse
        self.on_cancelled = lambda id: None
        self.asked_to_end = asyncio.Event()

    def close(self) -> None:
        """Hang up. The keeper replaces a front that does."""
        self._channel.close()

    def new_id(self) -> int:
        """An id that no process, stream, listener or destination of this keeper has had."""
        return next(self._ids)

    async def begin(self) -> Held:
        """Learn what the keeper holds. Raises ConnectionError."""
        await self._channel.ask(Record(Kind.SNAPSHOT))
        held = self._held
        known = [*held.children, *held.streams, *held.listeners, *held.destinations]
        self._ids = itertools.count(max([time.time_ns(), *(id + 1 for id in known)]))
        return self._held

    async def serve(self, listener: int, front: int) -> None:
        """Relay a listener's callers to the socket behind `front` (O_PATH, borrowed)."""
        await self._channel.ask(Record(Kind.SERVE, id=listener), [front])

    async def listen(self, id: int, sock: int, flags: Flag) -> None:
        """Give the keeper a listening socket (borrowed) as listener `id`.

        Raises ResourceExhausted, FailedPrecondition (no listening socket; the id is taken).
        """
        try:
            await self._channel.ask(Record(Kind.LISTEN, id=id, flags=flags), [sock])
        except OSError as error:
            raise explain(error, "listening") from error

    async def unlisten(self, id: int) -> None:
        """Close a listener; its connections stay. Raises NotFound."""
        await self.ask(Record(Kind.UNLISTEN, id=id), "closing a listener")

    def replayable(self, id: int) -> None:
        """A request has had no effect: should this front die, the next one gets it."""
        self.tell(Record(Kind.REPLAYABLE, id=id))

    def respond(self, id: int, body: bytes) -> None:
        """Answer a request with a ttrpc Response; nothing happens when its caller is gone."""
        self.tell(Record(Kind.RESPOND, id=id), body)

    async def destination(self, id: int, path: str) -> None:
        """Events for destination `id` go to the ttrpc socket at `path` from now on."""
        record = Record(Kind.DESTINATION, id=id)
        try:
            await self._channel.ask(record, payload=os.fsencode(path))
        except OSError as error:
            raise explain(error, f"sending events to {path}") from error

    def forget_destination(self, id: int) -> None:
        """No more events for it: it goes once its queue is empty."""
        self.tell(Record(Kind.UNDESTINATION, id=id))

    def publish(
        self, destination: int, owner: int, body: bytes, mark: int = 0, number: int = 0
    ) -> None:
        """Queue an event, a ttrpc Request, behind all that was told before.

        owner: id of the process that it is about; 0: none. mark: nothing is queued when the
        process has it already, by which an event is sent once over the deaths of fronts.
        number: the count of a counted mark.
        """
        record = Record(Kind.PUBLISH, id=destination, owner=owner, flags=mark, number=number)
        self.tell(record, body)

    async def upgrade(self, program: Sequence[str], front: int) -> None:
        """Have another version of the keeper take over, with another front.

        program: its argv, see `shim.keeper.start.keeper_program`. front: the memfd (borrowed) of
        its front's command. Does not return where the keeper agrees: it kills this front; where
        the other version fails, the present one goes on. Raises FailedPrecondition.
        """
        memory = pack_program(program)
        try:
            await self._channel.ask(Record(Kind.UPGRADE), [memory, front])
        except OSError as error:
            raise explain(error, "upgrading the keeper") from error
        finally:
            os.close(memory)

    def ready(self) -> None:
        """This front serves."""
        self.tell(Record(Kind.READY))

    def stop(self) -> None:
        """All is done: the keeper delivers what is under way and ends."""
        self.tell(Record(Kind.STOP))

    def tell(self, record: Record, payload: bytes = b"") -> None:
        """Send what needs no reply. Raises ValueError when the payload is too long."""
        self._channel.tell(record, payload)

    async def ask(self, record: Record, what: str) -> Record:
        """A request for a caller, named `what`. Raises the ShimError that the errno stands for."""
        try:
            return await self._channel.ask(record)
        except OSError as error:
            raise explain(error, what) from error

    async def spawn(self, command: Command, id: int | None = None) -> Spawn:
        """Start a program as the keeper's child.

        `command.descriptors` are borrowed. Raises ResourceExhausted, FailedPrecondition,
        ValueError for a command that cannot be expressed.
        """
        child = Spawn(self, self.new_id() if id is None else id, 0)
        memory = pack(command)
        self._children[child.id] = child
        try:
            async with self._spawns:
                record = Record(Kind.SPAWN, id=child.id)
                reply = await self._channel.ask(record, [memory, *command.descriptors.values()])
        except OSError as error:
            self._children.pop(child.id, None)
            raise explain(error, f"starting {command.argv[0]}") from error
        finally:
            os.close(memory)
        child.pid = reply.pid
        return child

    async def track(self, pid: int, spawn: Spawn, id: int) -> Child:
        """Follow the process `pid`, which came to life while `spawn` ran.

        Raises NotFound when it is not a child of the keeper and has not been one since.
        """
        child = Spawn(self, id, pid)
        self._children[id] = child
        record = Record(Kind.TRACK, id=id, pid=pid, owner=spawn.id)
        try:
            await self.ask(record, f"following pid {pid}")
        except ShimError:
            self._children.pop(id, None)
            raise
        return child

    async def relay(
        self, id: int, source: int, sink: int, hold: int | None = None, flag: Flag | None = None
    ) -> Stream:
        """Copy from `source` to `sink`, both non-blocking. All descriptors are borrowed.

        The sink may be a regular file, opened to append: bytes that its disk has no room for
        wait, and so does the writer.

        `hold` is the other end that stays open: of the sink with Flag.OUTPUT, until the
        stream's end; of the source with Flag.INPUT, until `Stream.unhold`.
        """
        stream = Stream(self, id)
        self._streams[id] = stream
        descriptors = [source, sink] if hold is None else [source, sink, hold]
        try:
            await self._channel.ask(Record(Kind.RELAY, id=id, flags=flag or 0), descriptors)
        except OSError as error:
            self._streams.pop(id, None)
            raise explain(error, "relaying a stream") from error
        return stream

    async def relay_fifos(
        self, asked: Mapping[int, Flag], send_from: Callable[[int, list[bytes]], Awaitable[None]]
    ) -> list[Stream]:
        """The same for clients' FIFOs, which are opened as they are sent; see `syscalls.send_fifo`.

        asked: the streams' flags, by id. send_from: called with the channel's descriptor and a
        record for each. Raises what it raises; no stream is begun then.
        """
        streams = [Stream(self, id) for id in asked]
        self._streams.update({stream.id: stream for stream in streams})
        records = [Record(Kind.RELAY, id=id, flags=flags) for id, flags in asked.items()]
        try:
            await self._channel.ask_through(records, send_from)
        except BaseException as error:
            for stream in streams:
                self._streams.pop(stream.id, None)
                stream.cut()  # what has been sent may have begun
            if isinstance(error, OSError):
                raise explain(error, "relaying a stream") from error
            raise
        return streams

    async def relay_to_log(
        self, id: int, source: int, place: LogPlace, flag: Flag | None = None
    ) -> Stream:
        """Write the lines of `source` (non-blocking, borrowed) to a log; see log.pxd.

        Flag.STDERR: they are from stderr, not from stdout. Flag.STAY: the source's end is none
        until `Stream.settle`. The log is closed with its last stream. Raises ResourceExhausted,
        FailedPrecondition (no such directory, no regular file under the name, a wrong limit,
        another log of that id).
        """
        stream = Stream(self, id)
        self._streams[id] = stream
        record = Record(
            Kind.LOG,
            id=id, owner=place.id, moved=place.limit, number=place.files, flags=flag or 0,
        )  # fmt: skip
        try:
            name = os.fsencode(place.name)
            await self._channel.ask(record, [source, place.directory], name)
        except OSError as error:
            self._streams.pop(id, None)
            raise explain(error, f"writing the log {place.name}") from error
        return stream

    def drop_child(self, id: int) -> None:
        """See Child.forget."""
        if self._children.pop(id, None) is not None:
            self.tell(Record(Kind.FORGET, id=id))

    def _report(self, record: Record, payload: bytes, descriptors: list[int]) -> None:
        if record.kind == Kind.REQUEST:
            self.on_request(_incoming(record, payload, descriptors))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        handler = self._HANDLERS.get(record.kind)
        if handler is not None:
            handler(self, record)

    def _exited(self, record: Record) -> None:
        child = self._children.get(record.id)
        if child is not None:
            child.settle(record)

    def _ended(self, record: Record) -> None:
        """An ended stream is forgotten at once: a later front takes an unknown one for ended."""
        stream = self._streams.pop(record.id, None)
        if stream is not None:
            stream.note_end()
        self.tell(Record(Kind.FORGET, id=record.id))

    def _process_held(self, record: Record) -> None:
        child = self._children[record.id] = Spawn(self, record.id, record.pid, record.number)
        self._held.children[record.id] = child
        if record.flags & Flag.GONE:
            child.settle(record)

    def _stream_held(self, record: Record) -> None:
        stream = self._streams[record.id] = Stream(self, record.id)
        self._held.streams[record.id] = stream
        if record.flags & Flag.GONE:
            self._ended(record)

    def _listener_held(self, record: Record) -> None:
        self._held.listeners[record.id] = Flag(record.flags)

    def _destination_held(self, record: Record) -> None:
        self._held.destinations.add(record.id)

    def _cancelled(self, record: Record) -> None:
        self.on_cancelled(record.id)

    def _lost(self, record: Record) -> None:
        _log.warning("destination %d: %d events were given up", record.id, record.number)

    def _ping(self, record: Record) -> None:
        self.tell(Record(Kind.PONG))

    def _terminate(self, record: Record) -> None:
        self.asked_to_end.set()

    _HANDLERS: ClassVar[dict[int, Callable[[KeeperClient, Record], None]]] = {
        Kind.EXITED: _exited,
        Kind.ENDED: _ended,
        Kind.PROCESS: _process_held,
        Kind.STREAM: _stream_held,
        Kind.LISTENER: _listener_held,
        Kind.PING: _ping,
        Kind.TERMINATE: _terminate,
        Kind.DESTINATION: _destination_held,
        Kind.CANCELLED: _cancelled,
        Kind.LOST: _lost,
    }


def _incoming(record: Record, payload: bytes, descriptors: list[int]) -> Incoming:
    return Incoming(
        id=record.id,
        listener=record.owner,
        time=record.time,
        pid=record.pid,
        uid=record.status,
        gid=record.number,
        body=payload,
        descriptors=tuple(descriptors),
    )


def _refuse(incoming: Incoming) -> None:
    """A front without a handler has no listeners with FRAMES."""
    for descriptor in incoming.descriptors:
        os.close(descriptor)
