"""A container whose keeper has died: what has to go before its bundle may."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shim.errors import ShimError
from shim.mounts import unmount_all
from shim.service.host import FILE_LIMIT, Home
from shim.service.logger import Identity, end_left
from shim.service.members import Members
from shim.service.record import Facts

# Seconds for the kernel to end killed processes.
KILL_LIMIT = 10.0

_log = logging.getLogger(__name__)


class Orphan:
    """Such a container, by its record.

    `pid` is that of its init process; `cleared` is set when its processes and mounts are gone,
    or would not go.

    init, execs: what `Process.to_state` has given. Raises KeyError or TypeError for what has not.
    """

    def __init__(
        self,
        home: Home,
        facts: Facts,
        init: Mapping[str, Any],
        execs: Sequence[Mapping[str, Any]],
    ) -> None:
        self.home = home
        self.facts = facts
        self.pid = int(init["pid"])
        self.cleared = asyncio.Event()
        self._loggers = [Identity(*process.get("logger", ())) for process in (init, *execs)]

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

    async def end_loggers(self) -> None:
        """Let the logging programs read what is left, and see that they end.

        Their streams have ended with the keeper and with the container's processes.
        """
        await asyncio.gather(*map(end_left, self._loggers))

    async def _unmount(self) -> None:
        rootfs = Path(self.facts.bundle) / "rootfs"
        unmount = partial(unmount_all, rootfs, self.facts.mounts)
        await self.home.host.pool.run(f"unmount {rootfs}", FILE_LIMIT, unmount)
        self.facts.mounts = 0  # what is there from now on is another container's
