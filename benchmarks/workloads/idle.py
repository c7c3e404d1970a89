"""What containers cost that do nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks import accounting
from benchmarks.claims import Claim
from benchmarks.systems.base import Can
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session


class Idle(Workload):
    """Wake-ups are the voluntary context switches of all threads of all shims."""

    name = "idle"
    title = "Idle"
    needs = Can.OUTPUT | Can.CROWD
    stage = "crowd"
    order = 15
    full = {"rounds": 2, "containers": 1000, "seconds": 30}
    quick = {"rounds": 1, "containers": 50, "seconds": 3}

    def figures(self) -> Sequence[Figure]:
        count, seconds = self.sizes["containers"], self.sizes["seconds"]
        return [
            Figure("wakeups", f"wake-ups of the shims of {count} in {seconds} s", ""),
            Figure("keeper", f"wake-ups of the keeper of {count} in {seconds} s", ""),
            Figure("cpu", f"CPU time of the shims of {count} in {seconds} s", "ms"),
        ]

    def claims(self) -> Sequence[Claim]:
        return [Claim("the keeper is not woken", "keeper", 0)]

    def run(self, session: Session) -> Mapping[str, float]:
        session.crowd.resize(self.sizes["containers"])
        shims, keeper = session.shims(), session.system.keeper(session)
        woken, kept = accounting.switches(shims), accounting.switches(keeper)
        before = session.shim_cpu()
        time.sleep(self.sizes["seconds"])
        found = {
            "cpu": (session.shim_cpu() - before) * 1e3,
            "wakeups": accounting.switches(shims) - woken,
        }
        return found | ({"keeper": accounting.switches(keeper) - kept} if keeper else {})
