"""Learns how processes ended, also across the death of the shim's front."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol, Self

from shim.client.calls import EventStream
from shim.client.steady import RECONNECT_S, Reconnects
from shim.errors import FailedPrecondition, NotFound, Unavailable
from shim.model import ContainerState, Event, EventType, Status

# How long to wait for the answer to a subscription before State is asked.
_SUBSCRIBED_S: Final = 1.0
# What nobody has heard comes first in a new stream. A process that is unknown, and of which nothing
# has come after this, has had its exit told to somebody else.
_TOLD_S: Final = 5.0


class Watched(Reconnects, Protocol):
    """One container's client: the shim's, or a task's of a host."""

    socket: Path

    def events(self) -> EventStream:
        """Subscribe now to the container's events."""

    async def state(self) -> ContainerState:
        """The container and every process known of it."""


class ExitWatch:
    """Subscribes to events when entered, and collects exits until left.

    Enter it before Create, Start or Exec: then no exit can be missed.
    """

    def __init__(self, client: Watched) -> None:
        self._client = client
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._awaited: set[int] = set()
        self._timers: list[asyncio.TimerHandle] = []

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._follower = asyncio.create_task(self._follow(self._client.events()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        self._follower.cancel()
        await asyncio.wait([self._follower])
        if not self._follower.cancelled():
            self._follower.exception()  # status() has raised it to whoever asked

    async def status(self, pid: int) -> int:
        """Wait until process `pid` has ended: its status, 0 to 255, 128+n for signal n.

        Raises Unavailable when the shim is gone for good, or how the process ended was told to
        somebody else while a front died.
        """
        known = self._exit(pid)
        self._awaited.add(pid)
        either: list[asyncio.Future[Any]] = [known, self._follower]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if known.done():
            return known.result()
        self._follower.result()
        raise Unavailable(f"the shim on {self._client.socket} ended its events before {pid} ended")

    def _exit(self, pid: int) -> asyncio.Future[int]:
        return self._exits.setdefault(pid, self._loop.create_future())

    async def _follow(self, events: EventStream) -> None:
        while True:
            try:
                async with events:
                    await self._collect(events)
                return
            except Unavailable:
                await self._client.ready(RECONNECT_S)
            events = self._client.events()

    async def _collect(self, events: EventStream) -> None:
        await events.subscribed(_SUBSCRIBED_S)
        # What ended before the subscription was in force, another reader may have been told.
        awaited = set(self._awaited)
        self._miss(awaited - set(await self._ask_state()))
        async for event in events:
            self._note(event)

    async def _ask_state(self) -> list[int]:
        """The pids that are known; takes note of those that have ended."""
        try:
            state = await self._client.state()
        except (FailedPrecondition, NotFound):
            return []  # nothing is created yet, or nothing is left
        for row in state.processes:
            if row.status is Status.STOPPED:
                self._note(Event(state.id, EventType.EXIT, row.pid, row.exit_status))
        return [row.pid for row in state.processes]

    def _miss(self, pids: Iterable[int]) -> None:
        self._timers += [self._loop.call_later(_TOLD_S, self._give_up, pid) for pid in pids]

    def _give_up(self, pid: int) -> None:
        if not self._exit(pid).done():
            what = f"process {pid} has ended while a front died; its status is not known"
            self._exit(pid).set_exception(Unavailable(what))

    def _note(self, event: Event) -> None:
        if event.type is EventType.EXIT and not self._exit(event.pid).done():
            self._exit(event.pid).set_result(event.exit_status)
