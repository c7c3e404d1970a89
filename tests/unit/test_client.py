"""The client against a service of its own on a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty

from shim._pb.containerd.v1.services.shim import shim_pb2, shim_pb2_grpc
from shim._pb.containerd.v1.types import types_pb2
from shim.api import convert
from shim.api.codes import CODES
from shim.client import ExitWatch, ShimClient, follow_events, start_shim, steadily
from shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    RuntimeFailed,
    ShimError,
    Unavailable,
)
from shim.model import (
    CheckpointRequest,
    ContainerState,
    CreateRequest,
    Event,
    EventType,
    Exit,
    ProcessInfo,
    RuntimeOptions,
    Status,
    Stdio,
)

CREATE = CreateRequest("box", "/b", Stdio(stdout="/b/out"), RuntimeOptions("runc"))
STATE = ContainerState(
    "box", "/b", 7, Status.RUNNING, (ProcessInfo(7, Status.RUNNING, args=("sh",)),)
)
EXIT_EVENT = Event("box", EventType.EXIT, 7, 137, 1_500_000_000_123_456_789)


class Service(shim_pb2_grpc.ShimServicer):
    """Answers every call; keeps what it was asked; fails with what it is told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.state = STATE
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def _take(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        if self.failure is not None:
            await context.abort(*self.failure)

    async def Create(self, request: Any, context: Any) -> shim_pb2.CreateResponse:
        await self._take(request, context)
        return shim_pb2.CreateResponse(pid=7)

    async def State(self, request: Any, context: Any) -> shim_pb2.StateResponse:
        await self._take(request, context)
        return convert.state_to_pb(self.state)

    async def Delete(self, request: Any, context: Any) -> shim_pb2.DeleteResponse:
        await self._take(request, context)
        return convert.exit_to_pb(Exit(3, 1_500_000_000_000_000_001))

    async def Processes(self, request: Any, context: Any) -> shim_pb2.ProcessesResponse:
        await self._take(request, context)
        rows = [convert.process_to_pb(row) for row in STATE.processes]
        return shim_pb2.ProcessesResponse(processes=rows)

    async def Exec(self, request: Any, context: Any) -> shim_pb2.ExecResponse:
        await self._take(request, context)
        return shim_pb2.ExecResponse(pid=9)

    async def Events(self, request: Any, context: Any) -> AsyncIterator[types_pb2.Event]:
        await self._take(request, context)
        while (event := await self.events.get()) is not None:
            yield convert.event_to_pb(event)

    async def _empty(self, request: Any, context: Any) -> Empty:
        await self._take(request, context)
        return Empty()

    Start = Pause = Resume = Checkpoint = Exit = Kill = Pty = CloseStdin = _empty


@contextlib.asynccontextmanager
async def serving(service: Service, socket: Path) -> AsyncIterator[None]:
    server = grpc.aio.server()
    shim_pb2_grpc.add_ShimServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "shim.sock"


@pytest.fixture
async def service(socket: Path) -> AsyncIterator[Service]:
    service = Service()
    async with serving(service, socket):
        yield service


@pytest.fixture
async def client(service: Service, socket: Path) -> AsyncIterator[ShimClient]:
    async with ShimClient(socket) as client:
        yield client


async def test_calls_give_domain_values(client: ShimClient) -> None:
    assert await client.create(CREATE) == 7
    assert await client.state() == STATE
    assert await client.processes() == STATE.processes
    assert await client.delete(9) == Exit(3, 1_500_000_000_000_000_001)
    assert await client.exec({"args": ["sh"]}, Stdio(terminal=True)) == 9


async def test_calls_send_what_they_take(client: ShimClient, service: Service) -> None:
    await client.kill(15, pid=9, all=True)
    await client.pty(9, 80, 24)
    await client.close_stdin(9)
    await client.delete(9)
    await client.create(CREATE)
    await client.checkpoint(CheckpointRequest(image="/i"))
    assert service.asked == [
        shim_pb2.KillRequest(signal=15, pid=9, all=True),
        shim_pb2.PtyRequest(pid=9, width=80, height=24),
        shim_pb2.CloseStdinRequest(pid=9),
        shim_pb2.DeleteRequest(pid=9),
        convert.create_to_pb(CREATE),
        shim_pb2.CheckpointRequest(image="/i"),
    ]


async def test_calls_without_values(client: ShimClient, service: Service) -> None:
    for call in (client.start, client.pause, client.resume, client.exit):
        await call()
    names = [type(request).__name__ for request in service.asked]
    assert names == ["StartRequest", "PauseRequest", "ResumeRequest", "ExitRequest"]


STATUSES = {status.value[0]: status for status in grpc.StatusCode}


@pytest.mark.parametrize("kind", CODES)
async def test_every_error_arrives_as_itself(
    client: ShimClient, service: Service, kind: type[ShimError]
) -> None:
    service.failure = (STATUSES[CODES[kind]], "box: it did not work")
    with pytest.raises(kind, match=r"^box: it did not work$"):
        await client.start()


async def test_an_unforeseen_code_is_a_failure_of_the_runtime(
    client: ShimClient, service: Service
) -> None:
    service.failure = (grpc.StatusCode.INTERNAL, "oops")
    with pytest.raises(RuntimeFailed, match="oops"):
        await client.start()


async def test_a_timeout_is_deadline_exceeded(client: ShimClient) -> None:
    async with client.events(timeout=0.05) as events:
        with pytest.raises(DeadlineExceeded):
            await anext(events)


async def test_events_come_until_the_shim_ends_them(client: ShimClient, service: Service) -> None:
    for event in (EXIT_EVENT, None):
        service.events.put_nowait(event)
    assert [event async for event in client.events()] == [EXIT_EVENT]


async def test_nobody_there_is_unavailable(socket: Path) -> None:
    async with ShimClient(socket) as client:
        with pytest.raises(Unavailable, match=f"^no shim answers on {socket}$"):
            await client.state()
        with pytest.raises(Unavailable, match="no shim answers"):
            await client.ready(0.05)


async def test_a_socket_path_may_hold_any_character(tmp_path: Path) -> None:
    socket = tmp_path / "a b%20?#c.sock"
    link = tmp_path / "plain"
    async with serving(Service(), link):
        link.rename(socket)
        async with ShimClient(socket) as client:
            assert await client.state() == STATE
        socket.rename(link)


async def test_the_next_call_reaches_the_next_server(socket: Path) -> None:
    async with ShimClient(socket) as client:
        async with serving(Service(), socket):
            events = client.events()
            await client.state()
        with pytest.raises(Unavailable):
            await anext(events)
        with pytest.raises(Unavailable):
            await client.state()
        async with serving(Service(), socket):
            assert await asyncio.wait_for(steadily(client, client.state), 2) == STATE


async def test_steadily_gives_up(client: ShimClient, service: Service) -> None:
    service.failure = (grpc.StatusCode.UNAVAILABLE, "not now")
    with pytest.raises(Unavailable, match="not now"):
        await steadily(client, client.start)
    assert len(service.asked) == 3


async def test_steadily_repeats_nothing_but_unavailable(
    client: ShimClient, service: Service
) -> None:
    service.failure = (grpc.StatusCode.NOT_FOUND, "no such process")
    with pytest.raises(NotFound):
        await steadily(client, client.start)
    assert len(service.asked) == 1


async def test_watch_learns_an_exit_from_events(client: ShimClient, service: Service) -> None:
    async with ExitWatch(client) as watch:
        service.events.put_nowait(EXIT_EVENT)
        assert await watch.status(7) == 137


async def test_watch_learns_an_earlier_exit_from_state(
    client: ShimClient, service: Service
) -> None:
    ended = ProcessInfo(7, Status.STOPPED, exit_status=5)
    service.state = ContainerState("box", "/b", 7, Status.STOPPED, (ended,))
    async with ExitWatch(client) as watch:
        assert await watch.status(7) == 5


async def test_watch_outlives_the_front(socket: Path) -> None:
    async with ShimClient(socket) as client, contextlib.AsyncExitStack() as stack:
        first, second = Service(), Service()
        async with serving(first, socket):
            watch = await stack.enter_async_context(ExitWatch(client))
            first.events.put_nowait(Event("box", EventType.START, 7))
            await _asked(first, 2)
        async with serving(second, socket):
            second.events.put_nowait(EXIT_EVENT)
            assert await asyncio.wait_for(watch.status(7), 5) == 137


async def _asked(service: Service, count: int) -> None:
    async with asyncio.timeout(5):
        while len(service.asked) < count:  # noqa: ASYNC110 - the fake has no event for this
            await asyncio.sleep(0)


class FlakyService(Service):
    """Its first stream of events breaks off after one."""

    broken = False

    async def Events(self, request: Any, context: Any) -> AsyncIterator[types_pb2.Event]:
        async for event in super().Events(request, context):
            yield event
            if not self.broken:
                self.broken = True
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the front is gone")


async def test_followed_events_go_on_until_the_shim_is_gone(socket: Path) -> None:
    service = FlakyService()
    started = Event("box", EventType.START, 7)
    for event in (started, EXIT_EVENT):
        service.events.put_nowait(event)
    async with ShimClient(socket) as client, asyncio.timeout(10):
        events = follow_events(client)
        async with serving(service, socket):
            assert [await anext(events) for _ in range(2)] == [started, EXIT_EVENT]
        assert [event async for event in events] == []


async def test_no_events_to_follow(socket: Path) -> None:
    async with ShimClient(socket) as client:
        with pytest.raises(Unavailable, match="no shim answers"):
            await anext(follow_events(client))


async def test_watch_says_when_the_shim_ended_its_events(
    client: ShimClient, service: Service
) -> None:
    service.events.put_nowait(None)
    async with ExitWatch(client) as watch:
        with pytest.raises(Unavailable, match="ended its events"):
            await watch.status(7)


def program(folder: Path, body: str) -> Path:
    path = folder / "fake-shim"
    path.write_text(f"#!{sys.executable}\nimport os, sys\n{body}")
    path.chmod(0o755)
    return path


FAKE = f"""
import asyncio, pathlib, signal
sys.path[:0] = {sys.path!r}
from {__name__} import FakeShim
asyncio.run(FakeShim(pathlib.Path(sys.argv[-1])).serve())
"""


class FakeShim(Service):
    """A shim process without containers: answers until Exit."""

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self.failure = (grpc.StatusCode.FAILED_PRECONDITION, "nothing is created")
        self.socket = socket
        self.gone = asyncio.Event()

    async def Exit(self, request: Any, context: Any) -> Empty:
        self.gone.set()
        return Empty()

    async def serve(self) -> None:
        async with serving(self, self.socket):
            await self.gone.wait()


def folder_of(pid: int) -> str | None:
    """The working directory of process `pid`; None when there is no such process."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except FileNotFoundError:
        return None


async def test_start_shim_leaves_nothing(tmp_path: Path, socket: Path) -> None:
    async with start_shim(
        tmp_path, socket=socket, executable=program(tmp_path, FAKE)
    ) as client:
        with pytest.raises(FailedPrecondition, match="nothing is created"):
            await client.state()
        assert folder_of(client.pid) == str(tmp_path)
    assert folder_of(client.pid) is None
    assert os.listdir(tmp_path) == ["fake-shim"]


SLOW = FAKE.replace("FakeShim", "SlowShim")


class SlowShim(FakeShim):
    """Says in a file that Exit has come, and does it when a second file is there."""

    async def Exit(self, request: Any, context: Any) -> Empty:
        folder = self.socket.parent
        (folder / "asked").touch()
        await _until((folder / "go").exists)
        (folder / "done").touch()
        return await super().Exit(request, context)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it is another process's doing
            await asyncio.sleep(0.005)


async def test_start_shim_cancelled_twice_ends_the_shim_all_the_same(tmp_path: Path) -> None:
    first = asyncio.Event()

    async def use() -> None:
        socket = tmp_path / "shim.sock"
        async with start_shim(tmp_path, socket=socket, executable=program(tmp_path, SLOW)):
            first.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await asyncio.wait_for(first.wait(), 10)
    task.cancel("first")
    await _until((tmp_path / "asked").exists)
    task.cancel("second")
    (tmp_path / "go").touch()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "done").exists()
    assert not (tmp_path / "shim.sock").exists()


class RefusingShim(FakeShim):
    """Does not end by itself."""

    async def Exit(self, request: Any, context: Any) -> Empty:
        await context.abort(grpc.StatusCode.UNKNOWN, "the runtime is broken")
        return Empty()


async def test_a_shim_that_cannot_end_says_why(tmp_path: Path) -> None:
    refusing = program(tmp_path, FAKE.replace("FakeShim", "RefusingShim"))
    with pytest.raises(RuntimeFailed, match="the runtime is broken"):
        async with start_shim(tmp_path, executable=refusing) as client:
            pass
    assert folder_of(client.pid) is None


async def test_what_ended_the_inside_goes_before_what_fails_at_the_end(tmp_path: Path) -> None:
    refusing = program(tmp_path, FAKE.replace("FakeShim", "RefusingShim"))
    with pytest.raises(ZeroDivisionError) as caught:
        async with start_shim(tmp_path, executable=refusing):
            raise ZeroDivisionError
    assert "the runtime is broken" in caught.value.__notes__[0]


STARTING = """
import pathlib, signal, time
def end(*_):
    pathlib.Path("terminated").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path("starting").touch()
time.sleep(60)
"""


async def test_a_shim_that_is_still_starting_is_asked_to_end(tmp_path: Path) -> None:
    async def use() -> None:
        async with start_shim(tmp_path, executable=program(tmp_path, STARTING)):
            pass

    task = asyncio.create_task(use())
    await _until((tmp_path / "starting").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "terminated").exists()


async def test_start_shim_tells_why_the_shim_ended(tmp_path: Path) -> None:
    dying = program(tmp_path, "sys.exit('no subreaper on this kernel')")
    with pytest.raises(Unavailable, match="status 1: no subreaper on this kernel"):
        async with start_shim(tmp_path, executable=dying):
            pass


async def test_start_shim_without_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(FailedPrecondition, match="containerd-shim-dense"):
        async with start_shim(tmp_path):
            pass
