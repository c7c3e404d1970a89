"""Streams of terminals: a master's hang-up is not its end, and no last word is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import struct
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.keeper.records import Flag, Kind
from tests.native.harness import Front, Keeper, wait_until
from tests.native.support import (
    background,
    close_all,
    cpu_ticks,
    make_fifo,
    read_exactly,
    read_some,
    read_to_end,
    wake_ups,
    write_all,
)

OUT, IN, CHILD = 50, 51, 60


class Terminal:
    """A terminal whose output the keeper relays to a client's FIFO; `slave` is a path."""

    def __init__(self, front: Front, folder: Path) -> None:
        self.front = front
        self.master, first = pty.openpty()
        self.slave = os.ttyname(first)
        tty.setraw(first)
        os.set_blocking(self.master, False)
        fifo = make_fifo(folder, "out")
        self.client = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        sink = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        hold = os.dup(self.client)
        source = os.dup(self.master)
        assert front.relay(OUT, source, sink, hold, Flag.OUTPUT).error == 0
        self.first = first

    def open_slave(self) -> int:
        return os.open(self.slave, os.O_RDWR | os.O_NOCTTY)

    def run(self, *argv: str) -> None:
        """Start a program on the terminal, and keep no slave open."""
        slave = self.open_slave()
        assert self.front.spawn(CHILD, *argv, descriptors=dict.fromkeys(range(3), slave)).error == 0
        close_all(slave, self.first)
        self.first = -1

    def finish(self) -> None:
        """What the shim does when it has learned of the process's exit."""
        assert self.front.ask(Kind.FINISH, id=OUT).error == 0

    def close(self) -> None:
        close_all(self.client, self.master, *([self.first] if self.first >= 0 else []))


@pytest.fixture
def terminal(front: Front, tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(front, tmp_path)
    yield made
    made.close()


def test_the_last_words_arrive(front: Front, terminal: Terminal) -> None:
    """What a process writes just before its exit: design, relay facts."""
    terminal.run("/bin/echo", "last words")
    assert front.exited(CHILD).status == 0
    terminal.finish()
    assert read_to_end(terminal.client) == b"last words\n"
    assert front.report(Kind.ENDED, OUT).moved == 11


@pytest.mark.parametrize("turn", range(5))
def test_a_long_output_is_exact(front: Front, terminal: Terminal, turn: int) -> None:
    """seq 200000, whose end comes while the client reads."""
    terminal.run("/usr/bin/seq", "200000")

    def finish() -> None:
        assert front.exited(CHILD).status == 0
        terminal.finish()

    with background(finish):
        received = read_to_end(terminal.client)
    assert received == b"".join(b"%d\n" % number for number in range(1, 200_001))


def test_a_hang_up_is_not_the_end(front: Front, terminal: Terminal) -> None:
    """EIO says that no slave is open now; one is opened again and more comes."""
    os.close(terminal.first)
    terminal.first = -1
    for text in (b"one", b"two", b"three"):
        slave = terminal.open_slave()
        os.write(slave, text)
        os.close(slave)
        assert read_exactly(terminal.client, len(text)) == text
    assert front.ask(Kind.FORGET, id=OUT).error == errno.EBUSY
    terminal.finish()
    assert read_to_end(terminal.client) == b""
    assert front.report(Kind.ENDED, OUT).moved == 11


def test_a_hung_up_terminal_does_not_spin(keeper: Keeper, front: Front, terminal: Terminal) -> None:
    """While no slave is open the keeper sleeps: its descriptor is edge-triggered."""
    os.close(terminal.first)
    terminal.first = -1
    assert front.ask(Kind.PONG).error == 0
    before, slept = cpu_ticks(keeper.pid), wake_ups(keeper.pid)
    assert front.spawn(CHILD, "/bin/sleep", "0.5").error == 0
    assert front.exited(CHILD).status == 0
    assert cpu_ticks(keeper.pid) - before <= 5
    assert wake_ups(keeper.pid) - slept <= 10
    terminal.finish()


def test_finish_ends_it_while_a_slave_is_open(front: Front, terminal: Terminal) -> None:
    """A background process may keep the slave open for ever: what is there comes, then the end."""
    os.write(terminal.first, b"there")
    terminal.finish()
    assert read_to_end(terminal.client) == b"there"
    assert front.report(Kind.ENDED, OUT).moved == 5


def test_the_window_is_resized(front: Front, terminal: Terminal) -> None:
    """The size is seen inside, and the program is told: SIGWINCH, here by a shell's trap."""
    assert front.ask(Kind.RESIZE, id=OUT, number=43 << 16 | 132).error == 0
    size = fcntl.ioctl(terminal.first, termios.TIOCGWINSZ, bytes(8))
    assert struct.unpack("4H", size) == (43, 132, 0, 0)
    terminal.finish()
    front.report(Kind.ENDED, OUT)
    assert front.ask(Kind.RESIZE, id=OUT, number=1 << 16 | 1).error == errno.ESRCH
    assert front.ask(Kind.RESIZE, id=999, number=1 << 16 | 1).error == errno.ESRCH


def test_a_pipe_has_no_window(front: Front, tmp_path: Path) -> None:
    inner = front.output(70, make_fifo(tmp_path, "pipe"))
    assert front.ask(Kind.RESIZE, id=70, number=1 << 16 | 1).error == errno.ENOTTY
    os.close(inner)


def relay_input(front: Front, terminal: Terminal, folder: Path) -> int:
    """Relay a client's FIFO to the master; the client's end."""
    fifo = make_fifo(folder, "in")
    source = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    hold = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    client = os.open(fifo, os.O_WRONLY)
    assert front.relay(IN, source, os.dup(terminal.master), hold, Flag.INPUT).error == 0
    return client


def test_input_is_exact(front: Front, terminal: Terminal, tmp_path: Path) -> None:
    """1 MiB to a program that reads its terminal more slowly than the client writes."""
    client = relay_input(front, terminal, tmp_path)
    data = bytes(range(256)) * 4096

    def write() -> None:
        write_all(client, data)
        os.close(client)

    with background(write):
        received = bytearray()
        while len(received) < len(data):
            received += read_some(terminal.first, 333)
    assert bytes(received) == data
    assert front.ask(Kind.UNHOLD, id=IN).error == 0
    assert front.report(Kind.ENDED, IN).moved == len(data)
    terminal.finish()


def test_both_ways_at_once(front: Front, terminal: Terminal, tmp_path: Path) -> None:
    """`cat` on the terminal gives back all that it is sent; both streams share one master."""
    client = relay_input(front, terminal, tmp_path)
    terminal.run("/bin/cat")
    data = bytes(range(256)) * 1024
    with background(lambda: write_all(client, data)):
        assert read_exactly(terminal.client, len(data)) == data
    os.close(client)
    assert front.ask(Kind.UNHOLD, id=IN).error == 0
    assert front.report(Kind.ENDED, IN).moved == len(data)
    assert front.ask(Kind.SIGNAL, id=CHILD, number=signal.SIGKILL).error == 0
    front.exited(CHILD)
    terminal.finish()
    assert read_to_end(terminal.client) == b""


def test_input_to_a_terminal_without_a_slave(
    front: Front, terminal: Terminal, tmp_path: Path
) -> None:
    """The stream goes on when a process has opened its terminal: no slave is no end."""
    os.close(terminal.first)
    terminal.first = -1
    client = relay_input(front, terminal, tmp_path)
    os.write(client, b"typed ahead")
    wait_until(lambda: front.ask(Kind.STREAM, id=IN).moved == 11, "the keeper to pass it on")
    slave = terminal.open_slave()
    os.write(client, b", and more")
    received = b""
    while not received.endswith(b", and more"):
        received += read_some(slave)
    close_all(client, slave)
    terminal.finish()


def test_the_keeper_closes_every_master(keeper: Keeper, front: Front, tmp_path: Path) -> None:
    """After the end of both streams the slave hangs up: nobody holds the terminal."""
    before = keeper.descriptors()
    terminal = Terminal(front, tmp_path)
    client = relay_input(front, terminal, tmp_path)
    os.close(client)
    assert front.ask(Kind.UNHOLD, id=IN).error == 0
    front.report(Kind.ENDED, IN)
    terminal.finish()
    front.report(Kind.ENDED, OUT)
    os.close(terminal.master)
    assert os.read(terminal.first, 10) == b""
    assert keeper.descriptors() == before
    close_all(terminal.first, terminal.client)
