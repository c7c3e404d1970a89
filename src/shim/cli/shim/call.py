"""Makes commands of functions that call a shim."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from shim.cli.report import reported
from shim.client import ShimClient

P = ParamSpec("P")
_F = TypeVar("_F", bound=Callable[..., Any])


def _socket_option(required: bool) -> Callable[[_F], _F]:
    return click.option(
        "--socket",
        envvar="DENSESHIM_SOCKET",
        show_envvar=True,
        required=required,
        type=click.Path(path_type=Path),
        help="The shim's socket.",
    )


socket_option = _socket_option(required=True)
optional_socket_option = _socket_option(required=False)


def shim_command(
    function: Callable[Concatenate[ShimClient, P], Awaitable[None]],
) -> Callable[..., None]:
    """The callback of a command: gives `function` a client of the shim on --socket."""

    @socket_option
    @functools.wraps(function)
    def callback(socket: Path, *args: P.args, **kwargs: P.kwargs) -> None:
        with reported(exit_code=1):
            asyncio.run(with_client(socket, lambda client: function(client, *args, **kwargs)))

    return callback


async def with_client(socket: Path, work: Callable[[ShimClient], Awaitable[Any]]) -> Any:
    """What `work` gives with a client of the shim on `socket`."""
    async with ShimClient(socket) as client:
        return await work(client)
