"""Calls that survive the death of the shim's front."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from shim.client.calls import ShimClient
from shim.errors import Unavailable

# A hung front is killed after some 15 s, and its successor may wait 5 s to start.
RECONNECT_S: Final = 30.0
# The shim itself gives a request to two fronts at most.
ATTEMPTS: Final = 3

_Answer = TypeVar("_Answer")


async def steadily(client: ShimClient, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The answer of `call`, made again when the front dies under it.

    Only for calls that may be made twice. Raises Unavailable when the shim does not come back
    within RECONNECT_S, or the call fails ATTEMPTS times.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return await call()
        except Unavailable:
            await client.ready(RECONNECT_S)
    return await call()
