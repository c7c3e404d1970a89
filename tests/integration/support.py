"""Containers of busybox on a real shim and a real runtime."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shim.client import ShimClient, StartedShim, start_shim
from shim.errors import Unavailable
from shim.model import CreateRequest, Event, EventType, Exit, Mount, Stdio
from shim.oci.spec import process, spec

PATIENCE = 30.0
_numbers = itertools.count()


@dataclass
class Bundle:
    """A bundle with FIFOs for stdio; `command` runs in it."""

    path: Path
    id: str = field(default_factory=lambda: f"denseshim-test-{os.getpid()}-{next(_numbers)}")

    @classmethod
    def make(
        cls, path: Path, rootfs: Path, command: Sequence[str], terminal: bool = False
    ) -> Bundle:
        """A bundle at `path` whose root is the shared `rootfs`."""
        bundle = cls(path)
        path.mkdir()
        (path / "rootfs").mkdir()
        config = spec(bundle.id, command, rootfs=str(rootfs), terminal=terminal)
        (path / "config.json").write_text(json.dumps(config))
        return bundle

    def fifo(self, name: str) -> str:
        """A FIFO of that name in the bundle, made when it is not there."""
        path = self.path / name
        if not path.exists():
            os.mkfifo(path)
        return str(path)

    def request(
        self,
        *,
        stdin: bool = False,
        stdout: bool = False,
        stderr: bool = False,
        terminal: bool = False,
        runtime: str = "",
        rootfs: Sequence[Mount] = (),
        **others: Any,
    ) -> CreateRequest:
        """What to call Create with; the wanted streams get FIFOs."""
        stdio = Stdio(
            terminal,
            self.fifo("stdin") if stdin else "",
            self.fifo("stdout") if stdout else "",
            self.fifo("stderr") if stderr else "",
        )
        return CreateRequest(
            self.id, str(self.path), runtime, stdio, rootfs=tuple(rootfs), **others
        )


class Events:
    """Collects the events of a shim, across the deaths of its front."""

    def __init__(self, client: ShimClient) -> None:
        self.seen: list[Event] = []
        self._client = client
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        while True:
            try:
                async with self._client.events() as stream:
                    async for event in stream:
                        async with self._changed:
                            self.seen.append(event)
                            self._changed.notify_all()
            except Unavailable:
                await asyncio.sleep(0.01)

    async def wait_for(self, type: EventType, pid: int | None = None) -> Event:
        """The first event of that type (and pid), seen or to come."""
        async with asyncio.timeout(PATIENCE), self._changed:
            while True:
                for event in self.seen:
                    if event.type is type and pid in (None, event.pid):
                        return event
                await self._changed.wait()

    async def exit(self, pid: int) -> Exit:
        """How the process ended, once it has."""
        event = await self.wait_for(EventType.EXIT, pid)
        return Exit(event.exit_status, event.exited_at)

    def of(self, pid: int) -> list[EventType]:
        """The types of this process's events so far, in order."""
        return [event.type for event in self.seen if event.pid == pid]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(bundle: Bundle) -> AsyncIterator[tuple[StartedShim, Events]]:
    """A shim on the bundle and its events; the container and the shim are gone afterwards."""
    async with start_shim(bundle.path) as shim:
        events = Events(shim)
        try:
            yield shim, events
        finally:
            await events.close()


async def until(condition: Callable[[], Any], what: str, limit: float = PATIENCE) -> Any:
    """The first true value of a condition that nothing announces."""
    async with asyncio.timeout(limit):
        while not (value := condition()):
            await asyncio.sleep(0.005)
        return value


def children_of(pid: int) -> list[int]:
    """The processes whose parent is the main thread of `pid`."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def front_of(keeper: int) -> int:
    """The pid of the keeper's present front; 0 when none runs."""
    for pid in children_of(keeper):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"shim.front" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


def exec_spec(*args: str, **options: Any) -> dict[str, Any]:
    """An OCI process for Exec."""
    return process(args, **options)
