"""One container's output, from a process that waits for its turn to a reader that discards it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.load import PUMP, Pump, gate

if TYPE_CHECKING:
    from benchmarks.session import Session


class OutputLost(Exception):
    """Less has come than was written, or the writer has failed."""


@dataclass(frozen=True)
class Passage:
    """What it took to bring the output to its reader: seconds."""

    cpu: float  # of the shim's
    wall: float


def passage(session: Session, *args: str, least: int, terminal: bool = False) -> Passage:
    """Run `args` in a container, which print at least `least` bytes.

    The container's start is not counted, nor is its removal; its process's end is. Raises
    OutputLost.
    """
    fifo = session.fifo()
    with (
        gate(session.rootfs) as turn,
        Pump(session.rootfs, "discard", session.place.outside(fifo)) as reader,
        errors(session) as stderr,
    ):
        command = (PUMP, "after", turn.inside, *args)
        streams = {"stdout": str(fifo)} if terminal else {"stdout": str(fifo), "stderr": stderr}
        container = session.run(*command, terminal=terminal, **streams)
        cpu, began = session.shim_cpu(), time.monotonic()
        turn.admit()
        came = int(reader.output())
        found = Passage(session.shim_cpu() - cpu, time.monotonic() - began)
        status = container.finish()
    if came < least or status:
        raise OutputLost(f"{came} of {least} bytes; the writer's status is {status}")
    return found


@contextlib.contextmanager
def errors(session: Session) -> Iterator[str]:
    """A FIFO for stderr, with a reader: without it containerd's shims start no container."""
    fifo = session.fifo()
    descriptor = os.open(session.place.outside(fifo), os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield str(fifo)
    finally:
        os.close(descriptor)
