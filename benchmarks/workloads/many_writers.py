"""Many containers, each of which writes a line now and then."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from benchmarks.claims import Claim, Kind
from benchmarks.load import PUMP, Gate, Pump
from benchmarks.statistics import percentile
from benchmarks.systems.base import Can, System
from benchmarks.workloads.base import Figure, Sizes, Workload

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.session import Session

_AT_ONCE: Final = 8
_SECOND_NS: Final = 1_000_000_000


class ManyWriters(Workload):
    """A line's age is taken where it is read, by one process for all; the line says its time.

    The containers of a system are started in its first round, and wait between rounds.
    """

    name = "many_writers"
    title = "Many writers"
    needs = Can.OUTPUT
    order = 50
    full = {"rounds": 3, "writers": 200, "rate": 100, "seconds": 5}
    quick = {"rounds": 1, "writers": 10, "rate": 100, "seconds": 1}

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self._writers: WeakKeyDictionary[Session, Writers] = WeakKeyDictionary()

    def runs_on(self, system: System) -> bool:
        """Not on what so many would be too many for."""
        return super().runs_on(system) and self.sizes["writers"] <= system.most

    def figures(self) -> Sequence[Figure]:
        lines = self.sizes["writers"] * self.sizes["rate"]
        return [
            Figure("cpu", f"CPU time of the shims for {lines:,} lines a second", "CPU-s/s"),
            Figure("p50", "a line's way to its reader, median", "µs"),
            Figure("p99", "a line's way to its reader, 99th percentile", "µs"),
        ]

    def claims(self) -> Sequence[Claim]:
        return [
            Claim("CPU time: at most 1/3 of theirs", "cpu", 1 / 3, Kind.RATIO),
            Claim("latency, median: not worse than theirs", "p50", 1, Kind.RATIO),
            Claim("latency, 99th percentile: not worse than theirs", "p99", 1, Kind.RATIO),
        ]

    def run(self, session: Session) -> Mapping[str, float]:
        if session not in self._writers:
            self._writers[session] = Writers(session, self.sizes)
        writers = self._writers[session]
        before = session.shim_cpu()
        ages = writers.write()
        cpu = session.shim_cpu() - before
        return {
            "cpu": cpu / self.sizes["seconds"],
            "p50": percentile(ages, 50) * 1e6,
            "p99": percentile(ages, 99) * 1e6,
        }


class Writers:
    """A session's containers, which end with it, and the FIFOs of their outputs."""

    def __init__(self, session: Session, sizes: Sizes) -> None:
        self._rootfs = session.rootfs
        self._count = sizes["writers"]
        self._lines = sizes["rate"] * sizes["seconds"]
        self._gate = Gate(session.rootfs)
        fifos = [session.fifo() for _ in range(self._count)]
        with contextlib.ExitStack() as undo:
            undo.callback(self._gate.close)
            self._outputs = [_reader(undo, session.place.outside(fifo)) for fifo in fifos]
            nobodys = str(session.fifo())
            _reader(undo, session.place.outside(nobodys))
            # Each begins at a moment of its own between two lines; in all runs at the same.
            numbers = random.Random(0)
            phases = [numbers.randrange(_SECOND_NS // sizes["rate"]) for _ in fifos]

            def start(fifo: Path, phase: int) -> None:
                times = (str(self._lines), str(sizes["rate"]), str(phase))
                command = (PUMP, "lines", self._gate.inside, *times)
                session.run(*command, stdout=str(fifo), stderr=nobodys)

            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for _ in pool.map(start, fifos, phases):
                    pass
            session.at_end(undo.pop_all().close)

    def write(self) -> list[float]:
        """Let each write its lines; how old each was when it was read, in seconds."""
        lines = self._count * self._lines
        with Pump(self._rootfs, "receive", lines, descriptors=self._outputs) as reader:
            self._gate.admit(self._count)
            return reader.times()


def _reader(undo: contextlib.ExitStack, fifo: Path) -> int:
    """Opened before there is a writer: the end of the last one's output is no reader's end."""
    descriptor = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    undo.callback(os.close, descriptor)
    return descriptor
