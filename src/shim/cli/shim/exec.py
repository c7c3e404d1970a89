"""The command exec: a further process in a running container."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from shim.cli.output import show_pid
from shim.cli.params import ATTACHED, json_option
from shim.cli.report import OWN_FAILURE, reported
from shim.cli.session import Job, already, interruptible
from shim.cli.shim.call import socket_option, with_client
from shim.client import ShimClient, steadily
from shim.errors import NotFound
from shim.model import Stdio
from shim.oci.spec import process


@click.command("exec", context_settings=ATTACHED)
@socket_option
@click.option("-t", "--terminal", is_flag=True, help="Give it a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Give it our stdin (else empty).")
@click.option("-d", "--detach", is_flag=True, help="Without streams; show its pid and leave it.")
@json_option
@click.argument("command", nargs=-1, required=True)
def exec_(
    socket: Path,
    terminal: bool,
    interactive: bool,
    detach: bool,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in the container, attached, with its exit status as ours.

    Signals, lost output and exit statuses are as with run; 125 is our own failure.
    """
    if detach and (terminal or interactive):
        raise click.UsageError("--detach goes with neither -t nor -i")
    if as_json and not detach:
        raise click.UsageError("--json goes with --detach: the output is COMMAND's own")
    with reported(OWN_FAILURE):
        if detach:
            spec = process(command)
            show_pid(asyncio.run(with_client(socket, lambda c: c.exec(spec, Stdio()))), as_json)
            return
        status = asyncio.run(
            with_client(socket, lambda c: _attached(c, command, terminal, interactive))
        )
    sys.exit(status)


async def _attached(
    client: ShimClient, command: tuple[str, ...], terminal: bool, interactive: bool
) -> int:
    pids: list[int] = []

    async def begin(stdio: Stdio) -> int:
        pids.append(await client.exec(process(command, terminal=terminal), stdio))
        return pids[0]

    job = Job(terminal, interactive, begin, already)
    status = await interruptible(lambda session: session.run(client, job))
    for pid in pids:
        await _forget(client, pid)
    return status


async def _forget(client: ShimClient, pid: int) -> None:
    try:
        await steadily(client, lambda: client.delete(pid))
    except NotFound:
        return  # forgotten before a front died under the call
