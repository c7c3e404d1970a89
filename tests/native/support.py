"""Small things that the native tests share: programs, processes as /proc shows them, pipes."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.native.harness import PATIENCE, Keeper, wait_until

# exit N | signal N | orphan N (its child's pid on stdout; the child exits with N) |
# later N (the same, but the child waits for the end of its stdin) | read N (waits, exits with N)
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <unistd.h>

static void drain(void) { char c; while (read(0, &c, 1) > 0) { } }

int main(int argc, char **argv) {
    int number = argc > 2 ? atoi(argv[2]) : 0;
    if (!strcmp(argv[1], "signal")) kill(getpid(), number);
    if (!strcmp(argv[1], "read")) drain();
    if (!strcmp(argv[1], "orphan") || !strcmp(argv[1], "later")) {
        pid_t child = fork();
        if (child) return dprintf(1, "%d\n", child) < 0;
        if (argv[1][0] == 'l') drain();
        _exit(number);
    }
    return number;
}
"""


def build_program(folder: Path) -> str:
    """The path of the program above, small and static so that it starts fast."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is missing: run `make system`"
    (folder / "tiny.c").write_text(PROGRAM)
    made = folder / "tiny"
    flags = ["-static", "-O1", "-w"]
    subprocess.run([compiler, *flags, "-o", made, folder / "tiny.c"], check=True)
    return str(made)


def status_field(pid: int, name: str) -> str:
    """One line's value of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise KeyError(name)


def wake_ups(pid: int) -> int:
    """How often the process has slept of its own accord."""
    return int(status_field(pid, "voluntary_ctxt_switches"))


def cpu_ticks(pid: int) -> int:
    """User and system time of the process, in clock ticks: proc(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def named_child(keeper: Keeper, name: str) -> int:
    """The pid of the keeper's child of that name; 0 when there is none.

    Waits until there is only one: what the spawner starts has its name until execve(2).
    """
    wait_until(lambda: len(_named(keeper, name)) < 2, f"one child named {name}")
    return next(iter(_named(keeper, name)), 0)


def _named(keeper: Keeper, name: str) -> list[int]:
    found = []
    for pid in keeper.children():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
    return found


def is_gone(pid: int) -> bool:
    """No such process, or only its record."""
    try:
        return status_field(pid, "State").startswith(("Z", "X"))
    except (FileNotFoundError, ProcessLookupError):
        return True


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_exactly(descriptor: int, size: int) -> bytes:
    """That many bytes; fewer only at the end. The descriptor may be non-blocking."""
    found = bytearray()
    while len(found) < size:
        piece = read_some(descriptor, size - len(found))
        if not piece:
            break
        found += piece
    return bytes(found)


def read_some(descriptor: int, size: int = 1 << 16) -> bytes:
    """What is there, or comes; empty at the end."""
    while True:
        assert is_readable(descriptor), "nothing to read"
        with contextlib.suppress(BlockingIOError):  # another reader was faster
            return os.read(descriptor, size)


def is_readable(descriptor: int) -> bool:
    """Whether there is something to read, or the end, within PATIENCE."""
    waiting = select.poll()  # select(2) knows no descriptor above 1023
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(PATIENCE * 1000))


def read_to_end(descriptor: int) -> bytes:
    found = bytearray()
    while piece := read_some(descriptor):
        found += piece
    return bytes(found)


def fill(descriptor: int, piece: bytes) -> int:
    """Write the piece again and again to a non-blocking pipe until it blocks; bytes written."""
    total = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            total += os.write(descriptor, piece)
    return total


def fill_for_good(descriptor: int, piece: bytes, settled: Callable[[], bool]) -> int:
    """Fill until it blocks although the keeper has moved on all that it can; bytes written."""
    total = 0

    def stays_full() -> bool:
        nonlocal total
        more = fill(descriptor, piece)
        total += more
        return not more and settled() and not fill_again()

    def fill_again() -> int:
        nonlocal total
        more = fill(descriptor, piece)
        total += more
        return more

    wait_until(stays_full, "the pipe to stay full")
    return total


@contextlib.contextmanager
def background(work: Callable[[], object]) -> Iterator[None]:
    """Run `work` in a thread beside the block, and raise here what it raises there."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  raised below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(6 * PATIENCE)
    assert not thread.is_alive(), "the other side did not end"
    if failures:
        raise failures[0]


def make_fifo(folder: Path, name: str = "fifo") -> Path:
    path = folder / name
    os.mkfifo(path)
    return path


def non_blocking_pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)


def close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def skip_without(program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
