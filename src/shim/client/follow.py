"""Events until the shim itself has gone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

from shim.client.calls import EventStream
from shim.client.probe import is_listening
from shim.client.steady import RECONNECT_S, Reconnects
from shim.errors import Unavailable
from shim.model import Event

# How often to look whether the shim, whose front is away, is gone itself.
_LOOK_S: Final = 0.5


class Followed(Reconnects, Protocol):
    """A client with events: of a shim, of a host, of a task."""

    socket: Path

    def events(self) -> EventStream:
        """Subscribe now."""


async def follow_events(client: Followed) -> AsyncIterator[Event]:
    """The events of a client, also across the death of the shim's front; ends with the shim.

    Raises Unavailable when no shim answers from the beginning, or its front stays away.
    """
    if not is_listening(client.socket):
        raise Unavailable(f"no shim answers on {client.socket}")
    while True:
        with contextlib.suppress(Unavailable):
            async with client.events() as stream:
                async for event in stream:
                    yield event
                return
        if not await _comes_back(client):
            return


async def _comes_back(client: Followed) -> bool:
    """Wait for the next front; False when the shim is gone instead."""
    for _ in range(int(RECONNECT_S / _LOOK_S)):
        if not is_listening(client.socket):
            return False
        with contextlib.suppress(Unavailable):
            await client.ready(_LOOK_S)
            return True
    raise Unavailable(f"the shim on {client.socket} is there, but does not answer")
