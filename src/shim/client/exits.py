"""Learns how processes ended, also across the death of the shim's front."""

from __future__ import annotations

import asyncio
from typing import Final, Self

from shim.client.calls import EventStream, ShimClient
from shim.client.steady import RECONNECT_S
from shim.errors import FailedPrecondition, Unavailable
from shim.model import Event, EventType, Status

# How long to wait for the answer to a subscription before State is asked.
_SUBSCRIBED_S: Final = 1.0


class ExitWatch:
    """Subscribes to events when entered, and collects exits until left.

    Enter it before Create, Start or Exec: then no exit can be missed.
    """

    def __init__(self, client: ShimClient) -> None:
        self._client = client
        self._statuses: dict[int, int] = {}
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._follower = asyncio.create_task(self._follow(self._client.events()))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._follower.cancel()
        await asyncio.wait([self._follower])
        if not self._follower.cancelled():
            self._follower.exception()  # status() has raised it to whoever asked

    async def status(self, pid: int) -> int:
        """Wait until process `pid` has ended: its status, 0 to 255, 128+n for signal n.

        Raises Unavailable when the shim is gone for good.
        """
        known = asyncio.create_task(self._known(pid))
        try:
            await asyncio.wait([known, self._follower], return_when=asyncio.FIRST_COMPLETED)
            if known.done():
                return known.result()
        finally:
            known.cancel()
        self._follower.result()
        raise Unavailable(f"the shim on {self._client.socket} ended its events before {pid} ended")

    async def _known(self, pid: int) -> int:
        async with self._news:
            await self._news.wait_for(lambda: pid in self._statuses)
        return self._statuses[pid]

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
        await self._ask_state()
        async for event in events:
            await self._note(event)

    async def _ask_state(self) -> None:
        try:
            state = await self._client.state()
        except FailedPrecondition:
            return  # nothing is created yet, so nothing has ended
        ended = [row for row in state.processes if row.status is Status.STOPPED]
        for row in ended:
            await self._note(Event(state.id, EventType.EXIT, row.pid, row.exit_status))

    async def _note(self, event: Event) -> None:
        if event.type is EventType.EXIT:
            async with self._news:
                self._statuses.setdefault(event.pid, event.exit_status)
                self._news.notify_all()
