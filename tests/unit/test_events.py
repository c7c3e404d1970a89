import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim import events
from shim.errors import ResourceExhausted
from shim.events import EventLog
from shim.journal import Journal
from shim.model import Event, EventType


def event(number):
    return Event("c", EventType.EXIT, number)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "events")
    yield journal
    journal.close()


@pytest.fixture
def log(journal):
    return EventLog(journal)


def publish(log, *numbers):
    for number in numbers:
        log.publish(event(number))


async def take(reader, count, deliver=True):
    """The next `count` pids."""
    taken = [await anext(reader) for _ in range(count)]
    for one in taken if deliver else ():
        reader.delivered(one)
    return [one.pid for one in taken]


async def test_every_reader_gets_every_event(log):
    first, second = log.subscribe(), log.subscribe()
    publish(log, 1, 2)
    assert await take(first, 2) == await take(second, 2) == [1, 2]


async def test_a_waiting_reader_is_woken(log):
    reader = log.subscribe()
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    publish(log, 1)
    assert await waiting == event(1)


async def test_what_happened_while_nobody_listened_is_replayed_once(log, journal):
    publish(log, 1, 2)
    reader = log.subscribe()
    publish(log, 3)
    assert await take(reader, 3) == [1, 2, 3]
    later = log.subscribe()
    publish(log, 4)
    assert await take(later, 1) == [4]


async def test_what_was_taken_but_not_delivered_goes_to_the_next_in_order(log):
    reader = log.subscribe()
    publish(log, 1, 2, 3, 4, 5, 6)
    await take(reader, 3)
    await take(reader, 2, deliver=False)
    reader.close()
    publish(log, 7)
    assert await take(log.subscribe(), 4) == [4, 5, 6, 7]


async def test_a_reader_that_comes_before_the_former_is_seen_to_go_misses_nothing(log):
    gone = log.subscribe()
    publish(log, 1, 2)
    await take(gone, 1, deliver=False)
    reader = log.subscribe()
    publish(log, 3)
    gone.close()
    assert await take(reader, 3) == [1, 2, 3]


async def test_a_delivery_may_be_reported_after_close(log):
    reader = log.subscribe()
    publish(log, 1, 2)
    taken = await anext(reader)
    reader.close()
    reader.delivered(taken)
    assert await take(log.subscribe(), 1) == [2]


async def test_only_the_oldest_taken_can_be_delivered(log):
    reader = log.subscribe()
    publish(log, 1, 2)
    with pytest.raises(ValueError, match="pid=1"):
        reader.delivered(event(1))
    await take(reader, 2, deliver=False)
    with pytest.raises(ValueError, match="pid=2"):
        reader.delivered(event(2))
    reader.delivered(event(1))
    reader.delivered(event(2))


async def test_equal_events_are_two_events(log):
    publish(log, 1, 1)
    reader = log.subscribe()
    await take(reader, 1)
    reader.close()
    again = log.subscribe()
    publish(log, 2)
    assert await take(again, 2) == [1, 2]


async def test_the_log_holds_what_no_reader_has_had(log, monkeypatch):
    monkeypatch.setattr(events, "LIMIT", 2)
    publish(log, 1, 1)
    reader = log.subscribe()
    await take(reader, 1)
    assert log.holds(event(1)), "there were two"
    await take(reader, 1)
    assert not log.holds(event(1))
    reader.close()
    publish(log, 2, 3, 4)
    assert [log.holds(event(number)) for number in (2, 3, 4)] == [False, True, True]


async def test_close_ends_the_iteration_even_of_a_waiting_reader(log):
    reader = log.subscribe()
    waiting = asyncio.create_task(anext(reader, None))
    await asyncio.sleep(0)
    reader.close()
    reader.close()
    assert await waiting is None
    publish(log, 1)
    assert [one async for one in reader] == []


async def test_a_cancelled_wait_loses_no_event(log):
    reader = log.subscribe()
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    publish(log, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await take(reader, 1) == [1]


async def test_the_journal_keeps_what_nobody_has_and_is_emptied_then(log, journal):
    reader = log.subscribe()
    publish(log, 1, 2)
    await take(reader, 1)
    assert [one.pid for one in journal.load()] == [2]
    await take(reader, 1)
    assert journal.load() == []


async def test_what_has_been_delivered_is_not_told_by_the_next_process(log, journal):
    publish(log, 1, 2, 3)
    await take(log.subscribe(), 2)
    assert await take(EventLog(journal).subscribe(), 1) == [3]


async def test_what_was_dropped_is_struck_off(log, journal, monkeypatch):
    monkeypatch.setattr(events, "LIMIT", 2)
    publish(log, 1, 2, 3)
    await take(log.subscribe(), 1)
    assert [one.pid for one in journal.load()] == [3]


async def test_what_the_journal_never_had_is_not_struck_off(log, journal, monkeypatch):
    def full(event):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", full)
        publish(log, 1)
    publish(log, 2)
    reader = log.subscribe()
    await take(reader, 1)
    assert [one.pid for one in journal.load()] == [2]


async def test_a_new_process_goes_on_from_the_journal(log, journal):
    publish(log, 1, 2)
    successor = EventLog(journal)
    publish(successor, 3)
    reader = successor.subscribe()
    assert await take(reader, 3) == [1, 2, 3]
    assert journal.load() == []


async def test_the_backlog_is_bounded_and_drops_the_oldest(log, caplog):
    publish(log, *range(events.LIMIT + 2))
    assert log.dropped == 2
    assert "pid=1" in caplog.text
    reader = log.subscribe()
    assert await take(reader, events.LIMIT) == list(range(2, events.LIMIT + 2))
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_a_reader_too_slow_is_ended_and_the_others_are_not(log):
    slow, quick = log.subscribe(), log.subscribe()
    for number in range(events.LIMIT):
        publish(log, number)
        await take(quick, 1)
    assert await take(slow, 1) == [0]
    publish(log, -1)
    publish(log, -2)
    with pytest.raises(ResourceExhausted, match="behind"):
        await anext(slow)
    assert await take(quick, 2) == [-1, -2]
    assert await take(log.subscribe(), 0) == []


async def test_a_reader_is_not_ended_for_the_backlog_it_began_with(log):
    publish(log, *range(events.LIMIT))
    reader = log.subscribe()
    publish(log, -1)
    assert await take(reader, events.LIMIT + 1) == [*range(events.LIMIT), -1]


async def test_the_journal_is_bounded_though_never_empty(log, journal):
    reader = log.subscribe()
    publish(log, 0)
    for number in range(1, 2 * events.LIMIT + 2):
        publish(log, number)
        await take(reader, 1)
    assert [one.pid for one in journal.load()] == [number]


async def test_publishing_goes_on_without_the_journal(log, journal, monkeypatch, caplog):
    def full(event):
        raise OSError(28, "No space left on device")

    reader = log.subscribe()
    monkeypatch.setattr(journal, "append", full)
    publish(log, 1)
    assert "No space left" in caplog.text
    assert await take(reader, 1) == [1]


class Model:
    """What must come out: lists of what nobody has, which the journal has, and one per reader."""

    def __init__(self):
        self.undelivered = []
        self.queues = {}
        self.taken = {}
        self.published = 0

    def publish(self):
        self.published += 1
        for queue in (self.undelivered, *self.queues.values()):
            queue.append(self.published)

    def subscribe(self, name):
        self.queues[name], self.taken[name] = list(self.undelivered), []

    def take(self, name):
        self.taken[name].append(self.queues[name].pop(0))
        return self.taken[name][-1]

    def deliver(self, name):
        number = self.taken[name].pop(0)
        if number in self.undelivered:
            self.undelivered.remove(number)
        return number

    def close(self, name):
        del self.queues[name], self.taken[name]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish", "subscribe", "take", "take", "deliver", "close"]),
        st.integers(0, 9),
    ),
    max_size=60,
)


class Run:
    """Does the same to the model and to the real thing, and compares."""

    def __init__(self, log):
        self.log = log
        self.model = Model()
        self.readers = {}

    async def step(self, operation, which):
        if operation == "publish":
            self.model.publish()
            publish(self.log, self.model.published)
        elif operation == "subscribe":
            name = len(self.readers)
            self.readers[name] = self.log.subscribe()
            self.model.subscribe(name)
        elif self.model.queues:
            names = list(self.model.queues)
            await getattr(self, operation)(names[which % len(names)])

    async def take(self, name):
        if self.model.queues[name]:
            assert (await anext(self.readers[name])).pid == self.model.take(name)

    async def deliver(self, name):
        if self.model.taken[name]:
            self.readers[name].delivered(event(self.model.deliver(name)))

    async def close(self, name):
        self.readers[name].close()
        self.model.close(name)


@settings(deadline=None)
@given(operations=OPERATIONS)
def test_it_does_what_the_model_does(tmp_path_factory, operations):
    journal = Journal(tmp_path_factory.mktemp("journal") / "events")

    async def scenario():
        run = Run(EventLog(journal))
        for operation, which in operations:
            await run.step(operation, which)
        assert [one.pid for one in journal.load()] == run.model.undelivered
        last, expected = run.log.subscribe(), run.model.undelivered
        assert await take(last, len(expected), deliver=False) == expected

    asyncio.run(scenario())
    journal.close()


async def test_what_did_not_come_to_be_is_withdrawn(tmp_path):
    """A front died between an event and its state: nobody hears of it."""
    path = tmp_path / "events"
    before = Journal(path)
    created = Event("half-made", EventType.CREATE, 7)
    others = [Event("other", EventType.CREATE, 8), Event("half-made", EventType.START, 7)]
    log = EventLog(before)
    for published in (others[0], created, others[1]):
        log.publish(published)
    before.close()
    again = Journal(path)
    successor = EventLog(again)
    successor.withdraw("half-made", EventType.CREATE)
    assert not successor.holds(created)
    assert again.load() == others
    again.close()
