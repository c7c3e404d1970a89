"""What users of shims suffer from, under containerd; the number is the demand's."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from shim._pb.containerd.task.v3.task_pb2 import (
    CloseIORequest,
    DeleteRequest,
    DeleteResponse,
    ExecProcessRequest,
    StartRequest,
    StartResponse,
    StateRequest,
    StateResponse,
    WaitRequest,
    WaitResponse,
)
from shim.oci.spec import process
from tests.containerd.caller import TaskCaller
from tests.containerd.containerd import Container, Containerd, Result, finish
from tests.containerd.events import Event, EventLog
from tests.containerd.host import Host, kill, socket_of
from tests.containerd.rootfs import IMAGE
from tests.containerd.sizes import sized
from tests.containerd.support import (
    PATIENCE,
    RUNTIME,
    STOCK,
    client,
    feed,
    is_alive,
    lines,
    new_id,
    until,
)
from tests.containerd.terminal import Terminal
from tests.containerd.ttrpc import ShimCaller, frame

EXIT = "/tasks/exit"
# The type of an exec's specification, as containerd's clients send it.
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
LAST = 1_000_000
# Asks for more memory at once than a container of 16 MB may have.
HOG = ("dd", "if=/dev/zero", "of=/dev/null", "bs=100M")
LIMITED = ("--null-io", "--memory-limit", "16000000")


@pytest.fixture
def sleeper(containerd: Containerd) -> Iterator[Container]:
    """A container to exec in."""
    with containerd.living() as container:
        yield container


def exits(events: list[Event]) -> Counter[str]:
    """How often each process's exit was told; the init process is ""."""
    return Counter(event.process for event in events if event.topic == EXIT)


# 1: no lost exits


KILLS = sized(6, 1000)
# How many containers die in one stall, and in how many loops each is exec'd in: 32 in all.
CROWD, LOOPS = sized((1, 8), (16, 2))
STALL = sized(0.5, 3.0)


def test_demand_01_each_exit_is_told_once(containerd: Containerd) -> None:
    """Containers die under exec loops, while containerd, which should hear of it, stands still."""
    with ThreadPoolExecutor(CROWD * LOOPS) as pool:
        for left in range(KILLS, 0, -CROWD):
            with containerd.events() as log:
                _die_in_a_stall(containerd, log, pool, min(CROWD, left))


def _die_in_a_stall(
    containerd: Containerd, log: EventLog, pool: ThreadPoolExecutor, count: int
) -> None:
    """`count` containers' lives, all killed while containerd stands still."""
    start = partial(containerd.start_container, "sleep", "1000")
    crowd = [one.result() for one in [pool.submit(start) for _ in range(count)]]
    pids = containerd.pids().values()
    loops = [pool.submit(_exec_until_refused, one) for one in crowd for _ in range(LOOPS)]
    for container in crowd:
        log.wait_for(container.id, EXIT, 2 * LOOPS)
    os.kill(containerd.pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, pids)), "the containers' end")
    time.sleep(STALL)  # what is tested
    os.kill(containerd.pid, signal.SIGCONT)
    for loop in loops:
        loop.result()
    list(pool.map(Container.remove, crowd))
    for container in crowd:
        seen = log.wait_for(container.id, "/tasks/delete")
        told = exits(seen)
        started = {e.process for e in seen if e.topic == "/tasks/exec-started"}
        assert {process: told[process] for process in started} == dict.fromkeys(started, 1)
        assert set(told.values()) == {1}
        assert [e.status for e in seen if e.topic == EXIT and not e.process] == [137]


def _exec_until_refused(container: Container) -> None:
    while container.exec("true").returncode == 0:
        pass


# 4: nothing leaked


def test_demand_04_concurrent_deletes_leave_nothing(containerd: Containerd) -> None:
    """Thirty containers on overlays of an image, each deleted by three clients at once."""
    containerd.do("images", "import", str(containerd.rootfs.image))

    def live(_: int) -> None:
        id = _on_image(containerd).id
        delete = containerd.line("tasks", "rm", "--force", id)
        racing = [subprocess.Popen(delete, stderr=subprocess.PIPE) for _ in range(3)]
        said = [racer.communicate(timeout=PATIENCE)[1] for racer in racing]
        assert id not in containerd.states(), said
        containerd.do("containers", "rm", id)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(live, range(sized(30, 300))))
    containerd.do("images", "rm", "--sync", IMAGE)


# In seconds. An hour is what users have seen leaks after; five minutes are some thousand lives.
CHURN = sized(5.0, 300.0)


def test_demand_04_churn_leaves_nothing(containerd: Containerd) -> None:
    """Lives of every kind, for a time; afterwards the shims have open what they had before."""
    containerd.do("images", "import", str(containerd.rootfs.image))
    before = _descriptors(containerd)
    end = time.monotonic() + CHURN
    lives = (_live_and_write, _live_and_be_held, _live_and_exec, _live_and_end)

    def churn(number: int) -> int:
        turns = itertools.takewhile(lambda _: time.monotonic() < end, itertools.count(number))
        return sum(lives[turn % len(lives)](containerd) for turn in turns)

    with ThreadPoolExecutor(6) as pool:
        print(f"{sum(pool.map(churn, range(6)))} containers in {CHURN:.0f} s")
    until(lambda: not _descriptors(containerd) - before, "the descriptors are closed", 5)
    containerd.do("images", "rm", "--sync", IMAGE)


def _live_and_write(containerd: Containerd) -> int:
    """Unmounting its root is slow: there is much to be written to the disk before."""
    container = _on_image(containerd)
    assert container.exec("dd", "if=/dev/zero", "of=/big", "bs=1M", "count=16").returncode == 0
    container.remove()
    return 1


def _live_and_be_held(containerd: Containerd) -> int:
    """Somebody else has its root open while it is unmounted: EBUSY."""
    container = _on_image(containerd)
    bundle = containerd.bundles / containerd.namespace / container.id
    held = os.open(containerd.machine.root / str(bundle / "rootfs").lstrip("/"), os.O_RDONLY)
    try:
        container.remove()
    finally:
        os.close(held)
    return 1


def _live_and_exec(containerd: Containerd) -> int:
    """It is killed while something runs in it."""
    container = _on_image(containerd)
    # A ctr whose exec is deleted by somebody else leaves its FIFOs.
    options = ["--fifo-dir", str(containerd.folder)]
    line = container.exec_line("sh", "-c", "echo ready; sleep 1000", options=options)
    with client(line) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        container.remove()
        assert running.wait(PATIENCE) in (1, 137)
    return 1


def _live_and_end(containerd: Containerd) -> int:
    done = containerd.run("sh", "-c", "seq 1000; exit 3")
    assert (done.returncode, done.stdout) == (3, lines(1000))
    return 1


# 5: a grandchild holds stdout


def test_demand_05_a_grandchild_holds_the_output(sleeper: Container) -> None:
    """The exit is told at once, the output comes, and the client is not kept."""
    took = [_hear_of_the_exit(sleeper, f"holds-{number}") for number in range(sized(3, 50))]
    assert max(took) < 1
    assert statistics.median(took) < 0.1


def _hear_of_the_exit(container: Container, id: str) -> float:
    """How long it takes, in seconds, from an exec's last words to the event of its exit."""
    with container.daemon.events() as log:
        line = container.exec_line("sh", "-c", "sleep 1000 & echo ok; exit 3", id=id)
        with client(line) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ok\n"
            begin = time.monotonic()
            log.wait_for(container.id, EXIT)
            took = time.monotonic() - begin
            assert running.wait(PATIENCE) == 3
    return took


# 6: lost tail of the output


ROUNDS = sized(1, 100)


@pytest.mark.parametrize("round", range(sized(3, 100)))
def test_demand_06_a_million_lines_through_pipes(sleeper: Container, round: int) -> None:
    done = sleeper.exec("seq", str(LAST))
    assert done.returncode == 0
    assert done.stdout == lines(LAST)


@pytest.mark.parametrize("round", range(ROUNDS))
def test_demand_06_a_million_lines_of_the_init_process(
    containerd: Containerd, tmp_path: Path, round: int
) -> None:
    """`ctr run` itself may end before it has read what is still in the FIFO, with any shim."""
    script = f"until [ -e /shared/go ]; do sleep 0.05; done; exec seq {LAST}"
    with containerd.living("sh", "-c", script, options=_shared(tmp_path)) as container:
        (fifo,) = tmp_path.glob(f"*/{container.id}-stdout")
        with fifo.open("rb") as reader:
            (tmp_path / "go").touch()
            assert reader.read() == lines(LAST)
        container.wait_stopped()


def _shared(folder: Path) -> list[str]:
    """ctr's options for a container that has `folder` at /shared, and its FIFOs in it."""
    mount = f"type=bind,src={folder},dst=/shared,options=rbind:rw"
    return ["--fifo-dir", str(folder), "--mount", mount]


@pytest.mark.parametrize("round", range(ROUNDS))
def test_demand_06_a_million_lines_through_a_terminal(sleeper: Container, round: int) -> None:
    with sleeper.exec_on_terminal("sh", "-c", f"seq {LAST} | cat") as terminal:
        assert terminal.rest() == lines(LAST, b"\r\n")
        assert terminal.wait() == 0


@pytest.mark.parametrize("round", range(ROUNDS))
def test_demand_06_a_reader_without_ctr(sleeper: Container, tmp_path: Path, round: int) -> None:
    """Eight execs at once."""
    run = partial(_run_and_read, sleeper, tmp_path, "seq", str(LAST // 10))
    with ThreadPoolExecutor(8) as pool:
        found = [one.result() for one in [pool.submit(run) for _ in range(8)]]
    assert found == [(0, lines(LAST // 10))] * 8


def _run_and_read(container: Container, folder: Path, *command: str) -> tuple[int, bytes]:
    """Run an exec, and delete it when its output has ended: its status and output."""
    name = new_id()
    fifo = folder / name
    os.mkfifo(fifo)
    ids = {"id": container.id, "exec_id": name}
    with TaskCaller(socket_of(container)) as caller:
        request = ExecProcessRequest(**ids, spec=_spec(*command), stdout=str(fifo))
        caller.call("Exec", request).of(Empty)
        start = caller.ask("Start", StartRequest(**ids))
        output = fifo.read_bytes()
        caller.answer(start).of(StartResponse)
        ended = caller.call("Wait", WaitRequest(**ids)).of(WaitResponse)
        caller.call("Delete", DeleteRequest(**ids)).of(DeleteResponse)
    return ended.exit_status, output


def _spec(*command: str) -> Any:
    """An exec's specification."""
    return Any(type_url=PROCESS, value=json.dumps(process(command)).encode())


@pytest.mark.parametrize("round", range(ROUNDS))
def test_demand_06_a_slow_reader(sleeper: Container, round: int) -> None:
    with client(sleeper.exec_line("seq", str(LAST))) as running:
        assert running.stdout is not None
        found = []
        for _ in range(100):
            found.append(running.stdout.read(1000))
            time.sleep(0.01)  # this is what makes it slow
        rest, _ = running.communicate(timeout=PATIENCE)
        assert b"".join([*found, rest]) == lines(LAST)


# 7: the client is away


# In seconds.
AWAY = sized(1.0, 600.0)


def test_demand_07_the_reader_is_away(sleeper: Container, tmp_path: Path) -> None:
    """The container waits for the next reader, while others write: no error, no byte lost."""
    containerd = sleeper.daemon
    script = "until [ -e /shared/go ]; do sleep 0.05; done; seq 300000; echo $? > /shared/status"
    with containerd.living("sh", "-c", script, options=_shared(tmp_path)) as container:
        (fifo,) = tmp_path.glob(f"*/{container.id}-stdout")
        with fifo.open("rb", buffering=0) as reader:
            (tmp_path / "go").touch()
            found = [_read(reader.fileno(), 5000) for _ in range(10)]
        until(lambda: any(map(_is_blocked_in_write, container.pids())), "the container waits")
        end = time.monotonic() + AWAY
        while time.monotonic() < end:
            found_elsewhere = _run_and_read(sleeper, tmp_path, "seq", "100000")
            assert found_elsewhere == (0, lines(100_000))
        assert any(map(_is_blocked_in_write, container.pids()))
        with fifo.open("rb", buffering=0) as reader:
            while data := _read(reader.fileno(), 1 << 20):
                found.append(data)
        assert b"".join(found) == lines(300_000)
        container.wait_stopped()
        assert (tmp_path / "status").read_text() == "0\n"


def _read(descriptor: int, most: int) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], PATIENCE)
    assert ready, "nothing comes"
    return os.read(descriptor, most)


def _is_blocked_in_write(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/wchan").read_text().endswith("pipe_write")
    except (FileNotFoundError, ProcessLookupError):
        return False


# 8: no big locks


@pytest.mark.parametrize("listed", [False, True])
def test_demand_08_a_slow_create_holds_nobody_up(
    sleeper: Container, tmp_path: Path, listed: bool
) -> None:
    """While the runtime creates one container, another is asked for, exec'd in and started.

    In the list of all tasks, the one that is being created has a state, too.
    """
    containerd = sleeper.daemon
    pid = sleeper.pid
    reached, opened = tmp_path / "reached", tmp_path / "opened"
    runtime = tmp_path / "slow-runc"
    runtime.write_text(
        f'#!/bin/sh\ncase " $* " in *" create "*) : > {reached}; '
        f'until [ -e {opened} ]; do sleep 0.05; done;; esac\nexec runc "$@"\n'
    )
    runtime.chmod(0o755)
    options = ["--rm", *_with_runtime(runtime)]
    with client(containerd.run_line(new_id(), "true", options=options)) as slow:
        try:
            until(reached.exists, "the runtime is called")
            for _ in range(5):
                begin = time.monotonic()
                if listed:
                    assert sleeper.status == "RUNNING"
                else:
                    assert sleeper.pids() == {pid}
                assert time.monotonic() - begin < 0.5
            with TaskCaller(socket_of(sleeper)) as caller:
                took = [_time_of_state(caller, sleeper) for _ in range(sized(100, 10_000))]
            # Where the machine itself stands still for a moment, one call is late, not all.
            assert statistics.quantiles(took, n=100)[-1] < 0.1
            assert sleeper.exec("echo", "words").stdout == b"words\n"
            assert containerd.run("true").returncode == 0
        finally:
            opened.touch()
        assert slow.wait(PATIENCE) == 0


def _with_runtime(binary: Path) -> list[str]:
    """ctr's options that make the shim call `binary`; ctr knows but the stock shim's own."""
    if RUNTIME == STOCK:
        return ["--runc-binary", str(binary)]
    config = binary.with_suffix(".toml")
    config.write_text(f"BinaryName = '{binary}'\n")
    return ["--runtime-config-path", str(config)]


def _time_of_state(caller: TaskCaller, container: Container) -> float:
    """How long it takes to be told a container's state, in seconds."""
    begin = time.monotonic()
    found = caller.call("State", StateRequest(id=container.id)).of(StateResponse)
    assert found.id == container.id
    return time.monotonic() - begin


def test_demand_08_parallel_execs(sleeper: Container) -> None:
    """A hundred in one container, all begun before the first ends; its state is told meanwhile."""
    gate = "until [ -e /tmp/demand08 ]; do sleep 0.2; done; echo $0; exit 0"
    lines = [sleeper.exec_line("sh", "-c", gate, str(number)) for number in range(100)]
    running = [subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=-1) for line in lines]
    try:
        took: list[float] = []
        with TaskCaller(socket_of(sleeper)) as caller:

            def all_run() -> bool:
                took.append(_time_of_state(caller, sleeper))
                return len(sleeper.pids()) > 100

            until(all_run, "all execs run")
        assert max(took) < 1
        assert sleeper.exec("touch", "/tmp/demand08").returncode == 0
        output = [one.communicate(timeout=PATIENCE)[0] for one in running]
        assert output == [b"%d\n" % number for number in range(100)]
    finally:
        for one in running:
            one.kill()
            one.communicate()
        sleeper.exec("rm", "/tmp/demand08")


# 9: start before exit

EXECS = sized(80, 10_000)


def test_demand_09_start_comes_before_exit(sleeper: Container) -> None:
    def run(_: int) -> Result:
        return sleeper.exec("sh", "-c", "exit 19")

    with sleeper.daemon.events() as log, ThreadPoolExecutor(4) as pool:
        assert {done.returncode for done in pool.map(run, range(EXECS))} == {19}
        seen = log.wait_for(sleeper.id, EXIT, EXECS)
    lives = defaultdict(list)
    for event in seen:
        lives[event.process].append(event)
    assert len(lives) == EXECS
    for own in lives.values():
        assert [e.topic for e in own] == ["/tasks/exec-added", "/tasks/exec-started", EXIT]
        assert own[2].status == 19


# 10: OOM events


def test_demand_10_oom_comes_before_the_exit_and_once(containerd: Containerd) -> None:
    ids = [new_id() for _ in range(sized(10, 100))]
    options = LIMITED[1:]
    with containerd.events() as log, ThreadPoolExecutor(4) as pool:
        done = pool.map(lambda id: containerd.run(*HOG, options=options, id=id), ids)
        assert {d.returncode for d in done} == {137}
        told = [[e.topic for e in log.wait_for(id, "/tasks/delete")] for id in ids]
    life = [f"/tasks/{topic}" for topic in ("create", "start", "oom", "exit", "delete")]
    assert told == [life] * len(ids)


def test_demand_10_a_killed_child_is_told_while_the_container_goes_on(
    containerd: Containerd,
) -> None:
    script = "while :; do sleep 1000; done"
    with (
        containerd.events() as log,
        containerd.living("sh", "-c", script, options=LIMITED) as container,
    ):
        assert container.exec(*HOG).returncode == 137
        log.wait_for(container.id, "/tasks/oom")
        assert container.status == "RUNNING"


# 14: FIFO open, stdin close


def test_demand_14_a_fifo_that_nobody_opens(sleeper: Container, tmp_path: Path) -> None:
    """An exec whose reader does not come keeps only itself waiting."""
    containerd = sleeper.daemon
    fifos = [str(tmp_path / name) for name in ("stdin", "stdout", "stderr")]
    for fifo in fifos:
        os.mkfifo(fifo)
    request = ExecProcessRequest(id=sleeper.id, exec_id="unread", spec=_spec("echo", "late"))
    request.stdin, request.stdout, request.stderr = fifos
    with (
        containerd.events() as log,
        ShimCaller(socket_of(sleeper)) as shim,
        contextlib.ExitStack() as ends,
    ):
        shim.ask("Exec", request)
        assert shim.answer().status.code == 0
        shim.ask("Start", StartRequest(id=sleeper.id, exec_id="unread"))
        try:
            assert finish(sleeper.exec_line("echo", "words"), limit=5).stdout == b"words\n"
            assert containerd.run("true").returncode == 0
            assert sleeper.status == "RUNNING"
        finally:
            files = [ends.enter_context(_opened(fifo)) for fifo in fifos]
        assert shim.answer().status.code == 0
        assert _read(files[1], 100) == b"late\n"
        log.wait_for(sleeper.id, EXIT, 2)


@contextlib.contextmanager
def _opened(fifo: str) -> Iterator[int]:
    """Both ends of a FIFO."""
    descriptor = os.open(fifo, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("round", range(sized(1, 50)))
def test_demand_14_the_end_of_the_input_comes_after_all_of_it(
    sleeper: Container, round: int
) -> None:
    """A slow reader gets every byte that was written before the input was closed."""
    text = lines(100_000)
    line = sleeper.exec_line("sh", "-c", "echo ready; sleep 0.5; cat")
    assert feed(line, text) == (0, text)


@pytest.mark.parametrize("round", range(sized(1, 50)))
@pytest.mark.parametrize("size", [0, 1, 65_536, 1_000_000])
@pytest.mark.parametrize(
    "moment", ["before a front's death", "before the start", "before the input", "after the input"]
)
def test_demand_14_the_input_is_closed_at_any_point(
    sleeper: Container, tmp_path: Path, moment: str, size: int, round: int
) -> None:
    """Whenever that is said: all that the client writes comes, and the end when it has gone."""
    data = os.urandom(size)
    fifos = {name: str(tmp_path / name) for name in ("stdin", "stdout")}
    for fifo in fifos.values():
        os.mkfifo(fifo)
    ids = {"id": sleeper.id, "exec_id": "fed"}
    close = CloseIORequest(**ids, stdin=True)
    with (
        TaskCaller(socket_of(sleeper)) as caller,
        _opened(fifos["stdout"]) as output,
        ThreadPoolExecutor(1) as pool,
    ):
        with _opened(fifos["stdin"]) as input:
            caller.call("Exec", ExecProcessRequest(**ids, **fifos, spec=_spec("cat"))).of(Empty)
            if moment in ("before a front's death", "before the start"):
                caller.call("CloseIO", close).of(Empty)
            if moment == "before a front's death":
                Host(sleeper.daemon).replace_front()
            caller.call("Start", StartRequest(**ids)).of(StartResponse)
            if moment == "before the input":
                caller.call("CloseIO", close).of(Empty)
            writing = pool.submit(_write, input, data)
            found = b""
            while len(found) < size:
                found += _read(output, size)
            writing.result()
        if moment == "after the input":
            caller.call("CloseIO", close).of(Empty)
        ended = caller.call("Wait", WaitRequest(**ids)).of(WaitResponse)
        assert (ended.exit_status, found) == (0, data)
        caller.call("Delete", DeleteRequest(**ids)).of(DeleteResponse)
        assert not select.select([output], [], [], 0)[0]


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


# 15: exec and pty leaks


def test_demand_15_terminals_leave_no_descriptor(own_containerd: Containerd) -> None:
    """Fifty at once, whose clients are killed, and which are deleted by others.

    containerd, whose clients they were, is another one by then.
    """
    containerd = own_containerd
    with containerd.living() as container:
        _live_on_terminals(container, 2)
        before = _descriptors(containerd)
        for _ in range(sized(1, 10)):
            _live_on_terminals(container, 50)
        until(lambda: not _descriptors(containerd) - before, "the descriptors are closed", 5)


def _live_on_terminals(container: Container, count: int) -> None:
    ids = [new_id() for _ in range(count)]
    line = container.exec_line
    opened = [Terminal(line("cat", id=id, options=["--tty"])) for id in ids]
    for terminal in opened:
        terminal.write(b"words\r")
        terminal.until(b"words\r\nwords\r\n")
    for terminal in opened:
        with terminal:
            terminal.interrupt()
    container.daemon.restart()
    for id in ids:
        assert container.kill("KILL", "--exec-id", id).returncode == 0
    until(lambda: len(container.pids()) == 1, "the execs end")
    for id in ids:
        container.daemon.ctr("tasks", "rm", "--exec-id", id, container.id)
    # The container's own file system of terminals: no other name is left in it.
    assert container.exec("ls", "/dev/pts").stdout == b"ptmx\n"
    for path in container.daemon.machine.root.glob("run/containerd/fifo/*"):
        if any((path / f"{id}-stdout").exists() for id in ids):
            _remove(path)


def _remove(folder: Path) -> None:
    """Remove what ctr leaves of an exec that another one deletes."""
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _descriptors(containerd: Containerd) -> Counter[str]:
    """What the shims have open, by kind of file."""
    found: Counter[str] = Counter()
    for pid in containerd.shims():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            found[os.readlink(entry).partition(":")[0]] += 1
    return found


# 16: pid reuse


@pytest.mark.parametrize("round", range(sized(1, 50)))
def test_demand_16_a_reused_pid_is_safe(sleeper: Container, tmp_path: Path, round: int) -> None:
    """A signal to an exec that has ended goes to nobody, whoever has its pid now."""
    with sleeper.daemon.events() as log:
        options = ["--detach", "--fifo-dir", str(tmp_path)]
        assert sleeper.exec("true", id="gone", options=options).returncode == 0
        pid = log.wait_for(sleeper.id, EXIT)[-1].fields["pid"]
    with _with_pid(pid) as victim:
        try:
            done = sleeper.kill("KILL", "--exec-id", "gone")
            assert done.returncode == 1
            assert done.stderr.endswith(b"not found\n")
            assert victim.poll() is None
        finally:
            victim.kill()
    assert sleeper.daemon.ctr("tasks", "rm", "--exec-id", "gone", sleeper.id).returncode == 0


def _with_pid(pid: int) -> subprocess.Popen[bytes]:
    """A process with that pid, which is free: tried until no other program takes it first."""

    def attempt() -> subprocess.Popen[bytes] | None:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        made = subprocess.Popen(["sleep", "1000"])
        if made.pid == pid:
            return made
        made.kill()
        made.wait()
        return None

    found = until(attempt, f"a process with the pid {pid}")
    assert found is not None
    return found


# 19: socket safety

_ASK = """
import socket, sys
caller = socket.socket(socket.AF_UNIX)
caller.settimeout(5)
caller.connect(sys.argv[1])
try:
    caller.sendall(bytes.fromhex(sys.argv[2]))
    print(caller.recv(1))
except (BrokenPipeError, ConnectionResetError):
    print("hung up")
"""
# A request to a service that does not exist: anybody who is let in gets an answer.
_REQUEST = frame("none", "None").hex()


def test_demand_19_sockets_are_files_of_root(containerd: Containerd) -> None:
    before = containerd.sockets()
    with containerd.living():
        folder = containerd.machine.root / "run/containerd/s"
        made = [folder / name for name in containerd.sockets() - before]
        assert len(made) == 1
        for path in (folder, *made):
            assert path.stat().st_mode & 0o077 == 0
            assert path.stat().st_uid == 0
        owned = _socket_inodes(containerd)
        rows = map(str.split, Path("/proc/net/unix").read_text().splitlines()[1:])
        names = {row[7] for row in rows if row[6] in owned and len(row) > 7}
        assert f"/run/containerd/s/{made[0].name}" in names
        assert not [name for name in names if name.startswith("@")]
    assert containerd.sockets() == before


def _socket_inodes(containerd: Containerd) -> set[str]:
    """The inode numbers of the sockets that the shims have open."""
    found = set()
    for pid in containerd.shims():
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            kind, _, inode = os.readlink(entry).partition(":")
            if kind == "socket":
                found.add(inode.strip("[]"))
    return found


def test_demand_19_strangers_are_refused(containerd: Containerd) -> None:
    """By the files' modes; and, were these wrong, by who they are."""
    before = containerd.sockets()
    with containerd.living() as container:
        (name,) = containerd.sockets() - before
        folder = containerd.machine.root / "run/containerd/s"
        assert b"PermissionError" in _ask(containerd, name, "65534").stderr
        paths = (folder.parent, folder, folder / name)
        modes = {path: path.stat().st_mode for path in paths}
        try:
            for path in modes:
                path.chmod(0o777)
            assert _ask(containerd, name, "0").stdout == b"b'\\x00'\n"
            stranger = _ask(containerd, name, "65534")
            assert stranger.stdout in (b"b''\n", b"hung up\n")
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        assert container.exec("true").returncode == 0


def _ask(containerd: Containerd, name: str, user: str) -> Result:
    """What a user gets from a socket."""
    drop = ["setpriv", f"--reuid={user}", "--clear-groups", "/usr/bin/env", "-i"]
    call = ["/usr/bin/python3", "-c", _ASK, f"/run/containerd/s/{name}", _REQUEST]
    return finish(containerd.machine.inside(*drop, *call))


# 20: shim death


def test_demand_20_the_death_of_every_shim(own_containerd: Containerd) -> None:
    """Containers without a parent are ended, told, and cleaned up; the next one runs."""
    containerd = own_containerd
    containerd.do("images", "import", str(containerd.rootfs.image))
    with containerd.events() as log:
        containers = [_on_image(containerd) for _ in range(sized(3, 50))]
        pids = [container.pid for container in containers]
        for pid in containerd.shims():
            os.kill(pid, signal.SIGKILL)
        for container, pid in zip(containers, pids, strict=True):
            seen = log.wait_for(container.id, "/tasks/delete")
            assert exits(seen) == {"": 1}
            assert [(e.fields.get("pid"), e.status) for e in seen[-2:]] == [(pid, 137)] * 2
        until(lambda: not any(map(is_alive, pids)), "the containers end")
        until(lambda: not containerd.states(), "the tasks are gone")
    assert containerd.run("echo", "words").stdout == b"words\n"
    for container in containers:
        containerd.do("containers", "rm", container.id)
    containerd.do("images", "rm", "--sync", IMAGE)


@pytest.mark.skipif(RUNTIME == STOCK, reason="the stock shim is one process")
@pytest.mark.parametrize("part", ["front", "spawner"])
def test_demand_20_the_death_of_a_part(containerd: Containerd, part: str) -> None:
    """Whatever runs goes on, with its clients; nothing is told twice, and new ones are run."""
    host, deaths = Host(containerd), sized(5, 100)
    with containerd.events() as log, containerd.living() as container:
        pid = container.pid
        line = container.exec_line("sh", "-c", "while read word; do echo $word; done; exit 9")
        with client(line) as running:
            assert running.stdin is not None
            assert running.stdout is not None
            for number in range(deaths):
                running.stdin.write(b"%d\n" % number)
                assert running.stdout.readline() == b"%d\n" % number
                kill(getattr(host, part))
                running.stdin.write(b"words\n")
                assert running.stdout.readline() == b"words\n"
                assert containerd.pids() == {container.id: pid}
                assert container.exec("sh", "-c", "exit 5").returncode == 5
            running.stdin.close()
            assert running.wait(PATIENCE) == 9
        assert containerd.run("echo", "words").stdout == b"words\n"
        seen = log.settled(container.id)
        assert Counter(e.status for e in seen if e.topic == EXIT) == {5: deaths, 9: 1}
        assert set(exits(seen).values()) == {1}
    assert Host(containerd).keeper == host.keeper


def _on_image(containerd: Containerd) -> Container:
    """A container whose root is a mount of the shim's."""
    container = Container(containerd, new_id())
    options = ["--null-io", "--detach"]
    line = containerd.run_line(container.id, "sleep", "1000", options=options, image=IMAGE)
    assert finish(line).returncode == 0
    return container
