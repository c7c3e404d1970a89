"""containerd restarted while containers live."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.claims import Claim, Kind
from benchmarks.statistics import percentile
from benchmarks.systems.base import Can, System
from benchmarks.waiting import until
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session

_RUNNING: Final = 2  # containerd's number for it


class Reconnect(Workload):
    """Until containerd has asked every shim, and shows all containers as running."""

    name = "reconnect"
    title = "Reconnect"
    stage = "crowd"
    order = 110
    full = {"rounds": 3, "containers": 300, "restarts": 3}
    quick = {"rounds": 1, "containers": 30, "restarts": 1}

    def runs_on(self, system: System) -> bool:
        """Also on the floor: a containerd without containers."""
        return Can.TASKS | Can.CROWD in system.can or Can.BARE in system.can

    def figures(self) -> Sequence[Figure]:
        count = self.sizes["containers"]
        return [Figure("wall", f"from containerd's start until it shows all of {count}", "ms")]

    def claims(self) -> Sequence[Claim]:
        return [Claim("at most half of their time", "wall", 0.5, Kind.RATIO)]

    def run(self, session: Session) -> Mapping[str, float]:
        count = 0 if Can.BARE in session.system.can else self.sizes["containers"]
        session.crowd.resize(count)
        walls = [_restart(session, count) for _ in range(self.sizes["restarts"])]
        return {"wall": percentile(walls, 50) * 1e3}


def _restart(session: Session, count: int) -> float:
    """Seconds."""
    session.stop()
    began = time.monotonic()
    session.start()

    def are_running() -> bool:
        return sum(task.status == _RUNNING for task in session.api.tasks()) == count

    until(are_running, f"{count} running containers")
    return time.monotonic() - began
