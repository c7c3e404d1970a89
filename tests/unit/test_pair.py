"""Pairs' directories, and the way to a pair for many at once; a fake program is the pair."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

from shim import pair
from shim.detach import CannotStart
from shim.pair import Settings
from tests.fakes.pair import PROGRAM

PATIENCE_S = 20.0
RACERS = 50
# Connects to the pair, which it starts if it must, and says which one it has found.
RACER = """
import sys
from pathlib import Path
from shim import pair
sys.stdout.write("here\\n")
sys.stdout.flush()
sys.stdin.readline()
with pair.ensure(Path(sys.argv[1]), pair.Settings(), sys.argv[2:]) as door:
    sys.stdout.write(door.makefile().readline())
"""
# Holds a lock until its stdin ends.
HOLDER = """
import sys
from pathlib import Path
from shim import pair
lock = pair.take_lock(Path(sys.argv[1]))
sys.stdout.write("locked\\n")
sys.stdout.flush()
sys.stdin.readline()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a pair may be; its parent is for root alone, as pytest makes it."""
    return tmp_path / "p"


def facts_of(door: socket.socket) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(door.makefile().readline())
    return found


def end(door: socket.socket) -> None:
    """End the fake pair behind the door, and wait until it is gone."""
    with door:
        pid = int(facts_of(door)["pid"])
        door.sendall(b"end")
        wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """The fake is our child, or its starter's and thus init's by now."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(process, select.POLLIN)
    assert poll.poll(PATIENCE_S * 1000), f"{pid} does not end"
    os.close(process)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def starts(directory: Path) -> int:
    return directory.with_name("starts").read_text().count("start")


@contextlib.contextmanager
def holding(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the pair's lock; it gives it up when its stdin is closed."""
    command = [sys.executable, "-c", HOLDER, directory]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        yield holder


# ---- Names ----


def test_a_hosts_directory_has_the_namespaces_in_its_name() -> None:
    numbers = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("mnt", "pid", "user")]
    wanted = Path("/run/denseshim", "host-{}-{}-{}".format(*numbers))
    assert pair.host_directory() == pair.host_directory(os.getpid()) == wanted


def test_another_namespace_has_another_host() -> None:
    script = "from shim import pair; print(pair.host_directory())"
    command = ["unshare", "--mount", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("/run/denseshim/host-")
    assert done.stdout.strip() != str(pair.host_directory())


def test_pairs_apart_have_directories_of_their_own() -> None:
    found = pair.apart_directory("a\nb\udcff")
    assert found == pair.apart_directory("a\nb\udcff") != pair.apart_directory("a\nb")
    assert found.parent == Path("/run/denseshim")
    assert found.name.startswith("apart-")
    assert len(found.name) == len("apart-") + 16


# ---- Directories and locks ----


def test_directories_are_for_root_alone(tmp_path: Path) -> None:
    parent = tmp_path / "a"
    pair.make_private(parent / "b")
    pair.make_private(parent / "b")
    assert [path.stat().st_mode & 0o777 for path in (parent, parent / "b")] == [0o700] * 2


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("open", "link"):
        with pytest.raises(CannotStart, match=f"{name} is not a directory for root alone"):
            pair.make_private(tmp_path / name / "b")


def test_a_pair_alive_keeps_its_lock(directory: Path) -> None:
    with holding(directory):
        with pytest.raises(CannotStart, match=f"alive in {directory}"):
            pair.take_lock(directory)
        with pytest.raises(CannotStart, match=f"alive in {directory}"):
            pair.take_lock(directory, 0.01)
    os.close(pair.take_lock(directory))


def test_a_lock_is_inherited_and_lasts_as_long(directory: Path) -> None:
    lock = pair.take_lock(directory)
    assert os.get_inheritable(lock)
    copy = os.dup(lock)
    os.close(lock)
    with pytest.raises(CannotStart):
        pair.take_lock(directory)
    os.close(copy)
    os.close(pair.take_lock(directory))


def test_the_last_pair_may_take_its_time_to_end(directory: Path) -> None:
    with holding(directory) as holder, ThreadPoolExecutor() as pool:
        assert holder.stdin is not None
        closed = pool.submit(close_when_awaited, holder.stdin, os.getpid())
        os.close(pair.take_lock(directory, PATIENCE_S))
        closed.result()
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def is_waiting(pid: int) -> bool:
    """Whether a process waits for a lock (proc_locks(5))."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line for line in lines)


def close_when_awaited(stdin: IO[bytes], pid: int) -> None:
    wait_until(lambda: is_waiting(pid))
    stdin.close()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.005)


# ---- The way to a pair ----


def test_there_is_no_pair(directory: Path) -> None:
    assert pair.connect(directory) is None
    pair.make_private(directory)
    assert pair.connect(directory) is None
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(directory / "door"))
    assert pair.connect(directory) is None


def test_a_door_that_cannot_be_opened(directory: Path) -> None:
    pair.make_private(directory)
    (directory / "door").symlink_to("door")
    with pytest.raises(OSError, match="symbolic links"):
        pair.connect(directory)


def test_a_pair_is_started_once(directory: Path) -> None:
    pair.ensure(directory, Settings(), PROGRAM).close()
    end(pair.ensure(directory, Settings(), PROGRAM))
    assert starts(directory) == 1


def test_of_many_at_once_one_starts_the_pair(directory: Path) -> None:
    command = [sys.executable, "-c", RACER, directory, *PROGRAM]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(RACERS)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == b"here\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    found = {json.loads(racer.communicate()[0])["pid"] for racer in racers}
    assert len(found) == starts(directory) == 1
    door = pair.connect(directory)
    assert door is not None
    end(door)


def test_a_dead_pair_gives_way(directory: Path) -> None:
    with pair.ensure(directory, Settings(), PROGRAM) as door:
        first = facts_of(door)["pid"]
    (directory / "tasks").mkdir()
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    door = pair.ensure(directory, Settings(), PROGRAM)
    assert (directory / "tasks").is_dir()
    end(door)
    assert starts(directory) == 2


def test_a_pair_inherits_nothing_of_its_starter(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/somebody/elses")
    monkeypatch.setenv("TZ", "UTC")
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        settings = Settings(apart=True, oom_score_adj=7, sched_core=True)
        door = pair.ensure(directory, settings, PROGRAM)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with door.dup() as copy:
        found = facts_of(copy)
    assert found["session"] == found["pid"]
    assert found["streams"] == ["/dev/null"] * 3
    assert not found["ignored"] & 1 << (signal.SIGUSR1 - 1)
    assert set(found["env"]) <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ"}
    assert found["env"]["TZ"] == "UTC"
    assert found["arguments"] == ["--oom-score-adj=7", "--apart", "--sched-core", "--own-cgroup"]
    door.sendall(b"end")
    door.close()
    wait_for_end(found["pid"])


def test_a_pair_in_a_cgroup_that_is_there_and_with_a_log(directory: Path) -> None:
    door = pair.ensure(directory, Settings(debug=True, cgroup="/c"), PROGRAM)
    with door.dup() as copy:
        found = facts_of(copy)
    assert found["arguments"] == ["--oom-score-adj=-999", "--debug", "--cgroup=/c"]
    assert found["streams"] == ["/dev/null", *[str(directory / "log")] * 2]
    door.sendall(b"end")
    door.close()
    wait_for_end(found["pid"])


# ---- Pairs that do not come up ----


def test_why_a_pair_cannot_start_is_told(directory: Path) -> None:
    directory.with_name("fault").write_text("no such cgroup")
    with pytest.raises(CannotStart, match=r"^no such cgroup$"):
        pair.ensure(directory, Settings(), PROGRAM)
    assert not directory.exists()


@pytest.mark.parametrize(("program", "status"), [("/bin/false", 1), ("/bin/true", 0)])
def test_a_pair_that_ends_without_a_word(directory: Path, program: str, status: int) -> None:
    with pytest.raises(CannotStart, match=f"ended before it was ready: {status}"):
        pair.ensure(directory, Settings(), [program])
    assert not directory.exists()


def test_a_program_that_is_not_there(directory: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pair.ensure(directory, Settings(), ["/no/such/program"])
    assert not directory.exists()


def test_what_a_dead_pair_left_stays(directory: Path) -> None:
    pair.make_private(directory)
    (directory / "tasks").mkdir()
    with pytest.raises(CannotStart):
        pair.ensure(directory, Settings(), ["/bin/false"])
    assert (directory / "tasks").is_dir()


def test_the_directory_of_one_that_is_starting_stays(directory: Path) -> None:
    with holding(directory):
        with pytest.raises(CannotStart):
            pair.ensure(directory, Settings(), ["/bin/false"])
        assert (directory / "lock").exists()


# ---- The end of a pair ----


def test_a_pair_that_ends_takes_its_directory_along(directory: Path) -> None:
    pair.make_private(directory)
    (directory / "tasks").mkdir()
    assert pair.dissolve(directory)
    assert os.listdir(directory.parent) == []


def test_a_directory_in_which_a_pair_is_started_stays(directory: Path) -> None:
    pair.make_private(directory)
    with pair._starting(directory) as ours:
        assert ours
        assert not pair.dissolve(directory)
    assert directory.exists()


def test_whoever_waited_while_a_directory_was_removed_has_a_new_one(directory: Path) -> None:
    pair.make_private(directory)
    command = [sys.executable, "-c", RACER, directory, *PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as racer, pair._starting(directory):
        assert racer.stdin is not None
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
        wait_until(lambda: is_waiting(racer.pid))
        pair._remove(directory)
    door = pair.connect(directory)
    assert door is not None
    end(door)


def test_a_lock_of_a_directory_that_was_removed_is_none(directory: Path) -> None:
    """Else two might start a pair at once: the other one has the new directory's lock."""

    def wait_for_it() -> bool:
        with pair._starting(directory) as ours:
            return ours

    pair.make_private(directory)
    with ThreadPoolExecutor() as pool:
        with pair._starting(directory):
            waits = pool.submit(wait_for_it)
            wait_until(lambda: is_waiting(os.getpid()))
            pair._remove(directory)
        assert not waits.result()
    assert not directory.exists()
