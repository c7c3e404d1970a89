"""A container's whole life, by `ctr run --rm … true`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.claims import CLIENT, FLOOR, NULL, Claim, Kind
from benchmarks.statistics import percentile
from benchmarks.systems.base import Can
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Session

_SHARE: Final = 0.4
_WAYS: Final = {
    "alone": "one at a time",
    "parallel": "in parallel",
    "burst": "all started at once",
}


class Life(Workload):
    """One at a time, several in parallel, many at once; the CPU time is everybody's."""

    name = "life"
    title = "A container's life"
    needs = Can.LIFE
    order = 60
    full = {"rounds": 3, "alone": 15, "parallel": 48, "at_once": 16, "burst": 100}
    quick = {"rounds": 2, "alone": 4, "parallel": 16, "at_once": 16, "burst": 16}

    def figures(self) -> Sequence[Figure]:
        return [
            row
            for way, how in _WAYS.items()
            for row in (
                Figure(f"{way}_wall", f"wall time of a life, {how}", "ms"),
                Figure(f"{way}_cpu", f"CPU time of a life, {how}", "ms"),
            )
        ]

    def claims(self) -> Sequence[Claim]:
        return [
            Claim(
                f"{row.title}, beyond the floor: at most {_SHARE} × theirs",
                row.name,
                _SHARE,
                Kind.BEYOND,
                # Of both floors together the client's part is there twice.
                least=((NULL, 1), (FLOOR, 1), (CLIENT, -1)),
            )
            for row in self.figures()
        ]

    def run(self, session: Session) -> Mapping[str, float]:
        at_once = {"alone": 1, "parallel": self.sizes["at_once"], "burst": self.sizes["burst"]}
        found: dict[str, float] = {}
        for way, parallel in at_once.items():
            count = max(self.sizes[way] // session.system.slow, 1)
            jobs = [session.life() for _ in range(count)]
            cpu, began = session.cpu(), time.monotonic()
            ended = session.place.run(jobs, parallel)
            wall = time.monotonic() - began
            found[f"{way}_cpu"] = (session.cpu() - cpu) / count * 1e3
            # One at a time each is measured by itself; of several at once, how fast they all are.
            each = wall / count if parallel > 1 else percentile([row.wall for row in ended], 50)
            found[f"{way}_wall"] = each * 1e3
        return found
