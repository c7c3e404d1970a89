"""Makes commands of functions that call the host, which is started if there is none."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from shim import door, pair, places
from shim._pb.denseshim.host.v1 import host_pb2
from shim.cli.report import reported
from shim.client import HostClient
from shim.client.probe import is_listening
from shim.detach import CannotStart
from shim.errors import ShimError, Unavailable
from shim.metadata.values import Kind

# A pair that was empty may end between being found and being asked; once more is likely a defect.
_TRIES: Final = 3
# Whoever waits for a completion types on meanwhile.
_COMPLETION_S: Final = 1.0

P = ParamSpec("P")
T = TypeVar("T")


def find_host() -> Path:
    """The socket of this machine's host, which is started if there is none.

    Raises ShimError, OSError.
    """
    if is_listening(places.SOCKET):
        return places.SOCKET
    if os.geteuid() != 0:
        raise Unavailable(
            f"you cannot call {places.SOCKET}: start a host as root (denseshim host --group GROUP) "
            "and be a member of its group, or be root"
        )
    for _ in range(_TRIES):
        try:
            return Path(_ask())
        except door.HungUp as error:
            failure = error
    raise failure


def _ask() -> str:
    """Have the host serve; its socket."""
    try:
        with pair.ensure(pair.host_directory(), pair.Settings()) as opened:
            request = host_pb2.ApiRequest()
            return door.call(opened, "Api", request, host_pb2.ApiResponse).socket
    except CannotStart as error:
        raise Unavailable(f"no host can be started: {error}") from error


async def with_host(work: Callable[[HostClient], Awaitable[T]]) -> T:
    """What `work` gives with a client of the host."""
    async with HostClient(find_host()) as host:
        return await work(host)


def host_command(
    function: Callable[Concatenate[HostClient, P], Awaitable[None]],
) -> Callable[..., None]:
    """The callback of a command: gives `function` a client of the host."""

    @functools.wraps(function)
    def callback(*args: P.args, **kwargs: P.kwargs) -> None:
        with reported(exit_code=1):
            asyncio.run(with_host(lambda host: function(host, *args, **kwargs)))

    return callback


def _complete(
    names: Callable[[HostClient], Awaitable[Sequence[str]]],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completes a word to what the host has; to nothing when there is none."""

    async def found() -> Sequence[str]:
        async with HostClient(places.SOCKET) as host, asyncio.timeout(_COMPLETION_S):
            return await names(host)

    def complete(_: click.Context, __: click.Parameter, word: str) -> list[CompletionItem]:
        try:
            there = asyncio.run(found()) if is_listening(places.SOCKET) else []
        except (ShimError, OSError):
            return []
        return [CompletionItem(name) for name in there if name.startswith(word)]

    return complete


async def _ids(host: HostClient) -> list[str]:
    return [container.id for container in await host.containers()]


async def _snapshots(host: HostClient) -> list[str]:
    return sorted(info.key for info in await host.snapshots())


async def _images(host: HostClient) -> list[str]:
    """What was imported, and not the layers below it, which have digests for names."""
    found = await host.snapshots()
    return sorted(
        info.key
        for info in found
        if info.kind is Kind.COMMITTED and not info.key.startswith("sha256:")
    )


complete_id = _complete(_ids)
complete_snapshot = _complete(_snapshots)
complete_image = _complete(_images)
id_argument: Callable[[Any], Any] = click.argument("id", shell_complete=complete_id)
