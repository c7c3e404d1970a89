"""The command line on a real shim, runtime and kernel."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.client import start_shim
from shim.model import CreateRequest, Stdio
from shim.pair import STATE

DENSESHIM = Path(sys.executable).with_name("denseshim")
SHIM = Path(sys.executable).with_name("containerd-shim-dense")
LIMIT_S = 60


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files that must be empty again afterwards."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    yield place
    assert os.listdir(place) == []


def denseshim(*args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [DENSESHIM, *args], capture_output=True, timeout=LIMIT_S, check=False, **options
    )


def run(*args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return denseshim("run", "--rm", *args, **options)


def sh(script: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", script)


def until(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value


def test_output_and_success() -> None:
    done = run("--", "echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


def test_streams_are_apart() -> None:
    done = run(*sh("echo out; echo err >&2"))
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")


@pytest.mark.parametrize("status", [1, 19, 125, 255])
def test_exit_status(status: int) -> None:
    assert run(*sh(f"exit {status}")).returncode == status


def test_exit_status_of_a_signal() -> None:
    # Not init itself: it has no default reactions to signals from inside its own namespace.
    assert run(*sh("sh -c 'kill -9 $$'; exit $?")).returncode == 137


def test_stdin_is_empty_unless_asked_for() -> None:
    assert run("--", "cat", input=b"not for you").stdout == b""


def test_stdin_byte_for_byte() -> None:
    data = os.urandom(3_000_000)
    done = run("-i", "--", "cat", input=data)
    assert (done.returncode, done.stdout == data) == (0, True)


def test_large_output_byte_for_byte() -> None:
    expected = b"".join(b"%d\n" % number for number in range(1, 200_001))
    assert run("--", "seq", "200000").stdout == expected


def test_a_process_that_reads_no_stdin() -> None:
    assert run("-i", "--", "true", input=bytes(1_000_000)).returncode == 0


def test_the_reader_of_the_output_goes_away() -> None:
    with subprocess.Popen(
        [DENSESHIM, "run", "--rm", "--", "yes"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(LIMIT_S) == 128 + signal.SIGPIPE


def test_without_stdout_and_stderr() -> None:
    assert run(*sh("echo hi; exit 3"), preexec_fn=_close(1, 2)).returncode == 3


def test_a_closed_stdin_is_an_empty_one() -> None:
    done = run("-i", "--", "cat", preexec_fn=_close(0))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def _close(*descriptors: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in descriptors] and None


@contextlib.contextmanager
def running(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    """`denseshim ARGS`, after it has written a first line, which is `ready`."""
    with subprocess.Popen([DENSESHIM, *args], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_sent_on(name: str) -> None:
    script = f"trap 'echo {name}; exit 7' {name}; echo ready; while :; do sleep 0.1; done"
    with running("run", "--rm", *sh(script)) as process:
        process.send_signal(signal.Signals[f"SIG{name}"])
        output, _ = process.communicate(timeout=LIMIT_S)
        assert (output, process.returncode) == (f"{name}\n".encode(), 7)


def test_the_runtime_s_refusal_is_the_last_line() -> None:
    # Before it may be the runtime's own: its stderr is the container's.
    done = run("--", "/no/such/program")
    assert done.returncode == 125
    assert done.stdout == b""
    last = done.stderr.splitlines()[-1]
    assert last.startswith(b"denseshim: ")
    assert b"/no/such/program" in last


def test_without_rm_the_bundle_is_kept_and_named(folder: Path) -> None:
    done = denseshim("run", *sh("echo kept > /root/file"))
    assert done.returncode == 0
    bundle = Path(done.stderr.decode().removeprefix("denseshim: the bundle is kept: ").strip())
    assert bundle.parent == folder
    assert (bundle / "rootfs/root/file").read_text() == "kept\n"
    shutil.rmtree(bundle)


def test_nothing_is_left(folder: Path) -> None:
    assert run("--id", "denseshim-test-gone", "--", "true").returncode == 0
    listed = subprocess.run(["runc", "list", "-q"], capture_output=True, text=True, check=True)
    assert "denseshim-test-gone" not in listed.stdout.split()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert not any(str(folder) in line for line in _command_lines())


def _command_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return lines


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that says which of it runs."""
    from shim.oci.busybox import make_rootfs
    from shim.oci.spec import spec

    made = tmp_path / "bundle"
    make_rootfs(made / "rootfs")
    config = spec(f"denseshim-test-{os.getpid()}-cli", ["echo", "configured"])
    (made / "config.json").write_text(json.dumps(config))
    return made


def test_a_bundle_as_it_is(bundle: Path) -> None:
    assert run("--bundle", str(bundle)).stdout == b"configured\n"
    assert (bundle / "config.json").exists()


def test_a_bundle_with_another_command(bundle: Path) -> None:
    before = (bundle / "config.json").read_bytes()
    assert run("--bundle", str(bundle), "--", "echo", "other").stdout == b"other\n"
    assert (bundle / "config.json").read_bytes() == before


def test_a_rootfs_of_ones_own(bundle: Path) -> None:
    (bundle / "rootfs/mark").write_text("mine\n")
    assert run("--rootfs", str(bundle / "rootfs"), "--", "cat", "/mark").stdout == b"mine\n"


def test_a_signal_while_the_shim_starts(bundle: Path) -> None:
    with subprocess.Popen([DENSESHIM, "run", "--bundle", str(bundle)]) as process:
        until(lambda: [pid for pid in _children(process.pid) if _blocks_sigterm(pid)])
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 128 + signal.SIGINT
    assert not state_of(bundle).exists()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _blocks_sigterm(pid: int) -> bool:
    """Whether `pid` is a keeper; its front takes some time to start."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return bool(int(facts["SigBlk"], 16) >> (signal.SIGTERM - 1) & 1)


def state_of(bundle: Path) -> Path:
    return STATE / hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:16]


def test_cancelled_while_it_creates(bundle: Path) -> None:
    name = f"denseshim-test-{os.getpid()}-cut"
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_cut_create(CreateRequest(name, str(bundle), Stdio())))
    listed = subprocess.run(["runc", "list", "-q"], capture_output=True, text=True, check=True)
    assert name not in listed.stdout.split()
    assert not state_of(bundle).exists()


async def _cut_create(request: CreateRequest) -> None:
    """Leave a shim as soon as its runtime is at work."""
    async with start_shim(Path(request.bundle)) as shim, asyncio.TaskGroup() as group:
        group.create_task(shim.create(request))
        while not (Path("/run/runc") / request.id).exists():  # noqa: ASYNC110 - runc's doing
            await asyncio.sleep(0.002)
        raise asyncio.CancelledError


def test_delete_of_a_bundle_where_nothing_is_left(bundle: Path) -> None:
    done = denseshim("shim", "delete", "--json", "--bundle", str(bundle))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"{}\n", b"")


class Terminal:
    """A terminal of which `denseshim ARGS` has the one side and the test the other."""

    def __init__(self, *args: str, width: int = 91, height: int = 33) -> None:
        self.master, slave = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [DENSESHIM, *args], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.text = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def resize(self, width: int, height: int) -> None:
        size = struct.pack("4H", height, width, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def expect(self, text: bytes) -> None:
        """Read until `text` has come."""
        end = time.monotonic() + LIMIT_S
        while text not in self.text:
            ready, _, _ = select.select([self.master], [], [], end - time.monotonic())
            assert ready, f"{text!r} did not come, but {self.text!r}"
            self.text += os.read(self.master, 65536)
        self.text = self.text.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def wait(self) -> int:
        return self.process.wait(LIMIT_S)


def test_a_terminal_of_our_size() -> None:
    script = "tty; stty size; exit 4"
    with Terminal("run", "--rm", "-t", "-i", *sh(script)) as terminal:
        terminal.expect(b"/dev/pts/0\r\n33 91\r\n")
        assert terminal.wait() == 4


def test_the_terminal_s_size_is_followed() -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done"
    with Terminal("run", "--rm", "-t", "-i", *sh(script)) as terminal:
        terminal.expect(b"ready")
        terminal.resize(120, 50)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.expect(b"50 120")
        assert terminal.wait() == 0


def test_keys_go_to_the_container() -> None:
    script = "trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 0.1; done"
    with Terminal("run", "--rm", "-t", "-i", *sh(script)) as terminal:
        terminal.expect(b"ready")
        terminal.type(b"\x03")
        terminal.expect(b"caught")
        assert terminal.wait() == 6


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$; exit 3"])
def test_the_terminal_is_restored(script: str) -> None:
    with Terminal("run", "--rm", "-t", "-i", *sh(script)) as terminal:
        terminal.wait()
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_the_terminal_is_restored_after_a_failure() -> None:
    with Terminal("run", "--rm", "-t", "-i", "--", "/no/such/program") as terminal:
        assert terminal.wait() == 125
        assert termios.tcgetattr(terminal.slave) == terminal.before


class Shim:
    """A shim by itself, to which commands are sent."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.bundle = bundle
        self.socket = folder / "shim.sock"
        self.process = subprocess.Popen([SHIM, "--dedicated", "--socket", self.socket], cwd=bundle)
        until(self.socket.exists)

    def call(self, *args: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        command, *rest = args
        return denseshim("shim", command, "--socket", str(self.socket), *rest, **options)

    def json(self, *args: str) -> Any:
        command, *rest = args
        done = self.call(command, "--json", *rest)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status(self) -> str:
        status: str = self.json("state")["status"]
        return status

    def end(self) -> None:
        if not self.socket.exists():
            assert self.process.wait(LIMIT_S) == 0
            return
        self.call("kill", "--all", "KILL")
        until(lambda: self.call("delete").returncode == 0 or self.call("state").returncode)
        assert self.call("exit").returncode == 0
        assert self.process.wait(LIMIT_S) == 0


@pytest.fixture
def shim(tmp_path: Path, bundle: Path) -> Iterator[Shim]:
    """A shim whose container sleeps."""
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["sleep", "1000"]
    (bundle / "config.json").write_text(json.dumps(config))
    shim = Shim(tmp_path, bundle)
    try:
        name = f"denseshim-test-{os.getpid()}-cli"
        shim.json("create", "--id", name, "--bundle", str(bundle))
        assert shim.call("start").returncode == 0
        yield shim
        shim.end()
    finally:
        shim.process.kill()
        shim.process.wait()
    assert not shim.socket.exists()


def test_the_life_of_a_container_by_commands(shim: Shim) -> None:
    assert shim.status() == "running"
    assert shim.call("pause").returncode == 0
    assert shim.status() == "paused"
    assert shim.call("resume").returncode == 0
    pid = shim.json("state")["pid"]
    assert pid in [row["pid"] for row in shim.json("ps")]
    assert shim.call("kill", "SIGKILL").returncode == 0
    until(lambda: shim.status() == "stopped")
    assert shim.json("delete")["exit_status"] == 137
    assert shim.call("state").returncode == 1


def test_exec_attached(shim: Shim) -> None:
    done = shim.call("exec", *sh("echo out; echo err >&2; exit 9"))
    assert (done.returncode, done.stdout, done.stderr) == (9, b"out\n", b"err\n")
    assert len(shim.json("state")["processes"]) == 1


def test_exec_with_stdin(shim: Shim) -> None:
    data = os.urandom(300_000)
    assert shim.call("exec", "-i", "--", "cat", input=data).stdout == data


def test_exec_with_a_terminal(shim: Shim) -> None:
    # Exec's request has no size: it is set as soon as the process is there.
    script = 'until [ "$(stty size)" = "33 91" ]; do sleep 0.1; done; echo sized; read x; exit 5'
    args = ("shim", "exec", "--socket", str(shim.socket), "-t", "-i", *sh(script))
    with Terminal(*args) as terminal:
        terminal.expect(b"sized")
        terminal.type(b"go\r")
        assert terminal.wait() == 5


def test_a_grandchild_that_keeps_the_output_is_not_waited_for(shim: Shim) -> None:
    done = shim.call("exec", *sh("sleep 900 & echo ok"))
    assert (done.returncode, done.stdout) == (0, b"ok\n")


def test_exec_signals(shim: Shim) -> None:
    script = "trap 'exit 8' TERM; echo ready; while :; do sleep 0.1; done"
    with running("shim", "exec", "--socket", str(shim.socket), *sh(script)) as process:
        process.terminate()
        assert process.wait(LIMIT_S) == 8
    assert shim.status() == "running"


def test_exec_detached_is_killed_by_pid(shim: Shim) -> None:
    pid = shim.json("exec", "--detach", "--", "sleep", "1000")["pid"]
    assert shim.call("kill", "--pid", str(pid), "9").returncode == 0
    ended = until(lambda: [row for row in shim.json("state")["processes"]
                           if row["pid"] == pid and row["status"] == "stopped"])  # fmt: skip
    assert ended[0]["exit_status"] == 137
    assert shim.json("delete", str(pid))["exit_status"] == 137
    assert shim.status() == "running"


def test_events_are_seen(shim: Shim) -> None:
    args = [str(DENSESHIM), "shim", "events", "--json", "--socket", str(shim.socket)]
    with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            kinds = [json.loads(process.stdout.readline())["type"] for _ in range(2)]
        finally:
            process.terminate()
    assert kinds == ["create", "start"]


def test_events_end_with_the_shim(shim: Shim) -> None:
    args = [str(DENSESHIM), "shim", "events", "--json", "--socket", str(shim.socket)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            for _ in range(2):
                assert process.stdout.readline()
            assert shim.call("exit").returncode == 0
            output, errors = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert [json.loads(line)["type"] for line in output.splitlines()] == ["exit"]
    assert (process.returncode, errors) == (0, b"")


def test_events_go_on_over_the_front_s_death(shim: Shim) -> None:
    args = [str(DENSESHIM), "shim", "events", "--json", "--socket", str(shim.socket)]
    with subprocess.Popen(args, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            for _ in range(2):
                assert process.stdout.readline()
            os.kill(_front_of(shim.process.pid), signal.SIGKILL)
            assert shim.call("kill", "KILL").returncode == 0
            assert json.loads(process.stdout.readline())["type"] == "exit"
        finally:
            process.kill()


def _front_of(keeper: int) -> int:
    return next(
        pid
        for pid in _children(keeper)
        if b"shim.front" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def test_nobody_answers(tmp_path: Path) -> None:
    socket = tmp_path / "gone.sock"
    for command in ("state", "events"):
        done = denseshim("shim", command, "--socket", str(socket))
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == f"denseshim: no shim answers on {socket}\n"
