"""In which order rounds are run, in which sessions, and what a failure does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks import runner
from benchmarks.run import Run
from benchmarks.runner import Runner, count
from benchmarks.systems.base import Can, System
from benchmarks.workloads import Figure, Workload


class FakeSession:
    """Notes that it is opened and closed."""

    log: list[str]

    def __init__(self, system: System, folder: Path, rootfs: Path) -> None:
        self.system = system
        self.log.append(f"open {system.name}")
        if system.name == "broken":
            raise OSError("it does not start")

    def close(self) -> None:
        self.log.append(f"close {self.system.name}")


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    FakeSession.log = []
    monkeypatch.setattr(runner, "Session", FakeSession)
    return FakeSession.log


def system(name: str, can: Can = Can.TASKS) -> System:
    made = System()
    made.name, made.title, made.can = name, name, can
    return made


class One(Workload):
    """Notes its rounds."""

    name = title = "one"

    def figures(self) -> Sequence[Figure]:
        return [Figure("figure", "", "")]

    def run(self, session: FakeSession) -> Mapping[str, float]:  # type: ignore[override]
        session.log.append(f"{self.name} {session.system.name}")
        if session.system.name == "failing":
            raise ValueError("it fails")
        return {"figure": 1.0}


class Two(One):
    name = title = "two"


class Staged(One):
    name = title = "staged"
    stage = "crowd"


class AlsoStaged(Staged):
    name = title = "also"


def run(workloads: Sequence[Workload], systems: Sequence[System]) -> Run:
    made = Run({}, {each.name: each.title for each in systems}, quick=True)
    Runner(Path(), Path(), lambda *_: None).run(made, workloads, systems)
    return made


def test_systems_alternate_and_keep_their_sessions(log: list[str]) -> None:
    run([One({"rounds": 2})], [system("a"), system("b")])
    rounds = ["open a", "one a", "open b", "one b", "one a", "one b"]
    assert log == [*rounds, "close b", "close a"]


def test_each_workload_has_sessions_of_its_own(log: list[str]) -> None:
    run([One({"rounds": 1}), Two({"rounds": 1})], [system("a")])
    assert log == ["open a", "one a", "close a", "open a", "two a", "close a"]


def test_a_stage_shares_a_session_that_each_round_has_anew(log: list[str]) -> None:
    """Also when another workload stands between its own."""
    workloads = [Staged({"rounds": 2}), One({"rounds": 1}), AlsoStaged({"rounds": 1})]
    made = run(workloads, [system("a"), system("b")])
    first = ["open a", "staged a", "also a", "close a", "open b", "staged b", "also b", "close b"]
    second = ["open a", "staged a", "close a", "open b", "staged b", "close b"]
    assert log[: len(first + second)] == first + second
    assert [record.name for record in made.records] == ["staged", "one", "also"]


def test_a_system_that_cannot_is_left_out(log: list[str]) -> None:
    made = run([One({"rounds": 1})], [system("a", Can.LIFE), system("b")])
    assert [row.system for row in made.records[0].rounds] == ["b"]
    assert "open a" not in log


def test_a_failure_is_recorded_and_others_go_on(log: list[str]) -> None:
    made = run([One({"rounds": 2})], [system("failing"), system("b")])
    failures = [(row.system, row.turn, row.error) for row in made.failures()]
    assert failures == [("failing", turn, "ValueError: it fails") for turn in (0, 1)]
    assert made.records[0].values("figure") == {"b": {0: 1.0, 1: 1.0}}


def test_after_a_failure_the_session_is_another(log: list[str]) -> None:
    run([One({"rounds": 2})], [system("failing")])
    assert log == ["open failing", "one failing", "close failing"] * 2


def test_a_system_that_does_not_start_is_a_failure(log: list[str]) -> None:
    made = run([One({"rounds": 1})], [system("broken"), system("b")])
    assert [row.error for row in made.failures()] == ["OSError: it does not start"]
    assert log[-2:] == ["one b", "close b"]


def test_rounds_are_counted_as_they_are_run(log: list[str]) -> None:
    workloads = [One({"rounds": 2}), Staged({"rounds": 3})]
    systems = [system("a"), system("b"), system("c", Can.LIFE)]
    made = run(workloads, systems)
    assert count(workloads, systems) == sum(len(record.rounds) for record in made.records) == 10
