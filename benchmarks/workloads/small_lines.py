"""A container that writes short lines as fast as it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.claims import Claim, Kind
from benchmarks.load import PUMP
from benchmarks.output import passage
from benchmarks.systems.base import Can
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session

_LINE: Final = 100
_MOST_CPU_S: Final = 0.15


class SmallLines(Workload):
    """Writes of 100 bytes; a reader that discards."""

    name = "small_lines"
    title = "Small lines"
    needs = Can.OUTPUT
    order = 30
    full = {"rounds": 3, "lines": 2_000_000}
    quick = {"rounds": 1, "lines": 200_000}

    def figures(self) -> Sequence[Figure]:
        return [
            Figure("cpu", "CPU time of the shim", "CPU-s/million"),
            Figure("wall", "wall time", "s/million"),
        ]

    def claims(self) -> Sequence[Claim]:
        return [
            Claim(f"at most {_MOST_CPU_S} CPU-s per million lines", "cpu", _MOST_CPU_S),
            Claim("CPU time: at most 1/15 of theirs", "cpu", 1 / 15, Kind.RATIO),
        ]

    def run(self, session: Session) -> Mapping[str, float]:
        lines = self.sizes["lines"]
        spent = passage(session, PUMP, "write", str(lines), str(_LINE), least=lines * _LINE)
        millions = lines / 1e6
        return {"cpu": spent.cpu / millions, "wall": spent.wall / millions}
