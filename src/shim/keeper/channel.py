"""The front's end of the channel: records out, records in, replies matched to requests."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from shim.keeper.records import LAYOUT, Kind, Record, unpack


class Channel:
    """Speaks with the keeper over a connected SOCK_SEQPACKET socket, which it takes.

    Nothing blocks: what the socket does not accept waits in a queue. Records that are not
    replies go to `report`; `lost` is called once, when the keeper is gone.
    """

    def __init__(
        self, sock: socket.socket, report: Callable[[Record], None], lost: Callable[[], None]
    ) -> None:
        self._socket = sock
        self._report = report
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._serials = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Record]] = {}
        self._unsent: deque[tuple[Record, Sequence[int], asyncio.Future[Record] | None]] = deque()
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

    def tell(self, record: Record) -> None:
        """Send a record that needs no reply."""
        self._send(record, (), None)

    async def ask(self, record: Record, descriptors: Sequence[int] = ()) -> Record:
        """Send a request with descriptors (borrowed until this returns) and await its reply.

        Raises OSError with the keeper's errno, ConnectionError when the keeper is gone.
        """
        future: asyncio.Future[Record] = self._loop.create_future()
        record = replace(record, serial=next(self._serials))
        self._waiting[record.serial] = future
        self._send(record, descriptors, future)
        try:
            reply = await future
        finally:
            self._waiting.pop(record.serial, None)
        if reply.error:
            raise OSError(reply.error, f"{Kind(record.kind).name}: {os.strerror(reply.error)}")
        return reply

    def _send(
        self, record: Record, descriptors: Sequence[int], asked: asyncio.Future[Record] | None
    ) -> None:
        self._unsent.append((record, descriptors, asked))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            record, descriptors, asked = self._unsent[0]
            try:
                # A request given up before it was sent must not go out: its descriptors are closed.
                if asked is None or not asked.done():
                    socket.send_fds(self._socket, [record.pack()], list(descriptors))
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._flush)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._gone()
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        while True:
            try:
                data = self._socket.recv(LAYOUT.size + 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._gone()
                return
            self._handle(unpack(data))

    def _handle(self, record: Record) -> None:
        if not record.serial:
            self._report(record)
            return
        future = self._waiting.get(record.serial)
        if future is not None and not future.done():
            future.set_result(record)

    def _gone(self) -> None:
        self.close()
        self._lost()
