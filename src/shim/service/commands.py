"""The runtime's commands that are under way for one container."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from shim.errors import NotFound
from shim.keeper.client import Held, KeeperClient, Spawn
from shim.keeper.command import Command

# Seconds for a runtime command, begun by an earlier front, to end by itself.
COMMAND_LIMIT = 30.0


class Commands:
    """Starts commands, and can end those that hang: a runtime may, in a file system or a device."""

    def __init__(self, keeper: KeeperClient) -> None:
        self._keeper = keeper
        self._running: set[Spawn] = set()

    async def spawn(self, command: Command, id: int | None = None) -> Spawn:
        """Start a command, with this id if given. Raises what KeeperClient.spawn raises."""
        child = await self._keeper.spawn(command, id)
        self._running.add(child)
        child.exited.add_done_callback(lambda _: self._running.discard(child))
        return child

    async def kill(self) -> None:
        """SIGKILL every command; whoever waits for it learns that."""
        for child in list(self._running):
            with contextlib.suppress(NotFound):
                await child.signal(signal.SIGKILL)


async def has_succeeded(command: Spawn | None) -> bool:
    """Whether the runtime's command, if it was started at all, has ended well."""
    try:
        return command is not None and (await command.wait()).status == 0
    except OSError:
        return False  # it could not even be executed


async def finish_command(spawn: int, held: Held) -> Spawn | None:
    """Wait for a command of an earlier front; kill it when it takes too long.

    None when the keeper knows nothing of it: it was never started, or has been released.
    """
    child = held.claim(spawn)
    if child is None:
        return None
    try:
        await asyncio.wait_for(asyncio.shield(child.exited), COMMAND_LIMIT)
    except TimeoutError:
        with contextlib.suppress(NotFound):
            await child.signal(signal.SIGKILL)
        await child.exited
    return child
