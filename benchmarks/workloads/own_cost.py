"""What a shim itself adds to the runtime's work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.calls import ShimService
from benchmarks.claims import FLOOR, NULL, Claim, Kind
from benchmarks.direct import DirectShim
from benchmarks.statistics import percentile
from benchmarks.systems.bare import Bare
from benchmarks.systems.base import Can, System
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session

_MOST_MS: Final = 10


class OwnCost(Workload):
    """Create, Start, Wait and Delete at the shim's socket; the runtime's same calls made bare.

    The same through containerd's API stands beside it, with what containerd adds.
    """

    name = "own_cost"
    title = "The shim's own cost"
    order = 70
    full = {"rounds": 5, "lives": 20}
    quick = {"rounds": 2, "lives": 5}

    def runs_on(self, system: System) -> bool:
        """Also on the floor."""
        return Can.TASKS in system.can or Can.BARE in system.can

    def figures(self) -> Sequence[Figure]:
        calls = "Create, Start, Wait, Delete"
        api = "the same through containerd's API"
        return [
            Figure("wall", f"{calls} at the shim's socket: wall time", "ms"),
            Figure("cpu", f"{calls} at the shim's socket: CPU time", "ms"),
            Figure("launch", "before them, the shim's `start`: wall time", "ms"),
            Figure("api_wall", f"{api}: wall time", "ms"),
            Figure("api_cpu", f"{api}: CPU time but containerd's", "ms"),
        ]

    def claims(self) -> Sequence[Claim]:
        text = f"wall time beyond the runtime's own calls: at most {_MOST_MS} ms"
        return [Claim(text, "wall", _MOST_MS, Kind.ABOVE, least=((NULL, 1), (FLOOR, 1)))]

    def run(self, session: Session) -> Mapping[str, float]:
        if Can.BARE in session.system.can:
            return self._run(session, _bare, "")
        found = self._run(session, _through_containerd, "api_")
        if session.system.runtime != ShimService.folder:  # whose shims containerd starts otherwise
            found |= self._run_direct(session)
        return found

    def _run(
        self, session: Session, life: Callable[[Session], float], prefix: str
    ) -> dict[str, float]:
        before = session.shim_cpu()
        walls = [life(session) for _ in range(self._lives(session))]
        cpu = session.shim_cpu() - before
        return {
            f"{prefix}wall": percentile(walls, 50) * 1e3,
            f"{prefix}cpu": cpu / len(walls) * 1e3,
        }

    def _run_direct(self, session: Session) -> dict[str, float]:
        launches, walls, cpu = [], [], 0.0
        for _ in range(self._lives(session)):
            with DirectShim(session, "true") as shim:
                launches.append(shim.start())
                before = session.shim_cpu()
                walls.append(shim.live())
                cpu += session.shim_cpu() - before
                shim.end()
        return {
            "wall": percentile(walls, 50) * 1e3,
            "cpu": cpu / len(walls) * 1e3,
            "launch": percentile(launches, 50) * 1e3,
        }

    def _lives(self, session: Session) -> int:
        return max(self.sizes["lives"] // session.system.slow, 1)


def _through_containerd(session: Session) -> float:
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
