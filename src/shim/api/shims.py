"""The shims of 2017 that one front serves: each behind a socket of its own, over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim.errors import FailedPrecondition, NotFound, ShimError
from shim.events import EventLog
from shim.journal import Journal
from shim.keeper.client import Held
from shim.keeper.records import Flag
from shim.model import Launcher
from shim.service.commands import Commands
from shim.service.host import Home, Host
from shim.service.record import ContainerRecord
from shim.service.recovery import Recovered, recover, remove_orphan
from shim.service.shim import Shim
from shim.service.teller import LogTeller, Silence
from shim.store import MISSHAPEN, Store

# Seconds for a socket's file, which may be anywhere.
REMOVE_LIMIT = 5.0

if TYPE_CHECKING:
    from shim.api.serving import Server

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a shim is: its listener, its bundle, and its socket's file if that is its to remove.

    `request` is the call that has asked for it.
    """

    listener: int
    bundle: str
    own_socket: str
    launcher: Launcher
    request: int = 0


class ServedShim:
    """A shim and the server that its callers reach through the keeper."""

    def __init__(self, host: Host, directory: Path, place: Place) -> None:
        self.place = place
        self._host = host
        self._record = ContainerRecord(directory)
        self._journal = Journal(directory / "events")
        self._events = EventLog(self._journal)
        teller = LogTeller(self._events)
        self._home = Home(host, self._record, teller, Commands(host.keeper))
        self.shim: Shim
        self.leaving = False  # after Exit
        self.gone = asyncio.Event()
        self._server: Server
        self._serving: asyncio.Future[None]

    async def begin(self, held: Held) -> None:
        """Go on with what is there, and serve: callers wait until its state is known again.

        Raises CorruptState, OSError.
        """
        from shim.api.server import make_server

        found = await recover(self._home, held)
        container = found.container if found else None
        if found and found.rest:
            found.init.stdio.cut()  # nobody calls again for it
            removal = found.rest
        else:
            removal = remove_orphan(self._home)
        self.shim = Shim(self._home, self.place.launcher, self._events, container, removal)
        self._server = make_server(self.shim)
        self._serving = asyncio.ensure_future(self._serve(found))
        if found is None:
            await self._serving
        else:
            self._host.later(self._serving)  # others need not wait for its runtime

    async def _serve(self, found: Recovered | None) -> None:
        if found and found.container:
            await found.container.settled()
        elif found:
            await self.shim.orphan_gone()
        await self._server.serve(self._host, self._record.directory, self.place.listener)

    async def end(self) -> None:
        """Answer what is under way, and leave nothing. The keeper's listener is the caller's."""
        await asyncio.wait((self._serving,))
        await self._server.stop()
        if self.place.own_socket:
            path = Path(self.place.own_socket)
            remove = partial(path.unlink, missing_ok=True)
            await self._host.pool.run(f"remove {path}", REMOVE_LIMIT, remove)
        self.discard()

    def discard(self) -> None:
        """Remove its state."""
        self._journal.close()
        self._record.destroy()


class Shims:
    """The shims of 2017 in a host: one for each bundle, until its client says Exit."""

    def __init__(self, host: Host, directory: Path) -> None:
        self._host = host
        self._directory = directory
        self._store = Store(directory)
        self._shims: dict[str, ServedShim] = {}
        self._removals: dict[str, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        """Those, too, that a dead keeper has left and that are being removed."""
        return len(self._shims) + sum(not removal.done() for removal in self._removals.values())

    def __iter__(self) -> Iterator[Shim]:
        return iter([served.shim for served in self._shims.values()])

    async def recover(self, held: Held) -> None:
        """Go on with all that the keeper holds a listener of, as far as it can be read.

        Of another the listener is not claimed, and its directory stays. Raises OSError.
        """
        damaged = set()
        for key in self._store.names():
            try:
                await self._recover_one(key, held)
            except MISSHAPEN as error:
                _log.error("the shim %s is not known any more: %r", key, error)
                self._store.remove(key)
                damaged.add(key)
        for directory in self._directory.iterdir():
            if directory.is_dir() and directory.name not in {*self._shims, *damaged}:
                self._removals[directory.name] = self._remove(directory)

    async def _recover_one(self, key: str, held: Held) -> None:
        place = _place(self._store.read(key) or {})
        if place.listener not in held.listeners:
            self._store.remove(key)  # it was about to begin, or to end
            return
        served = ServedShim(self._host, self._directory / key, place)
        await served.begin(held)
        held.claimed.add(place.listener)
        self._shims[key] = served
        self._host.later(self._until_exit(key, served))

    async def join(
        self, bundle: str, socket: int, own_socket: str, launcher: Launcher, request: int
    ) -> None:
        """Serve the bundle's shim on a listening socket (borrowed), for a call that may come again.

        Raises FailedPrecondition when there is one, ResourceExhausted, OSError.
        """
        key = hashlib.sha256(os.fsencode(bundle)).hexdigest()[:16]
        if key in self._removals:
            await asyncio.wait((self._removals[key],))
        while (there := self._shims.get(key)) is not None:
            if there.place.request == request:
                return
            if not there.leaving:
                raise FailedPrecondition(f"a shim is alive on bundle {bundle}; call it, or kill it")
            await there.gone.wait()
        place = Place(self._host.keeper.new_id(), bundle, own_socket, launcher, request)
        self._shims[key] = served = ServedShim(self._host, self._directory / key, place)
        try:
            self._store.write(key, asdict(place))
            await self._host.keeper.listen(place.listener, socket, Flag(0))
            await served.begin(Held())
        except (ShimError, OSError):
            await self._forget(key)
            served.discard()
            raise
        self._host.later(self._until_exit(key, served))

    async def exit(self) -> None:
        """Delete each container, and return when no shim is left. Raises as Shim.exit does."""
        await asyncio.gather(*(shim.exit() for shim in self))
        endings = [served.gone.wait() for served in self._shims.values()]
        await asyncio.gather(*endings, *self._removals.values())

    def _remove(self, directory: Path) -> asyncio.Future[None]:
        """Remove what a dead keeper has left; what fails stays for the bundle's next shim."""
        record = ContainerRecord(directory)
        home = Home(self._host, record, Silence(), Commands(self._host.keeper))

        async def remove() -> None:
            try:
                await remove_orphan(home)
                record.destroy()
            except (ShimError, OSError) as error:
                _log.error("%s: not removed: %s", directory, error)

        return asyncio.ensure_future(remove())

    async def _until_exit(self, key: str, served: ServedShim) -> None:
        await served.shim.ended.wait()
        served.leaving = True
        await self._host.keeper.unlisten(served.place.listener)
        await served.end()
        self._store.remove(key)
        del self._shims[key]
        served.gone.set()

    async def _forget(self, key: str) -> None:
        """Take back a shim that could not begin."""
        with contextlib.suppress(NotFound):
            await self._host.keeper.unlisten(self._shims[key].place.listener)
        self._store.remove(key)
        del self._shims[key]


def _place(state: Mapping[str, Any]) -> Place:
    return Place(**{**state, "launcher": Launcher.from_state(state["launcher"])})
