"""A container that prints on its terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.claims import Claim, Kind
from benchmarks.output import passage
from benchmarks.systems.base import Can, System
from benchmarks.systems.loop import Loop
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session


class Terminal(Workload):
    """`seq`, which writes each number by itself."""

    name = "terminal"
    title = "Terminal"
    needs = Can.OUTPUT
    order = 40
    full = {"rounds": 3, "numbers": 3_000_000}
    quick = {"rounds": 1, "numbers": 200_000}

    def runs_on(self, system: System) -> bool:
        """A plain loop has no terminal to read from."""
        return super().runs_on(system) and not isinstance(system, Loop)

    def figures(self) -> Sequence[Figure]:
        count = self.sizes["numbers"]
        return [
            Figure("cpu", f"CPU time of the shim for `seq {count}`", "s"),
            Figure("wall", f"wall time of `seq {count}`", "s"),
        ]

    def claims(self) -> Sequence[Claim]:
        return [Claim("CPU time: at most half of theirs", "cpu", 0.5, Kind.RATIO)]

    def run(self, session: Session) -> Mapping[str, float]:
        count = self.sizes["numbers"]
        digits = sum(len(str(number)) for number in range(1, count + 1))
        # Each line ends with CR and LF: the terminal adds the one.
        spent = passage(session, "seq", str(count), least=digits + 2 * count, terminal=True)
        return {"cpu": spent.cpu, "wall": spent.wall}
