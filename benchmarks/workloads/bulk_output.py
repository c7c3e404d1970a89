"""A container that writes as fast as it can, in large blocks."""

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

_BLOCK: Final = 64 << 10
_MOST_CPU_S: Final = 0.20


class BulkOutput(Workload):
    """Writes of 64 KiB; a reader that discards."""

    name = "bulk_output"
    title = "Bulk output"
    needs = Can.OUTPUT
    order = 20
    full = {"rounds": 3, "mib": 4096}
    quick = {"rounds": 1, "mib": 256}

    def figures(self) -> Sequence[Figure]:
        return [
            Figure("cpu", "CPU time of the shim", "CPU-s/GiB"),
            Figure("wall", "wall time", "s/GiB"),
        ]

    def claims(self) -> Sequence[Claim]:
        return [
            Claim(f"at most {_MOST_CPU_S:.2f} CPU-s per GiB", "cpu", _MOST_CPU_S),
            Claim("CPU time: at most 1/5 of theirs", "cpu", 1 / 5, Kind.RATIO),
        ]

    def run(self, session: Session) -> Mapping[str, float]:
        size = self.sizes["mib"] << 20
        spent = passage(session, PUMP, "write", str(size // _BLOCK), str(_BLOCK), least=size)
        gib = size / (1 << 30)
        return {"cpu": spent.cpu / gib, "wall": spent.wall / gib}
