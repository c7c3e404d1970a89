"""What the tests under containerd share: waiting, processes, containers' ids."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

# The runtime under test, by the name that containerd's users write.
PRODUCT: Final = "io.containerd.dense.v2"
STOCK: Final = "io.containerd.runc.v2"
RUNTIME: Final = os.environ.get("DENSESHIM_TEST_RUNTIME", PRODUCT)
# How long anything may take before its test fails, in seconds.
PATIENCE: Final = 30.0

# What the ids of all this process's containers begin with.
PREFIX: Final = f"denseshim-test-{os.getpid()}-"

_numbers = itertools.count()
_T = TypeVar("_T")


def new_id() -> str:
    """An id that no other container has, and that the guards know as ours."""
    return f"{PREFIX}{next(_numbers)}"


def shim_binary(runtime: str) -> str:
    """The program that containerd runs for a runtime's name: of its last two parts."""
    return "containerd-shim-" + "-".join(runtime.split(".")[-2:])


def until(condition: Callable[[], _T], what: str, limit: float = PATIENCE) -> _T:
    """The first true value of a condition that nothing announces."""
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.005)
    return value


@contextlib.contextmanager
def client(line: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running program with pipes to its standard input and output; it ends with the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def feed(line: Sequence[str], text: bytes) -> tuple[int, bytes]:
    """Run a program to its end that prints "ready" before it reads `text`: its status and output.

    ctr does not close the container's input when its own ends before the container is made.
    """
    with client(line) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        output, _ = running.communicate(text, PATIENCE)
        return running.returncode, output


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def command_of(pid: int) -> str:
    """The process's command line, its arguments parted by blanks."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def lines(last: int, end: bytes = b"\n") -> bytes:
    """What `seq LAST` prints; a terminal ends its lines with CR LF."""
    return b"".join(b"%d%b" % (number, end) for number in range(1, last + 1))
