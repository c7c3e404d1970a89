"""What a user of docker sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.containerd import docker as dockerd
from tests.containerd.conftest import PROGRAMS, remove_cgroups
from tests.containerd.containerd import Containerd
from tests.containerd.docker import Docker
from tests.containerd.support import (
    PATIENCE,
    PRODUCT,
    RUNTIME,
    STOCK,
    client,
    feed,
    is_alive,
    lines,
    shim_binary,
    until,
)
from tests.containerd.terminal import Terminal

SIZES = "trap 'stty size' WINCH; trap 'exit 8' INT; echo ready; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def search_path(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """docker knows but the stock runtime's name; the product answers to it by its place in PATH."""
    if RUNTIME != PRODUCT:
        return (PROGRAMS,)
    folder = tmp_path_factory.mktemp("bin")
    (folder / shim_binary(STOCK)).symlink_to(PROGRAMS / shim_binary(PRODUCT))
    return (folder, PROGRAMS)


@pytest.fixture(scope="module")
def docker(containerd: Containerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A dockerd for all tests of this module."""
    with dockerd.serving(containerd, tmp_path_factory.mktemp("docker")) as daemon:
        yield daemon
    remove_cgroups(daemon.cgroup)


@pytest.fixture(autouse=True)
def no_containers(docker: Docker, clean_machine: None) -> Iterator[None]:
    """No test leaves a container."""
    yield
    assert docker.do("ps", "--all", "--quiet") == ""


@pytest.fixture
def sleeper(docker: Docker) -> Iterator[str]:
    """A container to exec in."""
    with docker.living() as id:
        yield id


def test_run(docker: Docker) -> None:
    done = docker.run("sh", "-c", "echo out; echo err >&2; exit 19")
    assert (done.returncode, done.stdout, done.stderr) == (19, b"out\n", b"err\n")


@pytest.mark.parametrize("status", [0, 1, 124, 128, 255])
def test_exit_codes(docker: Docker, status: int) -> None:
    assert docker.run("sh", "-c", f"exit {status}").returncode == status


def test_run_with_standard_input(docker: Docker) -> None:
    line = docker.run_line("sh", "-c", "echo ready; cat; exit 3", options=["--rm", "-i"])
    assert feed(line, lines(20_000)) == (3, lines(20_000))


def test_run_on_a_terminal(docker: Docker) -> None:
    with docker.terminal("sh", "-c", SIZES) as terminal:
        terminal.until(b"ready\r\n")
        terminal.resize_until(33, 99, b"33 99\r\n")
        terminal.write(b"\x03")
        assert terminal.rest() == b"^C"
        assert terminal.wait() == 8


def test_a_command_that_does_not_exist(docker: Docker) -> None:
    done = docker.run("/no/such")
    assert done.returncode == 127
    assert b'exec: "/no/such": stat /no/such: no such file or directory' in done.stderr


def test_exec(docker: Docker, sleeper: str) -> None:
    done = docker.docker("exec", sleeper, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    line = docker.line("exec", "-i", sleeper, "sh", "-c", "echo ready; cat; exit 4")
    assert feed(line, lines(20_000)) == (4, lines(20_000))


def test_exec_on_a_terminal(docker: Docker, sleeper: str) -> None:
    with Terminal(docker.line("exec", "-it", sleeper, "sh", "-c", SIZES)) as terminal:
        terminal.until(b"ready\r\n")
        terminal.resize_until(34, 98, b"34 98\r\n")
        terminal.write(b"\x03")
        assert terminal.rest() == b"^C"
        assert terminal.wait() == 8


def test_exec_in_the_background_is_in_top(docker: Docker, sleeper: str) -> None:
    docker.do("exec", "--detach", sleeper, "sleep", "1001")
    rows = docker.do("top", sleeper, "-o", "pid,args").splitlines()[1:]
    assert [row.split(maxsplit=1)[1] for row in rows] == ["sleep 1000", "sleep 1001"]


def test_attach(docker: Docker) -> None:
    script = ("sh", "-c", "read line; echo got $line; read line; exit 4")
    with docker.living(*script, options=["-i"]) as id, client(docker.line("attach", id)) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"words\n")
        assert running.stdout.readline() == b"got words\n"
        running.communicate(b"\n", PATIENCE)
        assert running.returncode == 4


def test_logs(docker: Docker) -> None:
    """All of the output, byte for byte; both streams."""
    with docker.living("sh", "-c", "seq 20000; echo err >&2") as id:
        assert docker.do("wait", id) == "0"
        done = docker.docker("logs", id)
        assert (done.stdout, done.stderr) == (lines(20_000), b"err\n")


def test_pause_and_unpause(docker: Docker, sleeper: str) -> None:
    docker.do("pause", sleeper)
    assert docker.state(sleeper)["Status"] == "paused"
    docker.do("unpause", sleeper)
    assert docker.state(sleeper)["Status"] == "running"
    docker.do("exec", sleeper, "true")


def test_kill(docker: Docker) -> None:
    script = "trap 'echo usr1' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    with docker.living("sh", "-c", script) as id:
        until(lambda: docker.do("logs", id) == "ready", "the traps")
        docker.do("kill", "--signal", "USR1", id)
        until(lambda: docker.do("logs", id) == "ready\nusr1", "the signal")
        docker.do("kill", "--signal", "TERM", id)
        assert docker.wait_exited(id)["ExitCode"] == 9


def test_stop_kills_what_does_not_end(docker: Docker, sleeper: str) -> None:
    """An init process without handlers is safe from SIGTERM."""
    docker.do("stop", "--time", "1", sleeper)
    assert docker.state(sleeper)["ExitCode"] == 137


def test_start_again(docker: Docker, sleeper: str) -> None:
    docker.do("kill", sleeper)
    docker.wait_exited(sleeper)
    docker.do("start", sleeper)
    docker.do("exec", sleeper, "true")
    docker.do("restart", "--time", "0", sleeper)
    docker.do("exec", sleeper, "true")


def test_stats(docker: Docker) -> None:
    with docker.living(options=["--memory", "64m"]) as id:
        found = json.loads(docker.do("stats", "--no-stream", "--format", "{{json .}}", id))
        assert found["PIDs"] == "1"
        assert found["MemUsage"].endswith("/ 64MiB")
        assert not found["MemUsage"].startswith("0B")


def test_update(docker: Docker) -> None:
    with docker.living(options=["--memory", "64m"]) as id:
        options = ["--memory", "32m", "--memory-swap", "32m", "--pids-limit", "77"]
        docker.do("update", *options, id)
        limit = docker.cgroup_file(id, "memory/memory.limit_in_bytes", "memory.max")
        assert int(limit) == 32 << 20
        assert docker.cgroup_file(id, "pids/pids.max", "pids.max") == "77"


def test_out_of_memory(docker: Docker) -> None:
    hog = ("dd", "if=/dev/zero", "of=/dev/null", "bs=100M")
    with docker.living(*hog, options=["--memory", "16m"]) as id:
        assert docker.do("wait", id) == "137"
        assert docker.state(id)["OOMKilled"] is True


def test_restart_on_failure(docker: Docker) -> None:
    """Twice, and no more."""
    with docker.living("sh", "-c", "echo run; exit 3", options=["--restart", "on-failure:2"]) as id:
        until(lambda: docker.do("logs", id) == "run\nrun\nrun", "the third run")
        assert docker.wait_exited(id)["ExitCode"] == 3
        assert docker.inspect(id)["RestartCount"] == 2


def test_restart_always(docker: Docker) -> None:
    """When its process is killed from outside, another takes its place."""
    with docker.living(options=["--restart", "always"]) as id:
        pid = docker.state(id)["Pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: docker.state(id)["Pid"] not in (0, pid), "the next process")
        docker.do("exec", id, "true")


def test_twenty_in_parallel(docker: Docker) -> None:
    with ThreadPoolExecutor(20) as pool:
        done = pool.map(lambda n: docker.run("sh", "-c", "echo $0; exit $0", str(n)), range(20))
        assert [(d.returncode, d.stdout) for d in done] == [(n, b"%d\n" % n) for n in range(20)]


def test_what_a_container_mounts_is_seen_outside(docker: Docker, tmp_path: Path) -> None:
    """In a volume that is rshared; and it is seen no more when the container takes it away."""
    (tmp_path / "inner").mkdir()
    script = (
        "mount -t tmpfs none /shared/inner && : > /shared/inner/file && echo ready && read line && "
        "umount /shared/inner && echo done && read line"
    )
    options = ["--rm", "-i", "--cap-add=SYS_ADMIN", f"--volume={tmp_path}:/shared:rshared"]
    outside = docker.machine.root / str(tmp_path / "inner/file").lstrip("/")
    with client(docker.run_line("sh", "-c", script, options=options)) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        assert running.stdout.readline() == b"ready\n"
        assert outside.exists()
        running.stdin.write(b"\n")
        assert running.stdout.readline() == b"done\n"
        assert not outside.exists()
        assert str(tmp_path / "inner") not in docker.machine.mounts()
        running.communicate(b"\n", PATIENCE)
        assert running.returncode == 0


def test_what_is_mounted_outside_is_seen_in_the_container(docker: Docker, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with docker.living(options=[f"--volume={tmp_path}:/shared:rslave"]) as id:
        mount = docker.machine.inside("mount", "-t", "tmpfs", "none", str(inner))
        subprocess.run(mount, check=True)
        rows = docker.do("exec", id, "cat", "/proc/mounts").splitlines()
        assert "none /shared/inner tmpfs rw,relatime 0 0" in rows
        subprocess.run(docker.machine.inside("umount", str(inner)), check=True)


@pytest.fixture
def own_docker(own_containerd: Containerd, tmp_path: Path) -> Iterator[Docker]:
    """A dockerd for one test, which may restart it."""
    with dockerd.serving(own_containerd, tmp_path) as daemon:
        yield daemon
    remove_cgroups(daemon.cgroup)


def test_containers_outlive_dockerd(own_docker: Docker) -> None:
    """And what they print, and how they end, while it is down."""
    docker = own_docker
    script = "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.1; done"
    with docker.living() as sleeping, docker.living("sh", "-c", script) as trapping:
        until(lambda: docker.do("logs", trapping) == "ready", "the trap")
        pids = [docker.state(id)["Pid"] for id in (sleeping, trapping)]
        docker.restart()
        assert [docker.state(id)["Pid"] for id in (sleeping, trapping)] == pids
        assert docker.docker("exec", sleeping, "sh", "-c", "exit 6").returncode == 6
        docker.stop()
        os.kill(pids[0], signal.SIGKILL)
        os.kill(pids[1], signal.SIGUSR1)
        until(lambda: not is_alive(pids[0]), "its end")
        docker.start()
        assert docker.wait_exited(sleeping)["ExitCode"] == 137
        until(lambda: docker.do("logs", trapping) == "ready\nusr1", "the signal")
