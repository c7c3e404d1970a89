"""The containers of a front, and of the next one: with a real keeper and a false runtime."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shim.blocking import BlockingPool
from shim.errors import FailedPrecondition, NotFound, RuntimeFailed
from shim.keeper.client import Held, KeeperClient
from shim.model import (
    CreateRequest,
    Event,
    EventType,
    Exit,
    Launcher,
    RuntimeOptions,
    Status,
    Stdio,
)
from shim.oom import OomWatcher
from shim.service.container import Container
from shim.service.groups import Group
from shim.service.host import Host
from shim.service.tasks import Tasks
from tests.integration.support import until
from tests.native import harness
from tests.native.harness import PATIENCE, Keeper

# Starts what sleeps, and notes its commands; `BUNDLE/COMMAND` is run first, if it is there.
RUNTIME = """#!/bin/sh
for word; do
    case $before in --log) bundle=${word%/*} ;; --pid-file) pid_file=$word ;; esac
    before=$word
done
shift 6
echo "$1" >>"$bundle/commands"
if [ -f "$bundle/$1" ]; then . "$bundle/$1"; fi
case $1 in
create | exec) sleep 1000 & echo $! >"$pid_file" ;;
state) echo '{"status": "running"}' ;;
esac
"""
SPEC = {"args": ["true"], "cwd": "/"}


@dataclass
class Told:
    """What a container's containerd is told, each event about a process once."""

    events: list[Event] = field(default_factory=list)

    def tell(self, event: Event, owner: int, number: int = 0) -> None:
        if not owner or event not in self.events:
            self.events.append(event)

    def describe(self, request: CreateRequest) -> None:
        pass

    def knows_created(self, marks: int) -> bool:
        return False

    def withdraw(self, id: str) -> None:
        pass

    def types(self) -> list[tuple[EventType, str]]:
        return [(event.type, event.exec_id) for event in self.events]


class Room:
    """A front's tasks; the next front's after `replace`."""

    def __init__(self, folder: Path, keeper: Keeper) -> None:
        self.folder = folder
        self.keeper = keeper
        self.told = Told()
        self.bundle = folder / "bundle"
        self.bundle.mkdir()
        (self.bundle / "config.json").write_text(
            json.dumps({"linux": {"namespaces": [{"type": "pid"}]}})
        )
        self.runtime = folder / "runtime"
        self.runtime.write_text(RUNTIME)
        self.runtime.chmod(0o755)
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        launcher = Launcher({"PATH": os.environ["PATH"]})
        self.group = Group(9, "/containerd.sock", "/containerd.ttrpc", "box", "/group", launcher)
        self.client: KeeperClient
        self.host: Host
        self.tasks: Tasks

    async def begin(self) -> Held:
        self.client = KeeperClient(self.keeper.front.channel.dup(), lambda: None)
        held = await self.client.begin()
        oom = OomWatcher(lambda container, kills: None)
        self.host = Host(self.client, BlockingPool(), oom, time.time_ns)
        groups: Any = SimpleNamespace(get=lambda id: self.group if id == 9 else None)
        self.tasks = Tasks(self.host, groups, self.state / "tasks", lambda group, id: self.told)
        await self.tasks.recover(held)
        held.release_rest()
        self.client.ready()
        self.tasks.go_on()
        return held

    async def end(self) -> None:
        await asyncio.sleep(0)  # what is done when a command has ended, is done
        self.host.oom.close()
        self.host.pool.close()
        self.client.close()

    async def replace(self) -> None:
        """Let the front die at this moment."""
        await self.end()
        await asyncio.to_thread(self.keeper.replace_front, serves=False)
        await self.begin()

    def behave(self, command: str, script: str) -> None:
        (self.bundle / command).write_text(script)

    def commands(self) -> list[str]:
        path = self.bundle / "commands"
        return path.read_text().split() if path.exists() else []

    async def has_run(self, command: str, times: int = 1) -> None:
        """Return when the runtime has begun it so often."""
        await until(lambda: self.commands().count(command) >= times, f"the runtime runs {command}")

    async def create(self, stdio: Stdio | None = None, call: int = 1) -> Container:
        options = RuntimeOptions(runtime=str(self.runtime), root=str(self.folder))
        request = CreateRequest("denseshim-box", str(self.bundle), stdio or Stdio(), options)
        return await self.tasks.create(self.group, request, call)

    async def running(self) -> Container:
        container = await self.create()
        await container.start(2)
        return container

    def found(self) -> Container:
        """The one container that there is."""
        [container] = self.tasks
        return container


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with harness.keeper() as made:
        yield made


@pytest.fixture
async def room(tmp_path: Path, keeper: Keeper) -> AsyncIterator[Room]:
    made = Room(tmp_path, keeper)
    await made.begin()
    yield made
    await made.tasks.remove(made.group.address, made.group.namespace, "denseshim-box")
    await made.end()


async def over(container: Container, exec_id: str = "") -> Exit:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.shield(container.named(exec_id).over)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def test_a_life(room: Room) -> None:
    container = await room.running()
    container.add_exec("e", SPEC, Stdio(), 3)
    kill(await container.start_exec("e", 4))
    assert (await over(container, "e")).status == 137
    kill(container.init.pid)
    assert (await over(container)).status == 137
    await room.tasks.delete(container)
    assert list(room.tasks) == []
    assert list((room.state / "tasks").iterdir()) == []


# -- records that cannot be read


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1, "state": {}}', '{"version": 1, "state": {"facts": []}}'],
)
async def test_a_record_that_cannot_be_read_harms_no_other(room: Room, text: str) -> None:
    await room.running()
    bad = room.state / "tasks" / "bad"
    bad.mkdir(mode=0o700)
    (bad / "container.json").write_text(text)
    (room.state / "tasks" / "stray").touch()
    await room.replace()
    assert room.found().status is Status.RUNNING
    names = sorted(path.name.partition("-")[0] for path in (room.state / "damaged").iterdir())
    assert names == ["bad", "stray"]
    await room.replace()
    assert room.found().status is Status.RUNNING


@pytest.mark.parametrize("text", ["", '{"version": 1, "state": {}}'])
async def test_an_exec_that_cannot_be_read_harms_not_its_container(room: Room, text: str) -> None:
    container = await room.running()
    (container.home.record.directory / "exec-7.json").write_text(text)
    await room.replace()
    container = room.found()
    assert (container.status, container.execs.all()) == (Status.RUNNING, [])
    container.add_exec("e", SPEC, Stdio(), 3)
    assert await container.start_exec("e", 4)


async def test_the_runtime_is_not_looked_for_again(room: Room, monkeypatch: Any) -> None:
    """Its file system may hang by now."""
    await room.running()

    def hangs(*_: Any, **__: Any) -> None:
        raise AssertionError("looked for the runtime")

    monkeypatch.setattr("shim.runtime.shutil.which", hangs)
    await room.replace()
    assert room.found().status is Status.RUNNING


# -- execs


async def test_an_exec_s_streams_are_known_before_they_are_opened(
    room: Room, monkeypatch: Any, tmp_path: Path
) -> None:
    """Else what the keeper has of them would keep their client waiting for ever."""
    fifo = tmp_path / "out"
    os.mkfifo(fifo)
    container = await room.running()
    container.add_exec("e", SPEC, Stdio(stdout=str(fifo)), 3)
    opened = asyncio.Event()

    async def stop(*_: Any) -> None:
        opened.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(container.home.commands, "spawn", stop)
    starting = asyncio.ensure_future(container.start_exec("e", 4))
    await asyncio.wait_for(opened.wait(), PATIENCE)
    record = container.home.record
    monkeypatch.setattr(record, "save_exec", lambda *_: None)
    [state] = record.load_execs()
    held = [r.id for r in _streams(room)]
    assert list(state["process"]["streams"].values()) == held != []
    starting.cancel()
    await asyncio.wait((starting,))


def _streams(room: Room) -> list[Any]:
    return list(room.client._streams.values())


async def test_a_process_that_the_keeper_does_not_have_is_none(room: Room) -> None:
    """Its exec can be deleted, and does not keep the container's end from being told."""
    container = await room.running()
    room.behave("exec", f'echo {os.getpid()} >"$pid_file"; exit 0')
    container.add_exec("e", SPEC, Stdio(), 3)
    with pytest.raises(NotFound):
        await container.start_exec("e", 4)
    kill(container.init.pid)
    assert (await over(container)).status == 137
    await container.forget_exec(container.named("e"))


async def test_an_exec_that_failed_stays_over(room: Room) -> None:
    container = await room.running()
    room.behave("exec", "exit 1")
    container.add_exec("e", SPEC, Stdio(), 3)
    with pytest.raises(RuntimeFailed):
        await container.start_exec("e", 4)
    await room.replace()
    container = room.found()
    assert await over(container, "e") == Exit(0, 0)
    assert container.named("e").status(container.status) is Status.CREATED
    with pytest.raises(FailedPrecondition):
        await container.start_exec("e", 4)
    await container.forget_exec(container.named("e"))


async def test_the_init_s_exit_comes_after_an_exec_s_that_was_being_started(room: Room) -> None:
    container = await room.running()
    gate = room.bundle / "gate"
    os.mkfifo(gate)
    room.behave("exec", 'read line <"$bundle/gate"')
    container.add_exec("e", SPEC, Stdio(), 3)
    starting = asyncio.ensure_future(container.start_exec("e", 4))
    await room.has_run("exec")
    assert container.init.child is not None
    kill(container.init.pid)
    await container.init.child.wait()
    assert container.status is Status.STOPPED
    await asyncio.to_thread(gate.write_text, "go\n")
    kill(await starting)
    await over(container)
    assert room.told.types()[-3:] == [
        (EventType.EXEC_STARTED, "e"),
        (EventType.EXIT, "e"),
        (EventType.EXIT, ""),
    ]


async def test_the_init_s_exit_comes_after_a_failed_start_of_an_exec(room: Room) -> None:
    container = await room.running()
    gate = room.bundle / "gate"
    os.mkfifo(gate)
    room.behave("exec", 'read line <"$bundle/gate"; exit 1')
    container.add_exec("e", SPEC, Stdio(), 3)
    starting = asyncio.ensure_future(container.start_exec("e", 4))
    await room.has_run("exec")
    assert container.init.child is not None
    kill(container.init.pid)
    await container.init.child.wait()
    assert not container.init.over.done()
    await asyncio.to_thread(gate.write_text, "go\n")
    with pytest.raises(RuntimeFailed):
        await starting
    assert (await over(container)).status == 137


async def test_killing_an_exec_resumes_nobody(room: Room) -> None:
    """It dies once its container is resumed by whoever paused it; killing the init resumes."""
    container = await room.running()
    container.add_exec("e", SPEC, Stdio(), 3)
    await container.start_exec("e", 4)
    await container.pause(5)
    await container.kill_named(signal.SIGKILL, "e", False, 6)
    assert (container.facts.status, room.commands()[-1]) == (Status.PAUSED, "pause")
    await container.kill_named(signal.SIGKILL, "", False, 7)
    assert room.commands()[-1] == "resume"


# -- exits


async def test_an_exit_is_told_although_its_oom_kills_cannot_be_read(
    room: Room, monkeypatch: Any
) -> None:
    container = await room.running()

    def fails(_: Any) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(room.host.oom, "check", fails)
    kill(container.init.pid)
    assert (await over(container)).status == 137
    assert room.told.types()[-1] == (EventType.EXIT, "")


async def test_an_exit_is_told_although_a_start_s_outcome_cannot_be_found_out(room: Room) -> None:
    container = await room.create()
    gate = room.bundle / "gate"
    os.mkfifo(gate)
    room.behave("start", 'read line <"$bundle/gate"')
    starting = asyncio.ensure_future(container.start(2))
    await room.has_run("start")
    pid = container.init.pid
    room.runtime.rename(room.folder / "gone")
    with contextlib.suppress(BaseException):
        starting.cancel()
        await asyncio.wait((starting,))
    container.facts.intent = _intent_of(room)
    container.save()
    await room.replace()
    kill(pid)
    await asyncio.to_thread(gate.write_text, "go\n")
    assert (await over(room.found())).status == 137
    room.folder.joinpath("gone").rename(room.runtime)


def _intent_of(room: Room) -> dict[str, Any]:
    [spawn] = [child for child in room.client._children.values() if not child.exited.done()][-1:]
    return {"command": "start", "spawn": spawn.id, "request": 2}


async def test_the_start_of_a_restored_container_may_come_again(room: Room) -> None:
    container = await room.running()
    container.facts.restored = True
    for _ in range(2):
        await container.start(8)
    assert room.commands().count("start") == 1


# -- deleting and creating


async def test_a_replayed_delete_meets_the_container(room: Room) -> None:
    """What an earlier front was deleting is deleted once calls come: they learn how it ended."""
    container = await room.running()
    kill(container.init.pid)
    await over(container)
    container.facts.deleting = True
    container.save()
    await room.replace()
    assert (await room.tasks.delete(room.found())).status == 137


async def test_a_create_waits_for_a_deletion_and_fails_with_it(room: Room) -> None:
    container = await room.running()
    kill(container.init.pid)
    await over(container)
    room.behave("delete", "exit 1")
    with pytest.raises(RuntimeFailed):
        await room.tasks.delete(container)
    with pytest.raises(RuntimeFailed):
        await room.create(call=5)
    assert room.found() is container
    (room.bundle / "delete").unlink()
    made = await asyncio.gather(*(room.create(call=n) for n in (6, 7)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["AlreadyExists", "Container"]


async def test_a_group_is_used_while_a_container_is_being_made(room: Room) -> None:
    gate = room.bundle / "gate"
    os.mkfifo(gate)
    room.behave("create", 'read line <"$bundle/gate"')
    creating = asyncio.ensure_future(room.create())
    await room.has_run("create")
    assert room.tasks.uses(room.group)
    await asyncio.to_thread(gate.write_text, "go\n")
    await creating
    assert room.tasks.uses(room.group)
