"""How long calls to shims take."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.calls import Request, ask, service_of, socket_of, write_frames
from benchmarks.claims import FLOOR, Claim, Kind, Least
from benchmarks.statistics import percentile
from benchmarks.systems.bare import Bundle
from benchmarks.systems.base import Can, System
from benchmarks.workloads.base import Figure, Workload

if TYPE_CHECKING:
    from benchmarks.session import Container, Session

_TITLES: Final = {
    "state": "State",
    "stats": "Stats",
    "pids": "Pids",
    "kill": "Kill of one process",
    "exec": "Exec, Start, Wait, Delete of `true`",
}
_PERCENTILES: Final = {50: "median", 99: "99th percentile"}
_MOST_MS: Final = 0.4
# To a process that sleeps it means nothing.
_SIGNAL: Final = signal.SIGWINCH


class Calls(Workload):
    """Raw requests over the shim's own socket, each sent when the last one has been answered.

    Of several clients each has a container of its own. The runtime's `exec` alone is the floor.
    """

    name = "calls"
    title = "Calls"
    order = 80
    # Calls of each client, when it is alone and when there are `clients` at once.
    full = {
        "rounds": 3,
        "clients": 16,
        **{"state_1": 2000, "stats_1": 1000, "pids_1": 100, "kill_1": 100, "exec_1": 20},
        **{"state_n": 200, "stats_n": 100, "pids_n": 10, "kill_n": 10, "exec_n": 3},
    }
    quick = {
        "rounds": 1,
        "clients": 4,
        **{"state_1": 100, "stats_1": 100, "pids_1": 10, "kill_1": 10, "exec_1": 3},
        **{"state_n": 25, "stats_n": 25, "pids_n": 3, "kill_n": 3, "exec_n": 1},
    }

    def runs_on(self, system: System) -> bool:
        """Also on the floor."""
        return Can.TASKS in system.can or Can.BARE in system.can

    def figures(self) -> Sequence[Figure]:
        who = {"1": "1 client", "n": f"{self.sizes['clients']} clients"}
        return [
            Figure(f"{call}_{clients}_p{percent}", f"{title}, {many}, {label}", "ms")
            for call, title in _TITLES.items()
            for clients, many in who.items()
            for percent, label in _PERCENTILES.items()
        ]

    def claims(self) -> Sequence[Claim]:
        titles = {figure.name: figure.title for figure in self.figures()}

        def ratio(figure: str, most: float, text: str, least: Least = ()) -> Claim:
            return Claim(f"{titles[figure]}: {text}", figure, most, Kind.RATIO, least=least)

        least = f"less than {_MOST_MS * 1e3:.0f} µs"
        return [
            *(ratio(f"pids_{who}_p50", 1 / 5, "at most 1/5 of theirs") for who in "1n"),
            *(ratio(f"kill_{who}_p50", 1 / 5, "at most 1/5 of theirs") for who in "1n"),
            Claim(f"{titles['state_1_p50']}: {least}", "state_1_p50", _MOST_MS),
            Claim(f"{titles['stats_1_p50']}: {least}", "stats_1_p50", _MOST_MS),
            ratio("state_n_p99", 1, "not worse than theirs"),
            ratio("stats_n_p99", 1, "not worse than theirs"),
            # Less than the runtime's own `exec` no shim can need.
            *(
                ratio(f"exec_{who}_p50", 0.8, "at most 0.8 × theirs", ((FLOOR, 1),))
                for who in "1n"
            ),
        ]

    def run(self, session: Session) -> Mapping[str, float]:
        run = self._run_bare if Can.BARE in session.system.can else self._run_shims
        return {
            f"{call}_{clients}_p{percent}": percentile(times, percent) * 1e3
            for (call, clients), times in run(session).items()
            for percent in _PERCENTILES
        }

    def _run_shims(self, session: Session) -> dict[tuple[str, str], list[float]]:
        count = min(self.sizes["clients"], session.system.most)
        containers = [session.container("sleep", "100000") for _ in range(count)]
        for each in containers:
            each.create()
            each.start()
        found = {
            (call, clients): times
            for call in _TITLES
            for clients, some in (("1", containers[:1]), ("n", containers))
            if (times := self._ask(session, call, self.sizes[f"{call}_{clients}"], some))
        }
        for each in containers:
            each.remove()
        return found

    def _ask(
        self, session: Session, call: str, times: int, containers: Sequence[Container]
    ) -> list[float]:
        """Seconds; [] when the shim has no such call."""
        service = service_of(session)
        process = session.process("true")
        requests: dict[str, Callable[[str], list[Request]]] = {
            "state": service.state,
            "stats": service.stats,
            "pids": service.pids,
            "kill": lambda id: service.kill(id, _SIGNAL),
            "exec": lambda id: service.exec(id, process),
        }
        clients = []
        for each in containers:
            frames = session.place.outside(session.place.folder / f"{each.id}.frames")
            if not (wanted := requests[call](each.id)):
                return []
            write_frames(frames, service.service, wanted)
            clients.append((frames, socket_of(session, service, each.id)))
        return ask(session.rootfs, times, clients)

    def _run_bare(self, session: Session) -> dict[tuple[str, str], list[float]]:
        """Exec's floor."""
        place, count = session.place, self.sizes["clients"]
        bundles = [Bundle(session, "sleep", "100000") for _ in range(count)]
        place.run([each.begin() for each in bundles])
        alone = place.run([bundles[0].exec()] * self.sizes["exec_1"])
        together = [
            ended
            for _ in range(self.sizes["exec_n"])
            for ended in place.run([each.exec() for each in bundles], count)
        ]
        place.run([[each.delete("--force")] for each in bundles])
        return {
            ("exec", "1"): [ended.wall for ended in alone],
            ("exec", "n"): [ended.wall for ended in together],
        }
