"""Every call in the wrong state, twice, and many at once (contract: What each call does)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.client import ShimClient
from shim.errors import AlreadyExists, FailedPrecondition, NotFound, ShimError
from shim.model import CheckpointRequest, EventType, Status, Stdio
from tests.fakes.daemon import WRAPPER, Launched, launched, living
from tests.integration.support import Bundle, exec_spec, until

Call = Callable[[ShimClient], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "Start": lambda shim: shim.start(),
    "Delete": lambda shim: shim.delete(),
    "State": lambda shim: shim.state(),
    "Processes": lambda shim: shim.processes(),
    "Pause": lambda shim: shim.pause(),
    "Resume": lambda shim: shim.resume(),
    "Checkpoint": lambda shim: shim.checkpoint(CheckpointRequest("/tmp/image")),
    "Kill": lambda shim: shim.kill(9),
    "Kill all": lambda shim: shim.kill(9, all=True),
    "Kill pid": lambda shim: shim.kill(9, pid=1),
    "Exec": lambda shim: shim.exec(exec_spec("true"), Stdio()),
    "Pty": lambda shim: shim.pty(1, 80, 24),
    "CloseStdin": lambda shim: shim.close_stdin(1),
}

# Of a container whose init has ended; None: answered.
AFTER_EXIT: dict[str, type[ShimError] | None] = {
    "Start": FailedPrecondition,
    "State": None,
    "Processes": None,
    "Pause": FailedPrecondition,
    "Resume": FailedPrecondition,
    "Checkpoint": FailedPrecondition,
    "Kill": NotFound,
    "Kill all": NotFound,
    "Kill pid": NotFound,
    "Exec": FailedPrecondition,
    "Pty": NotFound,  # of pid 1, which is none of the container's
    "CloseStdin": NotFound,
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """One shim for the tests of this file."""
    with launched(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


async def outcome(call: Awaitable[Any]) -> type[ShimError] | None:
    """The class of a call's error; None when it was answered."""
    try:
        await call
    except ShimError as error:
        return type(error)
    return None


async def outcomes(*calls: Awaitable[Any]) -> dict[type[ShimError] | None, int]:
    """How often each outcome came of calls made at once."""
    found = await asyncio.gather(*map(outcome, calls))
    return {kind: found.count(kind) for kind in found}


async def test_every_call_before_create(tmp_path: Path) -> None:
    with launched(tmp_path / "fresh") as fresh:
        async with ShimClient(fresh.socket) as shim:
            found = {name: await outcome(call(shim)) for name, call in CALLS.items()}
    assert found == dict.fromkeys(CALLS, FailedPrecondition)


async def test_every_call_after_delete(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("true").request()) as container:
        shim = container.shim
        await shim.delete()
        found = {name: await outcome(call(shim)) for name, call in CALLS.items()}
    assert found == dict.fromkeys(CALLS, NotFound)


async def test_every_call_after_the_init_s_exit(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("true").request()) as container:
        await container.events.exit(container.pid)
        shim = container.shim
        found = {name: await outcome(CALLS[name](shim)) for name in AFTER_EXIT}
        assert found == AFTER_EXIT
        assert await shim.processes() == ()
        assert await outcome(shim.pty(container.pid, 80, 24)) is None
        assert await outcome(shim.close_stdin(container.pid)) is None


async def test_a_second_create(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    first, second = make_bundle("sleep", "1000"), make_bundle("true")
    async with living(daemon.socket, first.request()) as container:
        for bundle in (first, second):
            with pytest.raises(AlreadyExists, match=first.id):
                await container.shim.create(bundle.request())
        assert (await container.shim.state()).status is Status.RUNNING


async def test_a_create_after_a_delete(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("true")
    for _ in range(2):
        async with living(daemon.socket, bundle.request()) as container:
            assert (await container.events.exit(container.pid)).status == 0


async def test_creates_at_once(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    bundles = [make_bundle("sleep", "1000") for _ in range(5)]
    async with ShimClient(daemon.socket) as shim:
        found = await outcomes(*(shim.create(bundle.request()) for bundle in bundles))
        assert found == {None: 1, AlreadyExists: 4}
        await shim.delete()


async def test_starts_twice_and_at_once(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    request = make_bundle("sleep", "1000").request()
    async with living(daemon.socket, request, start=False) as container:
        found = await outcomes(*(container.shim.start() for _ in range(5)))
        assert found == {None: 1, FailedPrecondition: 4}
        with pytest.raises(FailedPrecondition, match="running"):
            await container.shim.start()
        kinds = container.events.of(container.pid)
        assert kinds == [EventType.CREATE, EventType.START]


async def test_deletes_at_once_and_a_create_behind_them(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """The second Delete waits for the first, and must not touch what is created after it."""
    bundle, gate = make_bundle("sleep", "1000"), make_bundle().path / "gate"
    (bundle.path / "behaviour.delete").write_text(
        f': >"$bundle/reached"; until [ -e {gate} ]; do sleep 0.01; done'
    )
    async with living(daemon.socket, bundle.request(runtime=str(WRAPPER))) as container:
        shim = container.shim
        first = asyncio.create_task(outcome(shim.delete()))
        await until((bundle.path / "reached").exists, "the first Delete deletes")
        second = asyncio.create_task(outcome(shim.delete()))
        await shim.state()  # on the same connection, behind the second Delete
        gate.touch()
        assert await first is None
        await shim.create(make_bundle("sleep", "1000").request())
        assert await second is NotFound
        assert (await shim.state()).status is Status.CREATED


async def test_deletes_of_one_exec_at_once(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        shim = container.shim
        pid = await shim.exec(exec_spec("true"), Stdio())
        await container.events.exit(pid)
        found = await outcomes(*(shim.delete(pid) for _ in range(5)))
        assert found == {None: 1, NotFound: 4}
        assert (await shim.state()).status is Status.RUNNING


async def test_many_calls_at_once(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    """No call spoils another; none waits for ever."""
    script = "trap : USR1; while :; do sleep 0.05; done"
    async with living(daemon.socket, make_bundle("sh", "-c", script).request()) as container:
        shim = container.shim
        calls = [
            call
            for _ in range(20)
            for call in (
                shim.state(),
                shim.processes(),
                shim.kill(10),
                shim.exec(exec_spec("true"), Stdio()),
            )
        ]
        found = await outcomes(*calls)
        assert found == {None: 80}
        execs = [row.pid for row in (await shim.state()).processes if row.pid != container.pid]
        assert len(execs) == 20
        for pid in execs:
            assert (await container.events.exit(pid)).status == 0
        assert (await shim.state()).status is Status.RUNNING


async def test_pauses_and_resumes_at_once(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        shim = container.shim
        assert await outcomes(*(shim.pause() for _ in range(4))) == {None: 1, FailedPrecondition: 3}
        found = await outcomes(*(shim.resume() for _ in range(4)))
        assert found == {None: 1, FailedPrecondition: 3}


async def test_calls_while_create_is_under_way(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """They are refused, and do not wait."""
    bundle = make_bundle("true")
    (bundle.path / "behaviour.create").write_text(
        ': >"$bundle/reached"; until [ -e "$bundle/gate" ]; do sleep 0.01; done'
    )
    async with ShimClient(daemon.socket) as shim:
        creating = asyncio.create_task(shim.create(bundle.request(runtime=str(WRAPPER))))
        try:
            await until((bundle.path / "reached").exists, "the runtime creates")
            found = {name: await outcome(call(shim)) for name, call in CALLS.items()}
            assert found == dict.fromkeys(CALLS, FailedPrecondition)
            with pytest.raises(AlreadyExists):
                await shim.create(bundle.request())
        finally:
            (bundle.path / "gate").touch()
            await creating
        await shim.delete()


async def test_exit_while_create_is_under_way(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    """Exit waits for the container, deletes it, and the shim is gone."""
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.create").write_text(
        ': >"$bundle/reached"; until [ -e "$bundle/gate" ]; do sleep 0.01; done'
    )
    with launched(tmp_path / "fresh") as fresh:
        async with ShimClient(fresh.socket) as shim:
            creating = asyncio.create_task(shim.create(bundle.request(runtime=str(WRAPPER))))
            await until((bundle.path / "reached").exists, "the runtime creates")
            ending = asyncio.create_task(outcome(shim.exit()))
            with pytest.raises(FailedPrecondition):
                await shim.state()
            (bundle.path / "gate").touch()
            assert await creating > 1
            assert await ending is None
        await until(lambda: fresh.process.poll() is not None, "the shim is gone")


async def test_exit_while_delete_is_under_way(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    """Exit waits for it, and the shim is gone."""
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.delete").write_text(
        ': >"$bundle/reached"; until [ -e "$bundle/gate" ]; do sleep 0.01; done'
    )
    with launched(tmp_path / "fresh") as fresh:
        request = bundle.request(runtime=str(WRAPPER))
        async with ShimClient(fresh.socket) as shim:
            await shim.create(request)
            deleting = asyncio.create_task(shim.delete())
            await until((bundle.path / "reached").exists, "the runtime deletes")
            ending = asyncio.create_task(outcome(shim.exit()))
            await shim.state()
            (bundle.path / "gate").touch()
            assert (await deleting).status == 137
            assert await ending is None
            with contextlib.suppress(ShimError):
                await shim.state()
        await until(lambda: fresh.process.poll() is not None, "the shim is gone")
