"""The runtime's commands that are under way for one container."""

from __future__ import annotations

import contextlib
import signal

from shim.errors import NotFound
from shim.keeper.client import KeeperClient, Spawn
from shim.keeper.command import Command


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
