"""The Shim service behind one socket: at most one container at a time, and its events.

Contract: shim-v1, What each call does. gRPC is translated in `shim.api`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any

from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ShimError,
)
from shim.events import EventLog, Subscription
from shim.model import (
    CheckpointRequest,
    ContainerState,
    CreateRequest,
    Exit,
    Launcher,
    ProcessInfo,
    Stdio,
)
from shim.service.container import Container
from shim.service.create import Creation
from shim.service.host import Home

# What a window's size is given in: struct winsize, ioctl_tty(2).
LARGEST_SIDE = 0xFFFF
# Seconds that Exit leaves a Create which is under way.
CREATE_LIMIT = 10.0


class Shim:
    """One socket's worth of containers: none, or one.

    `ended` is set when Exit was asked for: nothing is left then but to go.
    """

    def __init__(
        self,
        home: Home,
        launcher: Launcher,
        events: EventLog,
        container: Container | None,
        removal: Coroutine[Any, Any, object],
    ) -> None:
        self._home = home
        self._launcher = launcher
        self._events = events
        self._container = container
        self._creating = ""
        self._idle = asyncio.Event()  # no Create is under way
        self._idle.set()
        self._exiting = False
        self._deleted = home.record.load_deleted()
        self._removal = asyncio.ensure_future(removal)  # of what a dead keeper has left
        self.ended = asyncio.Event()

    @property
    def empty(self) -> bool:
        """Whether there is no container, nor one in the making."""
        return self._container is None and not self._creating

    def _current(self) -> Container:
        if self._container is not None:
            return self._container
        if self._creating:
            raise FailedPrecondition(f"container {self._creating} is still being created")
        if self._deleted:
            raise NotFound(f"container {self._deleted} has been deleted")
        raise FailedPrecondition("there is no container yet; call Create first")

    async def create(self, request: CreateRequest) -> int:
        """Create the container; its init's pid. Raises AlreadyExists and what Creation does."""
        there = self._container.facts.id if self._container else self._creating
        if there:
            raise AlreadyExists(f"this shim has container {there} already")
        if self._exiting:
            raise FailedPrecondition("this shim is about to end")
        self._creating = request.id or "?"
        self._idle.clear()
        try:
            await self._clear_away()
            self._container = await Creation(self._home, request, self._launcher).run()
        except OSError as error:
            raise ResourceExhausted(f"cannot create {request.id}: {error}") from error
        finally:
            self._creating = ""
            self._idle.set()
        return self._container.init.pid

    async def orphan_gone(self) -> None:
        """Return when what a dead keeper has left is removed, or cannot be."""
        await asyncio.wait((self._removal,))

    async def _clear_away(self) -> None:
        await self.orphan_gone()
        error = self._removal.exception()
        if isinstance(error, ShimError | OSError):
            raise FailedPrecondition(f"cannot remove what a dead shim has left here: {error}")
        self._removal.result()

    async def start(self) -> None:
        """Run the created container's program."""
        await self._current().start()

    async def delete(self, pid: int) -> Exit:
        """Delete the container (pid 0 or its init's) or forget one ended exec."""
        container = self._current()
        process = container.find(pid)
        if process is not container.init:
            return await container.forget_exec(process)
        ended = await container.delete()
        self._deleted, self._container = container.facts.id, None
        return ended

    def state(self) -> ContainerState:
        """The container and all its known processes."""
        return self._current().state()

    async def processes(self, id: str) -> list[ProcessInfo]:
        """The processes in the container; `id`, unless empty, must be its own."""
        container = self._current()
        if id not in ("", container.facts.id):
            raise NotFound(f"no container {id[:100]!r} here, but {container.facts.id}")
        return await container.processes()

    async def pause(self) -> None:
        """Suspend the container."""
        await self._current().pause()

    async def resume(self) -> None:
        """Let the container go on."""
        await self._current().resume()

    async def checkpoint(self, request: CheckpointRequest) -> None:
        """Write an image of the container."""
        await self._current().checkpoint(request)

    async def kill(self, number: int, all: bool, pid: int) -> None:
        """Signal the init, all processes, or one that is in the container."""
        await self._current().kill(number, pid, all)

    async def exec(self, spec: Mapping[str, Any], stdio: Stdio) -> int:
        """Start another process; its pid."""
        return await self._current().exec(spec, stdio)

    async def pty(self, pid: int, width: int, height: int) -> None:
        """Set the size of a process's terminal, in columns and rows."""
        if pid == 0:
            raise InvalidArgument("Pty needs the pid of a process")
        if not (0 <= width <= LARGEST_SIDE and 0 <= height <= LARGEST_SIDE):
            raise InvalidArgument(f"a terminal of {width} by {height} is too large")
        await self._current().find(pid).stdio.resize(width, height)

    async def close_stdin(self, pid: int) -> None:
        """End the shim's hold on a process's stdin."""
        self._current().find(pid).stdio.close_stdin()

    def events(self) -> Subscription:
        """A new reader of this container's events. The caller closes it."""
        return self._events.subscribe()

    async def exit(self) -> None:
        """Stop serving. A container that is still there is deleted first, so nothing is left.

        One that is being created is waited for; a runtime that hangs over it is killed.
        """
        self._exiting = True
        try:
            await self._creation_over()
            await self._clear_away()
            if self._container is not None:
                with contextlib.suppress(NotFound):  # another call has deleted it meanwhile
                    await self.delete(0)
        except ShimError:
            self._exiting = False
            raise
        self.ended.set()

    async def _creation_over(self) -> None:
        try:
            await asyncio.wait_for(self._idle.wait(), CREATE_LIMIT)
        except TimeoutError:
            await self._home.commands.kill()
            await self._idle.wait()
