"""The streams of one process: from the client's FIFOs to its pipes or its terminal."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from shim.blocking import BlockingPool
from shim.errors import InvalidArgument
from shim.keeper.client import Held, KeeperClient, Stream
from shim.keeper.records import Flag
from shim.model import Stdio
from shim.stdio import (
    Descriptors,
    InputFifo,
    OutputFifo,
    close_all,
    open_input,
    open_output,
    pipe_for_input,
    pipe_for_output,
)

# Seconds to open a client's path: a hung file system must not stop the container's other calls.
OPEN_LIMIT = 10.0
# A drain goes on while its client reads, but not for ever (seconds).
DRAIN_PAUSE = 2.0
DRAIN_LIMIT = 10.0
DRAIN_LOOK = 0.05

NAMES = ("stdin", "stdout", "stderr")

_log = logging.getLogger(__name__)
Fifo = TypeVar("Fifo", InputFifo, OutputFifo)


class ProcessStdio:
    """The streams of one process by name; those that have ended may be missing."""

    def __init__(self, ids: Mapping[str, int], terminal: bool) -> None:
        self.ids = dict(ids)
        self.terminal = terminal
        self._streams: dict[str, Stream] = {}

    def to_state(self) -> dict[str, int]:
        """The streams' ids, from which `adopt` finds them again."""
        return self.ids

    def add(self, name: str, stream: Stream) -> None:
        """A stream has begun."""
        self._streams[name] = stream

    def adopt(self, held: Held) -> None:
        """Take over what the keeper holds of these streams; what it does not has ended."""
        for name, id in self.ids.items():
            if id in held.streams:
                self._streams[name] = held.streams[id]

    def close_stdin(self) -> None:
        """End the shim's hold on stdin (contract: CloseStdin)."""
        if "stdin" in self._streams:
            self._streams["stdin"].unhold()

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; nothing happens where there is none (contract: Pty)."""
        if self.terminal and "stdout" in self._streams:
            await self._streams["stdout"].resize(width, height)

    def process_ended(self) -> None:
        """A terminal ends with its process; pipes end when their last writer does."""
        if self.terminal:
            for name, stream in self._streams.items():
                if name == "stdin":
                    stream.cut()
                else:
                    stream.finish()

    async def drain(self, what: str) -> None:
        """Wait until all output is delivered, as long as its client reads; then cut the rest."""
        loop = asyncio.get_running_loop()
        end, patience = loop.time() + DRAIN_LIMIT, loop.time() + DRAIN_PAUSE
        before = await self._undelivered()
        while before and loop.time() < min(end, patience):
            await asyncio.wait([stream.ended for stream in before], timeout=DRAIN_LOOK)
            after = await self._undelivered()
            if after != before:
                patience = loop.time() + DRAIN_PAUSE
            before = after
        if before:
            _log.warning("%s: output cut, for nobody reads it or somebody holds it open", what)
        self.cut()

    async def _undelivered(self) -> dict[Stream, int]:
        """The outputs that have not reached their clients, with the bytes that have."""
        found = {stream: await stream.delivered() for stream in self._open_outputs()}
        return {stream: count for stream, count in found.items() if count is not None}

    def _open_outputs(self) -> list[Stream]:
        return [
            stream
            for name, stream in self._streams.items()
            if name != "stdin" and not stream.ended.done()
        ]

    def cut(self) -> None:
        """End every stream at once."""
        for stream in self._streams.values():
            if not stream.ended.done():
                stream.cut()


class StdioBuilder:
    """Makes the streams of one new process, and the descriptors that it is started with.

    Use as `with StdioBuilder(...) as builder`; the descriptors that are still its own then are
    closed at the end. Call `open` before the process is started, `attach` when its terminal has
    come.
    """

    def __init__(self, keeper: KeeperClient, pool: BlockingPool, stdio: Stdio) -> None:
        self._keeper = keeper
        self._pool = pool
        self._paths = stdio
        self._owned = Descriptors()
        self._inputs: dict[str, InputFifo] = {}
        self._outputs: dict[str, OutputFifo] = {}
        wanted = ("stdin", "stdout") if stdio.terminal else NAMES
        self.stdio = ProcessStdio(
            {name: keeper.new_id() for name in wanted if getattr(stdio, name)}, stdio.terminal
        )

    def __enter__(self) -> StdioBuilder:
        return self

    def __exit__(self, *_: Any) -> None:
        self._owned.close()

    async def open(self) -> dict[int, int]:
        """Open the client's FIFOs and, without a terminal, begin the streams.

        The descriptors 0, 1, 2 for the process, which the builder owns. Raises InvalidArgument
        for a path that is no FIFO, ResourceExhausted, DeadlineExceeded.
        """
        if self.stdio.terminal and "stdout" not in self.stdio.ids:
            raise InvalidArgument("a terminal needs a stdout path")
        for name in self.stdio.ids:
            await self._open_fifo(name)
        if self.stdio.terminal:
            return {number: self._null() for number in range(3)}
        return {number: await self._begin(name) for number, name in enumerate(NAMES)}

    async def attach(self, master: int) -> None:
        """Begin the streams of the terminal whose master end this is, which is taken."""
        self._owned.own(master)
        sink = self._outputs["stdout"]
        await self._relay("stdout", master, sink.sink, sink.hold, Flag.OUTPUT)
        if "stdin" in self._inputs:
            # Another number for the same terminal: an epoll set takes each only once.
            copy = self._owned.own(os.dup(master))
            source = self._inputs["stdin"]
            await self._relay("stdin", source.source, copy, source.hold, Flag.INPUT)

    async def _open_fifo(self, name: str) -> None:
        path: str = getattr(self._paths, name)
        what = f"open {name} {path!r}"
        if name == "stdin":
            found = await self._pool.run(what, OPEN_LIMIT, open_input, path, late=close_all)
            self._inputs[name] = found
            self._own_all(found)
        else:
            sink = await self._pool.run(what, OPEN_LIMIT, open_output, path, late=close_all)
            self._outputs[name] = sink
            self._own_all(sink)

    def _own_all(self, descriptors: tuple[int, ...]) -> None:
        for descriptor in descriptors:
            self._owned.own(descriptor)

    def _null(self) -> int:
        return self._owned.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    async def _begin(self, name: str) -> int:
        """The process's end of a stream that has begun; /dev/null where no stream is wanted."""
        if name not in self.stdio.ids:
            return self._null()
        pipe = pipe_for_input() if name == "stdin" else pipe_for_output()
        self._own_all(pipe)
        if name == "stdin":
            source = self._inputs[name]
            await self._relay(name, source.source, pipe.ours, source.hold, Flag.INPUT)
        else:
            sink = self._outputs[name]
            await self._relay(name, pipe.ours, sink.sink, sink.hold, Flag.OUTPUT)
        os.close(self._owned.take(pipe.ours))
        return pipe.theirs

    async def _relay(self, name: str, source: int, sink: int, hold: int, flag: Flag) -> None:
        stream = await self._keeper.relay(self.stdio.ids[name], source, sink, hold, flag)
        self.stdio.add(name, stream)
