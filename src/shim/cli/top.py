"""`denseshim top`: what the containers use, again and again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import click

from shim.cli.host_call import host_command
from shim.cli.output import show_json, show_table
from shim.cli.params import json_option
from shim.client import HostClient, steadily
from shim.client.host import TaskUsage

HEAD: Final = ("CONTAINER", "CPU %", "MEMORY", "LIMIT", "PIDS", "OUTPUT/S")
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_NS: Final = 10**9


@dataclass(frozen=True)
class Row:
    """What a task uses. `cpu`: percent of one CPU; `output`: bytes a second; None: not known yet.

    `memory` and `memory_limit` are in bytes; None: there is no limit.
    """

    id: str
    cpu: float | None
    memory: int
    memory_limit: int | None
    pids: int
    output: float | None


class Rates:
    """Makes rates of counters that are looked at again and again."""

    def __init__(self) -> None:
        self._before: dict[str, TaskUsage] = {}
        self._at = 0

    def rows(self, usage: Iterable[TaskUsage], now: int) -> list[Row]:
        """Rows since the last look; who uses most CPU comes first. now: nanoseconds of a clock
        that does not jump."""
        current = {each.id: each for each in usage}
        elapsed = now - self._at
        rows = [_row(each, self._before.get(each.id), elapsed) for each in current.values()]
        self._before, self._at = current, now
        return sorted(rows, key=lambda row: (-(row.cpu or 0), row.id))


def _row(now: TaskUsage, before: TaskUsage | None, elapsed: int) -> Row:
    """A counter that is smaller than before is another task's, or another stream's."""
    cpu = output = None
    if before is not None and before.cpu <= now.cpu:
        cpu = 100 * (now.cpu - before.cpu) / elapsed
        output = max(now.output - before.output, 0) * _NS / elapsed
    return Row(now.id, cpu, now.memory, now.memory_limit or None, now.pids, output)


def to_words(row: Row) -> tuple[str, ...]:
    """A row as people read it."""
    return (
        row.id,
        "-" if row.cpu is None else f"{row.cpu:.1f}",
        to_size(row.memory),
        "-" if row.memory_limit is None else to_size(row.memory_limit),
        str(row.pids),
        "-" if row.output is None else to_size(row.output),
    )


def to_size(count: float) -> str:
    """A number of bytes with three digits or four, and its unit."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} {_UNITS[-1]}"


@click.command()
@click.option(
    "--interval", metavar="SECONDS", type=click.FloatRange(0.1, 3600), default=2.0,
    show_default=True, help="Time between two looks.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Show one table, of the first interval.")
@json_option
@host_command
async def top(host: HostClient, interval: float, once: bool, as_json: bool) -> None:
    """Show what the running containers use: CPU, memory, processes, and how much they print.

    On a terminal the table is drawn anew, until Ctrl-C; elsewhere there is a table, or with --json
    a line, for every interval. Memory has the cached files in it, as the kernel counts them.
    """
    is_live = sys.stdout.isatty() and not once and not as_json
    with _screen() if is_live else _plain(as_json) as show, _interrupted() as interrupted:
        rates = Rates()
        rows = await _look(host, rates)
        if is_live:
            show(rows)
        while not await _passed(interrupted, interval):
            show(await _look(host, rates))
            if once:
                return


async def _look(host: HostClient, rates: Rates) -> list[Row]:
    usage = await steadily(host, host.usage)
    return rates.rows(usage, time.monotonic_ns())


async def _passed(interrupted: asyncio.Event, interval: float) -> bool:
    """Wait for the next look; True: there is to be none."""
    with suppress(TimeoutError):
        await asyncio.wait_for(interrupted.wait(), interval)
    return interrupted.is_set()


@contextmanager
def _interrupted() -> Iterator[asyncio.Event]:
    """Set by the signals that end this program: the terminal is put in order then."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def _plain(as_json: bool) -> Iterator[Callable[[Sequence[Row]], None]]:
    def show(rows: Sequence[Row]) -> None:
        if as_json:
            show_json([asdict(row) for row in rows])
        else:
            show_table(HEAD, [to_words(row) for row in rows])

    yield show


@contextmanager
def _screen() -> Iterator[Callable[[Sequence[Row]], None]]:
    """The terminal's other screen, drawn when there is something new and at no other time."""
    # Loaded here alone: it takes a while.
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), screen=True, auto_refresh=False) as live:

        def show(rows: Sequence[Row]) -> None:
            live.update(_table(rows, os.get_terminal_size().lines), refresh=True)

        yield show


def _table(rows: Sequence[Row], height: int) -> Any:
    """As many rows as fit, with a word about the others."""
    from rich.table import Table

    room = max(height - 4, 1)
    left_out = len(rows) - room
    caption = f"{left_out} more that use less" if left_out > 0 else None
    table = Table(box=None, expand=True, pad_edge=False, caption=caption)
    for number, name in enumerate(HEAD):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows[:room]:
        table.add_row(*to_words(row))
    return table
