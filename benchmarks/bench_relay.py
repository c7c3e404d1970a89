"""The relay's CPU against a plain read/write loop's, pipe to FIFO, in one run.

Workloads: a writer of 64 KiB blocks, and a writer of 100-byte lines, each with a reader that
discards. Baseline: `pump copy`, a loop of read(2) and write(2) in C, between the same two pipes
(both of the size they are made with). The figure is the CPU time of the process in the middle,
from the kernel's scheduler (/proc/PID/schedstat), writers and readers not counted. Relay and
loop take turns; each figure is the median of all rounds, with the least and the greatest.

    python -m benchmarks.bench_relay [--rounds N] [--gib N] [--lines MILLIONS]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from shim.keeper.records import Kind
from tests.native.harness import Keeper, keeper

BLOCK, LINE = 64 << 10, 100
HERE = Path(__file__).parent


def cpu_seconds(pid: int) -> float:
    """CPU time of a process's main thread so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def build(folder: Path) -> str:
    """Compile the pump; its path."""
    program = folder / "pump"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "pump.c"], check=True)
    return str(program)


class Bench:
    """Both contestants, between the same kinds of pipes."""

    def __init__(self, folder: Path, relay: Keeper, pump: str) -> None:
        self._folder = folder
        self._relay = relay
        self._pump = pump
        self._next = 100

    def _reader(self) -> tuple[Path, subprocess.Popen[bytes]]:
        """A new FIFO and a process that discards what comes through it."""
        self._next += 1
        fifo = self._folder / str(self._next)
        os.mkfifo(fifo)
        return fifo, subprocess.Popen([self._pump, "discard", fifo])

    def relay(self, count: int, size: int) -> float:
        """CPU seconds of the keeper for this many writes."""
        fifo, reader = self._reader()
        inner = self._relay.front.output(self._next, fifo)
        before = cpu_seconds(self._relay.pid)
        self._write(inner, count, size)
        ended = self._relay.front.report(Kind.ENDED, self._next)
        assert ended.moved == count * size
        reader.wait()
        self._relay.front.ask(Kind.FORGET, id=self._next)
        return cpu_seconds(self._relay.pid) - before

    def loop(self, count: int, size: int) -> float:
        """CPU seconds of the read/write loop for this many writes."""
        fifo, reader = self._reader()
        source, inner = os.pipe()
        with open(os.open(fifo, os.O_WRONLY), "wb") as sink, open(source, "rb") as pipe:
            loop = subprocess.Popen([self._pump, "copy"], stdin=pipe, stdout=sink)
        self._write(inner, count, size)
        os.waitid(os.P_PID, loop.pid, os.WEXITED | os.WNOWAIT)
        used = cpu_seconds(loop.pid)
        loop.wait()
        reader.wait()
        return used

    def _write(self, inner: int, count: int, size: int) -> None:
        with open(inner, "wb") as out:
            subprocess.run([self._pump, "write", str(count), str(size)], stdout=out, check=True)


def measure(
    rounds: int, relay: Callable[[], float], loop: Callable[[], float]
) -> list[list[float]]:
    """The two contestants' figures, taken in turns."""
    pairs = [(relay(), loop()) for _ in range(rounds)]
    return [list(column) for column in zip(*pairs, strict=True)]


def report(what: str, unit: float, figures: list[list[float]]) -> float:
    """Print one workload's figures per unit; the ratio of the medians."""
    medians = [statistics.median(column) / unit for column in figures]
    for name, column, median in zip(("relay", "read/write"), figures, medians, strict=True):
        spread = f"{min(column) / unit:.3f} to {max(column) / unit:.3f}"
        print(f"{what:28} {name:11} {median:.3f} CPU-s  ({spread})")
    print(f"{what:28} ratio       {medians[0] / medians[1]:.2f}")
    return medians[0] / medians[1]


def main() -> None:
    """Run both workloads; exit 1 when the relay does not cost less."""
    parser = argparse.ArgumentParser(prog="bench_relay", description="The relay's CPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=int, default=2, help="GiB in blocks of 64 KiB a round")
    parser.add_argument("--lines", type=float, default=1, help="millions of lines a round")
    options = parser.parse_args()
    blocks, lines = options.gib * (1 << 30) // BLOCK, int(options.lines * 1e6)
    with tempfile.TemporaryDirectory() as name, keeper() as relay:
        bench = Bench(Path(name), relay, build(Path(name)))
        relay.front.ask(Kind.READY)
        bulk = measure(
            options.rounds, lambda: bench.relay(blocks, BLOCK), lambda: bench.loop(blocks, BLOCK)
        )
        small = measure(
            options.rounds, lambda: bench.relay(lines, LINE), lambda: bench.loop(lines, LINE)
        )
    ratios = [
        report("1 GiB in 64 KiB writes", options.gib, bulk),
        report("1 million 100-byte writes", options.lines, small),
    ]
    sys.exit(0 if max(ratios) < 1 else "the relay costs more than a read/write loop")


if __name__ == "__main__":
    main()
