"""A container whose keeper has died: what has to go before its bundle may."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

from shim.errors import ShimError
from shim.mounts import unmount_all
from shim.service.host import FILE_LIMIT, Home
from shim.service.members import Members
from shim.service.record import Facts

# Seconds for the kernel to end killed processes.
KILL_LIMIT = 10.0

_log = logging.getLogger(__name__)


class Orphan:
    """Such a container, by its record.

    `pid` is that of its init process; `cleared` is set when its processes and mounts are gone,
    or would not go.
    """

    def __init__(self, home: Home, facts: Facts, pid: int) -> None:
        self.home = home
        self.facts = facts
        self.pid = pid
        self.cleared = asyncio.Event()

    async def clear(self) -> None:
        """Kill the processes and free the mounts, without the runtime, which takes longer."""
        try:
            async with asyncio.timeout(KILL_LIMIT):
                await Members(self.home.host, self.facts).end_all()
            await self._unmount()
        except (ShimError, OSError, TimeoutError) as error:
            _log.error("container %s cannot be cleared away: %s", self.facts.id, error)
        finally:
            self.cleared.set()

    async def _unmount(self) -> None:
        rootfs = Path(self.facts.bundle) / "rootfs"
        unmount = partial(unmount_all, rootfs, self.facts.mounts)
        await self.home.host.pool.run(f"unmount {rootfs}", FILE_LIMIT, unmount)
        self.facts.mounts = 0  # what is there from now on is another container's
