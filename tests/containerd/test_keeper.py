"""The keeper dies, or its spawner, under containerd."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.containerd.conftest import PROGRAMS
from tests.containerd.containerd import Container, Containerd, Result, finish
from tests.containerd.host import Host, kill
from tests.containerd.rootfs import IMAGE
from tests.containerd.support import (
    PATIENCE,
    PRODUCT,
    client,
    is_alive,
    new_id,
    shim_binary,
    until,
)
from tests.containerd.test_events import LIFE

SIZE = 20


def start(containerd: Containerd, fifos: Path) -> Container:
    """A container on a mount, with FIFOs, whose init process has a child."""
    container = Container(containerd, new_id())
    script = "echo begun; sleep 1000 & wait"
    options = ["--detach", "--fifo-dir", str(fifos)]
    line = containerd.run_line(container.id, "sh", "-c", script, options=options, image=IMAGE)
    done = finish(line)
    assert done.returncode == 0, done.stderr.decode()
    return container


def cgroups_of(container: Container) -> list[Path]:
    found = Path("/sys/fs/cgroup").glob(f"*/{container.daemon.namespace}/{container.id}")
    return list(found)


def processes_in(container: Container) -> set[int]:
    """All processes of a container, whoever has started them."""
    files = [path / "cgroup.procs" for path in cgroups_of(container)]
    return {int(line) for file in files for line in file.read_text().split()}


def _records(containerd: Containerd) -> set[str]:
    """What the host keeps of containers."""
    found = containerd.machine.files("/run/denseshim", 3)
    return {path for path in found if "/tasks/" in path}


def has_ended(fifo: Path) -> bool:
    """Whether nobody writes to a FIFO any more: then who opens it finds neither bytes nor a peer.

    What was in it is gone with its last holder: fifo(7).
    """
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(reader, 1) == b""
    except BlockingIOError:
        return False
    finally:
        os.close(reader)


def test_the_keeper_dies_with_twenty_containers(
    own_containerd: Containerd, tmp_path: Path
) -> None:
    """containerd has each removed; nothing of them is left; a new host serves new ones."""
    containerd, host = own_containerd, Host(own_containerd)
    containerd.do("images", "import", str(containerd.rootfs.image))
    mounts, sockets = containerd.machine.mounts(), containerd.sockets()
    with (
        containerd.events() as log,
        ThreadPoolExecutor(4) as pool,
        contextlib.ExitStack() as stack,
    ):
        containers = list(pool.map(lambda _: start(containerd, tmp_path), range(SIZE)))
        options = ["--fifo-dir", str(tmp_path)]
        lines = [c.exec_line("sleep", "1000", options=options) for c in containers[:5]]
        execing = [stack.enter_context(client(line)) for line in lines]
        until(lambda: all(len(processes_in(c)) == 3 for c in containers[:5]), "the execs")
        pids = {container.id: container.pid for container in containers}
        processes = {pid for container in containers for pid in processes_in(container)}
        assert len(processes) == 2 * SIZE + 5
        assert len(containerd.machine.mounts() - mounts) == SIZE
        family = host.family()
        kill(host.keeper)
        for container in containers:
            seen = log.wait_for(container.id, LIFE[3])
            init = [event for event in seen if not event.process]
            assert [event.topic for event in init] == LIFE
            assert {event.fields["pid"] for event in init} == {pids[container.id]}
            assert [event.status for event in init[2:]] == [137, 137]
        assert {one.wait(PATIENCE) for one in execing} <= {1, 137}
    until(lambda: not any(map(is_alive, processes | family)), "the end of all processes")
    until(lambda: containerd.states() == {}, "the end of all tasks")
    until(lambda: containerd.machine.mounts() == mounts, "the end of their mounts")
    until(lambda: not any(map(cgroups_of, containers)), "the end of their cgroups")
    until(lambda: containerd.sockets() == sockets, "the end of their sockets")
    assert all(map(has_ended, tmp_path.glob("*/*-stdout")))
    assert containerd.run("echo", "words", id=containers[0].id + "-next").stdout == b"words\n"
    next_host = Host(containerd)
    assert next_host.keeper != host.keeper
    until(lambda: not _records(containerd), "the end of their records")
    for container in containers:
        containerd.do("containers", "rm", container.id)
    containerd.do("images", "rm", "--sync", IMAGE)


PROGRAM = """#!/bin/sh
echo $$ >"$2.pid"
exec 5>&-
cat <&3 >"$2"
echo read >>"$2"
exec sleep 1000
"""


def test_logging_programs_end_with_the_keeper(own_containerd: Containerd, tmp_path: Path) -> None:
    """Once they have read what was written; also one that would not."""
    containerd, program = own_containerd, tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o700)
    logs = [tmp_path / name for name in ("init", "exec")]
    init, exec = (["--log-uri", f"binary://{program}?out={log}"] for log in logs)
    container = containerd.start_container("sh", "-c", "echo words; sleep 1000", options=init)
    with client(container.exec_line("sh", "-c", "echo words; sleep 1000", options=exec)):
        until(lambda: all(log.exists() and log.read_text() for log in logs), "both write")
        programs = [int(log.with_suffix(".pid").read_text()) for log in logs]
        kill(Host(containerd).keeper)
    until(lambda: not any(map(is_alive, programs)), "the end of the programs")
    assert {log.read_text() for log in logs} == {"words\nread\n"}
    until(lambda: not _records(containerd), "the end of the record")
    containerd.do("containers", "rm", container.id)


def test_an_id_can_be_used_again_at_once(own_containerd: Containerd) -> None:
    """The next container of that name waits until the last one is removed."""
    containerd = own_containerd
    container = containerd.start_container("sleep", "1000")
    pid = container.pid
    kill(Host(containerd).keeper)

    def is_started() -> bool:
        done = containerd.ctr("tasks", "start", "--detach", "--null-io", container.id)
        assert done.returncode == 0 or b"already exists" in done.stderr, done.stderr.decode()
        return done.returncode == 0

    until(is_started, "containerd forgets the task")
    assert container.status == "RUNNING"
    assert not is_alive(pid)
    assert container.exec("echo", "words").stdout == b"words\n"
    container.remove()


def test_the_pid_is_told_of_what_has_been_removed(own_containerd: Containerd) -> None:
    """containerd asks late: somebody else has started the next host, which has cleaned up."""
    containerd = own_containerd
    with containerd.events() as log:
        container = containerd.start_container("sleep", "1000")
        pid = container.pid
        os.kill(containerd.pid, signal.SIGSTOP)
        try:
            kill(Host(containerd).keeper)
            assert delete_what_is_not_there(containerd).returncode == 0
            until(lambda: not _records(containerd), "the end of its record")
        finally:
            os.kill(containerd.pid, signal.SIGCONT)
        seen = log.wait_for(container.id, LIFE[3])
    assert [(event.fields.get("pid"), event.status) for event in seen[2:]] == [(pid, 137)] * 2
    until(lambda: containerd.states() == {}, "the end of the task")
    containerd.do("containers", "rm", container.id)


def delete_what_is_not_there(containerd: Containerd) -> Result:
    """A launcher's `delete`, for a containerd that has no such container: it starts a host."""
    options = ["-namespace", containerd.namespace, "-address", str(containerd.address)]
    bundle = containerd.bundles / containerd.namespace / "none"
    line = [shim_binary(PRODUCT), *options, "-id", "none", "-bundle", str(bundle), "delete"]
    return finish(containerd.machine.inside(str(PROGRAMS / line[0]), *line[1:]))


def test_the_keeper_dies_while_a_container_is_made(
    own_containerd: Containerd, tmp_path: Path
) -> None:
    """Whatever had begun is removed: forty come while it dies, and each is run or refused."""
    containerd, host = own_containerd, Host(own_containerd)

    def run(_: int) -> int:
        options = ["--fifo-dir", str(tmp_path)]
        return containerd.run("sh", "-c", "exit 7", options=options).returncode

    with ThreadPoolExecutor(8) as pool:
        begun = [pool.submit(run, number) for number in range(40)]
        until(lambda: len(containerd.sockets()) > 4, "some of them")
        kill(host.keeper)
        statuses = [one.result() for one in begun]
    assert set(statuses) <= {7, 1, 137}
    assert statuses[-8:] == [7] * 8
    until(lambda: containerd.states() == {}, "the end of all tasks")
    for id in containerd.ids():
        containerd.do("containers", "rm", id)


def test_the_spawner_dies(containerd: Containerd) -> None:
    """Containers live on, and new processes are started by the next one."""
    host = Host(containerd)
    with containerd.living() as container:
        for _ in range(3):
            before = host.spawner
            kill(before)
            assert container.exec("echo", "words").stdout == b"words\n"
            assert containerd.run("sh", "-c", "exit 5").returncode == 5
            assert host.spawner != before
        assert container.status == "RUNNING"
    assert Host(containerd).keeper == host.keeper


def test_the_spawner_dies_again_and_again_under_load(containerd: Containerd) -> None:
    """What it was about to start may fail, with a word; nothing hangs, and nothing is left."""
    host = Host(containerd)

    def run(_: int) -> int:
        return containerd.run("sh", "-c", "exit 6").returncode

    with ThreadPoolExecutor(6) as pool:
        begun = [pool.submit(run, number) for number in range(30)]
        while not all(one.done() for one in begun):
            kill(host.spawner)
            select.select([], [], [], 0.5)  # some are started, and some are not
        assert {one.result() for one in begun} <= {6, 1}
    assert containerd.run("sh", "-c", "exit 6").returncode == 6
    containerd.remove_all()
