"""Becoming a pair, up to where the keeper begins."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import host, pair
from shim.detach import CannotStart
from shim.keeper.records import Flag

# A program that becomes a pair, and says what the keeper would get; it ends with its stdin.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from shim import host
from shim.keeper.records import Flag

stdin = os.dup(0)

def keeper(front, listeners):
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    print(json.dumps({
        "front": front[1:],
        "listeners": [[os.readlink(f"/proc/self/fd/{fd}")[:7], flags] for fd, flags in listeners],
        "streams": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)],
        "descriptors": sum(Path(f"/proc/self/fd/{fd}").exists() for fd in numbers),
        "cwd": os.getcwd(),
        "umask": os.umask(0),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
        "cgroups": Path("/proc/self/cgroup").read_text().splitlines(),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    }), flush=True)
    signal.pause()

host.become_keeper = keeper
host.main()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "p"


@contextlib.contextmanager
def becoming(directory: Path, *arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """The program; killed in the end."""
    command = [sys.executable, "-c", PROGRAM, "--directory", str(directory), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **more) as process:
        yield process
        process.kill()


def facts(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the keeper would get."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    found: dict[str, Any] = json.loads(line)
    return found


def refusal(directory: Path, *arguments: str) -> str:
    with becoming(directory, *arguments) as process:
        output, errors = process.communicate()
        assert (process.returncode, output) == (1, "")
        return errors


def test_what_the_keeper_gets(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        with open(os.devnull) as stray, becoming(directory, pass_fds=[stray.fileno()]) as process:
            found = facts(process)
            assert (directory / "door").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert found["front"] == ["-I", "-m", "shim.front", "--pair", str(directory)]
    assert found["listeners"] == [["socket:", Flag.FRAMES | Flag.DOOR]]
    assert found["streams"][0] == "/dev/null"
    assert found["streams"][1].startswith("pipe:")
    assert found["descriptors"] == 3 + len(("the lock", "the door"))
    assert (found["cwd"], found["umask"]) == ("/", 0o022)
    assert found["blocked"] == [signal.SIGTERM]


def test_the_door_takes_calls_before_there_is_a_front(directory: Path) -> None:
    with becoming(directory, "--apart", "--debug") as process:
        assert facts(process)["front"][-2:] == ["--apart", "--debug"]
        door = pair.connect(directory)
        assert door is not None
        with door:
            door.sendall(b"waits")


def test_whoever_waits_is_told(directory: Path) -> None:
    reader, writer = os.pipe()
    told = f"--ready={writer}"
    with os.fdopen(reader, "rb") as ready, becoming(directory, told, pass_fds=[writer]):
        os.close(writer)
        assert ready.read() == b"ready"


def test_why_it_cannot_start_is_told(directory: Path) -> None:
    reader, writer = os.pipe()
    wrong = ("--cgroup=/denseshim-none", f"--ready={writer}")
    with os.fdopen(reader, "rb") as ready, becoming(directory, *wrong, pass_fds=[writer]):
        os.close(writer)
        assert b"no cgroup '/denseshim-none'" in ready.read()


def test_whoever_started_it_has_died(directory: Path) -> None:
    """The next starter might wait for the lock in vain otherwise."""
    reader, writer = os.pipe()
    os.close(reader)
    with becoming(directory, f"--ready={writer}", pass_fds=[writer]) as process:
        os.close(writer)
        output, errors = process.communicate()
    assert (process.returncode, output) == (1, "")
    assert errors == "denseshim host: [Errno 32] Broken pipe\n"


def test_one_pair_for_each_directory(directory: Path) -> None:
    lock = pair.take_lock(directory)
    try:
        script = PROGRAM.replace("host.main()", "host._PATIENCE_S = 0.01\nhost.main()")
        command = [sys.executable, "-c", script, "--directory", directory]
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        os.close(lock)
    assert done.returncode == 1
    assert done.stderr == (f"denseshim host: a shim is alive in {directory}; call it, or kill it\n")


def test_a_dead_pairs_door_gives_way(directory: Path) -> None:
    pair.make_private(directory)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(directory / "door"))
    with becoming(directory) as process:
        facts(process)
        door = pair.connect(directory)
        assert door is not None
        door.close()


# ---- The place among the host's processes ----


def test_the_score_that_it_may_have(directory: Path) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    with becoming(directory, f"--oom-score-adj={own + 1}") as process:
        assert facts(process)["oom_score_adj"] == own + 1


def test_a_score_that_it_may_not_have(directory: Path) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    with becoming(directory) as process:
        assert facts(process)["oom_score_adj"] in (own, pair.HOST_OOM_SCORE_ADJ)


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup in some hierarchies, as whoever wants the shim in it would have made it."""
    name = f"denseshim-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    made = [root / name for root in host._hierarchies() if "cpuset" not in root.name][:2]
    if not made:
        pytest.skip("no cgroups are mounted")
    for path in made:
        path.mkdir()
    yield f"/{name}"
    for path in made:
        path.rmdir()


def is_in(found: dict[str, Any], cgroup: str) -> int:
    return sum(line.endswith(f":{cgroup}") for line in found["cgroups"])


def test_a_cgroup_that_is_there(directory: Path, cgroup: str) -> None:
    there = sum(Path(f"{root}{cgroup}").exists() for root in host._hierarchies())
    with becoming(directory, f"--cgroup={cgroup}") as process:
        assert is_in(facts(process), cgroup) == there
        process.kill()
        process.wait()


@pytest.mark.parametrize("wrong", ["/denseshim-none", "../x", "a/../../b"])
def test_a_cgroup_that_is_not_there(directory: Path, wrong: str) -> None:
    errors = refusal(directory, f"--cgroup={wrong}")
    assert errors.startswith("denseshim host: ")
    assert repr(wrong) in errors
    assert not directory.exists()


def test_a_cgroup_of_its_own(directory: Path, cgroup: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{cgroup[1:]}-own"
    script = PROGRAM.replace("host.main()", f"host.pair.CGROUP = '/{name}'\nhost.main()")
    command = [sys.executable, "-c", script, "--directory", directory, "--own-cgroup"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        process.kill()
    try:
        assert is_in(found, f"/{name}") == len(host._hierarchies())
    finally:
        for root in host._hierarchies():
            (root / name).rmdir()


def test_hierarchies_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_CGROUPS", tmp_path)
    for name in ("cpu,cpuacct", "memory", "unified"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    (tmp_path / "empty").mkdir()
    assert [path.name for path in host._hierarchies()] == ["cpu,cpuacct", "memory", "unified"]
    (tmp_path / "cgroup.procs").touch()
    assert host._hierarchies() == [tmp_path]


def test_a_new_cpuset_gets_its_parents_processors(tmp_path: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        (tmp_path / name).write_text(f"{name}\n")
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / name).touch()
    host._inherit_cpuset(tmp_path, tmp_path / "own")
    assert (tmp_path / "own/cpuset.cpus").read_text() == "cpuset.cpus\n"
    assert (tmp_path / "own/cpuset.mems").read_text() == "cpuset.mems\n"


def test_a_cookie_that_must_be_had(directory: Path) -> None:
    """Few kernels have core scheduling; with it there is nothing to see but that it starts."""
    with becoming(directory, "--sched-core", process_group=0) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            assert process.stderr is not None
            assert "SCHED_CORE is set, but prctl: " in process.stderr.read()


def test_it_is_for_root(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotStart, match="root"):
        host.run(directory, host.Place())
