"""The Task service: messages to values and back, on containers that are none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from shim._pb.containerd.runc.v1 import options_pb2 as runc_pb2
from shim._pb.containerd.task.v3 import task_pb2 as pb
from shim._pb.containerd.types import mount_pb2
from shim._pb.containerd.v2.types import task_pb2 as types_pb2
from shim.api.calls import Call
from shim.api.task import NEVER, TaskService
from shim.errors import InvalidArgument, NotFound
from shim.model import CreateRequest, Exit, Launcher, Mount, Status, Stdio
from shim.service.groups import Group

GROUP = Group(9, "/c.sock", "/c.sock.ttrpc", "space", "/s/group", Launcher())
ENDED = Exit(7, 1_400_000_000_000_000_001)
CALL = 77


class Process:
    """One that runs, until it has an `exit`."""

    def __init__(self, pid: int, paths: Stdio = Stdio()) -> None:  # noqa: B008 - it is frozen
        self.pid = pid
        self.paths = paths
        self.exit: Exit | None = None
        self.over: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.did: list[Any] = []
        self.stdio = self

    def status(self, container: Status) -> Status:
        return Status.STOPPED if self.exit else container

    def close_stdin(self) -> None:
        self.did.append("close")

    async def resize(self, width: int, height: int) -> None:
        self.did.append((width, height))


class Container:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.facts = SimpleNamespace(id="box", bundle="/bundle")
        self.status = Status.RUNNING
        self.init = Process(42, Stdio(True, "/in", "/out", "/err"))
        self.exec = Process(43)
        self.did: list[Any] = []

    def named(self, exec_id: str) -> Process:
        return {"": self.init, "e": self.exec}[exec_id]

    def close_stdin(self, exec_id: str) -> None:
        self.named(exec_id).close_stdin()

    async def kill_named(self, *arguments: Any) -> None:
        self.did.append(arguments)

    def add_exec(self, *arguments: Any) -> None:
        self.did.append(arguments)

    async def start(self, request: int) -> None:
        self.did.append(request)

    async def start_exec(self, exec_id: str, request: int) -> int:
        self.did.append((exec_id, request))
        return self.exec.pid

    async def forget_exec(self, process: Process, answer: Callable[[Exit], None]) -> Exit:
        answer(process.exit or Exit(0, 0))
        self.did.append(process)
        return process.exit or Exit(0, 0)

    async def update(self, resources: bytes, request: int) -> None:
        self.did.append((resources, request))

    async def pids(self) -> list[tuple[int, str]]:
        return [(42, ""), (43, "e")]


class Room:
    """A service whose one container is `container`; the fake of its tasks and its groups."""

    def __init__(self) -> None:
        self.container = Container()
        self.created: list[Any] = []
        self.used = True
        self.open = True
        self.answers: list[Message] = []
        found: Any = self
        self.service = TaskService(found, found)

    # groups
    def get(self, id: int) -> Group | None:
        return GROUP if self.open and id == GROUP.id else None

    async def close(self, group: Group) -> None:
        assert self.answers, "nobody is left to answer for the group"
        self.open = False

    # tasks
    def find(self, group: Group, id: str) -> Container:
        if id != "box":
            raise NotFound(id)
        return self.container

    def uses(self, group: Group) -> bool:
        return self.used

    async def create(self, group: Group, request: CreateRequest, call: int) -> Container:
        self.created.append((group, request, call))
        return self.container

    async def delete(self, container: Container, answer: Callable[[Exit], None]) -> Exit:
        answer(ENDED)
        return ENDED

    async def ask(self, method: str, message: Message, listener: int = GROUP.id) -> Any:
        """The answer of a method."""
        call = Call(CALL, listener)
        call.answer = self.answers.append
        found = self.service.methods()[method]
        assert isinstance(message, found.request)
        return await found.handler(call, message)


@pytest.fixture
async def room() -> Room:
    return Room()


async def test_create_takes_everything_along(room: Room) -> None:
    options = runc_pb2.Options(no_pivot_root=True, binary_name="crun")
    message = pb.CreateTaskRequest(
        id="new",
        bundle="/b",
        terminal=True,
        stdin="/in",
        stdout="/out",
        stderr="/err",
        checkpoint="/image",
        parent_checkpoint="/parent",
        rootfs=[mount_pb2.Mount(type="bind", source="/s", target="t", options=["ro", "rbind"])],
        options=AnyMessage(
            type_url="containerd.runc.v1.Options", value=options.SerializeToString()
        ),
    )
    assert (await room.ask("Create", message)).pid == 42
    [(group, request, call)] = room.created
    assert (group, call) == (GROUP, CALL)
    assert (request.id, request.bundle) == ("new", "/b")
    assert request.stdio == Stdio(True, "/in", "/out", "/err")
    assert request.rootfs == (Mount("bind", "/s", "t", ("ro", "rbind")),)
    assert (request.checkpoint, request.parent_checkpoint) == ("/image", "/parent")
    assert (request.options.no_pivot, request.options.runtime) == (True, "crun")


async def test_state_of_what_runs(room: Room) -> None:
    found = await room.ask("State", pb.StateRequest(id="box"))
    assert (found.id, found.bundle, found.pid) == ("box", "/bundle", 42)
    assert found.status == types_pb2.RUNNING
    assert (found.stdin, found.stdout, found.stderr) == ("/in", "/out", "/err")
    assert found.terminal
    assert (found.exit_status, found.exited_at) == (0, NEVER)


async def test_state_of_an_exec_that_has_ended(room: Room) -> None:
    """It is called by its own id; the field for that stays empty, as containerd's shim has it."""
    room.container.exec.exit = ENDED
    found = await room.ask("State", pb.StateRequest(id="box", exec_id="e"))
    assert (found.id, found.exec_id, found.pid) == ("e", "", 43)
    assert (found.status, found.exit_status) == (types_pb2.STOPPED, 7)
    assert found.exited_at.ToNanoseconds() == ENDED.time


@pytest.mark.parametrize(
    ("status", "number"),
    [
        (Status.CREATED, types_pb2.CREATED),
        (Status.RUNNING, types_pb2.RUNNING),
        (Status.PAUSED, types_pb2.PAUSED),
        (Status.STOPPED, types_pb2.STOPPED),
    ],
)
async def test_each_status_has_its_number(room: Room, status: Status, number: int) -> None:
    room.container.status = status
    assert (await room.ask("State", pb.StateRequest(id="box"))).status == number


async def test_a_wait_that_is_given_up(room: Room) -> None:
    """Its end leaves the future to others."""
    waiting = asyncio.ensure_future(room.ask("Wait", pb.WaitRequest(id="box")))
    given_up = asyncio.ensure_future(room.ask("Wait", pb.WaitRequest(id="box")))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait((given_up,))
    room.container.init.over.set_result(ENDED)
    found = await waiting
    assert (found.exit_status, found.exited_at.ToNanoseconds()) == (7, ENDED.time)


async def test_what_never_started_never_ended(room: Room) -> None:
    """Its time is Go's zero: an absent one would be read as 1970."""
    room.container.exec.over.set_result(Exit(0, 0))
    found = await room.ask("Wait", pb.WaitRequest(id="box", exec_id="e"))
    assert (found.exit_status, found.exited_at) == (0, NEVER)


async def test_delete_answers_before_the_last_record_goes(room: Room) -> None:
    found = await room.ask("Delete", pb.DeleteRequest(id="box"))
    assert (found.pid, found.exit_status) == (42, 7)
    assert room.answers == [found]


async def test_delete_of_an_exec(room: Room) -> None:
    room.container.exec.exit = ENDED
    found = await room.ask("Delete", pb.DeleteRequest(id="box", exec_id="e"))
    assert (found.pid, found.exit_status) == (43, 7)
    assert room.container.did == [room.container.exec]


async def test_start_says_which_call_it_is(room: Room) -> None:
    assert (await room.ask("Start", pb.StartRequest(id="box"))).pid == 42
    assert (await room.ask("Start", pb.StartRequest(id="box", exec_id="e"))).pid == 43
    assert room.container.did == [CALL, ("e", CALL)]


async def test_kill_says_what_and_whom(room: Room) -> None:
    await room.ask("Kill", pb.KillRequest(id="box", exec_id="e", signal=15, all=True))
    assert room.container.did == [(15, "e", True, CALL)]


async def test_exec_takes_everything_along(room: Room) -> None:
    message = pb.ExecProcessRequest(id="box", exec_id="new", terminal=True, stdin="/i", stdout="/o")
    message.spec.value = b'{"args": ["true"]}'
    await room.ask("Exec", message)
    expected = ("new", {"args": ["true"]}, Stdio(True, "/i", "/o", ""), CALL)
    assert room.container.did == [expected]


@pytest.mark.parametrize("value", [b"", b"[]", b"null", b"\xff", b"{"])
async def test_json_must_be_an_object(room: Room, value: bytes) -> None:
    spec = AnyMessage(value=value)
    with pytest.raises(InvalidArgument):
        await room.ask("Exec", pb.ExecProcessRequest(id="box", exec_id="new", spec=spec))
    with pytest.raises(InvalidArgument):
        await room.ask("Update", pb.UpdateTaskRequest(id="box", resources=spec))
    assert room.container.did == []


async def test_resources_go_on_as_they_are(room: Room) -> None:
    """Numbers are not rounded on the way."""
    value = b'{"memory": {"limit": 9007199254740993}}'
    message = pb.UpdateTaskRequest(id="box", resources=AnyMessage(value=value))
    await room.ask("Update", message)
    assert room.container.did == [(value, CALL)]


async def test_sizes_are_cut_to_what_a_terminal_has(room: Room) -> None:
    await room.ask("ResizePty", pb.ResizePtyRequest(id="box", width=80, height=24))
    await room.ask("ResizePty", pb.ResizePtyRequest(id="box", width=(1 << 16) + 5, height=1 << 16))
    assert room.container.init.did == [(80, 24), (5, 0)]


async def test_close_io_closes_what_it_names(room: Room) -> None:
    await room.ask("CloseIO", pb.CloseIORequest(id="box", exec_id="e"))
    assert room.container.exec.did == []
    await room.ask("CloseIO", pb.CloseIORequest(id="box", exec_id="e", stdin=True))
    assert room.container.exec.did == ["close"]


async def test_pids_tell_which_are_execs(room: Room) -> None:
    found = (await room.ask("Pids", pb.PidsRequest(id="box"))).processes
    assert [process.pid for process in found] == [42, 43]
    assert not found[0].HasField("info")
    assert found[1].info.type_url == "containerd.runc.v1.ProcessDetails"
    assert runc_pb2.ProcessDetails.FromString(found[1].info.value).exec_id == "e"


async def test_connect_answers_for_whom_it_does_not_know(room: Room) -> None:
    known = await room.ask("Connect", pb.ConnectRequest(id="box"))
    unknown = await room.ask("Connect", pb.ConnectRequest(id="none"))
    assert (known.task_pid, unknown.task_pid) == (42, 0)
    assert {known.shim_pid, unknown.shim_pid} == {os.getppid()}


async def test_shutdown_ends_a_group_without_containers(room: Room) -> None:
    """It is answered before the group goes; afterwards it may be repeated, and others fail."""
    await room.ask("Shutdown", pb.ShutdownRequest(id="box"))
    assert (room.open, room.answers) == (True, [])
    room.used = False
    await room.ask("Shutdown", pb.ShutdownRequest(id="box"))
    assert not room.open
    await room.ask("Shutdown", pb.ShutdownRequest(id="box"))
    with pytest.raises(NotFound, match="shut down"):
        await room.ask("State", pb.StateRequest(id="box"))
