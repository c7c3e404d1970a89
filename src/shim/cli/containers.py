"""Commands about the machine's containers: ps, inspect, label, stop, rm, events, check."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import asdict
from typing import Any, Final

import click
from google.protobuf.any_pb2 import Any as AnyMessage

from shim.cli.host_call import complete_id, host_command, id_argument
from shim.cli.image import config_of
from shim.cli.output import clock, show_event, show_json, show_table
from shim.cli.params import json_option
from shim.cli.tasks import delete_task, end_task
from shim.client import ExitWatch, HostClient, TaskClient, follow_events, steadily
from shim.client.host import TaskInfo
from shim.client.task import TaskFacts
from shim.errors import FailedPrecondition, InvalidArgument, NotFound
from shim.metadata.values import Container
from shim.model import Status

_STOP_SIGNAL: Final = "org.opencontainers.image.stopSignal"
_KILLED_S: Final = 10.0

ids_argument = click.argument("ids", nargs=-1, required=True, shell_complete=complete_id)


# -- looking


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Those that do not run, too.")
@click.option("--filter", default="", help="As in labels.tier==front,image~=^web.")
@json_option
@host_command
async def ps(host: HostClient, everything: bool, filter: str, as_json: bool) -> None:
    """Show the containers that run.

    A filter has conditions joined by commas, of id, image, runtime and labels.KEY, with ==, !=
    and ~= (a regular expression).
    """
    containers = await steadily(host, lambda: host.containers(filter))
    tasks = {task.id: task for task in await steadily(host, host.tasks)}
    found = [
        (container, tasks.get(container.id))
        for container in containers
        if everything or _runs(tasks.get(container.id))
    ]
    if as_json:
        show_json([_summary(*pair) for pair in found])
    else:
        head = ("ID", "IMAGE", "STATUS", "PID", "COMMAND", "LABELS")
        show_table(head, [_row(*pair) for pair in found])


def _runs(task: TaskInfo | None) -> bool:
    return task is not None and task.status is not Status.STOPPED


def _summary(container: Container, task: TaskInfo | None) -> dict[str, Any]:
    return {
        "id": container.id,
        "image": container.image,
        "status": task.status.value if task else None,
        "pid": task.pid if task else None,
        "command": _args(container),
        "labels": dict(container.labels),
    }


def _row(container: Container, task: TaskInfo | None) -> tuple[str, ...]:
    labels = ",".join(f"{key}={value}" for key, value in sorted(container.labels.items()))
    status, pid = (task.status.value, str(task.pid)) if task else ("-", "-")
    command = " ".join(_args(container))
    return container.id, container.image or "-", status, pid, command or "-", labels


def _args(container: Container) -> list[str]:
    with contextlib.suppress(NotFound):
        return [str(word) for word in config_of(container)["process"].get("args", ())]
    return []


@click.command()
@id_argument
@host_command
async def inspect(host: HostClient, id: str) -> None:
    """Show all that is known of a container, as JSON."""
    container = await steadily(host, lambda: host.get(id))
    facts = await steadily(host, lambda: host.task(id).facts())
    click.echo(json.dumps(_details(container, facts), indent=2, default=str))


def _details(container: Container, facts: TaskFacts) -> dict[str, Any]:
    return {
        "id": container.id,
        "image": container.image,
        "runtime": container.runtime,
        "rootfs": container.rootfs,
        "labels": dict(container.labels),
        "created_at": clock(facts.created_at),
        "updated_at": clock(facts.updated_at),
        "task": _task(facts) if facts.pid else None,
        "spec": _spec(container),
    }


def _spec(container: Container) -> Any:
    value = AnyMessage.FromString(container.spec).value
    try:
        return json.loads(value)
    except ValueError:
        return value.hex()


def _task(facts: TaskFacts) -> dict[str, Any]:
    ended = facts.ended
    return {
        "pid": facts.pid,
        "bundle": facts.bundle,
        "stdio": asdict(facts.stdio),
        "exit_status": ended.status if ended else None,
        "exited_at": clock(ended.time) if ended else None,
    }


@click.command()
@json_option
@host_command
async def events(host: HostClient, as_json: bool) -> None:
    """Show what happens to all containers, until interrupted.

    What has happened before, and nobody has been shown, comes first.
    """
    async for event in follow_events(host):
        show_event(event, as_json)


@click.command()
@host_command
async def check(host: HostClient) -> None:
    """Check the host's records on disk; 1 if they are damaged."""
    problems = await steadily(host, host.check)
    for problem in problems:
        click.echo(problem)
    if problems:
        sys.exit(1)
    click.echo("sound")


# -- changing


@click.command()
@id_argument
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
@host_command
async def label(host: HostClient, id: str, labels: tuple[str, ...]) -> None:
    """Set labels of a container; KEY= removes one."""
    wanted = dict(map(_label, labels))
    there = {key: value for key, value in wanted.items() if value}
    changes = Container(id, labels=there)
    mask = [f"labels.{key}" for key in wanted]
    await steadily(host, lambda: host.update(changes, mask))


def _label(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not key or not equals:
        raise InvalidArgument(f"{word!r} is no label: give KEY=VALUE, or KEY= to remove it")
    return key, value


@click.command()
@click.option("--time", "patience", type=click.FloatRange(0), default=10.0, show_default=True,
              help="Seconds until it is killed.")  # fmt: skip
@ids_argument
@host_command
async def stop(host: HostClient, ids: tuple[str, ...], patience: float) -> None:
    """End containers: by TERM, or the image's own signal, then by KILL.

    They stay, with their exit status, until rm.
    """
    for id in ids:
        await _stop(host, id, patience)
        click.echo(id)


async def _stop(host: HostClient, id: str, patience: float) -> None:
    container = await steadily(host, lambda: host.get(id))
    await _end(host.task(id), _stop_signal(container), patience)


async def _end(task: TaskClient, number: int, patience: float) -> None:
    try:
        async with ExitWatch(task) as watch:
            pid = (await steadily(task, task.state)).pid
            for attempt, limit in ((number, patience), (signal.SIGKILL, _KILLED_S)):
                await _signal(task, attempt)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(watch.status(pid), limit)
                    return
    except NotFound as error:
        raise NotFound(f"container {task.id} does not run") from error
    raise FailedPrecondition(f"container {task.id} does not end, though it was killed")


async def _signal(task: TaskClient, number: int) -> None:
    with contextlib.suppress(NotFound, FailedPrecondition):
        await steadily(task, lambda: task.kill(number))


def _stop_signal(container: Container) -> int:
    """What the image asks for; TERM for what is no signal."""
    with contextlib.suppress(NotFound):
        text = str(config_of(container).get("annotations", {}).get(_STOP_SIGNAL, ""))
        if text.isdecimal() and int(text) in signal.valid_signals():
            return int(text)
        name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
        known = signal.Signals.__members__.get(name)
        return known.value if known else signal.SIGTERM
    return signal.SIGTERM


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill what runs.")
@ids_argument
@host_command
async def rm(host: HostClient, ids: tuple[str, ...], force: bool) -> None:
    """Remove containers, their files and their logs."""
    for id in ids:
        await _remove(host, id, force)
        click.echo(id)


async def _remove(host: HostClient, id: str, force: bool) -> None:
    await steadily(host, lambda: host.get(id))
    task = host.task(id)
    await (end_task(task) if force else _delete_ended(task))
    await steadily(host, lambda: _forget(host, id))


async def _delete_ended(task: TaskClient) -> None:
    try:
        await delete_task(task)
    except FailedPrecondition as error:
        raise FailedPrecondition(
            f"container {task.id} runs: denseshim stop {task.id} first, or rm -f"
        ) from error


async def _forget(host: HostClient, id: str) -> None:
    with contextlib.suppress(NotFound):
        await host.delete(id)
