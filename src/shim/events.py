"""Events from the one who sees them to everybody who listens.

Every reader gets every event that is published while it listens, and before them those that
no reader has had so far. An event has been had once a reader says `delivered`. So a reader that
goes away leaves nothing behind that the next one would miss, and nobody gets an event twice,
except after the death of the process: then the one that was on its way may come again, first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, OrderedDict, deque
from typing import Self

from shim.errors import ResourceExhausted
from shim.journal import Journal
from shim.model import Event, EventType

LIMIT = 16_384

_log = logging.getLogger(__name__)


class EventLog:
    """Distributes events. All methods are for the event loop's thread and never wait.

    Takes over what `journal`, which it borrows, has from a former process.
    Raises what `Journal.load` raises.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._numbers = itertools.count()
        # What no reader has had, by number, oldest first; at most LIMIT.
        self._undelivered: OrderedDict[int, Event] = OrderedDict()
        self._waiting: Counter[Event] = Counter()  # the same: how many are alike
        self._subscriptions: set[Subscription] = set()
        self._lines = 0  # in the journal
        self._unrecorded: set[int] = set()  # what the journal could not take
        self.dropped = 0  # undelivered events given up, because there were more than LIMIT
        for event in journal.load():
            self._lines += 1
            self._keep(event)

    def publish(self, event: Event) -> None:
        """Record `event` and queue it for every reader.

        If the journal cannot be written, that is logged, and the event goes to the readers all
        the same: it is then lost only if this process dies before one has it.
        """
        number = self._keep(event)
        try:
            self._record(event)
        except OSError as error:
            self._unrecorded.add(number)
            _log.error("event not in the journal: %s: %s", event, error)
        for subscription in list(self._subscriptions):
            subscription._put(number, event)

    def holds(self, event: Event) -> bool:
        """Whether this very event waits for its first reader."""
        return self._waiting[event] > 0

    def withdraw(self, id: str, type: EventType) -> None:
        """Take back what no reader has had: it did not come to be. Before the first `subscribe`.

        Raises OSError.
        """
        for number, event in list(self._undelivered.items()):
            if (event.id, event.type) == (id, type):
                self._take(number)
        self._rewrite()

    def subscribe(self) -> Subscription:
        """A new reader, with all undelivered events in its queue. The caller closes it."""
        subscription = Subscription(self, self._undelivered)
        self._subscriptions.add(subscription)
        return subscription

    def _keep(self, event: Event) -> int:
        number = next(self._numbers)
        self._undelivered[number] = event
        self._waiting[event] += 1
        if len(self._undelivered) > LIMIT:
            oldest = next(iter(self._undelivered))
            lost = self._take(oldest)
            self._strike(oldest)
            self.dropped += 1
            if self.dropped.bit_count() == 1:  # ever less often: maybe nobody will ever listen
                text = "too many undelivered events; dropped (%d by now): %s"
                _log.error(text, self.dropped, lost)
        return number

    def _take(self, number: int) -> Event:
        event = self._undelivered.pop(number)
        self._waiting[event] -= 1
        if not self._waiting[event]:
            del self._waiting[event]
        return event

    def _record(self, event: Event) -> None:
        if self._lines < 2 * LIMIT:
            self._journal.append(event)
            self._lines += 1
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        """A reader that is never quite done would make the file grow for ever."""
        self._journal.rewrite(self._undelivered.values())
        self._lines = len(self._undelivered)
        self._unrecorded.clear()

    def _delivered(self, number: int) -> None:
        if number in self._undelivered:
            self._take(number)
            self._strike(number)

    def _strike(self, number: int) -> None:
        """Take the oldest event off the journal: events are delivered, or dropped, in order."""
        try:
            if not self._undelivered:
                self._journal.clear()
                self._lines = 0
                self._unrecorded.clear()
            elif number in self._unrecorded:
                self._unrecorded.remove(number)
            elif self._lines < 2 * LIMIT:
                self._journal.strike()
                self._lines += 1
            else:
                self._rewrite()
        except OSError as error:
            _log.error("a delivered event stays in the journal: %s", error)

    def _leave(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)


class Subscription:
    """One reader's queue: an async iterator for one task, from `EventLog.subscribe`.

    A reader that falls LIMIT events behind, not counting those that it began with, is ended.
    """

    def __init__(self, log: EventLog, undelivered: OrderedDict[int, Event]) -> None:
        self._log = log
        self._queue = deque(undelivered.items())
        self._capacity = len(undelivered) + LIMIT
        self._taken: deque[tuple[int, Event]] = deque()  # by the reader, not yet delivered
        self._changed = asyncio.Event()
        self._closed = False
        self._overrun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event, which stays undelivered until `delivered` is called with it.

        Ends after `close`. Raises ResourceExhausted when the reader has been too slow; what it
        has not delivered goes to the next reader.
        """
        while not self._queue:
            self._check_open()
            self._changed.clear()
            await self._changed.wait()
        entry = self._queue.popleft()
        self._taken.append(entry)
        return entry[1]

    def delivered(self, event: Event) -> None:
        """Say that `event`, the oldest taken and not yet delivered, has reached the client.

        Right even after `close`: the write may have been under way. Raises ValueError for any
        other event.
        """
        if not self._taken or self._taken[0][1] != event:
            raise ValueError(f"{event} is not the next event to be delivered")
        number, _ = self._taken.popleft()
        self._log._delivered(number)

    def close(self) -> None:
        """Stop reading; what is not delivered goes to the next reader. May be repeated."""
        self._closed = True
        self._end()

    def _put(self, number: int, event: Event) -> None:
        if len(self._queue) == self._capacity:
            self._overrun = True
            self._end()
        else:
            self._queue.append((number, event))
            self._changed.set()

    def _end(self) -> None:
        self._log._leave(self)
        self._queue.clear()
        self._changed.set()

    def _check_open(self) -> None:
        if self._closed:
            raise StopAsyncIteration
        if self._overrun:
            raise ResourceExhausted(
                f"the reader of events is more than {self._capacity} events behind; subscribe "
                "again, and read faster"
            )
