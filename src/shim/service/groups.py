"""The sockets that containerd dials: one for each group of containers (contract: runtime-v2, 1.6).

They are the keeper's, so that they and their connections outlive the front; what each one means
is in a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shim.errors import FailedPrecondition, ShimError
from shim.keeper.client import Held, KeeperClient
from shim.keeper.records import Flag
from shim.model import Launcher
from shim.store import MISSHAPEN, Store

# Connections that wait to be accepted.
BACKLOG = 1024
# Seconds for whoever else listens at a group's path to take a connection.
PROBE_LIMIT = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """One socket, and the containerd behind it.

    `id` is the listener's; `address` and `ttrpc` are containerd's own sockets, for what it is
    called and for events; `path` is the group's socket. `grpc`: it speaks gRPC, not ttrpc.
    """

    id: int
    address: str
    ttrpc: str
    namespace: str
    path: str
    launcher: Launcher
    grpc: bool = False

    @property
    def destination(self) -> int:
        """The id under which the keeper knows containerd's socket for events."""
        return int.from_bytes(hashlib.sha256(os.fsencode(self.ttrpc)).digest()[:7], "big") + 1


# Of the tasks that have no containerd: it has no socket, and is none of those that are listed.
STANDALONE: Final = Group(
    1, "", "", "denseshim", "",
    Launcher({"PATH": os.environ.get("PATH", os.defpath)}, oom_score_adj=0),
)


class TakenElsewhere(Exception):
    """Another shim, none of ours, serves this very group already."""


class Groups:
    """The groups of one front."""

    def __init__(self, keeper: KeeperClient, directory: Path) -> None:
        self._keeper = keeper
        self._store = Store(directory)
        self._groups: dict[int, Group] = {}
        self._change = asyncio.Event()
        # Called with each group that is opened or closed.
        self.opened: Callable[[Group], Awaitable[None]] = _ignore
        self.closed: Callable[[Group], Awaitable[None]] = _ignore

    def __len__(self) -> int:
        return len(self._groups)

    async def changed(self) -> None:
        """Return when a group has been opened or closed, or when it is time to look."""
        self._change.clear()
        await self._change.wait()

    def look(self) -> None:
        """It is time for whoever waits for a change to look."""
        self._change.set()

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def get(self, id: int) -> Group | None:
        """The group with that listener, or STANDALONE."""
        return STANDALONE if id == STANDALONE.id else self._groups.get(id)

    def at(self, path: str) -> Group | None:
        """The group with that socket."""
        return next((group for group in self if group.path == path), None)

    async def recover(self, held: Held) -> None:
        """Take over what the keeper holds. A group that it does not hold was never made known.

        Of one whose file cannot be read, the listener is not claimed.
        """
        for name in self._store.names():
            group = self._read(name)
            if group is None or group.id not in held.listeners:
                self._store.remove(name)
                continue
            held.claimed.add(group.id)
            self._groups[group.id] = group
        for destination, path in {group.destination: group.ttrpc for group in self}.items():
            await self._keeper.destination(destination, path)

    def _read(self, name: str) -> Group | None:
        try:
            return _from_state(int(name), self._store.read(name) or {})
        except MISSHAPEN as error:
            _log.error("the group %s is not known any more: %r", name, error)
            return None

    async def open(self, group: Group) -> Group:
        """Listen on the group's path. Raises TakenElsewhere, FailedPrecondition, ResourceExhausted.

        The file says what the listener means before the keeper has it.
        """
        listener = listen(Path(group.path))
        with listener:
            try:
                self._store.write(str(group.id), _to_state(group))
                await self._keeper.destination(group.destination, group.ttrpc)
                flags = Flag(0) if group.grpc else Flag.FRAMES
                await self._keeper.listen(group.id, listener.fileno(), flags)
            except (ShimError, OSError):
                self._forget(group)
                self._leave_destination(group)
                raise
        self._groups[group.id] = group
        try:
            await self.opened(group)
        except (ShimError, OSError):
            await self.close(group)
            raise
        self._change.set()
        return group

    async def close(self, group: Group) -> None:
        """Stop listening; connections that there are stay. May be repeated."""
        if self._groups.pop(group.id, None) is None:
            return
        self._forget(group)
        self._leave_destination(group)
        await self._keeper.unlisten(group.id)
        await self.closed(group)
        self._change.set()

    def _leave_destination(self, group: Group) -> None:
        if not any(other.destination == group.destination for other in self):
            self._keeper.forget_destination(group.destination)

    def _forget(self, group: Group) -> None:
        Path(group.path).unlink(missing_ok=True)
        self._store.remove(str(group.id))


async def _ignore(group: Group) -> None:
    pass


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, for root alone; the file of a dead one gives way."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        os.fchmod(listener.fileno(), 0o600)  # what bind(2) makes has the socket's mode
        _bind(listener, path)
        listener.listen(BACKLOG)
        stack.pop_all()
    return listener


def _bind(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(os.fspath(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise FailedPrecondition(f"cannot listen on {path}: {error.strerror}") from error
        _make_way(path)
        listener.bind(os.fspath(path))


def _make_way(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_LIMIT)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise TakenElsewhere(path)


def _to_state(group: Group) -> dict[str, Any]:
    """All fields but the id. Nothing is copied: `asdict` would take longer than the file does."""
    state = {**vars(group), "launcher": vars(group.launcher)}
    del state["id"]
    return state


def _from_state(id: int, state: Mapping[str, Any]) -> Group:
    return Group(id, **{**state, "launcher": Launcher.from_state(state["launcher"])})
