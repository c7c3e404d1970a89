"""Starting a process with a terminal: the runtime's command and the console, side by side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from shim.console import ConsoleSocket
from shim.errors import RuntimeFailed
from shim.keeper.client import Spawn
from shim.service.stdio import StdioBuilder

# Seconds for a terminal that a runtime which has ended must have sent already.
CONSOLE_LIMIT = 5.0


async def launch(
    builder: StdioBuilder, path: Path, run: Callable[[Path | None], Awaitable[object]]
) -> Spawn:
    """Run a runtime's command, `run`, and attach the terminal that comes meanwhile, if one is due.

    `path` is where the console socket is made; `run` is given it, or None without a terminal.
    The runtime's process, not yet released. Raises what the command raises, RuntimeFailed when
    no terminal came.
    """
    if not builder.stdio.terminal:
        return cast(Spawn, await run(None))
    async with ConsoleSocket(path) as console:
        receiving = asyncio.ensure_future(console.receive())
        try:
            spawn = cast(Spawn, await run(path))
        except BaseException:
            await _give_up(receiving)
            raise
        with ExitStack() as stack:
            stack.callback(spawn.release)
            await builder.attach(await _terminal(receiving))
            stack.pop_all()
        return spawn


async def _terminal(receiving: asyncio.Future[int]) -> int:
    try:
        return await asyncio.wait_for(receiving, CONSOLE_LIMIT)
    except TimeoutError as error:
        raise RuntimeFailed("the runtime sent no terminal to the console socket") from error


async def _give_up(receiving: asyncio.Future[int]) -> None:
    """Stop waiting for a terminal, and close it if it has come."""
    receiving.cancel()
    for outcome in await asyncio.gather(receiving, return_exceptions=True):
        if isinstance(outcome, int):
            os.close(outcome)
