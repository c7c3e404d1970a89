"""Commands that look at a container: state, ps, events."""

from __future__ import annotations

import click

from shim.cli.output import show_event, show_processes, show_state
from shim.cli.params import json_option
from shim.cli.shim.call import shim_command
from shim.client import ShimClient, follow_events


@click.command()
@json_option
@shim_command
async def state(client: ShimClient, as_json: bool) -> None:
    """Show the container and its processes, as the shim knows them."""
    show_state(await client.state(), as_json)


@click.command()
@json_option
@shim_command
async def ps(client: ShimClient, as_json: bool) -> None:
    """Show the processes in the container, as the kernel sees them."""
    show_processes(await client.processes(), as_json)


@click.command()
@json_option
@shim_command
async def events(client: ShimClient, as_json: bool) -> None:
    """Show events as they happen, until the shim ends."""
    async for event in follow_events(client):
        show_event(event, as_json)
