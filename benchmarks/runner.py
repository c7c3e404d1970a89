"""Runs workloads on systems, in turns: A B A B."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.run import Record, Round, Run
from benchmarks.session import Session
from benchmarks.systems.base import System
from benchmarks.workloads.base import Workload

# Told before each round: workload, system, number of the round.
Progress = Callable[[Workload, System, int], None]


class Runner:
    """Sessions are in `folder`; containers have `rootfs`."""

    def __init__(self, folder: Path, rootfs: Path, progress: Progress) -> None:
        self._folder = folder
        self._rootfs = rootfs
        self._progress = progress

    def run(self, run: Run, workloads: Iterable[Workload], systems: Sequence[System]) -> None:
        """Fill the run with a record for each workload."""
        stages: dict[str, list[Workload]] = {}
        for each in workloads:
            stages.setdefault(each.stage or each.name, []).append(each)
            run.records.append(_record(each))
        records = {each.name: each for each in run.records}
        for stage in stages.values():
            if stage[0].stage:
                self._run_stage(stage, records, systems)
            else:
                self._run_alone(stage[0], records[stage[0].name], systems)

    def _run_stage(
        self, stage: Sequence[Workload], records: Mapping[str, Record], systems: Sequence[System]
    ) -> None:
        """Each round has sessions of its own, one after the other, each for the whole stage."""
        for turn in range(max(each.sizes["rounds"] for each in stage)):
            for system in systems:
                meant = [
                    each for each in stage if each.runs_on(system) and turn < each.sizes["rounds"]
                ]
                with Sessions(self._folder, self._rootfs) as sessions:
                    for each in meant:
                        row = self._round(sessions, each, system, turn)
                        records[each.name].rounds.append(row)

    def _run_alone(self, workload: Workload, record: Record, systems: Sequence[System]) -> None:
        """A system's session is used for all its rounds, and is idle while others have theirs."""
        with Sessions(self._folder, self._rootfs) as sessions:
            for turn in range(workload.sizes["rounds"]):
                for system in systems:
                    if workload.runs_on(system):
                        record.rounds.append(self._round(sessions, workload, system, turn))

    def _round(self, sessions: Sessions, workload: Workload, system: System, turn: int) -> Round:
        """One round; a failure of any kind is recorded, and ends the system's session."""
        self._progress(workload, system, turn)
        began = time.monotonic()
        figures: Mapping[str, float] = {}
        error = ""
        try:
            figures = workload.run(sessions.of(system))
        except Exception as failure:  # noqa: BLE001 - it is shown, and the others go on
            error = f"{type(failure).__name__}: {failure}"
            sessions.give_up(system)
        return Round(system.name, turn, dict(figures), error, time.monotonic() - began)


class Sessions:
    """At most one session for each system, started when it is first asked for."""

    def __init__(self, folder: Path, rootfs: Path) -> None:
        self._folder = folder
        self._rootfs = rootfs
        self._open: dict[str, Session] = {}

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as closing:
            for session in self._open.values():
                closing.callback(session.close)

    def of(self, system: System) -> Session:
        """The system's session. Raises whatever keeps it from starting."""
        if system.name not in self._open:
            self._open[system.name] = Session(system, self._folder, self._rootfs)
        return self._open[system.name]

    def give_up(self, system: System) -> None:
        """End the system's session, if it has one; the next `of` starts another."""
        session = self._open.pop(system.name, None)
        if session is not None:
            session.close()


def _record(workload: Workload) -> Record:
    return Record(
        name=workload.name,
        title=workload.title,
        sizes=workload.sizes,
        figures=workload.figures(),
        claims=workload.claims(),
    )


def count(workloads: Iterable[Workload], systems: Sequence[System]) -> int:
    """How many rounds on systems there will be."""
    return sum(
        workload.sizes["rounds"]
        for workload in workloads
        for system in systems
        if workload.runs_on(system)
    )
