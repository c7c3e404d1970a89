"""The streams of one process: from the client's FIFOs to its pipes or its terminal.

Today's API also takes files, and programs that log (contract: runtime-v2, IO); both it and the
machine's own containers take logs that the keeper writes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from shim.blocking import BlockingPool
from shim.errors import InvalidArgument
from shim.keeper.client import Held, KeeperClient, LogPlace, Stream
from shim.keeper.records import Flag
from shim.model import Stdio
from shim.service.logger import Identity, Logger, LogNames, start_logger
from shim.stdio import (
    Descriptors,
    FoundFifo,
    Link,
    LogDirectory,
    OutputFile,
    OutputPipe,
    Place,
    Scheme,
    close_all,
    find_fifo,
    open_file,
    open_log,
    open_sink,
    parse_log,
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
End: TypeAlias = FoundFifo | OutputPipe | OutputFile | LogDirectory
Opener: TypeAlias = Callable[[str], End]


class ProcessStdio:
    """The streams of one process by name, and its logging program; what has ended may be missing.

    ids: of the streams, and under LOGGER that of the program as the keeper's child. input_closed:
    whether stdin is not to be held, perhaps because that was said before there was one.
    """

    def __init__(self, ids: Mapping[str, int], terminal: bool) -> None:
        self.ids = dict(ids)
        self.terminal = terminal
        self.input_closed = False
        self._streams: dict[str, Stream] = {}
        self._logger: Logger | None = None

    def to_state(self) -> dict[str, int]:
        """The ids, from which `adopt` finds everything again."""
        return self.ids

    @property
    def logger(self) -> Identity:
        """The logging program, for who finds it without its keeper."""
        return self._logger.identity if self._logger else Identity()

    def add(self, name: str, stream: Stream) -> None:
        """A stream has begun."""
        self._streams[name] = stream
        if name == "stdin" and self.input_closed:
            stream.unhold()

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
        """End the shim's hold on stdin (contract: CloseStdin), or on what is to be stdin."""
        self.input_closed = True
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

    async def delivered(self) -> None:
        """Return when all output is delivered, which may be never."""
        for stream in self._open_outputs():
            await stream.wait()

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

    def is_open(self) -> bool:
        """Whether an output has not ended: more may come, or reach its client."""
        return bool(self._open_outputs())

    async def written(self) -> int:
        """The bytes of the outputs that go on, as far as they have reached their clients."""
        return sum((await self._undelivered()).values())

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
        self._log = keeper.new_id()  # which stdout and stderr share, if it is one
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
        if LOGGER in self.stdio.ids:
            await self._start_logger()
        await self._open_ends()
        if self.stdio.terminal:
            return {number: self._null() for number in range(3)}
        ours: dict[str, int] = {}
        theirs = {number: self._make_end(name, ours) for number, name in enumerate(NAMES)}
        await self._relay(ours)
        for descriptor in ours.values():
            os.close(self._owned.take(descriptor))
        return theirs

    async def attach(self, master: int) -> None:
        """Begin the streams of the terminal whose master end this is, which is taken."""
        ours = {"stdout": self._owned.own(master)}
        if "stdin" in self.stdio.ids:
            # Another number for the same terminal: an epoll set takes each only once.
            ours["stdin"] = self._owned.own(os.dup(master))
        await self._relay(ours)

    async def _open_ends(self) -> None:
        wanted = {
            name: (self._opener(name, self._places[name]), self._places[name].path)
            for name in self.stdio.ids
            if name != LOGGER and self._places[name].scheme not in LOGGED
        }
        if wanted:
            what = f"open {self._named(wanted)}"
            opened = await self._pool.run(what, OPEN_LIMIT, _open_all, wanted, late=_close_ends)
            self._own_all(_descriptors(opened))
            self._ends.update(opened)

    def _named(self, names: Iterable[str]) -> str:
        return ", ".join(f"{name} {self._places[name].path!r}" for name in names)

    def _opener(self, name: str, place: Place) -> Opener:
        if self._names is None or name == "stdin":
            return find_fifo
        return _OPENERS.get(place.scheme, open_sink)

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

    def _own_all(self, descriptors: Iterable[int]) -> None:
        for descriptor in descriptors:
            self._owned.own(descriptor)

    def _null(self) -> int:
        return self._owned.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    def _make_end(self, name: str, ours: dict[str, int]) -> int:
        """The process's end of a stream; /dev/null where none is wanted.

        The shim's end, of a pipe that it relays, goes to `ours`.
        """
        if name not in self._places:
            return self._null()
        if name in self._pipes:
            return self._pipes[name].writing
        make = pipe_for_input if name == "stdin" else pipe_for_output
        pipe = make(self._owner)
        self._own_all(pipe)
        ours[name] = pipe.ours
        return pipe.theirs

    async def _relay(self, ours: Mapping[str, int]) -> None:
        """Begin streams between `ours`, ends of the process's pipes or terminal, and `_ends`."""
        fifos: dict[str, tuple[int, int]] = {}
        for name, descriptor in ours.items():
            id, end = self.stdio.ids[name], self._ends[name]
            if isinstance(end, FoundFifo):
                fifos[name] = (descriptor, end.path)
            elif isinstance(end, OutputPipe):
                flags = Flag.OUTPUT | Flag.STAY
                stream = await self._keeper.relay(id, descriptor, end.sink, end.hold, flags)
                self.stdio.add(name, stream)
            elif isinstance(end, LogDirectory):
                self.stdio.add(name, await self._write_log(name, descriptor, end.directory))
            else:
                self.stdio.add(name, await self._keeper.relay(id, descriptor, end.sink))
        if fifos:
            await self._relay_fifos(fifos)

    async def _write_log(self, name: str, source: int, directory: int) -> Stream:
        files = parse_log(self._places[name])
        place = LogPlace(self._log, directory, files.name, files.limit, files.files)
        flags = Flag.STAY | (Flag.STDERR if name == "stderr" else Flag(0))
        return await self._keeper.relay_to_log(self.stdio.ids[name], source, place, flags)

    async def _relay_fifos(self, fifos: Mapping[str, tuple[int, int]]) -> None:
        what = f"open {self._named(fifos)}"

        def send_from(channel: int, records: list[bytes]) -> Awaitable[None]:
            return self._pool.run(what, OPEN_LIMIT, _send_all, channel, records, fifos)

        flags = {
            self.stdio.ids[name]: Flag.STAY | (Flag.INPUT if name == "stdin" else Flag.OUTPUT)
            for name in fifos
        }
        for name, stream in zip(
            fifos, await self._keeper.relay_fifos(flags, send_from), strict=True
        ):
            self.stdio.add(name, stream)


_OPENERS: dict[Scheme, Opener] = {Scheme.FILE: open_file, Scheme.LOG: open_log}


def _open_all(wanted: Mapping[str, tuple[Opener, str]]) -> dict[str, End]:
    """Open each; a file or log that two go to once: the keeper gets another number for it."""
    found: dict[str, End] = {}
    with Descriptors() as owned:
        for name, asked in wanted.items():
            known = [found[other] for other in found if wanted[other] == asked]
            files = [end for end in known if isinstance(end, OutputFile | LogDirectory)]
            opener, path = asked
            found[name] = end = files[0] if files else opener(path)
            for descriptor in end:
                owned.own(descriptor)
        for descriptor in _descriptors(found):
            owned.take(descriptor)
    return found


def _close_ends(ends: Mapping[str, End]) -> None:
    close_all(_descriptors(ends))


def _descriptors(ends: Mapping[str, End]) -> set[int]:
    return {descriptor for end in ends.values() for descriptor in end}


def _send_all(
    channel: int, records: Sequence[bytes], fifos: Mapping[str, tuple[int, int]]
) -> None:
    for record, (name, (ours, fifo)) in zip(records, fifos.items(), strict=True):
        send_fifo(channel, record, ours, fifo, input=name == "stdin")


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
    if output.scheme is Scheme.LOG:
        parse_log(output)
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
