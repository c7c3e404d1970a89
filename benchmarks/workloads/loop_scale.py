"""What the keeper's loop costs, by the number of streams that it has."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.accounting import cpu_of, switches
from benchmarks.claims import SUBJECT, Claim
from benchmarks.load import Pump
from benchmarks.systems.base import Can, System
from benchmarks.workloads.base import Figure, Sizes, Workload
from shim.keeper.records import Flag, Kind
from tests.native.harness import Keeper, keeper

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.session import Session

_BLOCK, _LINE = 64 << 10, 100
# Lines a second, for all streams together: so few that each wakes the keeper, and that no stream
# becomes hot, however few there are.
_RATE: Final = 4000
_ACTIVE_OF: Final = 100  # one in so many streams
_PER_STREAM: Final = 3  # descriptors: an output's pipe, its FIFO, and the hold on it
_OTHERS: Final = 200  # descriptors that the keeper needs beside them, and some more
_MOST_DESCRIPTORS: Final = 1 << 16
_FLAT: Final = 1.2


class LoopScale(Workload):
    """The keeper alone, without containers; all numbers of streams take turns within a round."""

    name = "loop_scale"
    title = "Scale of the loop"
    needs = Can.TASKS
    order = 120
    full = {"rounds": 3, "few": 100, "some": 1000, "turns": 5, "lines": 2000, "blocks": 8192}
    quick = {"rounds": 1, "few": 100, "some": 1000, "turns": 2, "lines": 1000, "blocks": 2048}

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self._counts = [sizes["few"], sizes["some"], _most_streams()]

    def runs_on(self, system: System) -> bool:
        """No other has a keeper."""
        return system.name == SUBJECT

    def figures(self) -> Sequence[Figure]:
        rows = [
            row
            for count in self._counts
            for row in (
                Figure(f"byte_{count}", f"blocks, {count:,} streams", "CPU-s/GiB", "byte", count),
                Figure(f"wake_{count}", f"a wake-up, {count:,} streams", "µs", "wake", count),
            )
        ]
        return [
            *rows,
            Figure("byte_growth", f"a byte, beside that of {self._counts[0]} streams", "×"),
            Figure("wake_growth", f"a wake-up, beside that of {self._counts[0]} streams", "×"),
        ]

    def claims(self) -> Sequence[Claim]:
        upto = f"with up to {self._counts[-1]:,} streams at most {_FLAT} × as much as with few"
        return [
            Claim(f"CPU time of a byte: {upto}", "byte_growth", _FLAT),
            Claim(f"CPU time of a wake-up: {upto}", "wake_growth", _FLAT),
        ]

    def run(self, session: Session) -> Mapping[str, float]:
        found: dict[str, float] = {}
        with contextlib.ExitStack() as undo:
            undo.enter_context(_many_descriptors())
            all = [undo.enter_context(streams(session.rootfs, count)) for count in self._counts]
            for each in all:
                each.pass_blocks(self.sizes["blocks"] // 4)  # until busy pipes have grown
            turns = range(self.sizes["turns"])
            bytes = [[each.pass_blocks(self.sizes["blocks"]) for each in all] for _ in turns]
            wakes = [[each.pass_lines(self.sizes["lines"]) for each in all] for _ in turns]
        for what, rows in (("byte", bytes), ("wake", wakes)):
            costs = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            names = [f"{what}_{count}" for count in self._counts]
            found |= dict(zip(names, costs, strict=True))
            found[f"{what}_growth"] = max(costs[1:]) / costs[0]
        return found


@dataclass(frozen=True)
class Streams:
    """A keeper's streams; those that are active, by their ends: where to write, where to read."""

    rootfs: Path
    pid: int
    sources: Sequence[int]
    sinks: Sequence[int]

    def pass_blocks(self, count: int) -> float:
        """CPU seconds for each GiB; all active streams are full all the time."""
        before = cpu_of(self.pid)
        self._pass(count * _BLOCK, "flood", count * _BLOCK, _BLOCK)
        return (cpu_of(self.pid) - before) / (count * _BLOCK) * (1 << 30)

    def pass_lines(self, count: int) -> float:
        """CPU microseconds for each time that the keeper was woken."""
        before, woken = cpu_of(self.pid), switches([self.pid])
        self._pass(count * _LINE, "feed", count, _LINE, _RATE)
        return (cpu_of(self.pid) - before) / (switches([self.pid]) - woken) * 1e6

    def _pass(self, size: int, *load: object) -> None:
        with (
            Pump(self.rootfs, "drain", size, descriptors=self.sinks) as reader,
            Pump(self.rootfs, *load, descriptors=self.sources) as writer,
        ):
            writer.output()
            reader.output()


@contextlib.contextmanager
def streams(rootfs: Path, count: int) -> Iterator[Streams]:
    """A keeper of its own with so many streams, one in a hundred of them active."""
    with keeper(files=resource.getrlimit(resource.RLIMIT_NOFILE)) as made, _Ends() as ends:
        made.front.ask(Kind.READY)
        pairs = [ends.add(made, number) for number in range(count)]
        active = pairs[:: min(_ACTIVE_OF, count)]
        yield Streams(rootfs, made.pid, *zip(*active, strict=True))


class _Ends(contextlib.ExitStack):
    """The ends of streams that are not the keeper's."""

    def add(self, made: Keeper, number: int) -> tuple[int, int]:
        source, inner = os.pipe()
        outer, sink = os.pipe()
        for end in (inner, outer):
            self.callback(os.close, end)
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        reply = made.front.relay(1000 + number, source, sink, os.dup(outer), Flag.OUTPUT)
        if reply.error:
            raise OSError(reply.error, f"stream {number}")
        return inner, outer


@contextlib.contextmanager
def _many_descriptors() -> Iterator[None]:
    """Let this process have as many as its keepers."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(before[1], _MOST_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _most_streams() -> int:
    """As many as the limit of descriptors allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (min(hard, _MOST_DESCRIPTORS) - _OTHERS) // _PER_STREAM
