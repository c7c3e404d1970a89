"""The front's end of the channel: records out, records in, replies matched to requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from shim.keeper.packet import ROOM, check_size, receive, send
from shim.keeper.records import Kind, Record

Report = Callable[[Record, bytes, list[int]], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Unsent:
    record: Record
    payload: bytes
    descriptors: Sequence[int]
    asked: asyncio.Future[Record] | None = None


class Channel:
    """Speaks with the keeper over a connected SOCK_SEQPACKET socket, which it takes.

    Nothing blocks: what the socket does not accept waits in a queue. Records that are not
    replies go to `report`, with their payload and their descriptors, which it owns from then on;
    `lost` is called once, when the keeper is gone or cannot be understood.
    """

    def __init__(self, sock: socket.socket, report: Report, lost: Callable[[], None]) -> None:
        self._socket = sock
        self._report = report
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._serials = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Record]] = {}
        self._unsent: deque[_Unsent] = deque()
        self._blocked = False  # the socket takes no more: its writer is watched
        self._room = bytearray(ROOM)
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        """Stop listening and close the socket; requests under way fail with ConnectionError."""
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the keeper is gone"))
        self._waiting.clear()

    def tell(self, record: Record, payload: bytes = b"") -> None:
        """Send a record that needs no reply. Raises ValueError when the payload is too long."""
        check_size(payload)
        self._send(_Unsent(record, payload, ()))

    async def ask(
        self, record: Record, descriptors: Sequence[int] = (), payload: bytes = b""
    ) -> Record:
        """Send a request with descriptors (borrowed until this returns) and await its reply.

        Raises OSError with the keeper's errno, ConnectionError when the keeper is gone,
        ValueError when the payload is too long.
        """
        check_size(payload)
        with self._expecting(record) as (record, future):
            self._send(_Unsent(record, payload, descriptors, future))
            return _accepted(await future)

    async def ask_through(
        self,
        records: Sequence[Record],
        send_from: Callable[[int, list[bytes]], Awaitable[None]],
    ) -> None:
        """The same, but `send_from` sends the packets that it is given, from the socket's number.

        It may do so from another thread: the kernel takes whole packets.
        """
        with contextlib.ExitStack() as stack:
            asked = [stack.enter_context(self._expecting(record)) for record in records]
            await send_from(self._socket.fileno(), [record.pack() for record, _ in asked])
            for _, future in asked:
                _accepted(await future)

    @contextlib.contextmanager
    def _expecting(self, record: Record) -> Iterator[tuple[Record, asyncio.Future[Record]]]:
        """The request with a serial of its own, and the future of its reply, within the block."""
        future: asyncio.Future[Record] = self._loop.create_future()
        record = record._replace(serial=next(self._serials))
        self._waiting[record.serial] = future
        try:
            yield record, future
        finally:
            self._waiting.pop(record.serial, None)

    def _send(self, unsent: _Unsent) -> None:
        self._unsent.append(unsent)
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            first = self._unsent[0]
            try:
                # A request given up before it was sent must not go out: its descriptors are closed.
                if first.asked is None or not first.asked.done():
                    send(self._socket, first.record, first.payload, first.descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._flush)
                self._blocked = True
                return
            except (BrokenPipeError, ConnectionResetError):
                self._gone()
                return
            except OSError as error:  # a descriptor that is none, no memory for a large payload
                if first.asked is None:
                    _log.error("the channel: %s", error)
                    self._gone()
                    return
                first.asked.set_exception(error)
            self._unsent.popleft()
        if self._blocked:
            self._loop.remove_writer(self._socket)
            self._blocked = False

    def _readable(self) -> None:
        while True:
            try:
                packet = receive(self._socket, self._room)
            except BlockingIOError:
                return
            except (ConnectionResetError, ValueError) as error:
                _log.error("the channel: %s", error)
                packet = None
            if packet is None:
                self._gone()
                return
            self._handle(*packet)

    def _handle(self, record: Record, payload: bytes, descriptors: list[int]) -> None:
        if not record.serial:
            self._report(record, payload, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        future = self._waiting.get(record.serial)
        if future is not None and not future.done():
            future.set_result(record)

    def _gone(self) -> None:
        self.close()
        self._lost()


def _accepted(reply: Record) -> Record:
    """The reply. Raises OSError when it is a refusal."""
    if reply.error:
        raise OSError(reply.error, f"{Kind(reply.kind).name}: {os.strerror(reply.error)}")
    return reply
