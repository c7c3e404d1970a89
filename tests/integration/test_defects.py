"""One test for each of the original's defects (contract: Defects of the original)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.client import ShimClient
from shim.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, RuntimeFailed
from shim.model import EventType, Mount, Status, Stdio
from tests.fakes.daemon import WRAPPER, Launched, Output, launched, living
from tests.integration.support import PATIENCE, Bundle, exec_spec


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """One shim for the tests of this file."""
    with launched(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


async def test_exactly_one_exit_for_each_process(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """However early it comes: these end before their pid has been read."""
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        execs = [container.shim.exec(exec_spec("true"), Stdio()) for _ in range(20)]
        pids = await asyncio.gather(*execs)
        for pid in pids:
            assert (await container.events.exit(pid)).status == 0
        await container.shim.kill(9)
        await container.events.exit(container.pid)
        for pid in (*pids, container.pid):
            assert container.events.of(pid).count(EventType.EXIT) == 1


async def test_an_exit_before_the_process_is_registered_is_not_lost(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """The runtime comes back only after the process that it has started has ended."""
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.exec").write_text(
        'runc "$@"; for file in "$@"; do case $file in *.pid) pid=$(cat "$file");; esac; done\n'
        "while grep -q '^State:.*[RSD] ' /proc/$pid/status 2>/dev/null; do sleep 0.01; done; exit 0"
    )
    async with living(daemon.socket, bundle.request(runtime=str(WRAPPER))) as container:
        pid = await container.shim.exec(exec_spec("sh", "-c", "exit 19"), Stdio())
        assert (await container.events.exit(pid)).status == 19
        assert container.events.of(pid) == [EventType.EXEC_ADDED, EventType.EXIT]


async def test_delete_of_an_unknown_pid_deletes_nothing(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        with pytest.raises(NotFound):
            await container.shim.delete(4_000_000)
        assert (await container.shim.state()).status is Status.RUNNING


async def test_errors_have_codes_and_the_runtime_s_words(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        shim = container.shim
        with pytest.raises(RuntimeFailed, match=r"/no/such: no such file or directory"):
            await shim.exec(exec_spec("/no/such"), Stdio())
        with pytest.raises(NotFound):
            await shim.kill(9, pid=4_000_000)
        with pytest.raises(InvalidArgument):
            await shim.kill(0)
        with pytest.raises(FailedPrecondition):
            await shim.start()


async def test_calls_before_create_and_a_second_create(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    with launched(tmp_path / "fresh") as fresh:
        async with ShimClient(fresh.socket) as shim:
            with pytest.raises(FailedPrecondition):
                await shim.start()
            pid = await shim.create(make_bundle("sleep", "1000").request())
            with pytest.raises(AlreadyExists):
                await shim.create(make_bundle("true").request())
            assert (await shim.state()).pid == pid
            await shim.delete()


async def test_state_and_processes_start_no_runtime(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("sleep", "1000")
    async with living(daemon.socket, bundle.request(runtime=str(WRAPPER))) as container:
        before = sorted(path.name for path in bundle.path.glob("argv.*"))
        await container.shim.state()
        await container.shim.processes()
        assert sorted(path.name for path in bundle.path.glob("argv.*")) == before
        assert before == ["argv.create", "argv.start"]


async def test_readers_of_events_do_not_steal_from_each_other(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """That nothing blocks without a reader, whatever the count: tests/unit/test_events.py."""
    request = make_bundle("sleep", "1000").request()
    async with living(daemon.socket, request, start=False) as container:
        shim = container.shim
        await container.events.wait_for(EventType.CREATE, container.pid)
        readers = [shim.events() for _ in range(3)]
        for reader in readers:
            await reader.subscribed(5)
        await shim.start()
        await shim.kill(9)
        for reader in readers:
            async with reader, asyncio.timeout(PATIENCE):
                kinds = [(await anext(reader)).type for _ in range(2)]
            assert kinds == [EventType.START, EventType.EXIT]


async def test_a_grandchild_that_holds_stdout_does_not_hold_delete(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """Demand 5: the exec's Delete ends in bounded time, with what was written delivered."""
    bundle = make_bundle("sleep", "1000")
    stdio = Stdio(False, "", bundle.fifo("out"))
    with Output(stdio.stdout) as output:
        async with living(daemon.socket, bundle.request()) as container:
            spec = exec_spec("sh", "-c", "sleep 1000 & echo ok")
            pid = await container.shim.exec(spec, stdio)
            await container.events.exit(pid)
            logged = len(daemon.log())
            assert (await container.shim.delete(pid, timeout=5)).status == 0
            assert await output.to_end() == b"ok\n"
            assert "output cut" in daemon.log()[logged:]
            assert len(await container.shim.processes()) == 2


async def test_a_finished_exec_s_pid_is_not_signalled(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """That signals go by pidfd, also when the pid is another's by now: tests/native."""
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        pid = await container.shim.exec(exec_spec("true"), Stdio())
        await container.events.exit(pid)
        with pytest.raises(NotFound, match="has ended"):
            await container.shim.kill(9, pid=pid)


async def test_the_root_is_unmounted_on_delete_and_when_create_fails(
    daemon: Launched, make_bundle: Callable[..., Bundle], rootfs: Path
) -> None:
    bundle = make_bundle("true")
    target = str(bundle.path / "rootfs")
    request = bundle.request(rootfs=[Mount("bind", str(rootfs), "", ("rbind",))])
    async with living(daemon.socket, request) as container:
        assert target in daemon.mounts()
        await container.shim.delete()
        assert target not in daemon.mounts()
        (bundle.path / "config.json").write_text("{}")
        with pytest.raises(RuntimeFailed):
            await container.shim.create(request)
        assert target not in daemon.mounts()
