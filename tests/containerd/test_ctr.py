"""What a user of ctr sees."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.containerd.containerd import Container, Containerd, finish
from tests.containerd.rootfs import IMAGE
from tests.containerd.support import PATIENCE, client, feed, is_alive, lines, new_id, until
from tests.containerd.terminal import Terminal

# A shell whose words say what it gets: it ends with status 7 at a SIGTERM.
TRAPS = (
    "trap 'echo usr1' USR1; trap 'echo term; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
)
# A shell that shows its terminal's sizes, until it is interrupted.
SIZES = "trap 'stty size' WINCH; trap 'exit 8' INT; echo ready; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def sleeper(containerd: Containerd) -> Iterator[Container]:
    """A container to exec in, for tests that leave it as it is."""
    with containerd.living() as container:
        yield container


def run_on_terminal(
    containerd: Containerd, *command: str, rows: int = 24, columns: int = 80
) -> Terminal:
    """A `ctr run --rm --tty`."""
    line = containerd.run_line(new_id(), *command, options=["--rm", "--tty"])
    return Terminal(line, rows, columns)


def of_size(size: int, found: set[int]) -> set[int]:
    """`found`, when it has that size."""
    return found if len(found) == size else set()


# run


def test_run_prints_what_the_container_does(containerd: Containerd) -> None:
    done = containerd.run("sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")


def test_run_gives_the_container_its_standard_input(containerd: Containerd) -> None:
    text = lines(20_000)
    line = containerd.run_line(new_id(), "sh", "-c", "echo ready; cat", options=["--rm"])
    assert feed(line, text) == (0, text)


@pytest.mark.parametrize("status", [0, 1, 2, 19, 126, 127, 128, 137, 200, 255])
def test_run_ends_as_the_container(containerd: Containerd, status: int) -> None:
    assert containerd.run("sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_s_status_is_128_and_its_number(
    containerd: Containerd, sleeper: Container, number: int
) -> None:
    """The exec kills itself: an init process would be safe from itself."""
    assert sleeper.exec("sh", "-c", f"kill -{number} $$").returncode == 128 + number


def test_run_on_a_terminal(containerd: Containerd) -> None:
    """It is the container's controlling terminal, which has a size and can be typed at."""
    script = (
        "tty; until [ \"$(stty size 2>&1)\" = '31 97' ]; do :; done; read line; echo $line; exit 5"
    )
    with run_on_terminal(containerd, "sh", "-c", script, rows=31, columns=97) as terminal:
        assert terminal.until(b"\r\n") == b"/dev/pts/0\r\n"
        terminal.write(b"words\r")
        assert terminal.rest() == b"words\r\nwords\r\n"
        assert terminal.wait() == 5


def test_a_terminal_s_new_size_is_seen_inside(containerd: Containerd) -> None:
    with run_on_terminal(containerd, "sh", "-c", SIZES) as terminal:
        terminal.until(b"ready\r\n")
        terminal.resize_until(40, 100, b"40 100\r\n")
        terminal.resize_until(50, 132, b"50 132\r\n")
        terminal.write(b"\x03")
        assert terminal.rest() == b"^C"
        assert terminal.wait() == 8


def test_run_from_an_image(containerd: Containerd) -> None:
    """Its root is a mount that the shim makes, and takes away."""
    containerd.do("images", "import", str(containerd.rootfs.image))
    before = containerd.machine.mounts()
    script = "echo text > /file; cat /file"
    done = finish(containerd.run_line(new_id(), "sh", "-c", script, options=["--rm"], image=IMAGE))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"text\n", b"")
    assert containerd.machine.mounts() == before
    containerd.do("images", "rm", "--sync", IMAGE)


def test_a_command_that_does_not_exist(containerd: Containerd) -> None:
    """runc's own text comes through."""
    done = containerd.ctr(*run_args(containerd, "/no/such"))
    assert done.returncode == 1
    assert b"OCI runtime create failed: runc create failed: " in done.stderr
    assert b'exec: "/no/such": stat /no/such: no such file or directory' in done.stderr


def test_a_rootfs_that_does_not_exist(containerd: Containerd, tmp_path: Path) -> None:
    line = containerd.run_line(new_id(), "true", options=["--rm"])
    line[line.index(str(containerd.rootfs.path))] = str(tmp_path / "none")
    done = finish(line)
    assert done.returncode == 1
    assert b"OCI runtime create failed: " in done.stderr
    assert b"none: no such file or directory" in done.stderr


def run_args(containerd: Containerd, *command: str) -> list[str]:
    """The arguments of a ctr that runs a container and removes it."""
    line = containerd.run_line(new_id(), *command, options=["--rm"])
    return line[line.index("run") :]


def test_a_hundred_in_parallel(containerd: Containerd) -> None:
    """Each prints its own number and ends with it."""
    script = "echo $0; exit $0"
    with ThreadPoolExecutor(16) as pool:
        done = pool.map(lambda n: containerd.run("sh", "-c", script, str(n)), range(100))
        assert [(d.returncode, d.stdout, d.stderr) for d in done] == [
            (n, b"%d\n" % n, b"") for n in range(100)
        ]


# exec


def test_exec(sleeper: Container) -> None:
    done = sleeper.exec("sh", "-c", "echo out; echo err >&2; exit 19")
    assert (done.returncode, done.stdout, done.stderr) == (19, b"out\n", b"err\n")


def test_exec_with_standard_input(sleeper: Container) -> None:
    text = lines(20_000)
    line = sleeper.exec_line("sh", "-c", "echo ready; cat; exit 3")
    assert feed(line, text) == (3, text)


def test_exec_in_the_background(sleeper: Container, tmp_path: Path) -> None:
    options = ["--detach", "--fifo-dir", str(tmp_path)]
    assert sleeper.exec("sleep", "1001", id="background", options=options).returncode == 0
    assert len(sleeper.pids()) == 2
    assert sleeper.kill("KILL", "--exec-id", "background").returncode == 0
    until(lambda: len(sleeper.pids()) == 1, "the exec ends")
    assert (
        sleeper.daemon.ctr("tasks", "rm", "--exec-id", "background", sleeper.id).returncode == 137
    )


def test_exec_on_a_terminal(sleeper: Container) -> None:
    with sleeper.exec_on_terminal("sh", "-c", SIZES) as terminal:
        terminal.until(b"ready\r\n")
        terminal.resize_until(33, 99, b"33 99\r\n")
        terminal.write(b"\x03")
        assert terminal.rest() == b"^C"
        assert terminal.wait() == 8


def test_exec_of_what_does_not_exist(sleeper: Container) -> None:
    done = sleeper.exec("/no/such")
    assert done.returncode == 1
    assert b"OCI runtime exec failed: exec failed: " in done.stderr
    assert b'exec: "/no/such": stat /no/such: no such file or directory' in done.stderr
    assert sleeper.exec("true").returncode == 0


def test_an_exec_s_id_is_taken_once(sleeper: Container, tmp_path: Path) -> None:
    options = ["--detach", "--fifo-dir", str(tmp_path)]
    assert sleeper.exec("sleep", "1002", id="twice", options=options).returncode == 0
    done = sleeper.exec("true", id="twice", options=options)
    assert done.returncode == 1
    assert b"id twice: already exists" in done.stderr
    sleeper.kill("KILL", "--exec-id", "twice")
    until(lambda: len(sleeper.pids()) == 1, "the exec ends")
    sleeper.daemon.ctr("tasks", "rm", "--exec-id", "twice", sleeper.id)


# attach, pause, kill, ps, metrics


def test_attach(containerd: Containerd, tmp_path: Path) -> None:
    """Without a terminal: what is typed reaches the container, and its end ends the client."""
    script = ("sh", "-c", "read line; echo got $line; exit 4")
    container = containerd.start_container(*script, options=["--fifo-dir", str(tmp_path)])
    try:
        with client(containerd.line("tasks", "attach", container.id)) as running:
            output, _ = running.communicate(b"words\n", PATIENCE)
            assert (running.returncode, output) == (4, b"got words\n")
    finally:
        container.remove()


def test_attach_to_a_terminal(containerd: Containerd) -> None:
    """Its client dies; another takes over."""
    id = new_id()
    line = containerd.run_line(id, "sh", options=["--tty"])
    with Terminal(line) as terminal:
        terminal.until(b"# ")
        terminal.interrupt()
    container = Container(containerd, id)
    try:
        with Terminal(containerd.line("tasks", "attach", id)) as terminal:
            terminal.write(b"echo $((6 * 7))\r")
            terminal.until(b"\r\n42\r\n")
            terminal.write(b"exit 6\r")
            terminal.rest()
            assert terminal.wait() == 6
    finally:
        container.remove()


def test_pause_and_resume(containerd: Containerd) -> None:
    with containerd.living() as container:
        containerd.do("tasks", "pause", container.id)
        assert container.status == "PAUSED"
        assert container.exec("true").returncode == 1
        containerd.do("tasks", "resume", container.id)
        assert container.status == "RUNNING"
        assert container.exec("true").returncode == 0


def test_kill_with_a_signal(containerd: Containerd) -> None:
    id = new_id()
    line = containerd.run_line(id, "sh", "-c", TRAPS)
    with client(line) as running:
        assert running.stdout is not None
        container = Container(containerd, id)
        assert running.stdout.readline() == b"ready\n"
        assert container.kill("USR1").returncode == 0
        assert running.stdout.readline() == b"usr1\n"
        assert container.kill("TERM").returncode == 0
        assert running.stdout.read() == b"term\n"
        assert running.wait(PATIENCE) == 7
    containerd.do("containers", "rm", id)


def test_kill_all(containerd: Containerd, sleeper: Container) -> None:
    """Of the container's processes, each gets the signal; of others', none."""
    with containerd.living("sh", "-c", "sleep 1001 & sleep 1002 & wait; exit 0") as container:
        pids = until(lambda: of_size(3, container.pids()), "its processes")
        assert container.kill("KILL", "--all").returncode == 0
        container.wait_stopped()
        until(lambda: not any(map(is_alive, pids)), "their end")
    assert sleeper.status == "RUNNING"


def test_kill_of_what_has_ended(containerd: Containerd) -> None:
    with containerd.living("true") as container:
        container.wait_stopped()
        done = container.kill("TERM")
        assert done.returncode == 1
        assert done.stderr.endswith(b"not found\n")


def test_a_running_task_is_not_deleted(sleeper: Container) -> None:
    done = sleeper.daemon.ctr("tasks", "rm", sleeper.id)
    assert done.returncode == 1
    assert b"task must be stopped before deletion: running: failed precondition" in done.stderr
    assert sleeper.status == "RUNNING"


def test_delete_tells_the_exit_status(containerd: Containerd) -> None:
    container = containerd.start_container("sh", "-c", "exit 23")
    container.wait_stopped()
    done = containerd.ctr("tasks", "rm", container.id)
    assert b"exit with non-zero exit code 23" in done.stderr
    containerd.do("containers", "rm", container.id)


def _commands(container: Container) -> set[bytes]:
    """What its processes run; one that is being started is the runtime still."""
    return {Path(f"/proc/{pid}/cmdline").read_bytes() for pid in container.pids()}


def test_ps_shows_every_process(sleeper: Container) -> None:
    """As the host knows it."""
    line = sleeper.exec_line("sleep", "1003")
    with client(line) as running:
        until(lambda: _commands(sleeper) == {b"sleep\x001000\0", b"sleep\x001003\0"}, "the exec")
        (pid,) = sleeper.pids() - {sleeper.pid}
        signal.pidfd_send_signal(pidfd := os.pidfd_open(pid), signal.SIGTERM)
        os.close(pidfd)
        assert running.wait(PATIENCE) == 143


def test_metrics(containerd: Containerd) -> None:
    with containerd.living(options=["--null-io", "--memory-limit", "64000000"]) as container:
        found = container.metrics()
        assert found["pids"]["current"] == 1
        assert found["memory"]["usage"]["limit"] == 64000000 // 4096 * 4096


def test_out_of_memory(containerd: Containerd) -> None:
    """It is told, and told before the end."""
    with containerd.events() as events:
        id = new_id()
        hog = ("dd", "if=/dev/zero", "of=/dev/null", "bs=100M")
        done = containerd.run(*hog, options=["--memory-limit", "16000000"], id=id)
        assert done.returncode == 137
        topics = [event.topic for event in events.wait_for(id, "/tasks/delete")]
        assert topics == [f"/tasks/{t}" for t in ("create", "start", "oom", "exit", "delete")]
