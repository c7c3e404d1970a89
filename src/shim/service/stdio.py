"""The streams of one process: from the client's FIFOs to its pipes or its terminal.

Today's API also takes files, and programs that log (contract: runtime-v2, IO).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from shim.blocking import BlockingPool
from shim.errors import InvalidArgument
from shim.keeper.client import Held, KeeperClient, Stream
from shim.keeper.records import Flag
from shim.model import Stdio
from shim.service.logger import Logger, LogNames, start_logger
from shim.stdio import (
    Descriptors,
    FoundFifo,
    Link,
    OutputFile,
    OutputPipe,
    Place,
    Scheme,
    close_all,
    find_fifo,
    open_file,
    open_sink,
    parse_place,
    pipe_between_children,
    pipe_for_input,
    pipe_for_output,
)
from shim.syscalls import send_fifo

# Seconds to open a client's path: a hung file system must not stop the container's other calls.
OPEN_LIMIT = 10.0
# A drain goes on while its client reads, but not for ever (seconds).
DRAIN_PAUSE = 2.0
DRAIN_LIMIT = 10.0
DRAIN_LOOK = 0.05

NAMES = ("stdin", "stdout", "stderr")
LOGGER = "logger"  # beside the streams' names: the logging program

LOGGED = (Scheme.BINARY, Scheme.BINARY_V2)
_FIFOS = (Scheme.PATH, Scheme.FIFO)

_log = logging.getLogger(__name__)
End: TypeAlias = FoundFifo | OutputPipe | OutputFile


class ProcessStdio:
    """The streams of one process by name, and its logging program; what has ended may be missing.

    ids: of the streams, and under LOGGER that of the program as the keeper's child.
    """

    def __init__(self, ids: Mapping[str, int], terminal: bool) -> None:
        self.ids = dict(ids)
        self.terminal = terminal
        self._streams: dict[str, Stream] = {}
        self._logger: Logger | None = None

    def to_state(self) -> dict[str, int]:
        """The ids, from which `adopt` finds everything again."""
        return self.ids

    def add(self, name: str, stream: Stream) -> None:
        """A stream has begun."""
        self._streams[name] = stream

    def log_to(self, logger: Logger) -> None:
        """The logging program is ready; it has to end with the process."""
        self._logger = logger

    def adopt(self, held: Held) -> None:
        """Take over what the keeper holds of these streams; what it does not has ended."""
        for name, id in self.ids.items():
            if id in held.streams:
                self._streams[name] = held.streams[id]
            elif name == LOGGER and (child := held.claim(id)) is not None:
                self._logger = Logger(child)

    def settle(self) -> None:
        """The process is there: its input is read, its outputs end when their last writer does."""
        for stream in self._streams.values():
            stream.settle()

    def is_whole(self) -> bool:
        """Whether the keeper has each stream that the process was to have."""
        return self.ids.keys() <= {*self._streams, LOGGER}

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
        """Wait until all output is delivered, as long as its client reads; then cut the rest.

        A logging program has ended afterwards, or has been killed.
        """
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
        self._cut_streams()
        if self._logger is not None:
            await self._logger.end()

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
        """End every stream at once, and kill the logging program."""
        self._cut_streams()
        if self._logger is not None:
            self._logger.kill()

    def _cut_streams(self) -> None:
        for stream in self._streams.values():
            if not stream.ended.done():
                stream.cut()


class StdioBuilder:
    """Makes the streams of one new process, and the descriptors that it is started with.

    Use as `with StdioBuilder(...) as builder`; the descriptors that are still its own then are
    closed at the end. Call `open` before the process is started, `attach` when its terminal has
    come; cut `stdio` when the process does not come to be.

    A client must not see an end of its FIFO, nor lose a byte of its input, because a front died:
    the streams stay until `ProcessStdio.settle`.

    owner: the user and group that the process's ends of its pipes get. names: what a logging
    program is told. Without names each path must be a FIFO's (contract: shim-v1, Stdio); with
    names the outputs may be all that `shim.stdio.Scheme` has. Raises InvalidArgument.
    """

    def __init__(
        self,
        keeper: KeeperClient,
        pool: BlockingPool,
        stdio: Stdio,
        owner: tuple[int, int] | None = None,
        names: LogNames | None = None,
    ) -> None:
        self._keeper = keeper
        self._pool = pool
        self._owner = owner
        self._names = names
        self._places = _places(stdio) if names else _paths(stdio)
        self._owned = Descriptors()
        self._ends: dict[str, End] = {}  # the client's, or its logging program's
        self._pipes: dict[str, Link] = {}  # to the logging program
        self.stdio = ProcessStdio(
            {name: keeper.new_id() for name in _ids_for(self._places, stdio.terminal)},
            stdio.terminal,
        )

    def __enter__(self) -> StdioBuilder:
        return self

    def __exit__(self, *_: Any) -> None:
        self._owned.close()

    async def open(self) -> dict[int, int]:
        """Open the client's FIFOs and files, start its logging program, and, without a terminal,
        begin the streams.

        The descriptors 0, 1, 2 for the process, which the builder owns. Raises InvalidArgument
        for what cannot be opened or executed, FailedPrecondition for a program that fails,
        ResourceExhausted, DeadlineExceeded.
        """
        if self.stdio.terminal and "stdout" not in self.stdio.ids:
            raise InvalidArgument("a terminal needs a stdout path")
        for name in self.stdio.ids:
            await self._open(name)
        if self.stdio.terminal:
            return {number: self._null() for number in range(3)}
        return {number: await self._begin(name) for number, name in enumerate(NAMES)}

    async def attach(self, master: int) -> None:
        """Begin the streams of the terminal whose master end this is, which is taken."""
        self._owned.own(master)
        await self._relay("stdout", master)
        if "stdin" in self.stdio.ids:
            # Another number for the same terminal: an epoll set takes each only once.
            await self._relay("stdin", self._owned.own(os.dup(master)))

    async def _open(self, name: str) -> None:
        """Open one stream's other side, or start the logging program."""
        if name == LOGGER:
            await self._start_logger()
        elif self._places[name].scheme not in LOGGED:
            self._ends[name] = await self._open_end(name, self._places[name])

    async def _open_end(self, name: str, place: Place) -> End:
        for other, end in self._ends.items():
            if self._places[other] == place and isinstance(end, OutputFile):
                return end  # once for both; the keeper gets another number for it
        opener = self._opener(name, place)
        what = f"open {name} {place.path!r}"
        end = await self._pool.run(what, OPEN_LIMIT, opener, place.path, late=close_all)
        self._own_all(end)
        return end

    def _opener(self, name: str, place: Place) -> Callable[[str], End]:
        if self._names is None or name == "stdin":
            return find_fifo
        return open_file if place.scheme is Scheme.FILE else open_sink

    async def _start_logger(self) -> None:
        """Start the program with the read ends of two pipes."""
        assert self._names is not None
        for name in ("stdout", "stderr"):
            self._pipes[name] = pipe_between_children(self._owner)
            self._own_all(self._pipes[name])
        out, err = self._pipes["stdout"], self._pipes["stderr"]
        logger = await start_logger(
            self._keeper, self.stdio.ids[LOGGER], self._places["stdout"], self._names,
            (out.reading, err.reading),
        )  # fmt: skip
        self.stdio.log_to(logger)
        if self.stdio.terminal:
            # The relay holds the read end as well: when the program dies, the terminal stays.
            os.set_blocking(out.writing, False)
            self._ends["stdout"] = OutputPipe(out.writing, out.reading)

    def _own_all(self, descriptors: tuple[int, ...]) -> None:
        for descriptor in descriptors:
            self._owned.own(descriptor)

    def _null(self) -> int:
        return self._owned.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    async def _begin(self, name: str) -> int:
        """The process's end of a stream that has begun; /dev/null where no stream is wanted."""
        if name not in self._places:
            return self._null()
        if name in self._pipes:
            return self._pipes[name].writing
        make = pipe_for_input if name == "stdin" else pipe_for_output
        pipe = make(self._owner)
        self._own_all(pipe)
        await self._relay(name, pipe.ours)
        os.close(self._owned.take(pipe.ours))
        return pipe.theirs

    async def _relay(self, name: str, ours: int) -> None:
        """Begin a stream between the shim's end of the process's pipe, or terminal, and `_ends`."""
        id, end = self.stdio.ids[name], self._ends[name]
        if isinstance(end, FoundFifo):
            stream = await self._relay_fifo(id, name, ours, end.path)
        elif isinstance(end, OutputPipe):
            flags = Flag.OUTPUT | Flag.STAY
            stream = await self._keeper.relay(id, ours, end.sink, end.hold, flags)
        else:
            stream = await self._keeper.relay(id, ours, end.sink)
        self.stdio.add(name, stream)

    async def _relay_fifo(self, id: int, name: str, ours: int, fifo: int) -> Stream:
        what = f"open {name} {self._places[name].path!r}"
        is_input = name == "stdin"

        def send_from(channel: int, record: bytes) -> Awaitable[None]:
            send = partial(send_fifo, channel, record, ours, fifo, input=is_input)
            return self._pool.run(what, OPEN_LIMIT, send)

        flags = Flag.STAY | (Flag.INPUT if is_input else Flag.OUTPUT)
        return await self._keeper.relay_fifo(id, flags, send_from)


def _paths(stdio: Stdio) -> dict[str, Place]:
    """The wanted streams; each text is a path as it is."""
    wanted = ("stdin", "stdout") if stdio.terminal else NAMES
    texts = {name: getattr(stdio, name) for name in wanted}
    return {name: Place(Scheme.PATH, text) for name, text in texts.items() if text}


def _places(stdio: Stdio) -> dict[str, Place]:
    """The wanted streams, all outputs as stdout's scheme says. Raises InvalidArgument."""
    places = _paths(stdio)
    output = parse_place(stdio.stdout)
    if output.scheme is Scheme.FILE and stdio.terminal:
        raise InvalidArgument("a terminal's output cannot go to file://; use a FIFO")
    if output.scheme in LOGGED and not stdio.terminal:
        places.pop("stdin", None)
    for name, place in places.items():
        shared = name != "stdin" and output.scheme not in _FIFOS
        places[name] = output if shared else _fifo(name, place.path)
    return places


def _fifo(name: str, text: str) -> Place:
    place = parse_place(text)
    if place.scheme not in _FIFOS:
        raise InvalidArgument(f"{name} cannot be {place.scheme.value}://; use a FIFO")
    return place


def _ids_for(places: Mapping[str, Place], terminal: bool) -> list[str]:
    """What the keeper is to know of: streams that it relays, and the logging program."""
    if "stdout" not in places or places["stdout"].scheme not in LOGGED:
        return list(places)
    return [*(places if terminal else ()), LOGGER]
