"""The command line on a host of its own, with a real runtime, kernel and terminal."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

from shim.client import HostClient
from tests.containerd.terminal import Terminal
from tests.fakes.node import PATIENCE, PROGRAM, wait_until
from tests.integration.support import front_of
from tests.standalone.support import StandaloneNode

ROWS, COLUMNS = 33, 91
LOOP = "while :; do sleep 0.05; done"


class Machine:
    """A machine whose host the first command has started, with busybox imported."""

    def __init__(self, rootfs: Path) -> None:
        self.node = StandaloneNode()
        self.rootfs = rootfs

    def call(self, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        return self.node.run(PROGRAM, *words, **more)

    def done(self, *words: str, **more: Any) -> str:
        """What a command that has to succeed prints."""
        result = self.call(*words, **more)
        assert result.returncode == 0, result.stderr
        return result.stdout.decode()

    def json(self, *words: str) -> Any:
        return json.loads(self.done(*words))

    def refused(self, *words: str) -> str:
        """What a command that has to fail says."""
        result = self.call(*words)
        assert result.returncode in (1, 125), result
        assert result.stdout == b""
        return result.stderr.decode()

    def command(self, *words: str) -> list[str | bytes | Path]:
        return self.node.command([PROGRAM, *words], Path("/"))

    def terminal(self, *words: str) -> Terminal:
        return Terminal([os.fsdecode(word) for word in self.command(*words)], ROWS, COLUMNS)

    def status(self, id: str) -> str:
        (found,) = self.json("ps", "-a", "--json", "--filter", f"id=={id}")
        status: str = found["status"]
        return status

    def log_until(self, id: str, text: str) -> None:
        """Return when the container's log has `text`."""
        wait_until(lambda: text in self.done("logs", id), lambda: f"no {text!r} in the log")

    def kill_front(self) -> None:
        os.kill(front_of(self.node.keeper), signal.SIGKILL)


@pytest.fixture(scope="module")
def machine(rootfs: Path) -> Iterator[Machine]:
    made = Machine(rootfs)
    try:
        # Nothing runs there yet: the command starts the host.
        assert made.done("import", "busybox", str(rootfs)) == "busybox\n"
        yield made
    finally:
        made.node.close()


@pytest.fixture
def new_id(machine: Machine) -> Iterator[Callable[[], str]]:
    """Makes ids, whose containers are removed afterwards."""
    made: list[str] = []

    def make() -> str:
        made.append(f"denseshim-test-{os.getpid()}-c{next(_NUMBERS)}")
        return made[-1]

    yield make
    there = {row["id"] for row in machine.json("ps", "-a", "--json")}
    if left := sorted(there & set(made)):
        machine.done("rm", "-f", *left)


_NUMBERS = itertools.count()


def sh(script: str) -> tuple[str, ...]:
    return ("--", "sh", "-c", script)


@pytest.fixture
def web(machine: Machine, new_id: Callable[[], str]) -> str:
    """The id of a detached container that runs until TERM."""
    id = new_id()
    script = f"trap 'echo bye; exit 3' TERM; echo ready; {LOOP}"
    assert machine.done("run", "--name", id, "-d", "--label", "tier=front", "busybox",
                        *sh(script)) == f"{id}\n"  # fmt: skip
    machine.log_until(id, "ready")
    return id


# -- run


def test_run_is_attached_and_its_status_is_ours(machine: Machine) -> None:
    result = machine.call("run", "--rm", "busybox", *sh("echo out; echo err >&2; exit 7"))
    assert (result.returncode, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    assert machine.json("ps", "-a", "--json") == []


def test_words_after_the_image_are_the_command_also_without_dashes(machine: Machine) -> None:
    assert machine.done("run", "--rm", "busybox", "echo", "-n", "--", "a") == "-- a"


def test_stdin_byte_for_byte(machine: Machine) -> None:
    data = os.urandom(2_000_000)
    assert machine.call("run", "--rm", "-i", "busybox", "--", "cat", input=data).stdout == data


def test_without_rm_the_container_stays(machine: Machine, new_id: Callable[[], str]) -> None:
    id = new_id()
    machine.done("run", "--name", id, "busybox", *sh("echo kept > /root/file"))
    (row,) = machine.json("ps", "-a", "--json")
    assert (row["id"], row["image"], row["status"]) == (id, "busybox", None)
    assert machine.json("ps", "--json") == []
    machine.done("rm", id)
    assert [row["name"] for row in machine.json("snapshots", "--json")] == ["busybox"]


def test_an_image_that_is_not_there(machine: Machine) -> None:
    said = machine.refused("run", "--rm", "nothing", "--", "true")
    assert said == "denseshim: no image nothing; import it: denseshim import nothing PATH\n"


def test_a_name_that_is_taken(machine: Machine, web: str) -> None:
    said = machine.refused("run", "--name", web, "busybox", "--", "true")
    assert f"denseshim rm {web}" in said
    assert machine.status(web) == "running"


@pytest.mark.parametrize("options", [(), ("-d",)])
def test_what_cannot_run_leaves_nothing(
    machine: Machine, new_id: Callable[[], str], options: tuple[str, ...]
) -> None:
    id = new_id()
    said = machine.call("run", "--name", id, *options, "busybox", "--", "/no/such").stderr
    assert b"/no/such" in said
    assert machine.json("ps", "-a", "--json") == []
    assert [row["name"] for row in machine.json("snapshots", "--json")] == ["busybox"]


def test_a_run_that_was_killed_does_not_keep_the_name(
    machine: Machine, new_id: Callable[[], str]
) -> None:
    """Its snapshot is there without a container: as after SIGKILL between the two calls."""
    id = new_id()

    async def prepare() -> None:
        async with HostClient(machine.node.serve()) as host:
            await host.prepare(f"containers/{id}", "busybox")

    asyncio.run(prepare())
    assert machine.done("run", "--rm", "--name", id, "busybox", "--", "echo", "hi") == "hi\n"


def test_a_run_takes_no_image_for_a_rest(machine: Machine, new_id: Callable[[], str]) -> None:
    """An image with the name that the container's root would have stays."""
    id = new_id()

    async def commit() -> None:
        async with HostClient(machine.node.serve()) as host:
            await host.prepare("loose", "busybox")
            await host.commit(f"containers/{id}", "loose")

    asyncio.run(commit())
    said = machine.refused("run", "--rm", "--name", id, "busybox", "--", "true")
    assert f"denseshim snapshots --remove containers/{id}" in said
    machine.done("snapshots", "--remove", f"containers/{id}")


@contextlib.contextmanager
def running(machine: Machine, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command after it has written the line "ready"."""
    with subprocess.Popen(machine.command(*words), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
def test_signals_are_sent_on(machine: Machine, name: str) -> None:
    script = f"trap 'echo {name}; exit 7' {name}; echo ready; {LOOP}"
    with running(machine, "run", "--rm", "busybox", *sh(script)) as process:
        process.send_signal(signal.Signals[f"SIG{name}"])
        output, _ = process.communicate(timeout=PATIENCE)
    assert (output, process.returncode) == (f"{name}\n".encode(), 7)


def test_the_reader_of_the_output_goes_away(machine: Machine) -> None:
    with running(machine, "run", "--rm", "busybox", *sh("echo ready; yes")) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert machine.json("ps", "-a", "--json") == []


def test_a_front_s_death_is_not_seen(machine: Machine) -> None:
    script = f"trap 'echo bye; exit 5' TERM; echo ready; {LOOP}"
    with running(machine, "run", "--rm", "busybox", *sh(script)) as process:
        machine.kill_front()
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE)
    assert (output, process.returncode) == (b"bye\n", 5)
    assert machine.json("ps", "-a", "--json") == []


def test_many_attached_commands_while_fronts_die(machine: Machine) -> None:
    """Each has the whole output of its own container, and its status."""
    numbers = range(8)
    with contextlib.ExitStack() as stack:
        commands = []
        for number in numbers:
            script = f"trap 'seq 20000; exit {40 + number}' TERM; echo ready; {LOOP}"
            run = running(machine, "run", "--rm", "busybox", *sh(script))
            commands.append(stack.enter_context(run))
        for _ in range(3):
            machine.kill_front()
            machine.done("ps")  # the next one serves
        for command in commands:
            command.terminate()
        machine.kill_front()
        with ThreadPoolExecutor(len(numbers)) as pool:
            done = [*pool.map(lambda command: command.communicate(timeout=PATIENCE), commands)]
        expected = b"".join(b"%d\n" % number for number in range(1, 20001))
        assert [output == expected for output, _ in done] == [True for _ in numbers]
        assert [command.returncode for command in commands] == [40 + number for number in numbers]
    assert machine.json("ps", "-a", "--json") == []


# -- containers


def test_ps_filters(machine: Machine, web: str) -> None:
    def ids(filter: str) -> list[str]:
        return [row["id"] for row in machine.json("ps", "--json", "--filter", filter)]

    assert ids("labels.tier==front") == [web]
    assert ids("labels.tier!=front") == []
    assert ids("image~=^busy,id~=denseshim-") == [web]
    assert web in machine.done("ps")
    assert "character" in machine.refused("ps", "--filter", "labels.tier=front")


def test_label(machine: Machine, web: str) -> None:
    machine.done("label", web, "tier=", "color=red", "size=a=b")
    assert machine.json("inspect", web)["labels"] == {"color": "red", "size": "a=b"}
    assert "KEY=VALUE" in machine.refused("label", web, "color")


def test_inspect(machine: Machine, web: str) -> None:
    found = machine.json("inspect", web)
    assert (found["id"], found["image"], found["task"]["exit_status"]) == (web, "busybox", None)
    assert found["spec"]["process"]["args"][0] == "sh"
    assert "nothing" in machine.refused("inspect", "nothing")


def test_stop_is_term_and_the_container_stays(machine: Machine, web: str) -> None:
    machine.done("stop", web)
    assert machine.status(web) == "stopped"
    assert machine.json("inspect", web)["task"]["exit_status"] == 3
    assert machine.done("logs", web) == "ready\nbye\n"
    machine.done("rm", web)
    assert "no container" in machine.refused("rm", web)


def test_stop_kills_what_does_not_end(machine: Machine, new_id: Callable[[], str]) -> None:
    id = new_id()
    machine.done("run", "--name", id, "-d", "busybox", *sh(f"trap '' TERM; echo on; {LOOP}"))
    machine.log_until(id, "on")
    machine.done("stop", "--time", "0.2", id)
    assert machine.json("inspect", id)["task"]["exit_status"] == 137


def test_rm_refuses_what_runs(machine: Machine, web: str) -> None:
    assert f"denseshim stop {web}" in machine.refused("rm", web)
    assert machine.status(web) == "running"
    machine.done("rm", "-f", web)
    assert machine.json("ps", "-a", "--json") == []


def test_commands_on_what_does_not_run(machine: Machine, web: str) -> None:
    machine.done("stop", web)
    assert "stopped" in machine.refused("exec", web, "--", "true")
    machine.done("stop", web)  # it has ended already
    for _ in range(5):
        assert "'nothing'" in machine.refused("exec", "nothing", "--", "true")


def test_events(machine: Machine, new_id: Callable[[], str]) -> None:
    with subprocess.Popen(machine.command("events", "--json"), stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            # Nobody reads this one's events but `events`: once it shows them, it listens.
            early, id = new_id(), new_id()
            machine.done("run", "-d", "--name", early, "busybox", "--", "sleep", "1000")
            assert _types_until("start", early, process.stdout) == ["create", "start"]
            machine.done("run", "--rm", "--name", id, "busybox", "--", "true")
            assert _types_until("exit", id, process.stdout) == ["create", "start", "exit"]
        finally:
            process.kill()


def _types_until(last: str, id: str, lines: IO[bytes]) -> list[str]:
    """What is told of the container `id`, up to an event of type `last`."""
    seen: list[str] = []
    while last not in seen:
        event = json.loads(lines.readline())
        seen += [event["type"]] if event["id"] == id else []
    return seen


def test_events_end_at_ctrl_c_as_a_shell_has_it(
    machine: Machine, new_id: Callable[[], str]
) -> None:
    with machine.terminal("events") as terminal:
        # Of a command that waits for the end, the exit might be told before `events` listens.
        machine.done("run", "-d", "--name", new_id(), "busybox", "--", "true")
        terminal.until(b" exit ")
        terminal.write(b"\x03")
        assert b"Aborted" not in terminal.rest()
        assert terminal.wait() == 128 + signal.SIGINT


def test_nobody_reads_a_list(machine: Machine) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        streams = {"stdout": writing, "stderr": subprocess.PIPE}
        done = machine.call("snapshots", capture_output=False, **streams)
    finally:
        os.close(writing)
    assert done.stderr == b""


def test_what_would_move_the_cursor_is_shown_as_escapes(
    machine: Machine, new_id: Callable[[], str]
) -> None:
    id, words = new_id(), ("sh", "-c", "sleep 1000", "\x1b]0;own\x07\n")
    machine.done("run", "-d", "--name", id, "--label", "a=\x1b[31m\nb", "busybox", "--", *words)
    shown = machine.done("ps")
    assert "\x1b" not in shown
    assert "a=\\x1b[31m\\nb" in shown


@pytest.mark.parametrize(
    ("words", "found"),
    [("run bu", ["busybox"]), ("run -t bu", ["busybox"]), ("run busybox bu", []),
     ("snapshots --remove bu", ["busybox"])],
)  # fmt: skip
def test_completion(machine: Machine, words: str, found: list[str]) -> None:
    words = f"denseshim {words}"
    env = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    env["_DENSESHIM_COMPLETE"] = "bash_complete"
    shown = machine.done(env={**os.environ, **env}).split()
    assert [line.partition(",")[2] for line in shown] == found


def test_check(machine: Machine) -> None:
    assert machine.done("check") == "sound\n"


# -- exec


def test_exec(machine: Machine, web: str) -> None:
    result = machine.call("exec", web, *sh("echo out; echo err >&2; exit 9"))
    assert (result.returncode, result.stdout, result.stderr) == (9, b"out\n", b"err\n")
    data = os.urandom(300_000)
    assert machine.call("exec", "-i", web, "--", "cat", input=data).stdout == data


def test_exec_detached(machine: Machine, web: str) -> None:
    pid = machine.json("exec", "-d", "--json", web, "--", "sleep", "1000")["pid"]
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


def test_exec_on_a_terminal(machine: Machine, web: str) -> None:
    wanted = f'[ "$(stty size)" = "{ROWS} {COLUMNS}" ]'
    script = f'until {wanted}; do :; done; echo si""zed; read x; exit 5'
    with machine.terminal("exec", "-it", web, *sh(script)) as terminal:
        terminal.until(b"sized")
        terminal.write(b"go\r")
        assert terminal.wait() == 5


# -- terminals


def test_run_on_a_terminal(machine: Machine) -> None:
    traps = "trap 'echo caught; exit 6' INT; trap 'stty size' WINCH"
    script = f"{traps}; stty size; echo ready; {LOOP}"
    with machine.terminal("run", "--rm", "-it", "busybox", *sh(script)) as terminal:
        terminal.until(f"{ROWS} {COLUMNS}".encode())
        terminal.until(b"ready")
        terminal.resize(50, 120)
        terminal.until(b"50 120")
        terminal.write(b"\x03")
        terminal.until(b"caught")
        assert terminal.wait() == 6


@pytest.fixture
def shell(machine: Machine, new_id: Callable[[], str]) -> str:
    """A detached shell on a terminal of its own."""
    id = new_id()
    machine.done("run", "--name", id, "-d", "-i", "-t", "busybox", "--", "sh")
    return id


def sized(rows: int, columns: int) -> bytes:
    """Shell that waits until its terminal has this size."""
    return f"until [ \"$(stty size)\" = '{rows} {columns}' ]; do :; done".encode()


def test_attach_and_leave_by_keys(machine: Machine, shell: str) -> None:
    with machine.terminal("attach", shell) as terminal:
        terminal.write(sized(ROWS, COLUMNS) + b"; echo si''zed\r")
        terminal.until(b"sized")
        terminal.resize(50, 120)
        terminal.write(sized(50, 120) + b"; echo fol''lowed\r")
        terminal.until(b"followed")
        terminal.write(b"\x10\x11")
        assert terminal.wait() == 0
    assert machine.status(shell) == "running"


def test_attach_until_the_end(machine: Machine, shell: str) -> None:
    with machine.terminal("attach", shell) as terminal:
        terminal.write(b"echo sta''rts; sleep 1000\r")
        terminal.until(b"starts")
        terminal.write(b"\x03echo ba''ck\r")
        terminal.until(b"back")
        terminal.write(b"exit 9\r")
        assert terminal.wait() == 9


def test_ctrl_p_alone_is_the_container_s(machine: Machine, shell: str) -> None:
    """In busybox's shell it brings the last line back."""
    with machine.terminal("attach", shell) as terminal:
        terminal.write(b"echo on''ce\r")
        terminal.until(b"once")
        terminal.write(b"\x10\r")
        terminal.until(b"once")
        terminal.write(b"exit\r")
        assert terminal.wait() == 0


def test_attach_without_a_terminal_is_left_by_a_signal(
    machine: Machine, new_id: Callable[[], str]
) -> None:
    id = new_id()
    machine.done("run", "--name", id, "-d", "busybox", *sh("while sleep 0.05; do echo ready; done"))
    with running(machine, "attach", id) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    assert machine.status(id) == "running"


# -- images


def test_import_of_an_archive_shows_progress_on_a_terminal(
    machine: Machine, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(machine.rootfs, ".")
        large = tarfile.TarInfo("large")
        large.size = 20_000_000
        tar.addfile(large, io.BytesIO(os.urandom(large.size)))
    with machine.terminal("import", "archive", str(archive)) as terminal:
        assert b"archive" in terminal.rest()
        assert terminal.wait() == 0
    machine.done("run", "--rm", "archive", "--", "test", "-s", "/large")
    assert "archive" in machine.refused("import", "archive", str(archive))
    machine.done("snapshots", "--remove", "archive")


def test_a_name_is_no_markup(machine: Machine) -> None:
    name = "a[/b][red]c"
    with machine.terminal("import", name, str(machine.rootfs)) as terminal:
        assert name.encode() in terminal.rest()
        assert terminal.wait() == 0
    machine.done("snapshots", "--remove", name)


def test_a_front_s_death_during_an_import_is_not_seen(machine: Machine, tmp_path: Path) -> None:
    """It begins anew: nothing of the first one is left."""
    path = tmp_path / "layer.tar"
    with tarfile.open(path, "w:gz") as tar:
        large = tarfile.TarInfo("large")
        large.size = 300_000_000
        tar.addfile(large, Zeros())
    command = machine.command("import", "slow", str(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        directories = machine.node.library / "snapshots"
        before = set(os.listdir(directories))
        wait_until(lambda: set(os.listdir(directories)) - before, lambda: "no import has begun")
        machine.kill_front()
        said, complaint = process.communicate(timeout=PATIENCE)
    assert (said, complaint, process.returncode) == (b"slow\n", b"", 0)
    machine.done("snapshots", "--remove", "slow")


class Zeros(io.RawIOBase):
    """As many as are wanted."""

    def readinto(self, buffer: Any) -> int:
        buffer[:] = bytes(len(buffer))
        return len(buffer)

    def readable(self) -> bool:
        return True


def test_a_host_for_a_group_that_there_is_not(machine: Machine) -> None:
    done = machine.call("host", "--group", "no-such-group")
    assert done.returncode == 2
    assert b"groupadd no-such-group" in done.stderr


def test_an_archive_that_would_write_elsewhere(machine: Machine, tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("../evil"), io.BytesIO())
    assert "../evil" in machine.refused("import", "evil", str(archive))
    assert [row["name"] for row in machine.json("snapshots", "--json")] == ["busybox"]


def test_an_image_says_what_is_run(machine: Machine, new_id: Callable[[], str]) -> None:
    assert "give one" in machine.refused("run", "--rm", "busybox")
