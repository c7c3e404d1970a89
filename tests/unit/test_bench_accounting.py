"""The kernel's counts of processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import accounting
from benchmarks.waiting import until

MIB = 1 << 20


@contextlib.contextmanager
def program(text: str, *options: str) -> Iterator[int]:
    """A Python program that has printed a line, and has not ended."""
    line = [sys.executable, *options, "-c", f"{text}\nprint(flush=True)\ninput()"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def sleeps(pid: int) -> bool:
    """Whether the process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_cpu_time_counts_threads_that_have_ended() -> None:
    def spin() -> None:
        while time.thread_time() < 0.05:
            pass

    before = accounting.cpu_of(os.getpid())
    thread = threading.Thread(target=spin)
    thread.start()
    thread.join()
    assert accounting.cpu_of(os.getpid()) - before >= 0.05


def test_cpu_time_of_another_process_is_its_own() -> None:
    with program("import time\nwhile time.process_time() < 0.2: pass") as pid:
        spent = accounting.cpu_of(pid)
        assert spent >= 0.2
        assert accounting.cpu_of(pid) == spent


def test_threads_and_descriptors_are_counted_and_the_dead_have_none() -> None:
    text = (
        "import threading, os\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    with program(f"{text}\nkept = [os.dup(0) for _ in range(5)]") as pid:
        assert accounting.threads([pid]) == 2
        assert accounting.descriptors([pid]) == 3 + 5
    assert accounting.threads([pid]) == accounting.descriptors([pid]) == 0


def test_who_sleeps_is_not_woken() -> None:
    with program("") as pid:
        until(lambda: sleeps(pid), "the read from standard input")
        before = accounting.switches([pid])
        time.sleep(0.05)
        assert accounting.switches([pid]) == before
    with program("import time\nfor _ in range(50): time.sleep(0.0001)") as pid:
        assert accounting.switches([pid]) >= 50


def test_memory_is_what_a_process_has_written_to() -> None:
    with program("") as small, program(f"kept = bytearray(b'x') * {32 * MIB}") as large:
        grown = accounting.memory([large]) - accounting.memory([small])
        assert 31 * MIB < grown < 34 * MIB
        assert accounting.memory([small, large]) > 32 * MIB


def test_memory_does_not_depend_on_what_this_process_shares() -> None:
    """The interpreter's own pages count in full, once, however many have them."""
    with program("") as one, program("") as other:
        row = next(row for row in accounting._mappings(one) if "python" in row.file)
        alone = accounting.memory([one])
        assert accounting.memory([one, other]) - alone < alone / 2
        shared = sum(each.rss for each in accounting._mappings(one) if each.file == row.file)
        assert alone > shared


def test_a_process_is_told_by_its_command_and_parent() -> None:
    with program("kept = 'a word'") as pid:
        assert accounting.command_of(pid)[1] == "-c"
        assert accounting.parent_of(pid) == os.getpid()
    assert accounting.command_of(pid) == []
