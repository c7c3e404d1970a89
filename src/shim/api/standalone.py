"""The socket of the services for containers without containerd (contract: shim-v1, last part).

They are served once somebody has asked for them, and by every front from then on. What they need
is loaded only then: a front that serves containerd alone is the smaller for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Final

from shim import places
from shim.blocking import BlockingPool
from shim.errors import FailedPrecondition, NotFound, ShimError, Unavailable
from shim.keeper.client import Held
from shim.keeper.records import Flag
from shim.service.groups import STANDALONE, TakenElsewhere, listen
from shim.service.host import Host
from shim.service.tasks import Tasks
from shim.standalone.events import TaskEvents
from shim.store import MISSHAPEN, Store

# Seconds for whoever asks for the services, while another host, or a dying front, has the library.
OPEN_LIMIT: Final = 10.0

_DIRECTORY: Final = "api"
_LISTENER: Final = "listener"

_log = logging.getLogger(__name__)


class Standalone:
    """The services of one front: not served, being opened, or served.

    directory: the pair's. group: the name of the group whose members may call, beside root;
    empty: root alone.
    """

    def __init__(
        self, host: Host, directory: Path, tasks: Tasks, events: TaskEvents, group: str
    ) -> None:
        self._host = host
        self._directory = directory
        self._tasks = tasks
        self._events = events
        self._group = group
        self._store = Store(directory / _DIRECTORY)
        self._listener = 0  # the keeper's, as long as it holds it
        self._opening: asyncio.Future[None] | None = None
        self._reopening = asyncio.Lock()
        self._things = contextlib.AsyncExitStack()

    async def recover(self, held: Held) -> None:
        """Claim the listener that an earlier front has had, if there was one."""
        try:
            listener = int((self._store.read(_LISTENER) or {"id": 0})["id"])
        except MISSHAPEN as error:
            _log.error("the socket for containers is not known any more: %r", error)
            listener = 0
        if listener in held.listeners:
            held.claimed.add(listener)
            self._listener = listener
        elif listener:
            self._store.remove(_LISTENER)

    def go_on(self) -> None:
        """Serve where an earlier front or host has served, once that can be done."""
        if self._listener or places.LIBRARY.exists():
            self._begin()

    async def open(self) -> str:
        """Serve, unless that is done; the socket's path.

        Raises FailedPrecondition, also when another host has the library, ResourceExhausted,
        DeadlineExceeded.
        """
        async with self._reopening:
            if self._is_served() and not places.SOCKET.exists():
                await self.close()  # nobody finds it any more
                self._opening = None
            opening = self._begin()
        await asyncio.wait((opening,), timeout=OPEN_LIMIT)
        if not opening.done():
            raise Unavailable(f"{places.LIBRARY} is in use by another host, or is slow to open")
        opening.result()
        return str(places.SOCKET)

    def _is_served(self) -> bool:
        opening = self._opening
        return opening is not None and opening.done() and opening.exception() is None

    async def close(self) -> None:
        """Take no more calls, and leave no socket."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        await self._things.aclose()
        await self._unlisten()
        for path in (places.RUNTIME_ROOT / STANDALONE.namespace, places.RUNTIME_ROOT, places.IO):
            with contextlib.suppress(OSError):
                path.rmdir()

    def _begin(self) -> asyncio.Future[None]:
        failed = self._opening is not None and self._opening.done() and self._opening.exception()
        if self._opening is None or failed:
            self._opening = asyncio.ensure_future(self._open())
            self._opening.add_done_callback(_note_opening)
        return self._opening

    async def _open(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await self._serve(stack)
            except (ShimError, OSError) as error:
                await self._unlisten()  # who dials it is refused, and not kept waiting
                if isinstance(error, OSError):
                    raise FailedPrecondition(f"cannot serve containers: {error}") from error
                raise
            self._things = stack.pop_all()

    async def _serve(self, stack: contextlib.AsyncExitStack) -> None:
        from shim.api.services import add_services
        from shim.api.serving import Server
        from shim.standalone import library
        from shim.standalone.machine import Machine
        from shim.standalone.tasks import MachineTasks

        pool = BlockingPool()
        stack.callback(pool.close)
        stack.callback(os.close, await library.lock(pool))
        opened = await library.Library.open(pool)
        stack.callback(opened.close)
        bundles = self._directory / places.BUNDLES
        tasks = MachineTasks(self._host, self._tasks, opened, self._events, bundles)
        machine = Machine(opened, tasks)
        await machine.recover()
        server = Server()
        await add_services(server.services, machine)
        await self._listen()
        await server.serve(self._host, self._directory / _DIRECTORY, self._listener)
        cleaning = asyncio.ensure_future(machine.clean())
        cleaning.add_done_callback(_note_cleaning)
        # A thread of it is in the library: it cannot be cut short.
        stack.push_async_callback(asyncio.wait, (cleaning,))
        stack.push_async_callback(server.stop)

    async def _listen(self) -> None:
        """Have the keeper listen; the file says what the listener means before the keeper has it.

        Raises FailedPrecondition, ResourceExhausted, OSError.
        """
        if self._listener:
            return
        try:
            listener = listen(places.SOCKET)
        except TakenElsewhere as error:
            raise FailedPrecondition(f"somebody else listens on {error}") from error
        with listener:
            if self._group:
                _open_to(places.SOCKET, self._group)
            id = self._host.keeper.new_id()
            self._store.write(_LISTENER, {"id": id})
            self._listener = id
            flags = Flag.ANYBODY if self._group else Flag(0)
            await self._host.keeper.listen(id, listener.fileno(), flags)

    async def _unlisten(self) -> None:
        listener, self._listener = self._listener, 0
        if listener:
            places.SOCKET.unlink(missing_ok=True)
            self._store.remove(_LISTENER)
            with contextlib.suppress(NotFound):
                await self._host.keeper.unlisten(listener)


def _open_to(path: Path, group: str) -> None:
    """Let the members of a group connect. Raises FailedPrecondition, OSError."""
    try:
        shutil.chown(path, group=group)
    except LookupError as error:
        raise FailedPrecondition(f"there is no group {group!r} to open {path} to") from error
    path.chmod(0o660)


def _note_opening(opening: asyncio.Future[None]) -> None:
    if not opening.cancelled() and (error := opening.exception()) is not None:
        _log.error("containers without containerd are not served: %s", error)


def _note_cleaning(cleaning: asyncio.Future[None]) -> None:
    if not cleaning.cancelled() and (error := cleaning.exception()) is not None:
        _log.error("the start-up pass failed", exc_info=error)
