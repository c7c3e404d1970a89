"""Where a container's events go."""

from __future__ import annotations

from typing import Protocol

from shim.events import EventLog
from shim.model import CreateRequest, Event, EventType


class Teller(Protocol):
    """Tells each event of one container once, in order, whatever dies in between."""

    def tell(self, event: Event, owner: int, number: int = 0) -> None:
        """Tell `event`, about the process that the keeper follows as `owner`, unless it was told.

        number: of an event that happens again and again; only a higher one is told then.
        """

    def describe(self, request: CreateRequest) -> None:
        """What the event CREATE will say of the container."""

    def knows_created(self, marks: int) -> bool:
        """Whether CREATE has been told for good, by the marks of the container's init process."""

    def withdraw(self, id: str) -> None:
        """The container did not come to be: take back, if possible, that it was created."""


class LogTeller:
    """The events of a container of 2017: they wait in a log for whoever reads them."""

    _KNOWN = frozenset(
        {
            EventType.CREATE,
            EventType.START,
            EventType.EXEC_ADDED,
            EventType.PAUSED,
            EventType.OOM,
            EventType.EXIT,
        }
    )

    def __init__(self, events: EventLog) -> None:
        self._events = events

    def tell(self, event: Event, owner: int, number: int = 0) -> None:
        """An event that waits for its first reader is not told again."""
        if event.type in self._KNOWN and not self._events.holds(event):
            self._events.publish(event)

    def describe(self, request: CreateRequest) -> None:
        """The service of 2017 tells no more than that it was created."""

    def knows_created(self, marks: int) -> bool:
        """Never: what waits in the log can be taken back."""
        return False

    def withdraw(self, id: str) -> None:
        """Raises OSError."""
        self._events.withdraw(id, EventType.CREATE)


class Silence:
    """Nobody hears of the container any more: its containerd has been told by other means."""

    def tell(self, event: Event, owner: int, number: int = 0) -> None:
        """Nothing."""

    def describe(self, request: CreateRequest) -> None:
        """Nothing."""

    def knows_created(self, marks: int) -> bool:
        """Never."""
        return False

    def withdraw(self, id: str) -> None:
        """Nothing."""
