"""containerd restarted while containers live."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.claims import NULL, Claim, Kind
from benchmarks.statistics import percentile
from benchmarks.systems.base import Can, System
from benchmarks.waiting import until
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session

_UNKNOWN: Final = 0  # containerd's number of what no shim has told it


class Reconnect(Workload):
    """Until containerd has asked every shim, and shows all containers as they were.

    Those of the shim that does nothing have ended at once; what is left is containerd's own.
    """

    name = "reconnect"
    title = "Reconnect"
    stage = "crowd"
    order = 110
    full = {"rounds": 3, "containers": 300, "restarts": 3}
    quick = {"rounds": 1, "containers": 30, "restarts": 1}

    def runs_on(self, system: System) -> bool:
        """Also on the floors: a containerd without containers, and a shim that does nothing."""
        crowd = Can.TASKS | Can.CROWD in system.can or system.name == NULL
        return crowd or Can.BARE in system.can

    def figures(self) -> Sequence[Figure]:
        count = self.sizes["containers"]
        return [Figure("wall", f"from containerd's start until it shows all of {count}", "ms")]

    def claims(self) -> Sequence[Claim]:
        text = "at most half of their time"
        return [Claim(text, "wall", 0.5, Kind.RATIO, least=((NULL, 1),))]

    def run(self, session: Session) -> Mapping[str, float]:
        count = 0 if Can.BARE in session.system.can else self.sizes["containers"]
        session.crowd.resize(count)
        walls = [_restart(session, count) for _ in range(self.sizes["restarts"])]
        return {"wall": percentile(walls, 50) * 1e3}


def _restart(session: Session, count: int) -> float:
    """Seconds."""
    before = _states(session)
    assert len(before) == count
    assert _UNKNOWN not in before.values()
    session.stop()
    began = time.monotonic()
    session.start()

    until(lambda: _states(session) == before, f"{count} containers, as before")
    return time.monotonic() - began


def _states(session: Session) -> dict[str, int]:
    return {task.id: task.status for task in session.api.tasks()}
