"""What containers may leave behind in their machine: nothing."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

from tests.containerd.containerd import FIFOS, Containerd
from tests.guard import PATIENCE


def _numbered(texts: Iterator[str]) -> set[str]:
    """The texts, told apart by a number when one comes twice."""
    return {
        f"{text} #{number}" for text, count in Counter(texts).items() for number in range(count)
    }


def _kinds(daemon: Containerd) -> dict[str, Callable[[], set[str]]]:
    """How to look for each kind of trace.

    Shims are told by their command lines: one that has been started again is no trace.
    """
    machine = daemon.machine
    bundles = f"{daemon.state}/io.containerd.runtime.v2.task"
    return {
        "shims": lambda: _numbered(iter(daemon.shims().values())),
        "mounts": machine.mounts,
        "sockets": daemon.sockets,
        "FIFOs": lambda: machine.files(FIFOS, 2),
        "bundles": lambda: machine.files(bundles, 2),
        "runtime's containers": lambda: (
            machine.files("/run/containerd/runc", 2) | machine.files("/run/runc", 1)
        ),
        "the product's state": lambda: machine.files("/run/denseshim", 3),
        "tasks": lambda: set(daemon.states()),
        "containers": daemon.ids,
    }


@contextlib.contextmanager
def nothing_left_in(daemon: Containerd) -> Iterator[None]:
    """Fail when the block leaves behind what is not gone within PATIENCE seconds.

    containerd must run before and after it; docker's containers are among the tasks' bundles.
    """
    kinds = _kinds(daemon)
    before = {kind: look() for kind, look in kinds.items()}
    yield
    end = time.monotonic() + PATIENCE
    while left := {kind: new for kind, look in kinds.items() if (new := look() - before[kind])}:
        assert time.monotonic() < end, f"left behind: {left}"
        time.sleep(0.01)
