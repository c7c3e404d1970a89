"""What a test with containers may leave behind: nothing, in this process and in its machine.

The machine on which it runs has other tests' containers, and shims, at the same time.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.containerd.containerd import FIFOS, Containerd
from tests.containerd.support import PREFIX
from tests.guard import KINDS, PATIENCE

Look = Callable[[], set[str]]


def _numbered(texts: Iterator[str]) -> set[str]:
    """The texts, told apart by a number when one comes twice."""
    return {
        f"{text} #{number}" for text, count in Counter(texts).items() for number in range(count)
    }


def _cgroups() -> set[str]:
    """Cgroups of this process's containers; os.walk bears those that vanish meanwhile."""
    tops = Path("/sys/fs/cgroup").glob(f"*/{PREFIX}*")
    return {folder for top in tops for folder, _, _ in os.walk(top)}


# The kinds of traces outside of all machines.
HERE: Mapping[str, Look] = {
    **{kind: KINDS[kind] for kind in ("descriptors", "threads", "children", "mounts")},
    "cgroups": _cgroups,
}


def inside(daemon: Containerd) -> Mapping[str, Look]:
    """How to look for each kind of trace in the daemon's machine; it must run.

    Shims are told by their command lines: one that has been started again is no trace.
    """
    machine = daemon.machine
    return {
        "shims": lambda: _numbered(iter(daemon.shims().values())),
        "mounts": machine.mounts,
        "sockets": daemon.sockets,
        "FIFOs": lambda: machine.files(FIFOS, 2),
        "bundles": lambda: machine.files(str(daemon.bundles), 2),
        "runtime's containers": lambda: (
            machine.files("/run/containerd/runc", 2) | machine.files("/run/runc", 1)
        ),
        "the product's state": lambda: machine.files("/run/denseshim", 3),
        "tasks": lambda: set(daemon.states()),
        "containers": daemon.ids,
    }


@contextlib.contextmanager
def nothing_left(kinds: Mapping[str, Look]) -> Iterator[None]:
    """Fail when the block leaves behind what is not gone within PATIENCE seconds."""
    before = {kind: look() for kind, look in kinds.items()}
    yield
    end = time.monotonic() + PATIENCE
    while left := {kind: new for kind, look in kinds.items() if (new := look() - before[kind])}:
        assert time.monotonic() < end, f"left behind: {left}"
        gc.collect()  # as in tests.guard
        time.sleep(0.01)
