"""What all containers of one front share, and what the parts of one container share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from shim.blocking import BlockingPool
from shim.cgroup import procs_files
from shim.errors import InvalidArgument
from shim.keeper.client import KeeperClient
from shim.metrics import Gauges
from shim.model import Stdio
from shim.oom import OomWatcher
from shim.runtime import Runtime, Spawn
from shim.service.commands import Commands
from shim.service.logger import LogNames
from shim.service.record import ContainerRecord, Facts
from shim.service.stdio import StdioBuilder
from shim.service.teller import Teller

# Seconds for a call that may hang in a file system.
FILE_LIMIT = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Host:
    """The keeper, the threads for what may block, the watch for OOM kills, gauges, and the clock.

    `now` gives nanoseconds since the epoch.
    """

    keeper: KeeperClient
    pool: BlockingPool
    oom: OomWatcher
    now: Callable[[], int]
    gauges: Gauges = field(default_factory=Gauges)
    _later: set[asyncio.Future[None]] = field(default_factory=set)

    def later(self, work: Awaitable[None]) -> None:
        """Have something done for which nobody waits; a defect in it is logged."""
        task = asyncio.ensure_future(work)
        self._later.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._later.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("work in the background failed", exc_info=error)


@dataclass(frozen=True)
class Home:
    """One container's surroundings: its record, its runtime's commands, where its events go."""

    host: Host
    record: ContainerRecord
    teller: Teller
    commands: Commands

    async def runtime(self, facts: Facts, spawn: Spawn, expected: bool = False) -> Runtime:
        """The container's runtime. Raises InvalidArgument, DeadlineExceeded."""
        return await self.host.pool.run(
            "find the runtime", FILE_LIMIT, _find_runtime, facts, spawn, expected
        )

    def builder(self, facts: Facts, stdio: Stdio, exec_id: str = "") -> StdioBuilder:
        """Streams for a new process of the container: the exec of that id, or its init."""
        options = facts.options
        names = LogNames(exec_id or facts.id, facts.namespace) if facts.namespace else None
        owner = (options.io_uid, options.io_gid) if facts.namespace else None
        return StdioBuilder(self.host.keeper, self.host.pool, stdio, owner=owner, names=names)


def _find_runtime(facts: Facts, spawn: Spawn, expected: bool) -> Runtime:
    bundle = Path(facts.bundle)
    if not bundle.is_absolute():
        raise InvalidArgument(f"the bundle {facts.bundle!r} is not an absolute path")
    joins = procs_files(facts.launcher.cgroup)
    return Runtime(facts.options, bundle, spawn, facts.launcher, joins, expected)
