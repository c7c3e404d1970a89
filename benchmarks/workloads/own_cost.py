"""What a shim itself adds to the runtime's work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.claims import Claim, Kind
from benchmarks.statistics import percentile
from benchmarks.systems.bare import Bare
from benchmarks.systems.base import Can, System
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session

_MOST_MS: Final = 10


class OwnCost(Workload):
    """Create, start, wait and delete through the API; the same calls of the runtime made bare."""

    name = "own_cost"
    title = "The shim's own cost"
    order = 70
    full = {"rounds": 5, "lives": 30}
    quick = {"rounds": 2, "lives": 5}

    def runs_on(self, system: System) -> bool:
        """Also on the floor."""
        return Can.TASKS in system.can or Can.BARE in system.can

    def figures(self) -> Sequence[Figure]:
        return [
            Figure("wall", "create, start, wait, delete: wall time", "ms"),
            Figure("cpu", "create, start, wait, delete: CPU time but containerd's", "ms"),
        ]

    def claims(self) -> Sequence[Claim]:
        text = f"wall time beyond the runtime's own calls: at most {_MOST_MS} ms"
        return [Claim(text, "wall", _MOST_MS, Kind.ABOVE)]

    def run(self, session: Session) -> Mapping[str, float]:
        lives = max(self.sizes["lives"] // session.system.slow, 1)
        before = session.shim_cpu()
        life = _bare if Can.BARE in session.system.can else _life
        walls = [life(session) for _ in range(lives)]
        cpu = session.shim_cpu() - before
        return {"wall": percentile(walls, 50) * 1e3, "cpu": cpu / lives * 1e3}


def _life(session: Session) -> float:
    """Seconds. Telling containerd of the container, and making it forget, is no shim's work."""
    container = session.container("true")
    began = time.monotonic()
    container.create()
    container.start()
    container.wait()
    session.api.delete(container.id)
    ended = time.monotonic()
    session.api.delete_container(container.id)
    return ended - began


def _bare(session: Session) -> float:
    assert isinstance(session.system, Bare)
    (ended,) = session.place.run([session.system.calls(session)])
    return ended.wall
