"""The harness itself: small runs on real systems end well, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.cgroup import Group
from benchmarks.load import add_pump
from benchmarks.place import PREFIX, Place
from benchmarks.report import markdown
from benchmarks.run import Run
from benchmarks.runner import Runner
from benchmarks.session import Session
from benchmarks.systems import System, systems
from benchmarks.systems.runc_v2 import RuncV2
from benchmarks.waiting import until
from benchmarks.workloads import Figure, Workload, workloads
from shim.oci.busybox import make_rootfs

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("containerd"), reason="needs root and containerd"
)

ROOT = Path(__file__).parents[2]
SIZES: Mapping[str, Mapping[str, int]] = {
    "memory": {"rounds": 1, "most": 3},
    "idle": {"rounds": 1, "containers": 3, "seconds": 0},
    "exit_storm": {"rounds": 1, "containers": 2},
    "reconnect": {"rounds": 1, "containers": 2, "restarts": 1},
    "own_cost": {"rounds": 2, "lives": 1},
    "life": {"rounds": 1, "alone": 1, "parallel": 2, "at_once": 2, "burst": 2},
}


class Broken(RuncV2):
    """A runtime that containerd does not find."""

    name = title = "broken"
    runtime = "io.containerd.denseshim-broken.v2"


class Stubborn(Workload):
    """Starts what it does not end, and fails on one system."""

    name = title = "stubborn"

    def figures(self) -> Sequence[Figure]:
        return [Figure("figure", "", "")]

    def run(self, session: Session) -> Mapping[str, float]:
        session.run("sleep", "100000")
        if session.system.name == "runc_v2":
            raise ValueError("on purpose")
        return {"figure": 1.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_rootfs(tmp_path / "rootfs")
    add_pump(tmp_path / "rootfs")
    return tmp_path


def run(folder: Path, chosen: Sequence[Workload], under: Sequence[System]) -> Run:
    made = Run({}, {each.name: each.title for each in under}, quick=True)
    Runner(folder, folder / "rootfs", lambda *_: None).run(made, chosen, under)
    return made


def traces(folder: Path) -> list[str]:
    """What is left of sessions: cgroups, directories, processes."""
    cgroups = Path("/sys/fs/cgroup").glob(f"**/{PREFIX}-{os.getpid()}-*")
    folders = [path for path in folder.iterdir() if path.name != "rootfs"]
    return [str(path) for path in (*cgroups, *folders)]


def test_a_run_on_two_systems_and_the_floor_ends_well(folder: Path) -> None:
    there = systems()
    under = [there[name] for name in ("bare", "dense_host", "runc_v2")]
    chosen = [workloads()[name](sizes) for name, sizes in SIZES.items()]
    made = run(folder, chosen, under)
    assert not made.failures()
    assert not traces(folder)
    for record in made.records:
        assert {row.system for row in record.rounds} >= {"dense_host", "runc_v2"}
        for figure in record.figures:
            assert "dense_host" in record.values(figure.name), figure.name
    verdicts = {
        verdict.claim.text: verdict for record in made.records for verdict in record.verdicts()
    }
    assert verdicts["no exit event is lost"].met
    assert verdicts["the keeper is not woken"].found is not None
    assert "Failures" not in markdown(made)


def test_several_threads_have_commands_run(folder: Path) -> None:
    """Each gets the answer to its own."""
    place = Place(folder)
    try:
        jobs = [[[["true"]]] * (number % 5) for number in range(100)]
        with ThreadPoolExecutor(16) as pool:
            found = [len(rows) for rows in pool.map(place.run, jobs)]
    finally:
        place.close()
    assert found == [len(job) for job in jobs]
    assert not traces(folder)


def session_of_another(folder: Path) -> subprocess.Popen[bytes]:
    """A process that has a session with a container, and says the session's cgroup."""
    text = f"""
import sys
from pathlib import Path
from benchmarks.session import Session
from benchmarks.systems import systems
folder = Path({str(folder)!r})
session = Session(systems()["dense_host"], folder, folder / "rootfs")
session.run("sleep", "100000")
print(session.place.group.name, flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", text], stdin=pipe, stdout=pipe, cwd=ROOT)


def test_when_the_harness_is_killed_no_process_is_left(folder: Path) -> None:
    with session_of_another(folder) as harness:
        assert harness.stdout is not None
        group = Group(harness.stdout.readline().decode().strip())
        assert len(group.pids()) >= 6  # agent, containerd, keeper, spawner, front, container
        harness.kill()
    until(lambda: not group.pids(), "the end of all processes")
    until(group.remove, "the end of the cgroup")


def test_a_run_that_is_told_to_end_leaves_nothing(folder: Path) -> None:
    line = [sys.executable, "-m", "benchmarks", "run", "--quick", "--out", str(folder / "out")]
    line += ["--workload", "idle", "--system", "runc_v2"]
    with subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL) as harness:
        containers = f"{PREFIX}-{harness.pid}-0/containers"
        until(lambda: Group(containers).pids(), "the first container")
        harness.terminate()
    assert harness.returncode == 1
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{PREFIX}-{harness.pid}-*"))


def test_the_example_brings_all_output_and_prints_percentiles(folder: Path) -> None:
    """Its host has a /run/denseshim of its own, and is stopped in the end."""
    script = f"""
mkdir -p -m 0700 /run/denseshim && mount -t tmpfs -o mode=0700 example /run/denseshim || exit
{sys.executable} -m benchmarks.examples.thousand --containers 3
status=$?
{Path(sys.executable).with_name("denseshim")} host --stop
exit $status
"""
    line = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "30000 of 30000 bytes" in done.stdout
    rows = [row.split() for row in done.stdout.splitlines()[1:6]]
    calls = ["launch", "create", "start", "state", "delete"]
    assert [row[:2] for row in rows] == [[name, "3"] for name in calls]


def test_what_fails_on_one_system_is_told_and_leaves_nothing(folder: Path) -> None:
    there = systems()
    made = run(folder, [Stubborn({"rounds": 2})], [there["runc_v2"], there["dense_host"], Broken()])
    assert not traces(folder)
    errors = {(row.system, row.turn): row.error for row in made.failures()}
    assert errors.keys() == {(name, turn) for name in ("runc_v2", "broken") for turn in (0, 1)}
    assert errors["runc_v2", 0] == "ValueError: on purpose"
    assert "denseshim-broken" in errors["broken", 1]
    assert made.records[0].values("figure") == {"dense_host": {0: 1.0, 1: 1.0}}
