"""Calls that survive the death of the shim's front."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from shim.errors import FailedPrecondition, NotFound, Unavailable

# A hung front is killed after some 15 s, and its successor may wait 5 s to start.
RECONNECT_S: Final = 30.0
# The shim itself gives a request to two fronts at most.
ATTEMPTS: Final = 3

_Answer = TypeVar("_Answer")


class Reconnects(Protocol):
    """A client whose front may die."""

    async def ready(self, timeout: float) -> None:
        """Return when the next front answers; Unavailable if none does within `timeout` s."""


async def steadily(client: Reconnects, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
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


async def once(
    client: Reconnects,
    make: Callable[[], Awaitable[_Answer]],
    find: Callable[[], Awaitable[_Answer]],
) -> _Answer:
    """The answer of `make`, which may not be called twice.

    When the front dies under it, its successor knows what became of it: `find` gives that, or
    raises NotFound or FailedPrecondition if nothing has been made.
    """
    try:
        return await make()
    except Unavailable:
        await client.ready(RECONNECT_S)
    try:
        return await steadily(client, find)
    except (NotFound, FailedPrecondition):
        return await make()
