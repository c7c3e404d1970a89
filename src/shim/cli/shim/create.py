"""The commands create and restore."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from shim.cli.output import show_pid
from shim.cli.params import DIRECTORY, FIFO, json_option, runtime_option
from shim.cli.shim.call import shim_command
from shim.client import ShimClient
from shim.model import CreateRequest, RuntimeOptions, Stdio

_OPTIONS = (
    click.option("--id", required=True, help="The container's name."),
    click.option("--bundle", type=DIRECTORY, default=".", help="Its bundle (here)."),
    runtime_option,
    click.option("-t", "--terminal", is_flag=True, help="Give it a terminal."),
    click.option("--stdin", type=FIFO, help="FIFO that it reads."),
    click.option("--stdout", type=FIFO, help="FIFO that it writes."),
    click.option("--stderr", type=FIFO, help="FIFO that it writes errors to."),
    click.option("--no-pivot", is_flag=True, help="Do not use pivot_root."),
    json_option,
)


def _create_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command()
@_create_options
@click.option("--checkpoint", type=DIRECTORY, help="Restore from this image.")
@click.option("--parent-checkpoint", type=DIRECTORY, help="The image's parent.")
@shim_command
async def create(client: ShimClient, /, as_json: bool, **options: Any) -> None:
    """Create the container, not yet started, and show its pid."""
    show_pid(await client.create(_request(**options)), as_json)


@click.command()
@_create_options
@click.option("--parent-checkpoint", type=DIRECTORY, help="The image's parent.")
@click.argument("image", type=DIRECTORY)
@shim_command
async def restore(client: ShimClient, /, as_json: bool, image: Path, **options: Any) -> None:
    """Create the container from the checkpoint in the directory IMAGE, and show its pid."""
    show_pid(await client.create(_request(checkpoint=image, **options)), as_json)


def _request(
    *,
    id: str,
    bundle: Path,
    runtime: str,
    terminal: bool,
    stdin: str | None,
    stdout: str | None,
    stderr: str | None,
    no_pivot: bool,
    checkpoint: Path | None,
    parent_checkpoint: Path | None,
) -> CreateRequest:
    return CreateRequest(
        id=id,
        bundle=str(bundle),
        options=RuntimeOptions(runtime=runtime, no_pivot=no_pivot),
        stdio=Stdio(terminal, stdin or "", stdout or "", stderr or ""),
        checkpoint=str(checkpoint or ""),
        parent_checkpoint=str(parent_checkpoint or ""),
    )
