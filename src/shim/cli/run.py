"""The command run: a container of one's own, attached."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path

import click

from shim.cli.bundle import made_bundle, users_bundle
from shim.cli.params import ATTACHED, DIRECTORY, runtime_option
from shim.cli.report import OWN_FAILURE, reported
from shim.cli.session import Job, Session, interruptible
from shim.client import ShimClient, start_shim, steadily
from shim.client.steady import RECONNECT_S
from shim.errors import FailedPrecondition, Unavailable
from shim.model import CreateRequest, RuntimeOptions, Status, Stdio


@click.command(context_settings=ATTACHED)
@click.option("-t", "--terminal", is_flag=True, help="Give it a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Give it our stdin (else empty).")
@click.option("--rm", "remove", is_flag=True, help="Remove the bundle made for it, too.")
@click.option("--bundle", type=DIRECTORY, help="Run this bundle's config.json.")
@click.option("--rootfs", type=DIRECTORY, help="Run in this root file system.")
@runtime_option
@click.option("--id", help="The container's name (random).")
@click.argument("command", nargs=-1)
def run(
    terminal: bool,
    interactive: bool,
    remove: bool,
    bundle: Path | None,
    rootfs: Path | None,
    runtime: str,
    id: str | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a new container, attached, with a shim of its own.

    Without --bundle and --rootfs the container's root holds the machine's busybox, and COMMAND
    is sh if not given. With --bundle COMMAND takes the place of the configured one.

    The container and its shim are gone when this ends. The bundle that was made for it, with
    what the container wrote to its root, stays, and is named on stderr; --rm removes it.
    A bundle or root of yours is never removed.

    Signals are sent on to COMMAND. The exit status is COMMAND's, 128+n if signal n ended it,
    125 if denseshim itself failed. When the reader of our output goes away, COMMAND is killed
    and the status is 141.
    """
    if bundle and rootfs:
        raise click.UsageError("--bundle names its own root: leave out --rootfs")
    name = id or f"denseshim-{secrets.token_hex(4)}"
    place = (
        users_bundle(bundle, command, terminal)
        if bundle
        else made_bundle(name, command, rootfs, terminal, keep=not remove)
    )

    async def begin(client: ShimClient, stdio: Stdio, folder: Path) -> int:
        request = CreateRequest(name, str(folder), stdio, RuntimeOptions(runtime))
        return await _create(client, request)

    with reported(OWN_FAILURE):
        status = asyncio.run(
            interruptible(lambda session: _run(session, place, terminal, interactive, begin))
        )
    sys.exit(status)


async def _run(
    session: Session,
    place: AbstractContextManager[Path],
    terminal: bool,
    interactive: bool,
    begin: Callable[[ShimClient, Stdio, Path], Awaitable[int]],
) -> int:
    with place as bundle:
        job = Job(terminal, interactive, lambda c, s: begin(c, s, bundle), _start)
        async with start_shim(bundle) as client:
            return await session.run(client, job)


async def _create(client: ShimClient, request: CreateRequest) -> int:
    """Create, also when the front dies under it: its successor knows what became of it."""
    try:
        return await client.create(request)
    except Unavailable:
        await client.ready(RECONNECT_S)
    try:
        return (await steadily(client, client.state)).pid
    except FailedPrecondition:
        return await client.create(request)


async def _start(client: ShimClient) -> None:
    """Start, also when the front dies under it."""
    try:
        await client.start()
        return
    except Unavailable:
        await client.ready(RECONNECT_S)
    state = await steadily(client, client.state)
    if state.status is Status.CREATED:
        await client.start()
