"""Commands that are one call each: start, kill, pause, resume, pty, close-stdin, …"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from shim.cli.output import show_exit, show_json
from shim.cli.params import DIRECTORY, PID, SIGNAL, json_option
from shim.cli.report import reported
from shim.cli.shim.call import optional_socket_option, shim_command, with_client
from shim.client import ShimClient, start_shim
from shim.errors import InvalidArgument
from shim.model import CheckpointRequest


@click.command()
@shim_command
async def start(client: ShimClient) -> None:
    """Start the created container."""
    await client.start()


@click.command()
@click.option("--all", "everything", is_flag=True, help="Signal all processes.")
@click.option("--pid", type=PID, default=0, help="Signal this process, not the init process.")
@click.argument("signal", type=SIGNAL, default="TERM")
@shim_command
async def kill(client: ShimClient, signal: int, pid: int, everything: bool) -> None:
    """Send SIGNAL, a name or a number (TERM), to the init process."""
    await client.kill(signal, pid=pid, all=everything)


@click.command()
@shim_command
async def pause(client: ShimClient) -> None:
    """Freeze the container."""
    await client.pause()


@click.command()
@shim_command
async def resume(client: ShimClient) -> None:
    """Let the paused container go on."""
    await client.resume()


@click.command()
@click.argument("pid", type=PID)
@click.argument("width", type=click.IntRange(1))
@click.argument("height", type=click.IntRange(1))
@shim_command
async def pty(client: ShimClient, pid: int, width: int, height: int) -> None:
    """Set the size, in characters, of the terminal of process PID."""
    await client.pty(pid, width, height)


@click.command("close-stdin")
@click.argument("pid", type=PID)
@shim_command
async def close_stdin(client: ShimClient, pid: int) -> None:
    """Let process PID read the end of its stdin, when all writers have closed it."""
    await client.close_stdin(pid)


@click.command("exit")
@shim_command
async def exit_(client: ShimClient) -> None:
    """End the shim."""
    await client.exit()


@click.command()
@click.option("--exit", "exit", is_flag=True, help="End the container afterwards.")
@click.option("--allow-tcp", is_flag=True, help="Allow open TCP connections.")
@click.option("--allow-unix-sockets", is_flag=True, help="Allow external unix sockets.")
@click.option("--allow-terminal", is_flag=True, help="Allow a terminal.")
@click.option("--file-locks", is_flag=True, help="Allow file locks.")
@click.option("--empty-namespace", "empty_namespaces", multiple=True, help="Leave out its state.")
@click.argument("image", type=click.Path(resolve_path=True))
@shim_command
async def checkpoint(client: ShimClient, /, **options: Any) -> None:
    """Write the container's state to the directory IMAGE."""
    await client.checkpoint(CheckpointRequest(**options))


@click.command()
@optional_socket_option
@click.option("--bundle", type=DIRECTORY, help="Clean up what a dead shim left of this bundle.")
@json_option
@click.argument("pid", type=PID, default=0)
def delete(socket: Path | None, bundle: Path | None, as_json: bool, pid: int) -> None:
    """Delete the container, or forget the ended exec PID, and show how it ended.

    With --bundle no shim is asked: whatever a dead one left is killed, unmounted and removed,
    and nothing is shown ({} with --json).
    """
    if bundle is not None:
        with reported(exit_code=1):
            asyncio.run(_clean_up(bundle))
        if as_json:
            show_json({})
    elif socket is not None:
        with reported(exit_code=1):
            ended = asyncio.run(with_client(socket, lambda client: client.delete(pid)))
        show_exit(ended, as_json)
    else:
        raise click.UsageError("give --socket of a shim, or --bundle of a dead one")


async def _clean_up(bundle: Path) -> None:
    """A new shim on the bundle takes care of what it finds there."""
    if not (bundle / "config.json").exists():
        raise InvalidArgument(f"{bundle} is not a bundle: no config.json")
    async with start_shim(bundle):
        pass
