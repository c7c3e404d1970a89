"""What a front writes of a container, the next one reads: the same values."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from shim.keeper.client import Held
from shim.model import (
    CreateRequest,
    Exit,
    Launcher,
    Mount,
    RuntimeOptions,
    Status,
    Stdio,
    User,
)
from shim.orphans import disown_container
from shim.service.process import Process, ProcessSpec
from shim.service.record import ContainerRecord, Facts
from shim.service.stdio import ProcessStdio

LAUNCHER = Launcher({"PATH": "/bin", "LANG": "\udcff"}, 0o077, {7: (10, 20)}, "0::/of/us\n", -5)
OPTIONS = RuntimeOptions("crun", "/run/own", True, True, True, 7, 8, "/image", "/work")
FACTS = Facts(
    id="box",
    bundle="/b",
    options=OPTIONS,
    launcher=LAUNCHER,
    address="/run/containerd/containerd.sock",
    namespace="k8s.io",
    group=9,
    mounts=2,
    created=True,
    status=Status.PAUSED,
    cgroup="/sys/fs/cgroup/box",
    cgroups={"memory": "/sys/fs/cgroup/memory/box"},
    oom=3,
    private_pids=False,
    restored=True,
    deleting=True,
    request=41,
    intent={"command": "pause", "spawn": 5, "request": 42},
)


def through_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


def test_a_launcher() -> None:
    found = Launcher.from_state(through_json(asdict(LAUNCHER)))
    assert found == LAUNCHER
    assert Launcher.from_state(through_json(asdict(Launcher()))) == Launcher()
    assert Launcher.from_state(through_json(asdict(LAUNCHER))) is found  # each container has one


def test_what_no_runtime_gets_of_an_environment() -> None:
    env = {"PATH": "/bin", "NOTIFY_SOCKET": "/n", "LISTEN_FDS": "1", "LISTEN_PID": "2", "LANG": "C"}
    env |= {"LISTEN_FDNAMES": "door", "LD_LIBRARY_PATH": "/opt/lib", "GOMAXPROCS": "2"}
    kept = {name: env[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", "GOMAXPROCS")}
    assert Launcher.handed_down(env, 0o022, {}, "").env == kept


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"limits": {"x": [1, 2]}},
        {"limits": {"7": [1]}},
        {"limits": {"7": 1}},
        {"limits": {}, "unknown": 1},
    ],
)
def test_what_is_no_launcher(state: dict[str, Any]) -> None:
    with pytest.raises((TypeError, KeyError, ValueError)):
        Launcher.from_state(state)


def test_a_request() -> None:
    mounts = (Mount("bind", "/a", "/", ("rbind", "ro")), Mount("tmpfs", "x", "/x"))
    request = CreateRequest("box", "/b", Stdio(True, "i", "o", "e"), OPTIONS, mounts, "/c", "/p")
    assert CreateRequest.from_state(through_json(asdict(request))) == request


def test_facts() -> None:
    assert Facts.from_state(through_json(FACTS.to_state())) == FACTS
    plain = Facts("box", "/b", RuntimeOptions(), Launcher())
    assert Facts.from_state(through_json(plain.to_state())) == plain


@pytest.mark.parametrize("change", [{"status": "odd"}, {"options": {"odd": 1}}, {"odd": 1}])
def test_what_are_no_facts(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, KeyError, ValueError)):
        Facts.from_state({**FACTS.to_state(), **change})


def make_process() -> Process:
    spec = ProcessSpec(("sh", "-c"), ("A=1",), "/tmp", True, User(1, 2, (3, 4)))
    paths = Stdio(True, "/i", "/o", "")
    process = Process(8, spec, paths, ProcessStdio({"stdin": 3, "stdout": 4}, True), "exec")
    process.pid, process.request = 77, 42
    process.stdio.input_closed = True
    return process


async def test_a_process() -> None:
    process = make_process()
    found = Process.from_state(through_json(process.to_state()), Held())
    for name in ("child_id", "spec", "paths", "exec_id", "pid", "request", "exit"):
        assert getattr(found, name) == getattr(process, name), name
    assert (found.stdio.ids, found.stdio.terminal) == ({"stdin": 3, "stdout": 4}, True)
    assert found.stdio.input_closed
    assert (found.announced, found.alive, found.over.done()) == (True, True, False)
    assert found.to_state() == process.to_state()


async def test_an_exit_is_kept_once_it_has_been_told() -> None:
    """Else the next front could not tell it."""
    process = make_process()
    process.exit = Exit(137, 5)
    untold = Process.from_state(through_json(process.to_state()), Held())
    assert (untold.exit, untold.over.done()) == (None, False)
    process.end()
    told = Process.from_state(through_json(process.to_state()), Held())
    assert (told.exit, told.alive, told.over.result()) == (Exit(137, 5), False, Exit(137, 5))


@pytest.mark.parametrize("name", ["child", "pid", "exec_id", "paths", "streams", "exit", "request"])
async def test_what_is_no_process(name: str) -> None:
    state = make_process().to_state()
    del state[name]
    with pytest.raises(KeyError):
        Process.from_state(state, Held())


async def test_a_record_gives_back_what_was_written(tmp_path: Path) -> None:
    record, process = ContainerRecord(tmp_path / "record"), make_process()
    assert (record.load(), record.load_execs(), record.load_orphan()) == (None, [], None)
    record.save(FACTS, process)
    record.save_exec(process, 6)
    record.spec_file(process).write_text("{}")
    again = ContainerRecord(tmp_path / "record")
    state = again.load()
    assert state == through_json({"facts": FACTS.to_state(), "init": process.to_state()})
    assert again.load_execs() == [{"spawn": 6, "process": process.to_state()}]
    again.remove_exec(process)
    assert (again.load_execs(), again.spec_file(process).exists()) == ([], False)
    disown_container(again.directory)
    assert (again.load(), again.load_orphan()) == (None, state)
    again.clear(deleted="box")
    assert (again.load_orphan(), again.load_deleted()) == (None, "box")
