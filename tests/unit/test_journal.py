import os
import stat

import pytest

from shim.journal import Journal
from shim.model import Event, EventType
from shim.store import CorruptState

EVENTS = [
    Event("c1", EventType.CREATE, 10),
    Event("c1", EventType.EXEC_ADDED, 11),
    Event('c"\n', EventType.EXIT, 11, 137, 1_500_000_000_123_456_789),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events"


@pytest.fixture
def journal(path):
    journal = Journal(path)
    yield journal
    journal.close()


def loaded(path):
    journal = Journal(path)
    try:
        return journal.load()
    finally:
        journal.close()


def test_a_new_journal_is_empty_and_private(journal, path):
    assert journal.load() == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_events_come_back_in_order(journal, path):
    for event in EVENTS:
        journal.append(event)
    assert journal.load() == loaded(path) == EVENTS


def test_each_event_is_one_line(journal, path):
    for event in EVENTS:
        journal.append(event)
    assert path.read_bytes().count(b"\n") == len(EVENTS)


def test_clear_forgets_and_appending_goes_on(journal, path):
    journal.append(EVENTS[0])
    journal.clear()
    assert loaded(path) == []
    journal.append(EVENTS[1])
    assert loaded(path) == EVENTS[1:2]


def test_a_torn_last_line_is_cut_off_wherever_it_tore(journal, path):
    for event in EVENTS:
        journal.append(event)
    whole = path.read_bytes()
    last = whole.rfind(b"\n", 0, -1) + 1
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        assert journal.load() == EVENTS[:2]
        journal.append(EVENTS[2])
        assert journal.load() == EVENTS


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"1", b'{"type": "none"}', b'{"type": "exit", "more": 1}', b"\xff"],
)
def test_a_line_that_is_no_event_is_named(journal, path, line):
    journal.append(EVENTS[0])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(CorruptState, match=f"{path}:2"):
        journal.load()


def test_a_strike_takes_off_the_oldest_that_is_left(journal, path):
    for event in EVENTS:
        journal.append(event)
    journal.strike()
    journal.strike()
    assert loaded(path) == EVENTS[2:]
    journal.append(EVENTS[0])
    journal.strike()
    assert loaded(path) == EVENTS[:1]


def test_a_strike_without_an_event_is_named(journal, path):
    journal.strike()
    with pytest.raises(CorruptState, match=f"{path}:1"):
        journal.load()


def test_rewrite_replaces_all_and_appending_goes_on(journal, path):
    for event in EVENTS:
        journal.append(event)
    before = len(os.listdir("/proc/self/fd"))
    journal.rewrite(EVENTS[1:2])
    assert len(os.listdir("/proc/self/fd")) == before
    assert loaded(path) == EVENTS[1:2]
    journal.append(EVENTS[2])
    assert loaded(path) == EVENTS[1:]
    assert os.listdir(path.parent) == [path.name]


def test_a_failing_rewrite_changes_nothing(journal, path):
    journal.append(EVENTS[0])
    before = len(os.listdir("/proc/self/fd"))
    path.rename(path.with_name("moved"))
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        journal.rewrite(EVENTS)
    assert len(os.listdir("/proc/self/fd")) == before
    assert journal.load() == EVENTS[:1]
    assert sorted(os.listdir(path.parent)) == ["events", "moved"]


def test_half_a_line_does_not_stay(journal, path, monkeypatch):
    journal.append(EVENTS[0])
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:5]))
    with pytest.raises(OSError, match="only 5 of"):
        journal.append(EVENTS[1])
    monkeypatch.undo()
    journal.append(EVENTS[2])
    assert loaded(path) == [EVENTS[0], EVENTS[2]]


def test_a_symbolic_link_is_not_followed(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Journal(path)
    assert not (tmp_path / "elsewhere").exists()
