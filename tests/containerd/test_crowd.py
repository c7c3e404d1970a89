"""Hundreds of containers at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shim._pb.containerd.task.v3 import task_pb2
from tests.containerd.caller import TaskCaller
from tests.containerd.containerd import Container, Containerd, Result
from tests.containerd.host import socket_of
from tests.containerd.sizes import sized
from tests.containerd.support import PATIENCE, client, until

# How many, and how soon after its start containerd knows them all, in seconds.
SIZES = sized([(300, PATIENCE)], [(300, 3.0), (1000, PATIENCE)])
UNKNOWN = 2
INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")


@pytest.fixture
def few_inotify_instances() -> Iterator[None]:
    """As many as the kernel's own default, however many the machine allows."""
    before = INSTANCES.read_text()
    INSTANCES.write_text("128")
    yield
    INSTANCES.write_text(before)


@pytest.mark.usefixtures("few_inotify_instances")
@pytest.mark.parametrize(("size", "soon"), SIZES)
def test_demand_11_13_many_limited_containers_outlive_containerd(
    own_containerd: Containerd, tmp_path: Path, size: int, soon: float
) -> None:
    """After its restart they are known, run, and can be exec'd in, attached to and killed.

    The shim answers for them meanwhile.
    """
    containerd = own_containerd
    limit = ("--memory-limit", "32000000")
    options = ["--null-io", *limit]

    def start(_: int) -> Container:
        return containerd.start_container("sleep", "1000", options=options)

    script = ("sh", "-c", "read line; echo got $line; exit 4")
    talker = containerd.start_container(*script, options=["--fifo-dir", str(tmp_path), *limit])
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(start, range(size - 1)))
        containerd.stop()
        list(pool.map(_check_answers, crowd))
        begin = time.monotonic()
        containerd.start()
        states = containerd.states()
        took = time.monotonic() - begin
        print(f"{size} containers known again after {took:.2f} s")
        assert took < soon
        assert states == dict.fromkeys((c.id for c in (*crowd, talker)), "RUNNING")
        assert {d.stdout for d in pool.map(_echo, crowd[::30])} == {b"words\n"}
        with client(containerd.line("tasks", "attach", talker.id)) as running:
            output, _ = running.communicate(b"words\n", PATIENCE)
            assert (running.returncode, output) == (4, b"got words\n")
        assert {d.returncode for d in pool.map(Container.kill, crowd)} == {0}
        until(lambda: not _processes(containerd), "the containers end")
        until(lambda: set(containerd.states().values()) == {"STOPPED"}, "all have stopped")
        list(pool.map(Container.remove, [*crowd, talker]))


def _processes(containerd: Containerd) -> set[str]:
    """Of all containers. Their pids alone would not do: so many are soon somebody else's."""
    files = Path("/sys/fs/cgroup").glob(f"*/{containerd.namespace}/*/cgroup.procs")
    return {pid for file in files for pid in file.read_text().split()}


def _check_answers(container: Container) -> None:
    """Connect and State are answered, and Delete, which is refused while the container runs."""
    id = container.id
    with TaskCaller(socket_of(container)) as caller:
        found = caller.call("Connect", task_pb2.ConnectRequest(id=id))
        pid = found.of(task_pb2.ConnectResponse).task_pid
        state = caller.call("State", task_pb2.StateRequest(id=id)).of(task_pb2.StateResponse)
        assert state.pid == pid != 0
        assert caller.call("Delete", task_pb2.DeleteRequest(id=id)).code == UNKNOWN


def _echo(container: Container) -> Result:
    return container.exec("echo", "words")
