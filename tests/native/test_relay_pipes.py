"""Streams between pipes and FIFOs: every byte arrives once, in order, and nobody else waits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    read_exactly,
    read_some,
    read_to_end,
    status_field,
    wake_ups,
    write_all,
)

MIB = 1 << 20
BLOCK = random.Random(3).randbytes(MIB + 7)  # no multiple of a pipe's size


def open_reader(fifo: Path) -> int:
    return os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)


def open_writer(fifo: Path) -> int:
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def queued(descriptor: int) -> int:
    """Bytes that wait in a pipe."""
    buffer = bytearray(4)
    fcntl.ioctl(descriptor, termios.FIONREAD, buffer)
    return int(struct.unpack("i", buffer)[0])


def send_blocks(descriptor: int, count: int) -> str:
    """Write BLOCK that often and close; the digest of all."""
    digest = hashlib.blake2b()
    for _ in range(count):
        write_all(descriptor, BLOCK)
        digest.update(BLOCK)
    os.close(descriptor)
    return digest.hexdigest()


def digest_to_end(descriptor: int) -> str:
    digest = hashlib.blake2b()
    while piece := read_some(descriptor, MIB):
        digest.update(piece)
    os.close(descriptor)
    return digest.hexdigest()


def pass_through(writing: int, reading: int, count: int) -> None:
    """What is written on one side is what comes on the other, byte for byte."""
    sent: list[str] = []
    with background(lambda: sent.append(send_blocks(writing, count))):
        received = digest_to_end(reading)
    assert sent == [received]


def test_output_is_exact(front: Front, tmp_path: Path) -> None:
    """256 MiB from a pipe to a client's FIFO, fast enough that both grow: design, relay facts."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    pass_through(inner, open_reader(fifo), 256)
    assert front.report(Kind.ENDED, 50).moved == 256 * len(BLOCK)


def test_input_is_exact(front: Front, tmp_path: Path) -> None:
    """256 MiB from a client's FIFO to a pipe."""
    fifo = make_fifo(tmp_path)
    inner = front.input(50, fifo)
    writing = open_writer(fifo)
    front.ask(Kind.UNHOLD, id=50)
    pass_through(writing, inner, 256)
    assert front.report(Kind.ENDED, 50).moved == 256 * len(BLOCK)


def test_single_bytes(front: Front, tmp_path: Path) -> None:
    """200,000 writes of one byte each."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    data = BLOCK[:200_000]

    def write() -> None:
        for index in range(len(data)):
            os.write(inner, data[index : index + 1])
        os.close(inner)

    reading = open_reader(fifo)
    with background(write):
        assert read_to_end(reading) == data
    os.close(reading)


@pytest.mark.parametrize("piece", [1, 100, 4095, 4096, 4097, 65_537])
def test_a_slow_reader(front: Front, tmp_path: Path, piece: int) -> None:
    """It reads a little each time the writer is blocked: nothing is lost, the rest waits."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    reading = open_reader(fifo)
    os.set_blocking(inner, False)
    chance = random.Random(piece)
    sent, received = 0, bytearray()
    while sent < 2 * MIB:
        with contextlib.suppress(BlockingIOError):
            while sent < 2 * MIB:
                sent += os.write(inner, BLOCK[sent % MIB :][: min(piece * 50, MIB - sent % MIB)])
        received += read_some(reading, chance.randrange(piece, 3 * piece * 50))
    os.close(inner)
    received += read_to_end(reading)
    assert bytes(received) == (BLOCK[:MIB] * 3)[:sent]
    assert front.report(Kind.ENDED, 50).moved == sent
    os.close(reading)


def test_a_blocked_stream_stops_no_other(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """Back-pressure is each stream's own: the one without a reader is full, the other flows."""
    blocked, flowing = make_fifo(tmp_path, "blocked"), make_fifo(tmp_path, "flowing")
    stuck, inner = front.output(50, blocked), front.output(51, flowing)
    os.set_blocking(stuck, False)
    held = fill_for_good(stuck, BLOCK[:4096], lambda: front.ask(Kind.PONG).error == 0)
    pass_through(inner, open_reader(flowing), 8)
    assert fill(stuck, b"x") == 0
    reading = open_reader(blocked)
    os.close(stuck)
    assert len(read_to_end(reading)) == held
    os.close(reading)


@pytest.mark.parametrize("stop", [1, 1000, 70_000])
def test_a_reader_leaves_and_comes_back(front: Front, tmp_path: Path, stop: int) -> None:
    """A client may detach and attach again: the FIFO keeps what was not read."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    received = bytearray()

    def write() -> None:
        write_all(inner, BLOCK)
        os.close(inner)

    with background(write):
        while len(received) < 10 * stop:
            reading = open_reader(fifo)
            received += read_exactly(reading, stop)
            os.close(reading)
        reading = open_reader(fifo)
        received += read_to_end(reading)
        os.close(reading)
    assert bytes(received) == BLOCK


def test_a_reader_that_comes_after_the_end(front: Front, tmp_path: Path) -> None:
    """The write end waits for it: it gets every byte and then the end. design, relay facts."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    assert front.spawn(51, "/bin/echo", "last words", descriptors={1: inner}).error == 0
    os.close(inner)
    assert front.exited(51).status == 0
    assert front.ask(Kind.STREAM, id=50).moved == 0
    assert not [record for record in front.reports if record.kind == Kind.ENDED]
    reading = open_reader(fifo)
    assert read_to_end(reading) == b"last words\n"
    assert front.report(Kind.ENDED, 50).moved == 11
    os.close(reading)


def test_lines_without_a_reader(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """At least 64 KiB of short lines go before the writer waits: fragments are merged."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    os.set_blocking(inner, False)
    accepted = fill_for_good(inner, b"x" * 99 + b"\n", lambda: front.ask(Kind.PONG).error == 0)
    assert accepted >= 64 << 10
    reading = open_reader(fifo)
    os.close(inner)
    received = read_to_end(reading)
    os.close(reading)
    assert received[:100] * (accepted // 100) == received


def test_small_fragments_are_merged(front: Front, tmp_path: Path) -> None:
    """50 fragments, each moved on its own, find room in a FIFO of 16 slots: design, relay facts."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    data = [b"%099d\n" % index for index in range(50)]
    for line in data:
        os.write(inner, line)
        wait_until(lambda: queued(inner) == 0, "the fragment to be moved on")
    os.close(inner)
    reading = open_reader(fifo)
    assert read_to_end(reading) == b"".join(data)
    os.close(reading)


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_the_end_of_input(front: Front, tmp_path: Path, when: str) -> None:
    """CloseStdin at any time: the end comes after all that the client has written."""
    fifo = make_fifo(tmp_path)
    inner = front.input(50, fifo)
    writing = open_writer(fifo)
    if when == "before":
        assert front.ask(Kind.UNHOLD, id=50).error == 0
    write_all(writing, BLOCK[:30_000])
    if when == "between":
        assert front.ask(Kind.UNHOLD, id=50).error == 0
        assert read_exactly(inner, 30_000) == BLOCK[:30_000]
    write_all(writing, BLOCK[30_000:60_000])
    os.close(writing)
    if when == "after":
        assert front.ask(Kind.UNHOLD, id=50).error == 0
    assert read_to_end(inner) == BLOCK[0 if when != "between" else 30_000 : 60_000]
    assert front.report(Kind.ENDED, 50).moved == 60_000
    os.close(inner)


def test_input_stays_open_between_clients(front: Front, tmp_path: Path) -> None:
    """The hold keeps it so: a second client goes on where the first one stopped."""
    fifo = make_fifo(tmp_path)
    inner = front.input(50, fifo)
    for text in (b"one", b"two", b"three"):
        writing = open_writer(fifo)
        os.write(writing, text)
        os.close(writing)
        assert read_exactly(inner, len(text)) == text
    assert front.ask(Kind.UNHOLD, id=50).error == 0
    assert read_to_end(inner) == b""
    os.close(inner)


def test_input_that_nobody_takes(front: Front, tmp_path: Path) -> None:
    """The process has closed its stdin: the stream ends and says why."""
    inner = front.input(50, make_fifo(tmp_path))
    os.close(inner)
    assert front.report(Kind.ENDED, 50).error == errno.EPIPE


@pytest.mark.parametrize("size", [0, 1, 5_000, 60_000])
def test_finish_delivers_what_is_there(front: Front, tmp_path: Path, size: int) -> None:
    """FINISH ends a stream although a writer remains, after all that it has written."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    reading = open_reader(fifo)
    write_all(inner, BLOCK[:size])
    assert front.ask(Kind.FINISH, id=50).error == 0
    assert read_to_end(reading) == BLOCK[:size]
    assert front.report(Kind.ENDED, 50).moved == size
    close_all(inner, reading)


def test_finish_waits_for_a_blocked_client(front: Front, tmp_path: Path) -> None:
    """What was there when FINISH came is delivered when the client reads."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    os.set_blocking(inner, False)
    held = fill_for_good(inner, BLOCK[:4096], lambda: front.ask(Kind.PONG).error == 0)
    assert front.ask(Kind.FINISH, id=50).error == 0
    assert front.ask(Kind.FORGET, id=50).error == errno.EBUSY
    reading = open_reader(fifo)
    assert len(read_to_end(reading)) == held
    assert front.report(Kind.ENDED, 50).moved == held
    close_all(inner, reading)


def test_cut_ends_at_once(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """Also a blocked stream, and one that waits for its reader; every descriptor is closed."""
    before = keeper.descriptors()
    inner = front.output(50, make_fifo(tmp_path, "one"))
    os.set_blocking(inner, False)
    fill_for_good(inner, BLOCK[:4096], lambda: front.ask(Kind.PONG).error == 0)
    waiting = front.output(51, make_fifo(tmp_path, "two"))
    os.write(waiting, b"x")
    os.close(waiting)
    for id in (50, 51):
        assert front.ask(Kind.CUT, id=id).error == 0
        front.report(Kind.ENDED, id)
    assert keeper.descriptors() == before
    with pytest.raises(BrokenPipeError):
        os.write(inner, b"x")
    os.close(inner)


def test_an_end_is_told_once(front: Front, tmp_path: Path) -> None:
    """With the bytes moved; a snapshot repeats it until it is forgotten."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    reading = open_reader(fifo)
    os.write(inner, b"12345")
    os.close(inner)
    ended = front.report(Kind.ENDED, 50)
    assert (ended.moved, ended.error) == (5, 0)
    for kind in (Kind.FINISH, Kind.CUT, Kind.UNHOLD, Kind.SETTLE):
        assert front.ask(kind, id=50).error == 0
    (held,) = front.snapshot()
    assert (held.kind, held.id, held.moved) == (Kind.STREAM, 50, 5)
    assert held.flags & Flag.GONE
    assert front.ask(Kind.FORGET, id=50).error == 0
    for kind in (Kind.FORGET, Kind.FINISH, Kind.CUT, Kind.UNHOLD, Kind.STREAM, Kind.RESIZE):
        assert front.ask(kind, id=50).error == errno.ESRCH
    assert front.snapshot() == []
    assert not [record for record in front.reports if record.kind == Kind.ENDED]
    os.close(reading)


def test_delivered_is_what_the_client_has_read(front: Front, tmp_path: Path) -> None:
    """STREAM as a request: the bytes moved, less those that still wait in the FIFO."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    os.write(inner, b"1234567890")
    wait_until(lambda: queued(inner) == 0, "the keeper to move it on")
    assert front.ask(Kind.STREAM, id=50).moved == 0
    reading = open_reader(fifo)
    assert read_exactly(reading, 4) == b"1234"
    assert front.ask(Kind.STREAM, id=50).moved == 4
    close_all(inner, reading)


def test_what_relay_refuses(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """Each with an errno, and nothing left open."""
    inner = front.output(50, make_fifo(tmp_path))
    plain = os.open(tmp_path / "plain", os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)
    folder = os.open(tmp_path, os.O_RDONLY | os.O_NONBLOCK)
    reading, writing = non_blocking_pipe()
    before = keeper.descriptors()

    def refused(id: int, flags: int, *descriptors: int) -> int:
        return front.ask(Kind.RELAY, *descriptors, id=id, flags=flags).error

    assert refused(51, 0) == errno.EINVAL
    assert refused(51, 0, reading) == errno.EINVAL
    assert refused(51, Flag.OUTPUT, reading, writing) == errno.EINVAL
    assert refused(51, 0, reading, writing, reading) == errno.EINVAL
    assert refused(0, 0, reading, writing) == errno.EINVAL
    assert refused(50, 0, reading, writing) == errno.EEXIST
    assert refused(51, 0, plain, writing) == errno.EPERM
    assert refused(51, 0, reading, folder) == errno.EPERM
    assert keeper.descriptors() == before
    # Nor does its epoll set know them any more: it would refuse them, for we have them open.
    for id in (51, 52):
        assert refused(id, 0, reading, writing) == 0
        assert front.ask(Kind.CUT, id=id).error == 0
    close_all(inner, plain, folder, reading, writing)


@pytest.mark.parametrize("end", ["source", "sink"])
def test_a_blocking_descriptor_is_refused(front: Front, end: str) -> None:
    """One read(2) or write(2) on it would stop the whole keeper, which never blocks: design."""
    pairs = {"source": socket.socketpair(), "sink": socket.socketpair()}
    for name, pair in pairs.items():
        pair[0].setblocking(name == end)
    source, sink = (pairs[name][0].fileno() for name in ("source", "sink"))
    assert front.ask(Kind.RELAY, source, sink, id=50).error == errno.EINVAL
    assert front.ask(Kind.PONG).error == 0
    assert front.snapshot() == []
    for pair in pairs.values():
        for peer in pair:
            peer.close()


# poll(2) for the keeper: just before it is asked whether a sink is writable, the client reads all.
DRAIN = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void drain(void) {
    char buffer[65536];
    int fifo = open(getenv("DRAIN_FROM"), O_RDONLY | O_NONBLOCK);
    int file = open(getenv("DRAIN_TO"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ssize_t size;
    while ((size = read(fifo, buffer, sizeof(buffer))) > 0)
        if (write(file, buffer, size) != size) abort();
    close(fifo);
    close(file);
}

int poll(struct pollfd *asked, nfds_t count, int limit) {
    if (asked->events & POLLOUT) drain();
    return syscall(SYS_poll, asked, count, limit);
}
"""


@pytest.mark.parametrize("end", ["close", "finish"])
def test_a_client_that_reads_at_the_worst_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """splice(2) found the FIFO full, poll(2) finds it empty: the rest still comes, and the end."""
    library, fifo, drained = tmp_path / "drain.so", make_fifo(tmp_path), tmp_path / "drained"
    (tmp_path / "drain.c").write_text(DRAIN)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "drain.c"], check=True)
    monkeypatch.setattr(harness, "PRELOAD", f"{harness.PRELOAD} {library}".strip())
    monkeypatch.setenv("DRAIN_FROM", str(fifo))
    monkeypatch.setenv("DRAIN_TO", str(drained))
    with harness.keeper() as keeper:
        front = keeper.front
        inner = front.output(50, fifo)
        reading = open_reader(fifo)
        move_full_pipe(keeper, inner, reading)
        assert queued(reading) == 64 << 10  # the FIFO is full
        stop(keeper)
        os.write(inner, BLOCK[:10_000])
        if end == "close":
            os.close(inner)
        else:
            front.tell(Record(Kind.FINISH, id=50))
        os.kill(keeper.pid, signal.SIGCONT)
        # Not before the worst moment: whoever reads first has the first bytes.
        wait_until(lambda: drained.exists() and drained.stat().st_size >= 64 << 10, "the drain")
        rest = read_to_end(reading)
        received = drained.read_bytes() + rest
        assert received == BLOCK[:4096] * 16 + BLOCK[:10_000]
        assert front.report(Kind.ENDED, 50).moved == len(received)
        close_all(reading, *([inner] if end == "finish" else []))


# ---- streams that stay


def staying(front: Front, fifo: Path, data: bytes) -> int:
    """A reader of stream 50, an output that stays; its source has ended after `data`."""
    inner = front.output(50, fifo, Flag.STAY)
    reading = open_reader(fifo)
    os.write(inner, data)
    os.close(inner)
    return reading


def has_ended(reading: int) -> bool:
    """Whether an empty FIFO has lost its last writer: fifo(7)."""
    with contextlib.suppress(BlockingIOError):
        return os.read(reading, 1) == b""
    return False


def test_an_output_that_stays_outlives_its_source(
    keeper: Keeper, front: Front, tmp_path: Path
) -> None:
    """Its reader sees no end, its front hears of none, and nobody wakes up for it."""
    reading = staying(front, make_fifo(tmp_path), b"all")
    assert read_exactly(reading, 3) == b"all"
    with a_while(front):  # the keeper has seen the source's end by its end
        pass
    assert not has_ended(reading)
    assert front.ask(Kind.STREAM, id=50).moved == 3
    before = wake_ups(keeper.pid)
    with a_while(front):
        pass
    assert wake_ups(keeper.pid) - before <= 10
    assert [record.kind for record in front.reports] == []
    assert front.ask(Kind.SETTLE, id=50).error == 0
    assert read_to_end(reading) == b""
    assert front.report(Kind.ENDED, 50).moved == 3
    os.close(reading)


@pytest.mark.parametrize("kind", [Kind.SETTLE, Kind.FINISH, Kind.CUT])
def test_an_output_that_stays_can_be_ended(front: Front, tmp_path: Path, kind: Kind) -> None:
    reading = staying(front, make_fifo(tmp_path), b"all")
    assert read_exactly(reading, 3) == b"all"
    assert not has_ended(reading)
    assert front.ask(kind, id=50).error == 0
    assert read_to_end(reading) == b""
    record = front.report(Kind.ENDED, 50)
    assert (record.moved, record.error) == (3, 0)
    os.close(reading)


@pytest.mark.parametrize("kind", [Kind.SETTLE, Kind.FINISH])
def test_what_an_ended_source_has_left_comes_before_the_end(
    front: Front, tmp_path: Path, kind: Kind
) -> None:
    """The client's FIFO is full when the source ends, and when its end is let be one."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo, Flag.STAY)
    os.set_blocking(inner, False)
    sent = fill_for_good(inner, BLOCK[:4096], lambda: front.ask(Kind.PONG).error == 0)
    os.close(inner)
    reading = open_reader(fifo)
    assert front.ask(kind, id=50).error == 0
    assert read_to_end(reading) == BLOCK[:4096] * (sent // 4096)
    assert front.report(Kind.ENDED, 50).moved == sent
    os.close(reading)


def test_an_output_stays_for_the_next_front(keeper: Keeper, tmp_path: Path) -> None:
    """The source ends while there is no front; the next one decides."""
    fifo = make_fifo(tmp_path)
    inner = keeper.front.output(50, fifo, Flag.STAY)
    reading = open_reader(fifo)
    keeper.front.close()
    os.write(inner, b"all")
    os.close(inner)
    assert read_exactly(reading, 3) == b"all"
    keeper.front = front = keeper.next_front()
    (record,) = front.snapshot()
    assert (record.kind, record.id, record.flags & Flag.GONE) == (Kind.STREAM, 50, 0)
    assert not has_ended(reading)
    assert front.ask(Kind.SETTLE, id=50).error == 0
    assert read_to_end(reading) == b""
    assert front.report(Kind.ENDED, 50).moved == 3
    os.close(reading)


def test_an_output_that_was_let_go_ends_with_its_source(front: Front, tmp_path: Path) -> None:
    """SETTLE before the end, and again: as if it had never stayed."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo, Flag.STAY)
    reading = open_reader(fifo)
    for _ in range(2):
        assert front.ask(Kind.SETTLE, id=50).error == 0
    assert not has_ended(reading)
    os.write(inner, b"all")
    os.close(inner)
    assert read_to_end(reading) == b"all"
    assert front.report(Kind.ENDED, 50).moved == 3
    os.close(reading)


def test_an_input_that_stays_is_not_read(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """Its client writes before the process is there, and goes; nobody wakes up for it."""
    fifo = make_fifo(tmp_path)
    inner = front.input(50, fifo, Flag.STAY)
    writing = open_writer(fifo)
    os.write(writing, b"all")
    os.close(writing)
    before = wake_ups(keeper.pid)
    with a_while(front):
        pass
    assert wake_ups(keeper.pid) - before <= 10
    assert queued(inner) == 0
    assert front.ask(Kind.SETTLE, id=50).error == 0
    assert read_exactly(inner, 3) == b"all"
    assert front.ask(Kind.UNHOLD, id=50).error == 0
    assert read_to_end(inner) == b""
    assert front.report(Kind.ENDED, 50).moved == 3
    os.close(inner)


@pytest.mark.parametrize("unhold", ["before", "after"])
def test_an_input_that_stays_ends_when_it_is_read(
    front: Front, tmp_path: Path, unhold: str
) -> None:
    """Its end may come before the process, too."""
    fifo = make_fifo(tmp_path)
    inner = front.input(50, fifo, Flag.STAY)
    writing = open_writer(fifo)
    os.write(writing, b"all")
    os.close(writing)
    kinds = [Kind.UNHOLD, Kind.SETTLE]
    for kind in kinds if unhold == "before" else reversed(kinds):
        assert front.ask(kind, id=50).error == 0
        with a_while(front):  # what the kernel tells of the one has been heard
            pass
    assert read_to_end(inner) == b"all"
    assert front.report(Kind.ENDED, 50).moved == 3
    os.close(inner)


def test_an_input_that_stays_outlives_its_reader(front: Front, tmp_path: Path) -> None:
    """The front that was to start the process is dead: the client can write on, to the next."""
    fifo = make_fifo(tmp_path)
    inner = front.input(50, fifo, Flag.STAY)
    os.close(inner)
    writing = open_writer(fifo)
    os.write(writing, b"all")
    with a_while(front):
        pass
    assert [record.kind for record in front.reports] == []
    other = front.input(51, fifo, Flag.STAY)  # the next front's
    assert front.ask(Kind.CUT, id=50).error == 0
    assert front.ask(Kind.SETTLE, id=51).error == 0
    assert read_exactly(other, 3) == b"all"
    os.write(writing, b" of it")
    assert read_exactly(other, 6) == b" of it"
    close_all(writing, other)
    assert front.report(Kind.ENDED, 50).moved == 0


def test_an_input_that_nobody_reads_ends_when_it_no_longer_stays(
    front: Front, tmp_path: Path
) -> None:
    fifo = make_fifo(tmp_path)
    os.close(front.input(50, fifo, Flag.STAY))
    writing = open_writer(fifo)
    os.write(writing, b"all")
    assert front.ask(Kind.SETTLE, id=50).error == 0
    assert front.report(Kind.ENDED, 50).error == errno.EPIPE
    os.close(writing)


# ---- what an idle keeper does


@contextlib.contextmanager
def a_while(front: Front) -> Iterator[None]:
    """The block, and the life of a program beside it: a period that an event ends."""
    assert front.spawn(900, "/bin/sleep", "0.5").error == 0
    yield
    assert front.exited(900).status == 0


def test_idle_streams_wake_nobody(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """100 streams with nothing to do cost nothing: no timer runs, no descriptor is polled."""
    inners = [front.output(100 + i, make_fifo(tmp_path, str(i))) for i in range(100)]
    for inner in inners:
        os.write(inner, b"x")
    wait_until(lambda: not any(queued(inner) for inner in inners), "the first bytes to move")
    before = wake_ups(keeper.pid)
    with a_while(front):
        pass
    # The spawn, the spawner's answer, SIGCHLD, FORGET; each may come apart.
    assert wake_ups(keeper.pid) - before <= 10
    close_all(*inners)


def test_ends_that_hung_up_do_not_spin(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """A writer that is gone, a full client, a FIFO without any client: the keeper sleeps."""
    inner = front.output(50, make_fifo(tmp_path, "full"))
    os.set_blocking(inner, False)
    fill_for_good(inner, BLOCK[:4096], lambda: front.ask(Kind.PONG).error == 0)
    os.close(inner)
    waiting = front.output(51, make_fifo(tmp_path, "lingers"))
    os.write(waiting, b"x")
    os.close(waiting)
    unused = front.input(52, make_fifo(tmp_path, "input"))
    front.ask(Kind.PONG)
    before, slept = cpu_ticks(keeper.pid), wake_ups(keeper.pid)
    with a_while(front):
        pass
    assert cpu_ticks(keeper.pid) - before <= 5
    assert wake_ups(keeper.pid) - slept <= 60  # lingering looks up, ever less often
    os.close(unused)


def test_small_streams_beside_floods(front: Front, tmp_path: Path) -> None:
    """Two streams that never stop leave a third its turns: each turn is bounded."""
    readers = []
    for id in (50, 51):
        fifo = make_fifo(tmp_path, str(id))
        inner = front.output(id, fifo)
        readers.append(subprocess.Popen(["cat", fifo], stdout=subprocess.DEVNULL))
        command = ("/bin/cat", "/dev/zero")
        assert front.spawn(id + 100, *command, descriptors={1: inner}).error == 0
        os.close(inner)
    fifo = make_fifo(tmp_path, "small")
    inner = front.output(60, fifo)
    reading = open_reader(fifo)
    before = [front.ask(Kind.STREAM, id=id).moved for id in (50, 51)]
    for index in range(300):
        line = b"line %d\n" % index
        os.write(inner, line)
        assert read_exactly(reading, len(line)) == line
    for id, moved in zip((50, 51), before, strict=True):
        assert front.ask(Kind.STREAM, id=id).moved > moved + MIB
        assert front.ask(Kind.SIGNAL, id=id + 100, number=signal.SIGKILL).error == 0
        assert front.exited(id + 100).status == 128 + signal.SIGKILL
        front.report(Kind.ENDED, id)
    for reader in readers:
        assert reader.wait(20) == 0
    close_all(inner, reading)


def stop(keeper: Keeper) -> None:
    os.kill(keeper.pid, signal.SIGSTOP)
    wait_until(lambda: status_field(keeper.pid, "State").startswith("T"), "the keeper to stop")


def move_full_pipe(keeper: Keeper, inner: int, reading: int) -> bytes:
    """Let the keeper find a full pipe before an empty FIFO: one turn moves all. What was read."""
    stop(keeper)
    os.set_blocking(inner, False)
    fill(inner, BLOCK[:4096])
    received = read_exactly(reading, queued(reading))
    os.kill(keeper.pid, signal.SIGCONT)
    wait_until(lambda: queued(inner) == 0, "the pipe to be moved on")
    return received


def test_growing_pipes_shrink_again(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """A busy stream's pipes get 1 MiB; when it is quiet it gives the user's pages back."""
    fifo = make_fifo(tmp_path)
    inner = front.output(50, fifo)
    reading = open_reader(fifo)
    received = bytearray()

    def has_grown() -> bool:
        received.extend(move_full_pipe(keeper, inner, reading))
        return fcntl.fcntl(inner, fcntl.F_GETPIPE_SZ) == MIB

    wait_until(has_grown, "the pipe to grow")
    wait_until(lambda: fcntl.fcntl(inner, fcntl.F_GETPIPE_SZ) == 64 << 10, "the pipe to shrink")
    assert fcntl.fcntl(reading, fcntl.F_GETPIPE_SZ) == 64 << 10
    os.write(inner, b"more")
    os.close(inner)
    received += read_to_end(reading)
    assert bytes(received) == BLOCK[:4096] * ((len(received) - 4) // 4096) + b"more"
    assert front.report(Kind.ENDED, 50).moved == len(received)
    os.close(reading)
