"""Domain values as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import click

from shim.model import ContainerState, Event, EventType, Exit, ProcessInfo


def show_json(value: Any) -> None:
    """Print `value` on one line."""
    click.echo(json.dumps(value, default=_plain))


def show_pid(pid: int, as_json: bool) -> None:
    """Print the pid of a new process."""
    show_json({"pid": pid}) if as_json else click.echo(pid)


def show_exit(ended: Exit, as_json: bool) -> None:
    """Print how a process ended."""
    if as_json:
        show_json({"exit_status": ended.status, "exited_at": ended.time})
    else:
        click.echo(f"exit status {ended.status} at {clock(ended.time)}")


def show_state(state: ContainerState, as_json: bool) -> None:
    """Print a container and its processes."""
    if as_json:
        show_json(asdict(state))
        return
    click.echo(f"id:      {state.id}\nbundle:  {state.bundle}")
    click.echo(f"pid:     {state.pid}\nstatus:  {state.status.value}")
    _show_processes(state.processes)


def show_processes(processes: Iterable[ProcessInfo], as_json: bool) -> None:
    """Print a table of processes."""
    if as_json:
        show_json([asdict(row) for row in processes])
    else:
        _show_processes(processes)


def show_event(event: Event, as_json: bool) -> None:
    """Print one event on a line."""
    if as_json:
        show_json(asdict(event))
        return
    line = f"{event.id} {event.type.value} pid {event.pid}"
    if event.type is EventType.EXIT:
        line += f" exit status {event.exit_status} at {clock(event.exited_at)}"
    click.echo(line)


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of words below a head, each column as wide as it has to be."""
    lines = [head, *([printable(word) for word in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (f"{word:{width}}" for word, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """The text with escapes in the place of what would move a terminal's cursor, and worse."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def _show_processes(processes: Iterable[ProcessInfo]) -> None:
    click.echo(f"{'PID':>9}  {'STATUS':8}  COMMAND")
    for row in processes:
        command = printable(" ".join(row.args))
        click.echo(f"{row.pid:>9}  {row.status.value:8}  {command}".rstrip())


def clock(time: int) -> str:
    """A time in ns since the epoch, as text."""
    return datetime.fromtimestamp(time // 10**9, UTC).isoformat()


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no form in JSON")
