"""What containers that sleep cost, by their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks import accounting
from benchmarks.claims import Claim, Kind
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session

_STEPS: Final = (1, 10, 100, 1000)
_SERIES: Final = {
    "pss": ("PSS of all shims", "MB"),
    "processes": ("processes", ""),
    "threads": ("threads", ""),
    "descriptors": ("descriptors", ""),
    "kernel": ("kernel memory", "MB"),
}
_PER_CONTAINER_KB: Final = 60


class Memory(Workload):
    """PSS, threads and descriptors of all shims; kernel memory of all but the containers."""

    name = "memory"
    title = "Memory"
    stage = "crowd"
    order = 10
    full = {"rounds": 2, "most": 1000}
    quick = {"rounds": 1, "most": 50}  # 2 is the least

    @property
    def _steps(self) -> list[int]:
        most = self.sizes["most"]
        return [*(step for step in _STEPS if step < most), most]

    def figures(self) -> Sequence[Figure]:
        rows = [
            Figure(f"{series}_{count}", f"{title} at {count:,}", unit, series, count)
            for series, (title, unit) in _SERIES.items()
            for count in self._steps
        ]
        return [
            *rows,
            Figure("pss_each", "PSS of each further container", "kB"),
            Figure("kernel_each", "kernel memory of each further container", "kB"),
            Figure("threads_each", "threads for each further container", ""),
        ]

    def claims(self) -> Sequence[Claim]:
        return [
            Claim("PSS of each further container: at most 60 kB", "pss_each", _PER_CONTAINER_KB),
            Claim("PSS at 1,000: at most 1/20 of theirs", "pss_1000", 1 / 20, Kind.RATIO),
            Claim("threads do not grow: one for 100 containers at most", "threads_each", 0.01),
        ]

    def run(self, session: Session) -> Mapping[str, float]:
        kernel = session.kernel_memory()
        found: dict[str, float] = {}
        steps = [step for step in self._steps if step <= session.system.most]
        for count in steps:
            session.crowd.resize(count)
            shims = session.shims()
            found[f"pss_{count}"] = accounting.memory(shims) / 1e6
            found[f"processes_{count}"] = len(shims)
            found[f"threads_{count}"] = accounting.threads(shims)
            found[f"descriptors_{count}"] = accounting.descriptors(shims)
            found[f"kernel_{count}"] = (session.kernel_memory() - kernel) / 1e6
        # Memory from the first one on; threads from a tenth on: the first few that are started
        # at once need some, each for a moment.
        tenth, first, last = steps[-2], steps[0], steps[-1]
        for what in ("pss", "kernel"):
            grown = found[f"{what}_{last}"] - found[f"{what}_{first}"]
            found[f"{what}_each"] = grown / (last - first) * 1e3
        grown = found[f"threads_{last}"] - found[f"threads_{tenth}"]
        found["threads_each"] = grown / (last - tenth)
        return found
