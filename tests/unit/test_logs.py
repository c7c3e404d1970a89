"""Reading logs: every record once, in order, however the files are cut, moved and damaged."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.errors import InvalidArgument
from shim.logs import LogReader, LogWatch, Record, files, parse_since, tail
from shim.logs.records import parse
from shim.logs.since import to_record_time

NAME = "0.log"
SECOND = 10**9
NOW = 1_700_000_000 * SECOND


def line(text: bytes, number: int = 0, stream: str = "stdout", tag: str = "F") -> bytes:
    """A record with its end, of so many nanoseconds after NOW."""
    return b"%s %s %s %s\n" % (to_record_time(NOW + number), stream.encode(), tag.encode(), text)


class Log:
    """Writes and rotates a log as the keeper does."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.folder = folder
        self.count = count
        (folder / NAME).touch()

    def path(self, number: int) -> Path:
        return self.folder / (f"{NAME}.{number}" if number else NAME)

    def write(self, data: bytes) -> None:
        with self.path(0).open("ab") as file:
            file.write(data)

    def rotate(self, step: Callable[[], object] = lambda: None) -> None:
        """See `move_on` in log.pxd; `step` is called between all that it does."""
        number = 0
        while number < self.count - 1 and self.path(number).exists():
            number += 1
        step()
        self.path(number).unlink(missing_ok=True)
        for each in range(number, 0, -1):
            step()
            self.path(each - 1).rename(self.path(each))
        step()
        self.path(0).touch(exist_ok=False)
        step()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@contextmanager
def reading(folder: Path, since: int = 0, tail: int | None = None) -> Iterator[LogReader]:
    directory = os.open(folder, os.O_PATH)
    try:
        with LogReader(directory, NAME, since, tail) as reader:
            yield reader
    finally:
        os.close(directory)


def texts(reader: LogReader) -> list[bytes]:
    return [record.text for record in reader.read()]


def read_all(folder: Path, since: int = 0, tail: int | None = None) -> list[bytes]:
    with reading(folder, since, tail) as reader:
        return texts(reader) + [record.text for record in reader.rest()]


# -- records


@pytest.mark.parametrize("text", [b"", b" ", b"a word", b"\x00\xff\r", b"x" * 20000])
@pytest.mark.parametrize("tag", ["P", "F"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_record_is_read(text: bytes, tag: str, stream: str) -> None:
    record = parse(line(text, 5, stream, tag)[:-1])
    assert record == Record(to_record_time(NOW + 5), stream.encode(), tag == "F", text)


@given(st.binary())
def test_whatever_else_is_on_a_line_is_shown_as_it_stands(text: bytes) -> None:
    assert parse(text) == Record(b"", b"", True, text)


@given(st.binary().filter(lambda text: b"\n" not in text), st.integers(0, 60))
def test_a_record_that_is_cut_is_shown_as_it_stands(text: bytes, at: int) -> None:
    whole = line(text)[:-1]
    found = parse(whole[:at])
    assert found.text in (whole[:at], whole[40:at])


# -- times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5m", NOW - 300 * SECOND),
        ("1h30m", NOW - 5400 * SECOND),
        ("2d1s", NOW - 172801 * SECOND),
        ("999999999d", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-31T23:59:59Z", 1769903999 * SECOND),
        ("2026-01-31t23:59:59.5z", 1769903999 * SECOND + SECOND // 2),
        ("2026-01-31 23:59:59.000000001+01:00", 1769900399 * SECOND + 1),
        ("9999-12-31T23:59:59.999999999Z", 253402300800 * SECOND - 1),
    ],
)
def test_a_time_is_absolute_or_so_long_ago(text: str, expected: int) -> None:
    assert parse_since(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "5", "m", "-5m", "5M", "5 m", "1.5h", "\u0665m", "9999999999s", "yesterday"),
        *("2026-01-31", "2026-01-31T23:59:59", "2026-02-31T00:00:00Z", "2026-01-31T24:00:01Z"),
        *("1969-12-31T23:59:59Z", "0001-01-01T00:00:00+01:00", "2026-01-31T23:59:59+25:00"),
        "2026-01-31T23:59:59.1234567890Z",
    ],
)
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match="give one as"):
        parse_since(text, NOW)


def test_times_compare_as_records_have_them() -> None:
    times = [0, 1, SECOND - 1, SECOND, NOW, NOW + 1, 253402300800 * SECOND - 1]
    assert sorted(map(to_record_time, times)) == [to_record_time(time) for time in times]
    assert to_record_time(NOW + 7) == b"2023-11-14T22:13:20.000000007Z"


# -- files


def test_all_files_are_read_the_oldest_first(log: Log) -> None:
    for number in range(5):
        log.write(line(b"%d" % number))
        log.rotate()
    log.write(line(b"5"))
    assert read_all(log.folder) == [b"3", b"4", b"5"]


def test_a_gap_in_the_numbers_is_no_end(log: Log) -> None:
    """A keeper that has died over a rotation leaves one."""
    for number in range(2):
        log.write(line(b"%d" % number))
        log.rotate()
    log.path(2).rename(log.path(7))
    log.path(0).unlink()
    assert read_all(log.folder) == [b"0", b"1"]


def test_what_is_no_regular_file_is_left_out(log: Log) -> None:
    log.write(line(b"0"))
    os.mkfifo(log.path(1))
    log.path(2).mkdir()
    log.path(3).symlink_to(log.path(0))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(log.path(4)))
    log.path(5).write_bytes(line(b"5"))
    assert read_all(log.folder) == [b"5", b"0"]


def test_no_log_is_nothing(tmp_path: Path) -> None:
    with reading(tmp_path) as reader:
        assert not reader.exists()
        assert texts(reader) == []
        Log(tmp_path).write(line(b"first"))
        assert reader.exists()
        assert texts(reader) == [b"first"]


def test_a_record_is_given_once_it_is_whole(log: Log) -> None:
    whole = line(b"words")
    with reading(log.folder) as reader:
        log.write(whole[:10])
        assert texts(reader) == []
        log.write(whole[10:] + whole[:45])
        assert texts(reader) == [b"words"]
        assert [record.text for record in reader.rest()] == [b"words"]
        log.write(whole)
        assert texts(reader) == [b"words"]


def test_a_record_whose_writer_has_died_is_shown_without_its_end(log: Log) -> None:
    log.write(line(b"whole") + line(b"torn")[:-3])
    with reading(log.folder) as reader:
        list(reader.read())
        assert list(reader.rest()) == [Record(to_record_time(NOW), b"stdout", False, b"to")]
    log.rotate()
    log.write(line(b"next"))
    assert read_all(log.folder) == [b"whole", b"to", b"next"]


def test_damaged_lines_are_shown_between_the_others(log: Log) -> None:
    long = b"\0" * (files.LONGEST + files.BLOCK)
    log.write(b"\n" + line(b"a") + b"no record\n" + line(b"b") + long + b"\n" + line(b"c"))
    found = read_all(log.folder)
    assert found[:4] == [b"", b"a", b"no record", b"b"]
    assert (b"".join(found[4:-1]), found[-1]) == (long, b"c")


def test_a_file_that_is_cut_is_read_from_its_beginning(log: Log) -> None:
    log.write(line(b"long enough") * 2)
    with reading(log.folder) as reader:
        assert len(texts(reader)) == 2
        os.truncate(log.path(0), 0)
        log.write(line(b"new"))
        assert texts(reader) == [b"new"]


def test_a_log_that_is_removed_and_made_again_is_read_on(log: Log) -> None:
    log.write(line(b"old"))
    with reading(log.folder) as reader:
        assert texts(reader) == [b"old"]
        log.path(0).unlink()
        assert texts(reader) == []
        log.path(0).write_bytes(line(b"new"))
        assert texts(reader) == [b"new"]
        assert not reader.lost


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_read_between_rotations_is_read_once(tmp_path: Path, count: int) -> None:
    """At every step of a rotation, and after."""
    log = Log(tmp_path, count)
    found: list[bytes] = []
    with reading(tmp_path) as reader:
        for number in range(30):
            log.write(line(b"%d" % number))
            log.rotate(lambda: found.extend(texts(reader)))
        assert found == [b"%d" % number for number in range(30)]
        assert not reader.lost


def test_a_reader_begins_at_any_step_of_a_rotation(log: Log) -> None:
    for number in range(9):
        log.write(line(b"%d" % number))
        kept = [b"%d" % each for each in range(max(number - 2, 0), number + 1)]

        def look(kept: list[bytes] = kept) -> None:
            found = read_all(log.folder)
            assert found
            assert found == kept[-len(found) :]

        log.rotate(look)


def test_files_that_were_open_are_read_though_they_are_removed(log: Log) -> None:
    for number in range(2):
        log.write(line(b"%d" % number))
        log.rotate()
    with reading(log.folder) as reader:
        assert reader.exists()
        for number in range(2, 4):
            log.write(line(b"%d" % number))
            log.rotate()
        assert texts(reader) == [b"0", b"1", b"2", b"3"]
        assert not reader.lost


def test_what_was_removed_before_it_was_read_is_told(log: Log) -> None:
    log.write(line(b"first"))
    with reading(log.folder) as reader:
        assert texts(reader) == [b"first"]
        for number in range(9):
            log.rotate()
            log.write(line(b"%d" % number))
        assert texts(reader) == [b"6", b"7", b"8"]
        assert reader.lost


def test_rotations_that_come_at_any_moment_of_a_look_neither_hide_nor_double(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole rotations happen between any two system calls of the one who looks."""
    log = Log(tmp_path, 20)
    for number in range(20):
        log.write(line(b"%d" % number))
        log.rotate()
    opened, calls, next_number = files.LogFolder._first, 0, 20

    def first(folder: files.LogFolder, least: int) -> files.LogFile | None:
        nonlocal calls, next_number
        calls += 1
        for _ in range(calls % 4):
            log.write(line(b"%d" % next_number))
            log.rotate()
            next_number += 1
        return opened(folder, least)

    monkeypatch.setattr(files.LogFolder, "_first", first)
    with reading(tmp_path) as reader:
        assert reader.exists()
        monkeypatch.undo()
        found = [int(text) for text in texts(reader)]
    assert next_number > 30
    assert found == list(range(found[0], next_number))


def test_what_comes_right_before_a_rotation_is_read(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the reader has met the file's end, and before it looks for the next file."""
    look, number = files.LogFolder.newer_than, 0

    def newer_than(
        folder: files.LogFolder, known: files.LogFile | None
    ) -> tuple[list[files.LogFile], bool]:
        nonlocal number
        if known is not None and number < 9:
            log.write(line(b"%d" % number))
            log.rotate()
            number += 1
        return look(folder, known)

    monkeypatch.setattr(files.LogFolder, "newer_than", newer_than)
    with reading(log.folder) as reader:
        assert texts(reader) == [b"%d" % each for each in range(9)]


# -- since


def test_only_what_came_since_is_shown(log: Log) -> None:
    log.write(b"damaged\n" + line(b"a", 1) + b"damaged a\n" + line(b"b", 2) + b"damaged b\n")
    log.rotate()
    log.write(line(b"c", 3))
    assert read_all(log.folder, since=NOW + 2) == [b"b", b"damaged b", b"c"]
    assert read_all(log.folder, since=NOW + 4) == []


def test_a_file_that_has_not_changed_since_is_not_read(log: Log) -> None:
    """But for one that was written to a moment before: its time is the kernel's last tick."""
    log.write(line(b"odd", 9 * SECOND))
    os.utime(log.path(0), ns=(NOW, NOW))
    log.rotate()
    log.write(line(b"next", 9 * SECOND))
    assert read_all(log.folder, since=NOW + 2 * SECOND) == [b"next"]
    assert read_all(log.folder, since=NOW + SECOND // 2) == [b"odd", b"next"]


# -- tail


STREAMS = ("stdout", "stderr")
a_record = st.tuples(st.sampled_from(STREAMS), st.sampled_from("PF"), st.booleans())
# Records, and where another file begins.
a_log = st.lists(st.tuples(a_record, st.booleans()), max_size=40)


def last_of(records: list[Record], count: int) -> list[Record]:
    """A plain reading of what the last lines are."""
    lines: list[list[int]] = []
    current: dict[bytes, list[int]] = {}
    for number, record in enumerate(records):
        if record.stream == b"":
            lines.append([number])
            continue
        belongs = current.setdefault(record.stream, [])
        if not belongs:
            lines.append(belongs)
        belongs.append(number)
        if record.whole:
            del current[record.stream]
    wanted = sorted(lines, key=lambda numbers: numbers[-1])[-count:] if count else []
    return [records[number] for number in sorted(number for each in wanted for number in each)]


@settings(deadline=None)
@given(a_log, st.integers(0, 12), st.sampled_from([7, 64, 4096]))
def test_the_last_lines_are_those_of_a_plain_reading(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[tuple[str, str, bool], bool]],
    count: int,
    block: int,
) -> None:
    log = Log(tmp_path_factory.mktemp("log"), 100)
    for number, ((stream, tag, damaged), moves) in enumerate(parts):
        text = b"text %d" % number
        log.write(text + b"\n" if damaged else line(text, number, stream, tag))
        if moves:
            log.rotate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", block)
        with reading(log.folder) as reader:
            everything = list(reader.read())
        with reading(log.folder, tail=count) as reader:
            assert list(reader.read()) == last_of(everything, count)
            log.write(line(b"more"))
            assert texts(reader) == [b"more"]
    assert len(everything) == len(parts)


def test_a_tail_is_of_whole_lines_and_goes_on(log: Log) -> None:
    log.write(line(b"a") + line(b"b", tag="P") + line(b"c") + line(b"d")[:-2])
    with reading(log.folder, tail=1) as reader:
        assert texts(reader) == [b"b", b"c"]
        log.write(b"d\n" + line(b"e"))
        assert texts(reader) == [b"d", b"e"]


def test_of_the_last_lines_those_are_shown_that_came_since(log: Log) -> None:
    for number in range(5):
        log.write(line(b"%d" % number, number))
    assert read_all(log.folder, NOW + 3, tail=4) == [b"3", b"4"]
    assert read_all(log.folder, NOW + 1, tail=2) == [b"3", b"4"]


def test_no_more_is_read_for_a_tail_than_has_to_be() -> None:
    backwards = iter([line(b"%d" % number)[:-1] for number in range(9)])
    assert [record.text for record in tail.last_lines(backwards, 2)] == [b"1", b"0"]
    assert len(list(backwards)) == 6


def test_a_tail_does_not_look_for_a_line_s_beginning_for_ever(log: Log) -> None:
    """Else one word on stderr would have all of a long log read."""
    before = line(b"x" * 10000)
    log.write(line(b"far", stream="stderr", tag="P"))
    log.write(before * (2 * tail.LOOK_BACK // len(before)))
    log.write(line(b"near", stream="stderr") + line(b"last"))
    assert read_all(log.folder, tail=2) == [b"near", b"last"]
    log.rotate()
    log.write(line(b"far", stream="stderr", tag="P") + before)
    log.write(line(b"near", stream="stderr") + line(b"last"))
    assert read_all(log.folder, tail=2) == [b"far", b"near", b"last"]


# -- watching


async def test_who_watches_learns_of_every_record(log: Log) -> None:
    directory = os.open(log.folder, os.O_PATH)
    with LogWatch(directory) as watch:
        log.write(line(b"a"))
        await asyncio.wait_for(watch.grown(), 10)
        waiting = asyncio.ensure_future(watch.grown())
        assert not (await asyncio.wait([waiting], timeout=0.1))[0]
        log.rotate()
        log.write(line(b"b"))
        await asyncio.wait_for(waiting, 10)
    os.close(directory)
