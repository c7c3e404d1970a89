"""The log's CPU against the relay's, for the same writers, in one run.

Contestants: the log, from a pipe into a rotated file; the relay, from a pipe to a FIFO that a
reader empties (splice(2)); the relay, from a pipe into a file; and a loop in C, from a pipe into
a file: read(2) of 64 KiB and write(2), without a look at the lines. Nothing that ends in a file
can cost as little as the relay does: the kernel finds pages for the bytes, and copies them.

Loads: 100-byte lines, each a write of its own; the same in writes of 64 KiB; lines of 64 KiB,
each a write. The figure is the CPU time of the process in the middle per GiB of text; writers and
readers are not counted, nor is what the kernel does later to bring the file to a disk. The
contestants take turns; each figure is the median of all rounds, with the least and the greatest.

No workload of `python -m benchmarks`: no container's output goes to a log yet.

    python -m benchmarks.bench_log [--rounds N] [--gib N] [--folder PATH]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.accounting import cpu_of
from benchmarks.load import Pump, add_pump, pump_of
from shim.keeper.records import Kind
from tests.native.harness import Keeper, keeper

LIMIT, FILES = 64 << 20, 3
SHORT, BLOCK = 100, 64 << 10
LOADS = {
    "100-byte lines, one a write": (SHORT, SHORT),
    "100-byte lines, 64 KiB a write": (SHORT, 640 * SHORT),
    "64 KiB lines, one a write": (BLOCK, BLOCK),
}


class Bench:
    """All contestants, fed by the same writer."""

    def __init__(self, folder: Path, made: Keeper) -> None:
        self._folder = folder
        self._keeper = made
        pump_of(folder).parent.mkdir()
        add_pump(folder)
        self._next = 100

    def log(self, count: int, line: int, size: int) -> float:
        """CPU seconds of the keeper that writes a log."""
        self._next += 1
        place = self._folder / str(self._next)
        place.mkdir()
        source, inner = os.pipe()
        os.set_blocking(source, False)
        directory = os.open(place, os.O_PATH)
        front = self._keeper.front
        before = cpu_of(self._keeper.pid)
        reply = front.ask(
            Kind.LOG, source, directory, payload=b"log",
            id=self._next, owner=self._next, moved=LIMIT, number=FILES,
        )  # fmt: skip
        assert reply.error == 0
        os.close(source)
        os.close(directory)
        used = self._finish(inner, count, line, size) - before
        shutil.rmtree(place)
        return used

    def relay(self, count: int, line: int, size: int) -> float:
        """CPU seconds of the keeper that relays to a FIFO."""
        self._next += 1
        fifo = self._folder / str(self._next)
        os.mkfifo(fifo)
        with Pump(self._folder, "discard", fifo) as reader:
            before = cpu_of(self._keeper.pid)
            inner = self._keeper.front.output(self._next, fifo)
            used = self._finish(inner, count, line, size) - before
            reader.output()
        fifo.unlink()
        return used

    def file(self, count: int, line: int, size: int) -> float:
        """CPU seconds of the keeper that relays to a file."""
        self._next += 1
        path = self._folder / "relayed"
        source, inner = os.pipe()
        os.set_blocking(source, False)
        before = cpu_of(self._keeper.pid)
        sink = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        assert self._keeper.front.relay(self._next, source, sink).error == 0
        used = self._finish(inner, count, line, size) - before
        path.unlink()
        return used

    def loop(self, count: int, line: int, size: int) -> float:
        """CPU seconds of a loop that copies into a file."""
        path = self._folder / "copy"
        source, inner = os.pipe()
        with (
            path.open("wb") as sink,
            Pump(self._folder, "copy", stdin=source, stdout=sink.fileno()) as loop,
        ):
            os.close(source)
            self._write(inner, count, line, size)
            os.waitid(os.P_PID, loop.process.pid, os.WEXITED | os.WNOWAIT)
            used = cpu_of(loop.process.pid)
            loop.output()
        path.unlink()
        return used

    def _write(self, inner: int, count: int, line: int, size: int) -> None:
        """Takes the pipe's end."""
        with open(inner, "wb"), Pump(self._folder, "text", count, line, size, stdout=inner) as pump:
            pump.output()

    def _finish(self, inner: int, count: int, line: int, size: int) -> float:
        """Write, and wait for the stream's end; the keeper's CPU seconds so far."""
        self._write(inner, count, line, size)
        ended = self._keeper.front.report(Kind.ENDED, self._next)
        assert (ended.moved, ended.error) == (count * line, 0)
        self._keeper.front.ask(Kind.FORGET, id=self._next)
        return cpu_of(self._keeper.pid)


def report(what: str, gib: float, figures: Mapping[str, Sequence[float]]) -> None:
    """Print one load's figures per GiB, and the ratios of the medians to the relay's."""
    medians = {name: statistics.median(found) / gib for name, found in figures.items()}
    for name, found in figures.items():
        spread = f"{min(found) / gib:.3f} to {max(found) / gib:.3f}"
        ratio = f"{medians[name] / medians['relay']:.2f} of the relay's"
        print(f"{what:32} {name:11} {medians[name]:.3f} CPU-s/GiB  ({spread})  {ratio}")


def main() -> None:
    """Run all loads and print the figures."""
    parser = argparse.ArgumentParser(prog="bench_log", description="The log's CPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=0.5, help="text of a round")
    parser.add_argument("--folder", help="where the files are: another file system, other figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name, keeper() as made:
        bench = Bench(Path(name), made)
        made.front.ask(Kind.READY)
        contestants = {
            "relay": bench.relay,
            "log": bench.log,
            "file": bench.file,
            "read/write": bench.loop,
        }
        for what, (line, size) in LOADS.items():
            count = int(options.gib * (1 << 30)) // line
            figures: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(options.rounds):
                for name, run in contestants.items():
                    figures[name].append(run(count, line, size))
            report(what, count * line / (1 << 30), figures)


if __name__ == "__main__":
    main()
