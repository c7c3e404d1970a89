"""`denseshim logs`: what a container has printed, and what it prints."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

import click

from shim import places
from shim.cli.host_call import id_argument
from shim.cli.report import reported
from shim.client import HostClient, TaskClient, steadily
from shim.client.probe import is_listening
from shim.errors import InvalidArgument, NotFound, Unavailable
from shim.logs import STDERR, LogReader, LogWatch, Record, parse_since, path_of

NAME: Final = "0.log"
# Seconds between two looks whether an output has ended whose process has.
_LOOK_S: Final = 0.1
# Records that are shown before somebody else has a turn.
_TURN: Final = 4096
_GULP: Final = 256 << 10  # bytes of one write


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Show what is printed until its end, too.")
@click.option(
    "--since", metavar="TIME", default="",
    help="Only what came since: a time as 2026-01-31T23:59:59Z, or how long ago, as 1h30m.",
)  # fmt: skip
@click.option("--tail", metavar="N", type=click.IntRange(0), help="Only the last N lines.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@id_argument
def logs(id: str, follow: bool, since: str, tail: int | None, timestamps: bool) -> None:
    """Show what the detached container ID has printed: its stdout on stdout, its stderr on stderr.

    A log outlives its task, and goes with its container.
    """
    # Who has seen enough ends this, and nothing is left to be put in order.
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    with reported(exit_code=1):
        begin = parse_since(since, time.time_ns()) if since else 0
        asyncio.run(_logs(id, follow, begin, tail, _Printer(timestamps)))


async def _logs(id: str, follow: bool, since: int, tail: int | None, printer: _Printer) -> None:
    if os.path.basename(id) != id or id in ("", ".", ".."):
        raise InvalidArgument(f"{id!r} is no container's id")
    if not is_listening(places.SOCKET):
        await _show(places.LOGS / id / NAME, None, since, tail, printer)
        return
    async with HostClient(places.SOCKET) as host:
        task = host.task(id)
        facts = await steadily(task, task.facts)
        path = path_of(facts.stdio.stdout) or places.LOGS / id / NAME
        await _show(path, task if follow else None, since, tail, printer)


async def _show(
    path: Path, followed: TaskClient | None, since: int, tail: int | None, printer: _Printer
) -> None:
    with _directory(path) as directory, LogReader(directory, path.name, since, tail) as reader:
        if not reader.exists():
            raise _no_log(path)
        if followed is not None:
            await _follow(directory, reader, followed, printer)
        await printer.show(reader.read())
        await printer.show(reader.rest())
        if reader.lost:
            click.echo(
                "denseshim: lines may be missing: the log was rotated faster than it was read; "
                "keep more or larger files",
                err=True,
            )


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    try:
        opened = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _no_log(path) from None
    try:
        yield opened
    finally:
        os.close(opened)


def _no_log(path: Path) -> NotFound:
    return NotFound(
        f"there is no log {path}; only a container that runs detached has one: denseshim run -d"
    )


async def _follow(directory: int, reader: LogReader, task: TaskClient, printer: _Printer) -> None:
    """Show what comes, until the task's output has ended."""
    with LogWatch(directory) as watch:
        ended = asyncio.ensure_future(_output_ended(task))
        try:
            while not ended.done():
                await printer.show(reader.read())
                grown = asyncio.ensure_future(watch.grown())
                await asyncio.wait((grown, ended), return_when=asyncio.FIRST_COMPLETED)
                grown.cancel()
        finally:
            ended.cancel()
        await ended


async def _output_ended(task: TaskClient) -> None:
    """Return when nothing more can come: also when there is no task, or no host, any more."""
    try:
        facts = await steadily(task, task.facts)
        if facts.pid and facts.ended is None:
            await _process_ended(task, facts.pid)
        while (await steadily(task, task.facts)).output_open:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(_LOOK_S)
    except (NotFound, Unavailable):
        return


async def _process_ended(task: TaskClient, pid: int) -> None:
    """By the kernel's word: events would be lost to who reads them next."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process, ended.set)
    try:
        # The process has not ended since before its number was looked up: it is this one.
        facts = await steadily(task, task.facts)
        if facts.pid == pid and facts.ended is None:
            await ended.wait()
    finally:
        loop.remove_reader(process)
        os.close(process)


class _Printer:
    """Shows records on our own stdout and stderr, as few writes as there can be."""

    def __init__(self, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._inside = {1: False, 2: False}  # a line that goes on
        self._pieces: list[bytes] = []
        self._size = 0
        self._to = 1

    async def show(self, records: Iterable[Record]) -> None:
        """Show all of them, with a turn for others in between. Raises OSError."""
        rest = iter(records)
        while some := list(islice(rest, _TURN)):
            for record in some:
                self._add(2 if record.stream == STDERR else 1, record)
            self._flush()
            await asyncio.sleep(0)

    def _add(self, to: int, record: Record) -> None:
        if to != self._to or self._size > _GULP:
            self._flush()
            self._to = to
        if self._timestamps and record.time and not self._inside[to]:
            self._pieces += (record.time, b" ")
        self._pieces.append(record.text)
        if record.whole:
            self._pieces.append(b"\n")
        self._inside[to] = not record.whole
        self._size += len(record.text)

    def _flush(self) -> None:
        data = memoryview(b"".join(self._pieces))
        self._pieces.clear()
        self._size = 0
        while data:
            data = data[os.write(self._to, data) :]
