"""Commands that join a container of the machine: exec, attach."""

from __future__ import annotations

import asyncio
import sys

import click

from shim.cli.following import follow
from shim.cli.host_call import id_argument, with_host
from shim.cli.image import config_of
from shim.cli.output import show_pid
from shim.cli.params import ATTACHED, json_option
from shim.cli.report import OWN_FAILURE, reported
from shim.cli.session import Job, Session, already, interruptible
from shim.cli.tasks import process_of
from shim.client import HostClient, steadily
from shim.errors import FailedPrecondition, NotFound
from shim.model import Stdio


@click.command("exec", context_settings=ATTACHED)
@click.option("-t", "--terminal", is_flag=True, help="Give it a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Give it our stdin (else empty).")
@click.option("-d", "--detach", is_flag=True, help="Without streams; show its pid and leave it.")
@json_option
@id_argument
@click.argument("command", nargs=-1, required=True)
def exec_(
    id: str,
    terminal: bool,
    interactive: bool,
    detach: bool,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a container, attached, with its exit status as ours.

    It has the container's environment, user and directory. Signals, lost output and exit statuses
    are as with run; 125 is our own failure.
    """
    if detach and (terminal or interactive):
        raise click.UsageError("--detach goes with neither -t nor -i")
    if as_json and not detach:
        raise click.UsageError("--json goes with --detach: the output is COMMAND's own")
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("give a COMMAND")
    with reported(OWN_FAILURE):
        if detach:
            show_pid(asyncio.run(with_host(lambda host: _begin(host, id, words))), as_json)
            return
        status = asyncio.run(
            interruptible(
                lambda session: with_host(
                    lambda host: _attached(session, host, id, words, terminal, interactive)
                )
            )
        )
    sys.exit(status)


async def _begin(
    host: HostClient, id: str, command: tuple[str, ...], stdio: Stdio | None = None
) -> int:
    stdio = stdio or Stdio()
    container = await steadily(host, lambda: host.get(id))
    process = process_of(config_of(container), command, stdio.terminal)
    try:
        return await host.task(id).exec(process, stdio)
    except NotFound as error:
        raise NotFound(f"container {id} does not run") from error


async def _attached(
    session: Session,
    host: HostClient,
    id: str,
    command: tuple[str, ...],
    terminal: bool,
    interactive: bool,
) -> int:
    job = Job(terminal, interactive, lambda stdio: _begin(host, id, command, stdio), already)
    return await session.run(host.task(id), job)


@click.command()
@id_argument
def attach(id: str) -> None:
    """Show what a detached container writes from now on, and give it our stdin.

    It is given stdin if it was run with -i; on a terminal of its own ours is made raw and its size
    followed. Ctrl-P Ctrl-Q there, or Ctrl-C elsewhere, leaves the container alone: the status is 0.
    When it ends the status is its own; 125 is our own failure.
    """
    with reported(OWN_FAILURE):
        status = asyncio.run(with_host(lambda host: _attach(host, id)))
    sys.exit(status)


async def _attach(host: HostClient, id: str) -> int:
    facts = await steadily(host, host.task(id).facts)
    if not facts.pid:
        raise NotFound(f"container {id} does not run")
    if not facts.stdio.stdout.startswith("log://"):
        raise FailedPrecondition(
            f"container {id} has no log to be read: somebody else is attached to it"
        )
    return await follow(host.task(id), facts)
