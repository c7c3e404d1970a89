"""The front dies, again and again, at chosen moments, or hangs: no caller of containerd's notices.

DENSESHIM_TEST_FRONT_DEATHS: for how many seconds each front is killed that has served for two
seconds, under a crowd of containers; 20 unless it is set.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shim._pb.containerd.task.v3 import task_pb2
from tests.containerd.containerd import Container, Containerd
from tests.containerd.events import Event
from tests.containerd.gate import Gate, Runtime
from tests.containerd.host import Host
from tests.containerd.support import PATIENCE, client, lines, new_id, until
from tests.containerd.terminal import Terminal
from tests.containerd.test_events import EXEC, LIFE
from tests.native.support import read_exactly

DEATHS = float(os.environ.get("DENSESHIM_TEST_FRONT_DEATHS", "20"))
PAUSE = 2.0
SIZE = 50
WORKERS = 6
UNKNOWN, DEADLINE_EXCEEDED, UNAVAILABLE = 2, 4, 14


@pytest.fixture
def host(containerd: Containerd) -> Host:
    return Host(containerd)


@pytest.fixture(scope="module")
def sleeper(containerd: Containerd) -> Iterator[Container]:
    """A container for tests that leave it as it is."""
    with containerd.living() as container:
        yield container


def topics(events: list[Event], process: str = "") -> list[str]:
    """Of the events of a container's init process, or of one of its execs."""
    return [event.topic for event in events if event.process == process]


# -- a crowd


class Reaper:
    """Kills each front when it has served for PAUSE seconds, until it is told to stop."""

    def __init__(self, host: Host) -> None:
        self.deaths = 0
        self._host = host
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reaper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE):
            self._host.replace_front()
            self.deaths += 1


class Life:
    """A container that writes, is exec'd into again and again, and ends with a status of its own.

    `problems` is what was not as it should be.
    """

    EXEC = "seq 2000; until [ -e /$0 ]; do sleep 0.05; done; exit $1"
    SCRIPT = "seq 5000; until [ -e /go-$0 ]; do sleep 0.5; done; seq 5000; exit $1"

    def __init__(self, containerd: Containerd, number: int, stack: contextlib.ExitStack) -> None:
        self.id = new_id()
        self.statuses: list[int] = []
        self.problems: list[str] = []
        self._containerd = containerd
        self._status = number % 100 + 1
        self._stack = stack
        self._go = containerd.rootfs.path / f"go-{self.id}"

    def begin(self) -> None:
        """Run it; its client goes on until `end`."""
        script = ("sh", "-c", self.SCRIPT, self.id, str(self._status))
        line = self._containerd.run_line(self.id, *script, options=["--rm"])
        self._client = self._stack.enter_context(client(line))
        assert self._client.stdout is not None
        found = read_exactly(self._client.stdout.fileno(), len(lines(5000)))
        self._check(found == lines(5000), f"its first output: {found!r:.100}")

    def exec(self) -> None:
        """Run something in it, which ends once its output is here: ctr may leave it unread else."""
        status, id = len(self.statuses) % 200 + 1, f"e{len(self.statuses)}"
        read = self._go.with_name(f"{self._go.name}-{id}")
        line = Container(self._containerd, self.id).exec_line(
            "sh", "-c", self.EXEC, read.name, str(status), id=id
        )
        with client(line) as running:
            assert running.stdout is not None
            found = read_exactly(running.stdout.fileno(), len(lines(2000)))
            self._check(found == lines(2000), f"exec {id}: {found!r:.100}")
            read.touch()
            rest, _ = running.communicate(timeout=PATIENCE)
            self._check((running.returncode, rest) == (status, b""), f"exec {id}: {rest!r:.100}")
        read.unlink()
        self.statuses.append(status)

    def end(self) -> None:
        """Let it end, and its client."""
        self._go.touch()
        rest, _ = self._client.communicate(timeout=PATIENCE)
        self._go.unlink()
        found = (self._client.returncode, rest)
        self._check(found == (self._status, lines(5000)), f"its end: {found!r:.200}")

    def _check(self, holds: bool, text: str) -> None:
        if not holds:
            self.problems.append(f"{self.id}: {text}")

    def check_events(self, seen: list[Event]) -> None:
        """Each is told once, in order, with its own status.

        But for EXEC_ADDED: there is no process yet that the keeper could mark as told of.
        """
        self._check(topics(seen) == LIFE, f"events: {topics(seen)}")
        for turn, status in enumerate(self.statuses):
            own = [event for event in seen if event.process == f"e{turn}"]
            found = [e.topic for e in own]
            added = found.count(EXEC[0])
            self._check(found == [*EXEC[:1] * added, *EXEC[1:]], f"exec {turn}: {own}")
            self._check(1 <= added <= 2, f"exec {turn}: {own}")
            self._check(own[-1].status == status, f"exec {turn}: {own[-1]}")


def _problems(crowd: list[Life]) -> str:
    return "\n".join(problem for life in crowd for problem in life.problems)


def disconnected(containerd: Containerd) -> list[str]:
    """What containerd has logged about shims that hung up; each deletion of a task is one."""
    return [line for line in containerd.log.splitlines() if "shim disconnected" in line]


def test_a_crowd_lives_while_fronts_die(own_containerd: Containerd) -> None:
    """Fifty run at once, each of which writes, is exec'd into, and ends."""
    containerd, host = own_containerd, Host(own_containerd)
    before = len(disconnected(containerd))
    with (
        containerd.events() as log,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(WORKERS) as pool,
        Reaper(host) as reaper,
    ):
        begin = time.monotonic()
        crowd = [Life(containerd, number, stack) for number in range(SIZE)]
        list(pool.map(Life.begin, crowd))
        list(pool.map(Life.exec, crowd))
        while time.monotonic() - begin < DEATHS:
            list(pool.map(Life.exec, crowd[:: SIZE // 10]))
        assert len(disconnected(containerd)) == before
        list(pool.map(Life.end, crowd))
        assert _problems(crowd) == ""
        for life in crowd:
            life.check_events(log.wait_for(life.id, "/tasks/delete"))
    assert _problems(crowd) == ""
    execs = sum(len(life.statuses) for life in crowd)
    print(f"{reaper.deaths} deaths, {execs} execs in {time.monotonic() - begin:.0f} s")
    assert reaper.deaths >= DEATHS / PAUSE / 3
    # Each task was deleted once, and its connection closed then.
    found = disconnected(containerd)[before:]
    assert all(sum(f"id={life.id} " in line for line in found) <= 1 for life in crowd)


# -- chosen moments


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("command", ["create", "start", "delete"])
def test_a_front_dies_in_a_container_s_life(
    containerd: Containerd, host: Host, tmp_path: Path, command: str, moment: str
) -> None:
    """At the runtime's command: its outcome is the caller's, and each event is told once."""
    gate = Gate(tmp_path, command, moment)
    id = new_id()
    script = ("sh", "-c", "echo words; exit 7")
    line = containerd.run_line(id, *script, options=["--rm", *gate.options])
    with containerd.events() as log, client(line) as running:
        gate.reached()
        host.kill_front()
        gate.open()
        output, _ = running.communicate(timeout=PATIENCE)
        assert (running.returncode, output) == (7, b"words\n")
        seen = log.wait_for(id, "/tasks/delete")
        assert topics(log.settled(id)) == LIFE
    assert [event.status for event in seen] == [0, 0, 7, 7]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_front_dies_in_an_exec(
    containerd: Containerd, host: Host, tmp_path: Path, moment: str
) -> None:
    """The process is started once, its output whole."""
    gate = Gate(tmp_path, "exec", moment)
    with (
        containerd.events() as log,
        containerd.living(options=["--null-io", *gate.options]) as container,
    ):
        line = container.exec_line("sh", "-c", "echo words; exit 8", id="e")
        with client(line) as running:
            gate.reached()
            host.kill_front()
            gate.open()
            output, _ = running.communicate(timeout=PATIENCE)
            assert (running.returncode, output) == (8, b"words\n")
        assert topics(log.settled(container.id), "e") == EXEC
        assert len(container.pids()) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_front_dies_in_a_change(
    containerd: Containerd, host: Host, tmp_path: Path, command: str, moment: str
) -> None:
    """Its caller is answered as if nothing had been."""
    gate = Gate(tmp_path, command, moment)
    with (
        containerd.events() as log,
        containerd.living(options=["--null-io", *gate.options]) as container,
    ):
        for change, status in (("pause", "PAUSED"), ("resume", "RUNNING")):
            with client(containerd.line("tasks", change, container.id)) as running:
                if change == command:
                    gate.reached()
                    host.kill_front()
                    gate.open()
                assert running.wait(PATIENCE) == 0
            assert container.status == status
        wanted = [*LIFE[:2], "/tasks/paused", "/tasks/resumed"]
        assert topics(log.settled(container.id)) == wanted


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_front_dies_while_a_terminal_is_made(
    containerd: Containerd, host: Host, tmp_path: Path, moment: str
) -> None:
    """The runtime gives the terminal to the dead front, in vain; the container is made again."""
    gate = Gate(tmp_path, "create", moment)
    id = new_id()
    script = ("sh", "-c", "tty; exit 9")
    line = containerd.run_line(id, *script, options=["--rm", "--tty", *gate.options])
    with containerd.events() as log, Terminal(line) as terminal:
        gate.reached()
        host.kill_front()
        gate.open()
        assert terminal.rest() == b"/dev/pts/0\r\n"
        assert terminal.wait() == 9
        log.wait_for(id, "/tasks/delete")
        assert topics(log.settled(id)) == LIFE


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_front_dies_while_an_exec_s_terminal_is_made(
    containerd: Containerd, host: Host, tmp_path: Path, moment: str
) -> None:
    """What has been started hangs on the dead front's terminal: it is killed, and started again."""
    gate = Gate(tmp_path, "exec", moment)
    with containerd.living(options=["--null-io", *gate.options]) as container:
        line = container.exec_line("sh", "-c", "tty; exit 9", id="e", options=["--tty"])
        with containerd.events() as log, Terminal(line) as terminal:
            gate.reached()
            host.kill_front()
            gate.open()
            assert terminal.rest().startswith(b"/dev/pts/")
            assert terminal.wait() == 9
            assert topics(log.settled(container.id), "e")[-2:] == EXEC[-2:]
        assert len(container.pids()) == 1


def test_calls_that_the_dead_front_has_not_read(containerd: Containerd, host: Host) -> None:
    """Exec, Kill and others are given to the next one, and have their effects once."""
    with (
        containerd.events() as log,
        containerd.living() as container,
        host.caller(container) as caller,
    ):
        id = container.id
        spec = b'{"args": ["/bin/sleep", "1000"], "cwd": "/", "env": []}'
        exec = task_pb2.ExecProcessRequest(id=id, exec_id="e")
        exec.spec.value = spec
        calls = [
            ("Exec", exec),
            ("State", task_pb2.StateRequest(id=id)),
            ("CloseIO", task_pb2.CloseIORequest(id=id, stdin=True)),
            ("ResizePty", task_pb2.ResizePtyRequest(id=id, width=80, height=24)),
            ("Pids", task_pb2.PidsRequest(id=id)),
            ("Stats", task_pb2.StatsRequest(id=id)),
            ("Shutdown", task_pb2.ShutdownRequest(id=id)),
            ("Kill", task_pb2.KillRequest(id=id, signal=signal.SIGCONT)),
            ("Kill", task_pb2.KillRequest(id=id, signal=signal.SIGKILL, all=True)),
        ]
        for method, message in calls:
            front = host.hold_front()
            stream = caller.ask(method, message)
            caller.was_read()
            os.kill(front, signal.SIGKILL)
            assert caller.answer(stream).code == 0, method
        container.wait_stopped()
        seen = log.settled(id)
        assert topics(seen) == LIFE[:3]
        assert topics(seen, "e") == EXEC[:1]


def test_a_signal_is_sent_once(containerd: Containerd, host: Host, tmp_path: Path) -> None:
    """Five, each while a front dies: the container counts them.

    Its client has gone by then: two fronts may die over a call, and no more.
    """
    script = "n=0; trap 'n=$((n+1)); echo $n' USR1; echo 0; while :; do sleep 0.01; done"
    output = tmp_path / "output"
    options = ["--log-uri", f"file://{output}"]
    with (
        containerd.living("sh", "-c", script, options=options) as container,
        host.caller(container) as caller,
    ):
        until(lambda: output.read_text() == "0\n", "the container's first words")
        for number in range(1, 6):
            request = task_pb2.KillRequest(id=container.id, signal=signal.SIGUSR1)
            stream = caller.ask("Kill", request)
            caller.was_read()
            host.kill_front()
            assert caller.answer(stream).code == 0
            counted = "".join(f"{n}\n" for n in range(number + 1))
            until(lambda text=counted: output.read_text() == text, f"signal {number}")  # type: ignore[misc]


# -- fronts that hang


def test_a_hung_front_is_replaced(host: Host, sleeper: Container) -> None:
    """No answer for 5 s, none to a ping for 10 s: then the next front answers the very call."""
    with host.caller(sleeper) as caller:
        hung = host.hold_front()
        begin = time.monotonic()
        found = caller.call("State", task_pb2.StateRequest(id=sleeper.id))
        took = time.monotonic() - begin
        assert found.of(task_pb2.StateResponse).pid == sleeper.pid
        assert 14 < took < 20
        assert host.front != hung


# -- calls that kill


def test_a_call_that_kills_every_front(
    containerd: Containerd, host: Host, sleeper: Container, tmp_path: Path
) -> None:
    """It is refused once two have died over it; whoever else waits or calls gets an answer."""
    kill_front = (
        'for pid in $(cat /proc/$PPID/task/$PPID/children); do\n'
        "grep -q shim.front /proc/$pid/cmdline && kill -KILL $pid\ndone\nexit 1"
    )
    deadly = Runtime(tmp_path, "pause", kill_front)
    with (
        containerd.living(options=["--null-io", *deadly.options]) as container,
        host.caller(sleeper) as waiting,
        client(sleeper.exec_line("sh", "-c", "echo ready; read line; exit 6")) as execing,
    ):
        assert execing.stdout is not None
        assert execing.stdin is not None
        assert execing.stdout.readline() == b"ready\n"
        stream = waiting.ask("Wait", task_pb2.WaitRequest(id=container.id))
        with host.caller(container) as caller:
            found = caller.call("Pause", task_pb2.PauseRequest(id=container.id))
            assert found.code == UNAVAILABLE
            assert "died twice" in found.text
            assert caller.call("State", task_pb2.StateRequest(id=container.id)).code == 0
        assert container.status == "RUNNING"
        assert containerd.run("echo", "words").stdout == b"words\n"
        execing.stdin.write(b"\n")
        assert execing.wait(PATIENCE) == 6
        Runtime(tmp_path, "pause", "")
        containerd.do("tasks", "pause", container.id)
        containerd.do("tasks", "resume", container.id)
        container.kill("KILL")
        assert waiting.answer(stream).of(task_pb2.WaitResponse).exit_status == 137
        assert sleeper.status == "RUNNING"


# -- waits


def test_waits_outlive_ten_fronts(containerd: Containerd, host: Host, tmp_path: Path) -> None:
    """Eighteen raw ones, on one connection and on many, and what ctr waits for."""
    id = new_id()
    script = "until [ -e /go ]; do sleep 0.1; done; rm /go; seq 1000; exit 77"
    line = containerd.run_line(id, "sh", "-c", f"echo ready; {script}", options=["--rm"])
    go = containerd.rootfs.path / "go"
    with client(line) as running, contextlib.ExitStack() as stack:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        container = Container(containerd, id)
        callers = [stack.enter_context(host.caller(container)) for _ in range(6)]
        wait = task_pb2.WaitRequest(id=id)
        streams = [(caller, caller.ask("Wait", wait)) for caller in callers for _ in range(3)]
        short = callers[0].ask("Wait", wait, timeout=0.5)
        for _ in range(10):
            # It takes its turn after ctr's Start, which may still be unanswered.
            found = callers[0].call("Resume", task_pb2.ResumeRequest(id=id))
            assert found.code == UNKNOWN
            host.replace_front()
        assert callers[0].answer(short).code == DEADLINE_EXCEEDED
        go.touch()
        answers = [caller.answer(stream) for caller, stream in streams]
        ended = [answer.of(task_pb2.WaitResponse) for answer in answers]
        assert {one.exit_status for one in ended} == {77}
        assert len({one.exited_at.ToNanoseconds() for one in ended}) == 1
        output, _ = running.communicate(timeout=PATIENCE)
        assert (running.returncode, output) == (77, lines(1000))
