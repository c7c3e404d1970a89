"""Logs: every line is in the files once, whole, in order, in the CRI's format; see log.pxd."""

from __future__ import annotations

import datetime
import errno
import os
import pty
import random
import re
import resource
import subprocess
import tempfile
import time
import tty
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim.keeper.records import Flag, Kind, Record
from tests.native import harness
from tests.native.harness import Front, Keeper, wait_until
from tests.native.support import (
    background,
    close_all,
    cpu_ticks,
    fill,
    fill_for_good,
    make_fifo,
    non_blocking_pipe,
    wake_ups,
    write_all,
)

OUT, ERR, BARRIER, LOG = 50, 51, 52, 40
MIB = 1 << 20
MOST = 16 << 10  # bytes of text in one record
LEAST_LIMIT = 32 << 10
PREFIX = 40
FILE = "log"
NAMES = {0: b"stdout", Flag.STDERR: b"stderr"}


class Line(NamedTuple):
    """One record."""

    time: bytes
    stream: bytes
    tag: bytes
    text: bytes


RECORD = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) (.*)", re.DOTALL
)


def parse(data: bytes) -> list[Line]:
    """All records of a file, the last of which is whole, too."""
    assert data.endswith(b"\n") or not data
    found = []
    for line in data.split(b"\n")[:-1]:
        record = RECORD.fullmatch(line)
        assert record is not None, line[:100]
        found.append(Line(*record.groups()))
    return found


def records(lines: Iterable[Line]) -> list[tuple[bytes, bytes]]:
    """Their tags and texts."""
    return [(line.tag, line.text) for line in lines]


def expected(text: bytes) -> list[tuple[bytes, bytes]]:
    """The tags and texts of a stream's records: a plain reading of the format."""
    *lines, last = text.split(b"\n")
    found: list[tuple[bytes, bytes]] = []
    for line in lines:
        pieces = [line[at : at + MOST] for at in range(0, len(line), MOST)] or [b""]
        found += [(b"P", piece) for piece in pieces[:-1]] + [(b"F", pieces[-1])]
    return found + [(b"P", last[at : at + MOST]) for at in range(0, len(last), MOST)]


def in_files(
    wanted: Iterable[tuple[bytes, bytes]], limit: int, count: int
) -> list[list[tuple[bytes, bytes]]]:
    """What is in the last `count` files, the oldest first."""
    files: list[list[tuple[bytes, bytes]]] = [[]]
    size = 0
    for tag, text in wanted:
        length = PREFIX + len(text) + 1
        if size + length > limit:
            files.append([])
            size = 0
        files[-1].append((tag, text))
        size += length
    return files[-count:]


def paths(folder: Path) -> list[Path]:
    """The log's files, the oldest first; there is no gap."""
    numbered = {0 if path.name == FILE else int(path.suffix[1:]): path for path in folder.iterdir()}
    assert sorted(numbered) == list(range(len(numbered)))
    return [numbered[number] for number in sorted(numbered, reverse=True)]


def read_log(folder: Path) -> list[Line]:
    """The records of all files, in order."""
    return [line for path in paths(folder) for line in parse(path.read_bytes())]


def texts(lines: Iterable[Line], stream: bytes = b"stdout") -> list[bytes]:
    return [line.text for line in lines if line.stream == stream]


def ask_log(
    front: Front, id: int, folder: Path, source: int, flags: int = 0, limit: int = MIB,
    files: int = 3, log: int = LOG, name: bytes = FILE.encode(),
) -> Record:  # fmt: skip
    """Write the source's lines to the log in that folder; the source is the keeper's then."""
    directory = os.open(folder, os.O_PATH)
    reply = front.ask(
        Kind.LOG, source, directory, payload=name,
        id=id, owner=log, moved=limit, number=files, flags=flags,
    )  # fmt: skip
    close_all(source, directory)
    return reply


def new_source(non_blocking: bool = False) -> tuple[int, int]:
    """A pipe as a process has it for its output."""
    source, inner = os.pipe()
    os.set_blocking(source, False)
    os.set_blocking(inner, not non_blocking)
    return source, inner


def into_log(
    front: Front, id: int, folder: Path, flags: int = 0, non_blocking: bool = False, **options: int
) -> int:
    """Write a new pipe's lines to the log; the pipe's write end."""
    source, inner = new_source(non_blocking)
    assert ask_log(front, id, folder, source, flags, **options).error == 0
    return inner


def terminal_into_log(front: Front, id: int, folder: Path) -> int:
    """The same for a new raw terminal; its slave."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    assert ask_log(front, id, folder, master).error == 0
    return slave


def ended(front: Front, id: int = OUT) -> Record:
    """The report of the stream's end, which is then forgotten."""
    report = front.report(Kind.ENDED, id)
    assert front.ask(Kind.FORGET, id=id).error == 0
    return report


def trouble(front: Front, id: int = OUT) -> int:
    """The errno for which the log waits, or grows on."""
    reply = front.ask(Kind.STREAM, id=id)
    assert reply.error == 0
    return reply.status


def was_read(front: Front) -> None:
    """What was written before has been read: the turns for it are in the round of this request,
    or earlier; the report of another stream's end is sent after a later one."""
    source, inner = new_source()
    _, sink = ends = non_blocking_pipe()
    assert front.relay(BARRIER, source, os.dup(sink)).error == 0
    os.close(inner)
    ended(front, BARRIER)
    close_all(*ends)


def has_line(folder: Path, text: bytes) -> Callable[[], bool]:
    path = folder / FILE

    def has() -> bool:
        """A record that is just being written may be seen half."""
        data = path.read_bytes() if path.exists() else b""
        return text in texts(parse(data[: data.rfind(b"\n") + 1]))

    return has


def open_in(keeper: Keeper, folder: Path) -> list[str]:
    """What the keeper has open in the folder."""
    links = [os.readlink(link) for link in Path(f"/proc/{keeper.pid}/fd").iterdir()]
    return sorted(link for link in links if link.startswith(str(folder)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "logs"
    made.mkdir()
    return made


# ---- the format


def seconds(text: bytes) -> float:
    whole, _, rest = text.decode().rstrip("Z").partition(".")
    return datetime.datetime.fromisoformat(whole + "+00:00").timestamp() + int(rest) / 1e9


@pytest.mark.parametrize("flags", [0, Flag.STDERR])
def test_a_line(front: Front, folder: Path, flags: int) -> None:
    """Time in UTC, stream, tag, text."""
    inner = into_log(front, OUT, folder, flags)
    before = time.time()
    os.write(inner, b"a b\tc\n")
    os.close(inner)
    assert ended(front).moved == 6
    (line,) = read_log(folder)
    assert line[1:] == (NAMES[flags], b"F", b"a b\tc")
    assert len(line.time) == 30
    assert before - 1e-6 <= seconds(line.time) <= time.time()


def test_the_mode_of_files(folder: Path) -> None:
    """0640 whatever the umask is, after a rotation, too."""
    before = os.umask(0o077)
    try:
        with harness.keeper() as keeper:
            os.umask(before)
            inner = into_log(keeper.front, OUT, folder, limit=LEAST_LIMIT)
            write_all(inner, b"x" * 100_000)
            os.close(inner)
            ended(keeper.front)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o7777 for path in paths(folder)} == {0o640}


def test_all_bytes_are_kept(front: Front, folder: Path) -> None:
    """NUL, CR, what is no UTF-8: only the newline ends a line."""
    data = bytes(range(256)) * 3
    inner = into_log(front, OUT, folder)
    os.write(inner, data + b"\r\n\n")
    os.close(inner)
    assert ended(front).moved == len(data) + 3
    assert records(read_log(folder)) == expected(data + b"\r\n\n")


@pytest.mark.parametrize("size", [1, MOST - 1, MOST, MOST + 1, 2 * MOST, 2 * MOST + 1, 300_000])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_long_lines(front: Front, folder: Path, size: int, end: bytes) -> None:
    """Of 16 KiB a record, P until the last; what the stream ends in the middle of is P, too."""
    data = random.Random(size).randbytes(size).replace(b"\n", b" ") + end
    inner = into_log(front, OUT, folder)
    write_all(inner, data)
    os.close(inner)
    assert ended(front).moved == len(data)
    found = records(read_log(folder))
    assert found == expected(data)
    assert found[-1][0] == (b"F" if end else b"P")


def test_half_a_line_waits_for_the_rest(front: Front, folder: Path) -> None:
    """However it comes; it is one record, and is not counted before."""
    inner = into_log(front, OUT, folder)
    for piece in (b"first\nhal", b"f a l", b"in"):
        os.write(inner, piece)
        wait_until(has_line(folder, b"first"), "the first line")
    assert front.ask(Kind.STREAM, id=OUT).moved == 6
    os.write(inner, b"e\n")
    wait_until(has_line(folder, b"half a line"), "the second line")
    os.close(inner)
    assert ended(front).moved == 18
    assert len(read_log(folder)) == 2


def test_an_end_that_comes_late(front: Front, folder: Path) -> None:
    """A record is full, and its line may end with it: the keeper waits for the next byte."""
    inner = into_log(front, OUT, folder)
    data = b""
    for piece in (b"x" * MOST, b"\n", b"y" * MOST, b"z", b"\n", b"u" * MOST):
        os.write(inner, piece)
        data += piece
        was_read(front)
    os.close(inner)
    assert ended(front).moved == len(data)
    assert records(read_log(folder)) == expected(data)


def test_a_stream_that_stays(front: Front, folder: Path) -> None:
    """The source's end is none until SETTLE; half a line waits for it."""
    inner = into_log(front, OUT, folder, Flag.STAY)
    os.write(inner, b"whole\nhalf")
    os.close(inner)
    wait_until(has_line(folder, b"whole"), "the whole line")
    assert front.ask(Kind.FORGET, id=OUT).error == errno.EBUSY
    assert len(read_log(folder)) == 1
    assert front.ask(Kind.SETTLE, id=OUT).error == 0
    assert ended(front).moved == 10
    assert records(read_log(folder)) == expected(b"whole\nhalf")


def test_a_terminal(front: Front, folder: Path) -> None:
    """A hang-up is not the end, FINISH is."""
    slave = terminal_into_log(front, OUT, folder)
    name = os.ttyname(slave)
    os.write(slave, b"one\r\ntw")
    os.close(slave)
    wait_until(has_line(folder, b"one\r"), "the first line")
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"o\r\nthr")
    wait_until(has_line(folder, b"two\r"), "the second line")
    assert front.ask(Kind.RESIZE, id=OUT, number=30 << 16 | 100).error == 0
    assert os.get_terminal_size(slave) == (100, 30)
    os.close(slave)
    assert front.ask(Kind.FINISH, id=OUT).error == 0
    assert ended(front).moved == 13
    assert records(read_log(folder)) == expected(b"one\r\ntwo\r\nthr")


def test_a_long_output_of_a_terminal(front: Front, folder: Path) -> None:
    """2 MiB through a pty are exact."""
    data = random.Random(3).randbytes(2 * MIB)
    slave = terminal_into_log(front, OUT, folder)
    write_all(slave, data)
    assert front.ask(Kind.FINISH, id=OUT).error == 0
    assert ended(front).moved == len(data)
    os.close(slave)
    found = records(read_log(folder))
    assert found == [pair for file in in_files(expected(data), MIB, 3) for pair in file]


# ---- against a model


@pytest.fixture(scope="module")
def shared() -> Iterator[Keeper]:
    """One keeper for many examples."""
    with harness.keeper() as made:
        yield made


LENGTHS = st.one_of(
    st.integers(0, 200),
    st.sampled_from([MOST - 1, MOST, MOST + 1, 2 * MOST, 2 * MOST + 1, 3 * MOST, 70_000]),
)
WRITES = st.tuples(st.one_of(LENGTHS, st.integers(1, 100_000)), st.booleans())
TEXTS = st.lists(st.tuples(LENGTHS, st.sampled_from(b"ab\0\r\xff"), st.booleans()), max_size=80)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    pieces=TEXTS,
    writes=st.lists(WRITES, min_size=1, max_size=20),
    files=st.integers(1, 5),
    limit=st.integers(LEAST_LIMIT, 100_000),
)
def test_files_are_the_model_s(
    shared: Keeper,
    pieces: list[tuple[int, int, bool]],
    writes: list[tuple[int, bool]],
    files: int,
    limit: int,
) -> None:
    """Any text, cut anywhere for the keeper: each file holds exactly the records that it should."""
    data = b"".join(bytes([byte]) * size + b"\n" * end for size, byte, end in pieces)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inner = into_log(shared.front, OUT, folder, limit=limit, files=files)
        at = 0
        for size, waits in writes:
            write_all(inner, data[at : at + size])
            at += size
            if waits:
                was_read(shared.front)
        write_all(inner, data[at:])
        os.close(inner)
        report = ended(shared.front)
        found = [parse(path.read_bytes()) for path in paths(folder)]
    assert (report.moved, report.error) == (len(data), 0)
    assert [records(file) for file in found] == in_files(expected(data), limit, files)
    times = [line.time for file in found for line in file]
    assert times == sorted(times)


# ---- many lines


def write_numbers(descriptor: int, count: int, batch: int) -> None:
    """Lines with the numbers from 0, cut into writes anywhere; and close."""
    chance = random.Random(count)
    rest = b""
    for first in range(0, count, batch):
        last = min(first + batch, count)
        rest += b"".join(b"%d\n" % number for number in range(first, last))
        cut = chance.randrange(len(rest))
        write_all(descriptor, rest[:cut])
        rest = rest[cut:]
    write_all(descriptor, rest)
    os.close(descriptor)


def numbers_of(lines: Iterable[Line], stream: bytes) -> list[int]:
    return [int(text) for text in texts(lines, stream)]


def test_a_million_lines_of_two_streams(front: Front, folder: Path) -> None:
    """None is lost or torn, in 50 files that follow each other."""
    count, limit = 500_000, MIB
    out = into_log(front, OUT, folder, limit=limit, files=100)
    err = into_log(front, ERR, folder, Flag.STDERR, limit=limit, files=100)
    with (
        background(lambda: write_numbers(out, count, 1_000)),
        background(lambda: write_numbers(err, count, 7)),
    ):
        assert ended(front, OUT).moved == ended(front, ERR).moved
    sizes = [path.stat().st_size for path in paths(folder)]
    assert len(sizes) > 40
    assert max(sizes) <= limit
    assert min(sizes[:-1]) > limit - PREFIX - 10
    lines = read_log(folder)
    assert {line.tag for line in lines} == {b"F"}
    for stream in NAMES.values():
        assert numbers_of(lines, stream) == list(range(count))


def test_the_oldest_files_go(front: Front, folder: Path) -> None:
    """As many as were asked for are there, with the newest lines."""
    count = 100_000
    inner = into_log(front, OUT, folder, limit=100_000, files=4)
    write_numbers(inner, count, 100)
    ended(front)
    assert len(paths(folder)) == 4
    numbers = numbers_of(read_log(folder), b"stdout")
    assert numbers == list(range(numbers[0], count))


def test_a_single_file(front: Front, folder: Path) -> None:
    """It begins anew; who reads the old one has it still."""
    inner = into_log(front, OUT, folder, limit=LEAST_LIMIT, files=1)
    write_all(inner, b"x" * 100 + b"\n")
    wait_until(has_line(folder, b"x" * 100), "the first line")
    with (folder / FILE).open("rb") as reader:
        write_all(inner, b"y" * (MOST - 1) + b"\n" + b"z" * (MOST - 1) + b"\n")
        wait_until(has_line(folder, b"z" * (MOST - 1)), "the last line")
        assert texts(parse(reader.read())) == [b"x" * 100, b"y" * (MOST - 1)]
    os.close(inner)
    ended(front)
    assert os.listdir(folder) == [FILE]


def test_logs_of_many_processes(front: Front, tmp_path: Path) -> None:
    """Fifty at once, each in its own folder; all is written."""
    inner = []
    for number in range(50):
        (tmp_path / str(number)).mkdir()
        inner.append(into_log(front, 100 + number, tmp_path / str(number), log=1_000 + number))
    for line in range(200):
        for number, descriptor in enumerate(inner):
            os.write(descriptor, b"%d of %d\n" % (line, number))
    close_all(*inner)
    for number in range(50):
        ended(front, 100 + number)
        assert texts(read_log(tmp_path / str(number))) == [
            b"%d of %d" % (line, number) for line in range(200)
        ]


def test_empty_lines(front: Front, folder: Path, tmp_path: Path) -> None:
    """Each becomes a record, 41 times as long: another log's lines come between."""
    other = tmp_path / "other"
    other.mkdir()
    inner = into_log(front, OUT, folder, limit=100 * MIB, non_blocking=True)
    second = into_log(front, ERR, other, log=LOG + 1)
    for number in range(20):
        fill(inner, b"\n" * 4096)
        os.write(second, b"%d\n" % number)
        was_read(front)
        assert has_line(other, b"%d" % number)()
    close_all(inner, second)
    ended(front, ERR)
    count = ended(front, OUT).moved
    assert records(read_log(folder)) == [(b"F", b"")] * count


def test_an_idle_log_wakes_nobody(keeper: Keeper, front: Front, folder: Path) -> None:
    """Also after many small writes, which are gathered."""
    inner = into_log(front, OUT, folder, files=100)
    for number in range(50_000):
        os.write(inner, b"%d\n" % number)
    wait_until(has_line(folder, b"49999"), "the last line")
    subprocess.run(["/bin/sleep", "2.5"], check=True)  # a grown pipe shrinks meanwhile
    assert front.ask(Kind.PONG).error == 0
    before, ticks = wake_ups(keeper.pid), cpu_ticks(keeper.pid)
    subprocess.run(["/bin/sleep", "0.5"], check=True)  # the time in which nothing may happen
    assert wake_ups(keeper.pid) - before <= 1
    assert cpu_ticks(keeper.pid) - ticks <= 1
    os.close(inner)
    ended(front)
    assert numbers_of(read_log(folder), b"stdout") == list(range(50_000))


# ---- what is there already


def test_a_log_goes_on(front: Front, folder: Path) -> None:
    """A second process of the same name appends, and rotates what it has found."""
    for text in (b"first\n", b"second\n", b"x" * (MOST - 1) + b"\n", b"y" * (MOST - 1) + b"\n"):
        inner = into_log(front, OUT, folder, limit=LEAST_LIMIT)
        write_all(inner, text)
        os.close(inner)
        ended(front)
    assert [len(texts(parse(path.read_bytes()))) for path in paths(folder)] == [3, 1]


def test_a_torn_record_is_ended(front: Front, folder: Path) -> None:
    """A keeper has died over it: the next record begins on a line of its own."""
    torn = b"2026-01-31T23:59:59.000000000Z stdout F hal"
    (folder / FILE).write_bytes(torn)
    inner = into_log(front, OUT, folder)
    os.write(inner, b"next\n")
    os.close(inner)
    ended(front)
    assert texts(read_log(folder)) == [b"hal", b"next"]


@pytest.mark.parametrize(
    "there", [{1}, {2}, {0, 2}, {1, 2}, {0, 1}, {0, 2, 3}, {1, 3}, {0, 1, 2, 3}], ids=str
)
def test_a_rotation_that_was_broken_off(front: Front, folder: Path, there: set[int]) -> None:
    """Whatever a keeper that died between two renames has left: only the oldest of four goes, and
    only where there are four."""
    line = b"2026-01-31T23:59:59.000000000Z stdout F %d\n"
    for number in there:
        (folder / (f"{FILE}.{number}" if number else FILE)).write_bytes(line % number)
    inner = into_log(front, OUT, folder, limit=LEAST_LIMIT, files=4)
    write_all(inner, (b"x" * (MOST - 1) + b"\n") * 2)
    os.close(inner)
    ended(front)
    found = {path: path.read_bytes() for path in folder.iterdir()}
    old = {number for number in there for text in found.values() if line % number in text}
    assert old == (there - {3} if len(there) == 4 else there)
    assert sum(text.count(b"x" * (MOST - 1)) for text in found.values()) == 2
    assert texts(parse(found[folder / FILE])) == [b"x" * (MOST - 1)]


# ---- others at the files


def test_a_file_that_was_moved(front: Front, folder: Path) -> None:
    """What is written after the move is in a new file."""
    inner = into_log(front, OUT, folder)
    for number in range(20):
        os.write(inner, b"%d\n" % number)
        wait_until(has_line(folder, b"%d" % number), "the line")
        (folder / FILE).rename(folder / f"moved.{number}")
    os.write(inner, b"last\n")
    os.close(inner)
    ended(front)
    assert texts(parse((folder / FILE).read_bytes())) == [b"last"]
    for number in range(20):
        assert texts(parse((folder / f"moved.{number}").read_bytes())) == [b"%d" % number]


def test_a_file_that_was_removed_or_cut(front: Front, folder: Path) -> None:
    """A new one is made; one that was cut is written on from its beginning, and has room again."""
    inner = into_log(front, OUT, folder, limit=LEAST_LIMIT)
    path = folder / FILE
    for number in range(3):
        os.write(inner, b"%d" % number * 20_000 + b"\n")
        wait_until(lambda: path.exists() and path.read_bytes().endswith(b"\n"), "the lines")
        if number:
            path.unlink()
        else:
            os.truncate(path, 0)
    os.write(inner, b"last\n")
    os.close(inner)
    ended(front)
    assert os.listdir(folder) == [FILE]
    assert texts(read_log(folder)) == [b"last"]


def test_another_file_under_the_name(front: Front, folder: Path, tmp_path: Path) -> None:
    """One that is regular is appended to; through a link nothing is written, and nobody is hurt."""
    inner = into_log(front, OUT, folder)
    path, other = folder / FILE, tmp_path / "other"
    os.write(inner, b"one\n")
    wait_until(has_line(folder, b"one"), "the line")
    other.write_bytes(path.read_bytes())
    other.rename(path)
    os.write(inner, b"two\n")
    wait_until(has_line(folder, b"two"), "the line")
    assert texts(read_log(folder)) == [b"one", b"two"]
    kept = folder / "kept"
    path.rename(kept)
    path.symlink_to(other)
    os.write(inner, b"three\n")
    wait_until(lambda: b"three" in kept.read_bytes(), "the line")
    assert trouble(front) == errno.ELOOP
    path.unlink()
    os.write(inner, b"four\n")
    wait_until(has_line(folder, b"four"), "the line")
    assert trouble(front) == 0
    assert not other.exists()
    os.close(inner)
    ended(front)


def test_a_rotation_that_cannot_be(front: Front, folder: Path) -> None:
    """The file grows on, and the errno is told; when it can be, it is."""
    obstacle = folder / f"{FILE}.1"
    obstacle.mkdir()
    inner = into_log(front, OUT, folder, limit=LEAST_LIMIT, files=2)
    line = b"x" * (MOST - 1) + b"\n"
    for _ in range(10):
        write_all(inner, line)
    wait_until(lambda: front.ask(Kind.STREAM, id=OUT).moved == 10 * MOST, "the lines")
    assert trouble(front) == errno.EISDIR
    assert len(texts(parse((folder / FILE).read_bytes()))) == 10
    obstacle.rmdir()
    write_all(inner, line)
    os.close(inner)
    ended(front)
    assert [len(parse(path.read_bytes())) for path in paths(folder)] == [10, 1]


def test_a_folder_that_was_removed(keeper: Keeper, front: Front, folder: Path) -> None:
    """Nobody can find the lines, and they take no more room than a file may."""
    inner = into_log(front, OUT, folder, limit=LEAST_LIMIT)
    os.write(inner, b"first\n")
    wait_until(has_line(folder, b"first"), "the line")
    (folder / FILE).unlink()
    folder.rmdir()
    for _ in range(100):
        write_all(inner, b"x" * (MOST - 1) + b"\n")
    wait_until(lambda: front.ask(Kind.STREAM, id=OUT).moved == 6 + 100 * MOST, "the lines")
    assert trouble(front) == errno.ENOENT
    (link,) = [
        link
        for link in Path(f"/proc/{keeper.pid}/fd").iterdir()
        if os.readlink(link) == f"{folder / FILE} (deleted)"
    ]
    assert link.stat().st_size <= 4 * LEAST_LIMIT
    os.close(inner)
    assert ended(front).error == 0


def test_a_keeper_that_is_killed(folder: Path) -> None:
    """Under load, again and again: what is there is in order; only a last line may be torn."""
    for _ in range(8):
        with tempfile.TemporaryDirectory() as rendezvous:
            keeper = Keeper(Path(rendezvous))
            inner = into_log(keeper.front, OUT, folder, limit=LEAST_LIMIT, files=5)
            count = 0
            while not (folder / f"{FILE}.4").exists() or count < 20_000:
                write_all(inner, b"".join(b"%d\n" % number for number in range(count, count + 500)))
                count += 500
            keeper.kill()
            os.close(inner)
        names = {path.name for path in folder.iterdir()}
        assert names <= {FILE, *(f"{FILE}.{number}" for number in range(1, 5))}
        found: list[int] = []
        for path in sorted(folder.iterdir(), key=lambda path: path.suffix, reverse=True):
            data = path.read_bytes()
            found += numbers_of(parse(data[: data.rfind(b"\n") + 1]), b"stdout")
            path.unlink()
        assert found == list(range(found[0], found[-1] + 1))


# ---- full disks


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "denseshim-test", folder]
    subprocess.run(argv, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with mounted(tmp_path / "disk", "1m") as made:
        (made / "logs").mkdir()
        yield made


def fill_disk(disk: Path, leave: int = 0) -> Path:
    """A file that takes all space but `leave` bytes."""
    path = disk / "ballast"
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, MIB - leave)
    return path


LINES = b"".join(b"%0*d\n" % (number % 300, number) for number in range(300))
PIECE = LINES[-4096:]  # what a pipe takes as a whole or not at all


def test_a_full_disk_stops_the_writer_and_loses_nothing(front: Front, disk: Path) -> None:
    """No record is torn, the errno is told, and all arrives when there is room."""
    ballast = fill_disk(disk, leave=64 << 10)
    folder = disk / "logs"
    inner = into_log(front, OUT, folder, limit=100 * MIB, non_blocking=True)
    written = fill_for_good(inner, PIECE, lambda: trouble(front) == errno.ENOSPC)
    before = read_log(folder)
    moved = sum(len(line.text) + 1 for line in before)
    assert 0 < moved < written
    assert front.ask(Kind.STREAM, id=OUT).moved == moved
    assert fill(inner, PIECE) == 0
    assert front.ask(Kind.FORGET, id=OUT).error == errno.EBUSY
    ballast.unlink()
    os.set_blocking(inner, True)
    os.write(inner, b"the end")
    os.close(inner)
    assert ended(front).moved == written + 7
    text = PIECE * (written // len(PIECE)) + b"the end"
    assert records(read_log(folder)) == expected(text)


def test_two_streams_on_a_full_disk(front: Front, disk: Path) -> None:
    """Neither tears the other's records; what each had written is there in the end."""
    ballast = fill_disk(disk, leave=16 << 10)
    folder = disk / "logs"
    out = into_log(front, OUT, folder, limit=100 * MIB)
    err = into_log(front, ERR, folder, Flag.STDERR, limit=100 * MIB)
    with (
        background(lambda: write_numbers(out, 5_000, 10)),
        background(lambda: write_numbers(err, 5_000, 10)),
    ):
        wait_until(
            lambda: trouble(front, OUT) == trouble(front, ERR) == errno.ENOSPC, "a full disk"
        )
        for _ in range(20):
            parse((folder / FILE).read_bytes())
            assert front.ask(Kind.PONG).error == 0
        ballast.unlink()
        ended(front, OUT)
        ended(front, ERR)
    lines = read_log(folder)
    for stream in NAMES.values():
        assert numbers_of(lines, stream) == list(range(5_000))


@pytest.mark.parametrize("leave", range(0, 40_000, 4096))
def test_a_record_that_only_half_fits(front: Front, disk: Path, leave: int) -> None:
    """Whatever is left: what is there is whole; a long record at the stream's end waits, too."""
    ballast = fill_disk(disk, leave)
    folder = disk / "logs"
    data = b"short\n" + b"x" * 15_000 + b"\n" + b"y" * 20_000
    inner = into_log(front, OUT, folder)
    write_all(inner, data)
    os.close(inner)
    if leave < 36_864:
        wait_until(lambda: trouble(front) == errno.ENOSPC, "a full disk")
        found = records(read_log(folder))
        assert found == expected(data)[: len(found)]
        ballast.unlink()
    assert ended(front).moved == len(data)
    assert records(read_log(folder)) == expected(data)


def test_a_terminal_on_a_full_disk(front: Front, disk: Path) -> None:
    """Its last words wait, although all that had it open have gone: FINISH changes nothing."""
    folder = disk / "logs"
    slave = terminal_into_log(front, OUT, folder)
    ballast = fill_disk(disk)
    os.write(slave, b"last\nwords")
    os.close(slave)
    assert front.ask(Kind.FINISH, id=OUT).error == 0
    assert front.ask(Kind.FORGET, id=OUT).error == errno.EBUSY
    ballast.unlink()
    assert ended(front).moved == 10
    assert records(read_log(folder)) == expected(b"last\nwords")


def test_a_disk_that_the_log_itself_fills(front: Front, disk: Path) -> None:
    """Files that are removed at a rotation make room: a log that fits runs for ever."""
    folder = disk / "logs"
    inner = into_log(front, OUT, folder, limit=200_000, files=4)
    write_numbers(inner, 200_000, 1_000)
    assert ended(front).error == 0
    numbers = numbers_of(read_log(folder), b"stdout")
    assert numbers == list(range(numbers[0], 200_000))


def test_no_inode_for_the_next_file(front: Front, tmp_path: Path) -> None:
    """The present file goes on, and the errno is told."""
    with mounted(tmp_path / "disk", "1m,nr_inodes=3") as disk:
        folder = disk / "logs"
        folder.mkdir()
        inner = into_log(front, OUT, folder, limit=LEAST_LIMIT)
        line = b"x" * (MOST - 1) + b"\n"
        for _ in range(4):
            write_all(inner, line)
        wait_until(lambda: front.ask(Kind.STREAM, id=OUT).moved == 4 * MOST, "the lines")
        assert trouble(front) == errno.ENOSPC
        os.close(inner)
        ended(front)
        assert sum(len(parse(path.read_bytes())) for path in folder.iterdir()) == 4


def test_waiting_for_space_costs_next_to_nothing(keeper: Keeper, front: Front, disk: Path) -> None:
    """Fifty logs of one full disk wait together, ever longer."""
    inner = []
    for number in range(50):
        (disk / str(number)).mkdir()
        inner.append(into_log(front, 100 + number, disk / str(number), log=1_000 + number))
    ballast = fill_disk(disk)
    for descriptor in inner:
        os.write(descriptor, b"x\n")
    assert front.ask(Kind.PONG).error == 0
    before, ticks = wake_ups(keeper.pid), cpu_ticks(keeper.pid)
    subprocess.run(["/bin/sleep", "3"], check=True)  # the time in which little may happen
    assert wake_ups(keeper.pid) - before <= 20
    assert cpu_ticks(keeper.pid) - ticks <= 10
    ballast.unlink()
    close_all(*inner)
    for number in range(50):
        assert ended(front, 100 + number).moved == 2
        assert texts(read_log(disk / str(number))) == [b"x"]


def test_cut_while_waiting_for_space(keeper: Keeper, front: Front, disk: Path) -> None:
    """The stream ends at once, and the other one's lines are not torn by it."""
    folder = disk / "logs"
    out = into_log(front, OUT, folder)
    err = into_log(front, ERR, folder, Flag.STDERR)
    ballast = fill_disk(disk, leave=4096)
    os.write(out, b"x" * 10_000 + b"\n")
    wait_until(lambda: trouble(front) == errno.ENOSPC, "a full disk")
    assert front.ask(Kind.CUT, id=OUT).error == 0
    assert ended(front).moved == 0
    with pytest.raises(BrokenPipeError):
        os.write(out, b"x")
    ballast.unlink()
    os.write(err, b"here\n")
    close_all(out, err)
    assert ended(front, ERR).moved == 5
    assert [line.text for line in read_log(folder)] == [b"here"]
    assert open_in(keeper, disk) == []


def test_a_file_that_takes_no_more_ends_the_stream(
    keeper: Keeper, front: Front, folder: Path
) -> None:
    """An error that time does not heal is reported; the file ends with a whole record."""
    inner = into_log(front, OUT, folder)
    resource.prlimit(keeper.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    os.write(inner, b"x" * 99 + b"\n" + b"y" * 899 + b"\n")
    report = ended(front)
    assert (report.error, report.moved) == (errno.EFBIG, 100)
    assert texts(read_log(folder)) == [b"x" * 99]
    assert open_in(keeper, folder) == []
    with pytest.raises(BrokenPipeError):
        os.write(inner, b"x")
    os.close(inner)


# ---- fronts and versions


def test_the_next_front_finds_both_streams(keeper: Keeper, folder: Path) -> None:
    """They are the keeper's, and go on; so does their log for a stream that comes later."""
    out = into_log(keeper.front, OUT, folder)
    os.write(out, b"one\nha")
    wait_until(has_line(folder, b"one"), "the line")
    front = keeper.replace_front()
    assert [(held.id, held.moved, held.flags) for held in front.snapshot()] == [(OUT, 4, 0)]
    err = into_log(front, ERR, folder, Flag.STDERR)
    os.write(err, b"two\n")
    os.write(out, b"lf\n")
    close_all(out, err)
    assert (ended(front, OUT).moved, ended(front, ERR).moved) == (9, 4)
    lines = read_log(folder)
    assert (texts(lines), texts(lines, b"stderr")) == ([b"one", b"half"], [b"two"])


def test_an_upgrade_in_the_middle_of_a_line(keeper: Keeper, folder: Path) -> None:
    """What has come of it goes along; the log is one for both streams again."""
    out = into_log(keeper.front, OUT, folder, limit=LEAST_LIMIT)
    err = into_log(keeper.front, ERR, folder, Flag.STDERR, limit=LEAST_LIMIT)
    before = open_in(keeper, folder)
    assert before == [str(folder), str(folder / FILE)]  # for both streams
    os.write(out, b"x" * 20_000)
    os.write(err, b"half")
    wait_until(lambda: len(read_log(folder)) == 1, "the first part")
    for _ in range(3):
        front = keeper.upgrade()
        assert open_in(keeper, folder) == before
    os.write(err, b" a line\n")
    os.write(out, b"y" * 20_000 + b"\n")
    close_all(out, err)
    assert (ended(front, OUT).moved, ended(front, ERR).moved) == (40_001, 12)
    assert open_in(keeper, folder) == []
    lines = read_log(folder)
    data = b"x" * 20_000 + b"y" * 20_000 + b"\n"
    assert [(line.tag, line.text) for line in lines if line.stream == b"stdout"] == expected(data)
    assert texts(lines, b"stderr") == [b"half a line"]
    assert len(paths(folder)) == 2


def test_upgrades_under_load(keeper: Keeper, folder: Path) -> None:
    """While both streams write and files are rotated, one version takes over after the other."""
    count = 150_000
    out = into_log(keeper.front, OUT, folder, limit=MIB, files=50)
    err = into_log(keeper.front, ERR, folder, Flag.STDERR, limit=MIB, files=50)
    upgrades = 0
    with (
        background(lambda: write_numbers(out, count, 50)),
        background(lambda: write_numbers(err, count, 50)),
    ):
        while any(not held.flags & Flag.GONE for held in keeper.front.snapshot()):
            keeper.upgrade()
            upgrades += 1
    assert upgrades > 1
    for id in (OUT, ERR):
        assert keeper.front.ask(Kind.FORGET, id=id).error == 0
    lines = read_log(folder)
    for stream in NAMES.values():
        assert numbers_of(lines, stream) == list(range(count))


def test_an_upgrade_on_a_full_disk(keeper: Keeper, disk: Path) -> None:
    """More than a pipe takes at once has been read, and waits through it; the end, too."""
    folder = disk / "logs"
    inner = into_log(keeper.front, OUT, folder)
    ballast = fill_disk(disk)
    data = LINES + b"the end"
    write_all(inner, data)
    os.close(inner)
    wait_until(lambda: trouble(keeper.front) == errno.ENOSPC, "a full disk")
    front = keeper.upgrade()
    assert front.ask(Kind.FORGET, id=OUT).error == errno.EBUSY
    ballast.unlink()
    assert ended(front).moved == len(data)
    assert records(read_log(folder)) == expected(data)


# ---- what is refused, and what is left


def a_file(folder: Path) -> int:
    (folder / "other").touch()
    return os.open(folder / "other", os.O_RDONLY)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"owner": 0}, b"log"),
        ({"id": 0}, b"log"),
        ({"moved": LEAST_LIMIT - 1}, b"log"),
        ({"number": 0}, b"log"),
        ({"number": 101}, b"log"),
        ({}, b""),
        ({}, b"."),
        ({}, b".."),
        ({}, b"a/b"),
        ({}, b"a\0b"),
        ({}, b"x" * 201),
        ({}, b"x" * 100_000),
    ],
    ids=range(12),
)
def test_what_cannot_be_a_log(
    keeper: Keeper, front: Front, folder: Path, fields: dict[str, int], name: bytes
) -> None:
    """It is refused, and nothing is left of it."""
    before = keeper.descriptors()
    source, inner = new_source()
    directory = os.open(folder, os.O_PATH)
    asked = {"id": OUT, "owner": LOG, "moved": MIB, "number": 3} | fields
    reply = front.ask(Kind.LOG, source, directory, payload=name, **asked)
    close_all(source, directory)
    assert reply.error == errno.EINVAL
    assert front.ask(Kind.PONG).error == 0
    with pytest.raises(BrokenPipeError):
        os.write(inner, b"x")
    os.close(inner)
    assert list(folder.iterdir()) == []
    wait_until(lambda: keeper.descriptors() == before, "the descriptors to be closed")


def test_descriptors_that_cannot_be_a_log_s(keeper: Keeper, front: Front, folder: Path) -> None:
    """A source that blocks, what is no directory, too few, too many."""
    before = keeper.descriptors()
    source, inner = os.pipe()
    os.set_blocking(source, False)
    directory, file = os.open(folder, os.O_PATH), a_file(folder)
    blocking = os.dup(inner)
    asked = {"id": OUT, "owner": LOG, "moved": MIB, "number": 3}
    for passed in (
        (), (source,), (blocking, directory), (source, file), (source, directory, file),
        (directory, source),
    ):  # fmt: skip
        assert front.ask(Kind.LOG, *passed, payload=b"log", **asked).error == errno.EINVAL
    close_all(source, inner, blocking, directory, file)
    assert not (folder / FILE).exists()
    wait_until(lambda: keeper.descriptors() == before, "the descriptors to be closed")


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device"])
def test_what_is_no_file_under_the_name(
    keeper: Keeper, front: Front, folder: Path, kind: str
) -> None:
    """It is refused at once, and not even opened for good."""
    path = folder / FILE
    if kind == "fifo":
        make_fifo(folder, FILE)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(folder / "elsewhere")
    else:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    before = keeper.descriptors()
    source, inner = new_source()
    wrong = {"fifo": errno.EINVAL, "directory": errno.EISDIR, "link": errno.ELOOP}
    assert ask_log(front, OUT, folder, source).error == wrong.get(kind, errno.EINVAL)
    os.close(inner)
    assert not (folder / "elsewhere").exists()
    wait_until(lambda: keeper.descriptors() == before, "the descriptors to be closed")


def test_ids_that_are_taken(keeper: Keeper, front: Front, folder: Path, tmp_path: Path) -> None:
    """A stream's id, and the id of a log that is elsewhere or has another name."""
    inner = into_log(front, OUT, folder)
    before = keeper.descriptors()
    for id, place, name in (
        (OUT, folder, b"log"),
        (OUT, folder, b"new"),
        (ERR, folder, b"log2"),
        (ERR, tmp_path, b"log"),
    ):
        source, other = new_source()
        log = LOG + (name == b"new")
        assert ask_log(front, id, place, source, log=log, name=name).error == errno.EEXIST
        os.close(other)
    wait_until(lambda: keeper.descriptors() == before, "the descriptors to be closed")
    os.write(inner, b"still\n")
    os.close(inner)
    ended(front)
    assert texts(parse((folder / FILE).read_bytes())) == [b"still"]


def test_nothing_is_left(keeper: Keeper, front: Front, folder: Path) -> None:
    """The last stream closes the log, whose id is free then."""
    before = keeper.descriptors()
    for _ in range(50):
        out = into_log(front, OUT, folder)
        err = into_log(front, ERR, folder, Flag.STDERR)
        os.write(out, b"o\n")
        os.close(out)
        ended(front, OUT)
        os.write(err, b"e\n")
        os.close(err)
        ended(front, ERR)
        assert keeper.descriptors() == before
    assert len(read_log(folder)) == 100


def test_as_many_logs_as_descriptors(tmp_path: Path) -> None:
    """Three each, up to the reserve; then EMFILE, and those that there are go on."""
    with harness.keeper(files=(256, 700)) as keeper:
        front = keeper.front
        inner: list[int] = []
        error = 0
        while not error:
            id = 1_000 + len(inner)
            source, writing = new_source()
            name = b"%d" % id
            error = ask_log(front, id, tmp_path, source, log=id, name=name).error
            inner.append(writing)
        assert error == errno.EMFILE
        os.close(inner.pop())
        assert len(inner) > 190
        for number, descriptor in enumerate(inner):
            write_all(descriptor, b"%d\n" % number)
        close_all(*inner)
        for number in range(len(inner)):
            assert ended(front, 1_000 + number).error == 0
            data = (tmp_path / str(1_000 + number)).read_bytes()
            assert texts(parse(data)) == [b"%d" % number]
