"""What the command line makes of its arguments, with a recorder in the shim's place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from shim import __version__
from shim.cli import main
from shim.cli.bundle import users_bundle
from shim.cli.params import SIGNAL
from shim.cli.relay import KeyRelay
from shim.cli.run import image_and_command
from shim.cli.shim import call, group
from shim.errors import InvalidArgument, NotFound
from shim.model import (
    CheckpointRequest,
    ContainerState,
    CreateRequest,
    Exit,
    ProcessInfo,
    RuntimeOptions,
    Status,
    Stdio,
)


class Recorder:
    """Stands for ShimClient: keeps each call, answers with what is set."""

    calls: list[tuple[Any, ...]]
    answers: dict[str, Any]

    def __init__(self, socket: Path) -> None:
        self.calls.append(("socket", str(socket)))

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)

    def __getattr__(self, name: str) -> Any:
        async def method(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, *args, *sorted(kwargs.items())))
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return method


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Fresh = type("Fresh", (Recorder,), {"calls": [], "answers": {}})
    monkeypatch.setattr(call, "ShimClient", Fresh)
    monkeypatch.setenv("DENSESHIM_SOCKET", "/s")
    return Fresh


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def shim(*args: str) -> Result:
    return invoke("shim", *args)


def test_version() -> None:
    assert invoke("--version").output == f"denseshim, version {__version__}\n"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_explains_itself(name: str) -> None:
    done = invoke(name, "--help")
    assert done.exit_code == 0
    assert main.commands[name].help


@pytest.mark.parametrize("name", sorted(group.commands))
def test_every_command_of_one_shim_explains_itself(name: str) -> None:
    assert shim(name, "--help").exit_code == 0
    assert group.commands[name].help


def test_commands_are_those_of_the_service() -> None:
    names = "create start exec kill pause resume state ps events delete checkpoint restore pty"
    assert set(group.commands) == {*names.split(), "close-stdin", "exit"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["start"], ("start",)),
        (["pause"], ("pause",)),
        (["resume"], ("resume",)),
        (["exit"], ("exit",)),
        (["kill"], ("kill", 15, ("all", False), ("pid", 0))),
        (["kill", "--all", "9"], ("kill", 9, ("all", True), ("pid", 0))),
        (["kill", "--pid", "7", "usr1"], ("kill", 10, ("all", False), ("pid", 7))),
        (["pty", "7", "80", "24"], ("pty", 7, 80, 24)),
        (["close-stdin", "7"], ("close_stdin", 7)),
    ],
)
def test_one_command_is_one_call(
    recorder: type[Recorder], args: list[str], expected: tuple[Any, ...]
) -> None:
    done = shim(*args)
    assert (done.exit_code, done.output) == (0, "")
    assert recorder.calls == [("socket", "/s"), expected]


def test_the_option_goes_before_the_environment(recorder: type[Recorder]) -> None:
    shim("start", "--socket", "/other")
    assert recorder.calls[0] == ("socket", "/other")


def test_create(recorder: type[Recorder], tmp_path: Path) -> None:
    recorder.answers["create"] = 7
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    place = str(tmp_path)
    done = shim("create", "--id", "box", "--bundle", place, "-t", "--stdout", str(fifo))
    assert done.output == "7\n"
    expected = CreateRequest(
        "box", place, Stdio(True, stdout=str(fifo)), RuntimeOptions("runc")
    )
    assert recorder.calls[1] == ("create", expected)


def test_restore_is_create_from_a_checkpoint(recorder: type[Recorder], tmp_path: Path) -> None:
    recorder.answers["create"] = 7
    place = str(tmp_path)
    args = ("--id", "box", "--bundle", place, "--runtime", "/crun")
    expected = CreateRequest("box", place, Stdio(), RuntimeOptions("/crun"), checkpoint=place)
    assert json.loads(shim("restore", *args, "--json", place).output) == {"pid": 7}
    assert shim("create", *args, "--checkpoint", place).exit_code == 0
    assert recorder.calls[1::2] == [("create", expected)] * 2


def test_checkpoint(recorder: type[Recorder]) -> None:
    shim("checkpoint", "--exit", "--file-locks", "--empty-namespace", "network", "/i")
    expected = CheckpointRequest("/i", exit=True, file_locks=True, empty_namespaces=("network",))
    assert recorder.calls[1] == ("checkpoint", expected)


def test_delete_shows_the_exit(recorder: type[Recorder]) -> None:
    recorder.answers["delete"] = Exit(137, 1_500_000_000_000_000_001)
    assert shim("delete").output == "exit status 137 at 2017-07-14T02:40:00+00:00\n"
    shown = json.loads(shim("delete", "--json", "9").output)
    assert shown == {"exit_status": 137, "exited_at": 1_500_000_000_000_000_001}
    assert recorder.calls[1::2] == [("delete", 0), ("delete", 9)]


def test_delete_wants_a_shim_or_a_bundle() -> None:
    done = CliRunner(env={"DENSESHIM_SOCKET": None}).invoke(main, ["shim", "delete"])
    assert done.exit_code == 2
    assert "--socket" in done.stderr
    assert "--bundle" in done.stderr


def test_delete_of_a_directory_that_is_no_bundle(tmp_path: Path) -> None:
    done = shim("delete", "--bundle", str(tmp_path))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"denseshim: {tmp_path} is not a bundle: no config.json\n"


def test_state(recorder: type[Recorder]) -> None:
    row = ProcessInfo(7, Status.RUNNING, args=("sh", "-c"))
    recorder.answers["state"] = ContainerState("box", "/b", 7, Status.RUNNING, (row,))
    recorder.answers["processes"] = (row,)
    assert "        7  running   sh -c\n" in shim("state").output
    assert "        7  running   sh -c\n" in shim("ps").output
    shown = json.loads(shim("state", "--json").output)
    assert (shown["status"], shown["processes"][0]["args"]) == ("running", ["sh", "-c"])


def test_exec_detached(recorder: type[Recorder]) -> None:
    recorder.answers["exec"] = 9
    done = shim("exec", "--detach", "--json", "ls", "-t", "--json")
    assert json.loads(done.output) == {"pid": 9}
    (_, spec, stdio) = recorder.calls[1]
    assert spec["args"] == ["ls", "-t", "--json"]
    assert stdio == Stdio()


def test_a_refusal_is_one_line_and_status_1(recorder: type[Recorder]) -> None:
    recorder.answers["start"] = NotFound("no process 7\nin box")
    done = shim("start")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "denseshim: no process 7 in box\n"


@pytest.mark.parametrize(
    "args",
    [
        ["shim", "start"],
        ["shim", "exec", "--socket", "/s", "-d", "-i", "sh"],
        ["shim", "exec", "--socket", "/s", "--json", "sh"],
        ["shim", "exec", "--socket", "/s"],
        ["shim", "kill", "--socket", "/s", "BOGUS"],
        ["shim", "kill", "--socket", "/s", "0"],
        ["run", "--bundle", "/", "--rootfs", "/"],
        ["shim", "create", "--socket", "/s"],
    ],
)
def test_wrong_usage_is_status_2(args: list[str]) -> None:
    assert CliRunner(env={"DENSESHIM_SOCKET": None}).invoke(main, args).exit_code == 2


def test_run_s_own_failure_is_status_125(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = invoke("run", "--rootfs", "/", "--", "true")
    assert done.exit_code == 125
    assert done.stderr.startswith("denseshim: no containerd-shim-dense")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "rooted", "expected"),
    [
        ("", False, ("", "")),
        ("-- --", False, ("", "")),
        ("-- -- sh -c x", False, ("", "sh -c x")),
        ("web", False, ("web", "")),
        ("web sh -c x", False, ("web", "sh -c x")),
        ("web -- -- sh -c x", False, ("web", "sh -c x")),
        ("web echo -- -- x", False, ("web", "echo -- x")),
        ("web -- -- echo -- x", False, ("web", "echo -- x")),
        ("sh -c x", True, ("", "sh -c x")),
        ("-- -- sh", True, ("", "sh")),
        ("echo -- -- x", True, ("", "echo -- x")),
    ],
)
def test_image_and_command(words: str, rooted: bool, expected: tuple[str, str]) -> None:
    image, command = image_and_command(tuple(words.split()), rooted)
    assert (image, " ".join(command)) == expected


@pytest.mark.parametrize(
    "args",
    [
        ["run", "-d", "--", "true"],
        ["run", "--label", "a=b", "--", "true"],
        ["run", "--label", "a", "web"],
        ["run", "-d", "--rm", "web"],
        ["exec", "-d", "-t", "web", "--", "sh"],
        ["exec", "--json", "web", "sh"],
        ["exec", "web"],
        ["exec", "web", "--"],
        ["stop"],
        ["rm"],
        ["stop", "--time", "-1", "web"],
        ["label", "web"],
        ["completion", "csh"],
        ["import", "web", "/no/such/file"],
    ],
)
def test_wrong_usage_without_a_shim(args: list[str]) -> None:
    assert invoke(*args).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "_DENSESHIM_COMPLETE" in invoke("completion", shell).output


def test_the_manual_page_has_every_command_and_option() -> None:
    page = invoke("man").output.replace("\\-", "-")
    assert page.startswith(".TH DENSESHIM 1 ")
    for path, command in all_commands(main, "denseshim"):
        assert f".SS {path} " in page
        options = [one for one in command.params if isinstance(one, click.Option)]
        for option in options:
            assert max(option.opts, key=len) in page


def all_commands(parent: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in parent.commands.items():
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


class Keys:
    """A relay of keys: what is typed, and what comes out of the other end."""

    def __init__(self, keys: bool = True) -> None:
        self.left = threading.Event()
        ours, self.typed = os.pipe()
        self.out, theirs = os.pipe()
        self._source = ours
        self.relay = KeyRelay(ours, theirs, self.left.set, keys)
        self.relay.start()

    def end(self) -> bytes:
        """Close the input; all that has been copied."""
        os.close(self.typed)
        self.relay.join()
        self.relay.close()
        os.close(self._source)
        with open(self.out, "rb") as out:
            return out.read()

    def type(self, data: bytes) -> None:
        os.write(self.typed, data)


@pytest.mark.parametrize(
    ("typed", "copied", "left"),
    [
        ([b"ab"], b"ab", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"a\x10b"], b"a\x10b", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_the_keys_that_leave(typed: list[bytes], copied: bytes, left: bool) -> None:
    keys = Keys()
    for data in typed:
        keys.type(data)
    assert keys.end() == copied
    assert keys.left.is_set() == left


def test_keys_that_come_one_by_one() -> None:
    keys = Keys()
    keys.type(b"a\x10")
    assert os.read(keys.out, 100) == b"a"
    keys.type(b"\x11")
    assert keys.left.wait(10)
    assert keys.end() == b""


def test_without_a_terminal_no_key_leaves() -> None:
    keys = Keys(keys=False)
    keys.type(b"\x10\x11")
    assert keys.end() == b"\x10\x11"
    assert not keys.left.is_set()


@pytest.mark.parametrize("text", ["TERM", "term", "SIGTERM", "15"])
def test_a_signal_by_name_or_number(text: str) -> None:
    assert SIGNAL.convert(text, None, None) == signal.SIGTERM


def test_the_last_real_time_signal() -> None:
    assert SIGNAL.convert("RTMAX", None, None) == 64


@pytest.mark.parametrize("text", ["", "0", "65", "-1", "SIGSIG", "SIG", "1.5", "_IGN"])
def test_no_signal(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no signal"):
        SIGNAL.convert(text, None, None)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    config = {"process": {"args": ["a"], "cwd": "/w"}, "root": {"path": "r"}, "x": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_bundle_is_used_as_it_is(bundle: Path) -> None:
    with users_bundle(bundle, (), terminal=False) as used:
        assert used == bundle


@pytest.mark.parametrize(
    ("args", "terminal", "expected"),
    [(["b"], False, ["b"]), ([], True, ["a"]), (["b"], True, ["b"])],
)
def test_a_changed_bundle_is_another(
    bundle: Path, args: list[str], terminal: bool, expected: list[str]
) -> None:
    with users_bundle(bundle, args, terminal) as used:
        config = json.loads((used / "config.json").read_text())
    process = {"args": expected, "cwd": "/w", "terminal": terminal}
    assert config == {"process": process, "root": {"path": f"{bundle}/r"}, "x": 1}
    assert not used.exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"root": {}}'])
def test_a_bundle_without_use(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with (
        pytest.raises(InvalidArgument, match=r"config\.json"),
        users_bundle(tmp_path, (), terminal=False),
    ):
        pass
