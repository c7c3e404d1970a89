"""State, Processes, Pause, Resume, Kill, Exec, Pty, CloseStdin, Events, Exit in their purpose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.client import ShimClient
from shim.errors import FailedPrecondition, InvalidArgument, NotFound, RuntimeFailed, ShimError
from shim.model import EventType, Status, Stdio, User
from tests.fakes.daemon import Launched, Living, Output, launched, living
from tests.integration.support import (
    PATIENCE,
    Bundle,
    Events,
    Gate,
    exec_spec,
    is_alive,
    serving,
    until,
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """One shim for the tests of this file."""
    with launched(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


async def test_the_statuses(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    request = make_bundle("sleep", "1000").request()
    async with living(daemon.socket, request, start=False) as container:
        shim, found = container.shim, []
        for step in (None, shim.start, shim.pause, shim.resume, lambda: shim.kill(9)):
            if step is not None:
                await step()
            found.append((await shim.state()).status)
        await container.events.exit(container.pid)
        assert found[:4] == [Status.CREATED, Status.RUNNING, Status.PAUSED, Status.RUNNING]
        state = await shim.state()
        assert (state.status, state.processes[0].status) == (Status.STOPPED, Status.STOPPED)
        assert state.processes[0].exit_status == 137
        kinds = container.events.of(container.pid)
        assert kinds == [EventType.CREATE, EventType.START, EventType.PAUSED, EventType.EXIT]


async def test_what_state_tells_of_a_process(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("sleep", "1000")
    async with living(daemon.socket, bundle.request()) as container:
        shim = container.shim
        spec = exec_spec("sh", "-c", "exit 7", env={"A": "b"}, cwd="/tmp", user=User(5, 6, (7,)))
        pid = await shim.exec(spec, Stdio())
        await container.events.exit(pid)
        init, ended = (await shim.state()).processes
        assert (init.pid, init.args, init.status) == (
            container.pid, ("sleep", "1000"), Status.RUNNING,
        )  # fmt: skip
        assert (ended.pid, ended.args) == (pid, ("sh", "-c", "exit 7"))
        assert (ended.cwd, ended.user, ended.terminal) == ("/tmp", User(5, 6, (7,)), False)
        assert "A=b" in ended.env
        assert (ended.status, ended.exit_status) == (Status.STOPPED, 7)


async def test_processes_are_the_container_s_alone(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """Grandchildren are among them, the host's processes are not."""
    bundle = make_bundle("sh", "-c", "sh -c 'sleep 1000 & wait' & wait")
    async with living(daemon.socket, bundle.request()) as container:
        rows = await listed(container, 4)
        assert rows[container.pid][0] == "sh"
        assert ("sleep", "1000") in rows.values()
        assert not {os.getpid(), daemon.process.pid, 1} & set(rows)
        assert await container.shim.processes(bundle.id) == await container.shim.processes()
        with pytest.raises(NotFound, match="other"):
            await container.shim.processes("other")


async def listed(container: Living, count: int) -> dict[int, tuple[str, ...]]:
    """The container's processes once there are as many, or one less (a shell may exec)."""
    async with asyncio.timeout(PATIENCE):
        while True:
            rows = {row.pid: row.args for row in await container.shim.processes()}
            if len(rows) >= count - 1 and ("sleep", "1000") in rows.values():
                return rows


async def test_the_paused_do_not_run(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("sh", "-c", "while :; do echo x; done")
    request = bundle.request(stdout=True)
    with Output(request.stdio.stdout) as output:
        async with living(daemon.socket, request) as container:
            await output.expect(b"x")
            await container.shim.pause()
            before = cpu_time(container.pid)
            with pytest.raises(FailedPrecondition, match="paused"):
                await container.shim.exec(exec_spec("true"), Stdio())
            assert cpu_time(container.pid) == before
            await container.shim.resume()
            await container.shim.kill(9)
            assert (await container.events.exit(container.pid)).status == 137


def cpu_time(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]


@pytest.mark.parametrize("all", [False, True])
async def test_the_paused_can_be_killed(
    all: bool, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        await container.shim.pause()
        await container.shim.kill(9, all=all)
        assert (await container.events.exit(container.pid)).status == 137


async def test_the_paused_can_be_deleted(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        await container.shim.pause()
        assert (await container.shim.delete()).status == 137


TRAP = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done"


async def test_kill_signals_the_init(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    request = make_bundle("sh", "-c", TRAP).request(stdout=True)
    with Output(request.stdio.stdout) as output:
        async with living(daemon.socket, request) as container:
            await output.expect(b"ready\n")
            await container.shim.kill(signal.SIGTERM)
            assert (await container.events.exit(container.pid)).status == 3
            assert await output.to_end() == b"ready\ncaught\n"


async def test_kill_all_reaches_every_process(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        pid = await container.shim.exec(exec_spec("sleep", "1000"), Stdio())
        await container.shim.kill(9, all=True)
        assert (await container.events.exit(pid)).status == 137
        assert (await container.events.exit(container.pid)).status == 137


async def test_kill_of_an_exec_spares_the_others(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        shim = container.shim
        first, second = [await shim.exec(exec_spec("sleep", "1000"), Stdio()) for _ in range(2)]
        await shim.kill(9, pid=first)
        assert (await container.events.exit(first)).status == 137
        with pytest.raises(NotFound):
            await shim.kill(9, pid=first)
        assert [row.status for row in (await shim.state()).processes] == [
            Status.RUNNING, Status.STOPPED, Status.RUNNING,
        ]  # fmt: skip
        with pytest.raises(FailedPrecondition, match="kill it first"):
            await shim.delete(second)


async def test_kill_of_a_stranger_inside(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """A process that the shim did not start, but that is in the container."""
    bundle = make_bundle("sh", "-c", "sleep 1000; exit 9")
    async with living(daemon.socket, bundle.request()) as container:
        rows = await listed(container, 2)
        [sleeper] = [pid for pid, args in rows.items() if args == ("sleep", "1000")]
        await container.shim.kill(9, pid=sleeper)
        assert (await container.events.exit(container.pid)).status == 9


async def test_kill_hits_nobody_outside(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    with outsider() as stranger:
        async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
            for pid in (stranger.pid, daemon.process.pid, (1 << 32) - 1):
                with pytest.raises(NotFound, match=str(pid)):
                    await container.shim.kill(9, pid=pid)
                with pytest.raises(NotFound, match=str(pid)):
                    await container.shim.delete(pid)
        assert stranger.poll() is None


@contextlib.contextmanager
def outsider() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_an_exec_s_surroundings(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("sleep", "1000")
    script = "pwd; id -u; id -g; echo $A; tty; echo err >&2; exit 19"
    spec = exec_spec("sh", "-c", script, env={"A": "b c"}, cwd="/tmp", user=User(5, 6))
    stdio = Stdio(False, "", bundle.fifo("out"), bundle.fifo("err"))
    with Output(stdio.stdout) as out, Output(stdio.stderr) as err:
        async with living(daemon.socket, bundle.request()) as container:
            pid = await container.shim.exec(spec, stdio)
            assert await out.to_end() == b"/tmp\n5\n6\nb c\nnot a tty\n"
            assert await err.to_end() == b"err\n"
            assert (await container.events.exit(pid)).status == 19
            assert container.events.of(pid) == [EventType.EXEC_ADDED, EventType.EXIT]
            assert (await container.shim.delete(pid)).status == 19
            with pytest.raises(NotFound):
                await container.shim.delete(pid)


async def test_an_exec_that_cannot_be_executed(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        with pytest.raises(RuntimeFailed, match="/no/such/program"):
            await container.shim.exec(exec_spec("/no/such/program"), Stdio())
        assert len((await container.shim.state()).processes) == 1


async def test_30_execs_at_once(daemon: Launched, make_bundle: Callable[..., Bundle]) -> None:
    """Each has its own status, and is told of before its end (demand 9)."""
    async with living(daemon.socket, make_bundle("sleep", "1000").request()) as container:
        execs = [exec_spec("sh", "-c", f"exit {status}") for status in range(30)]
        pids = await asyncio.gather(*(container.shim.exec(spec, Stdio()) for spec in execs))
        found = [(await container.events.exit(pid)).status for pid in pids]
        assert found == list(range(30))
        for pid in pids:
            assert container.events.of(pid) == [EventType.EXEC_ADDED, EventType.EXIT]


async def test_a_terminal_and_its_size(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("sleep", "1000")
    stdio = Stdio(True, bundle.fifo("in"), bundle.fifo("out"))
    script = "trap 'stty size; exit 4' WINCH; tty; while :; do sleep 0.05; done"
    with Output(stdio.stdout) as output:
        async with living(daemon.socket, bundle.request()) as container:
            shim = container.shim
            pid = await shim.exec(exec_spec("sh", "-c", script), stdio)
            await output.expect(b"/dev/pts/0\r\n")
            with pytest.raises(InvalidArgument):
                await shim.pty(0, 80, 24)
            await shim.pty(container.pid, 80, 24)  # it has none: nothing happens
            await shim.pty(pid, 91, 33)
            assert (await container.events.exit(pid)).status == 4
            assert (await output.to_end()).endswith(b"33 91\r\n")
            await shim.pty(pid, 80, 24)  # nor has it one any more


async def test_stdin_ends_when_it_is_closed_on_both_sides(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("sleep", "1000")
    stdio = Stdio(False, bundle.fifo("in"), bundle.fifo("out"))
    with Output(stdio.stdout) as output:
        async with living(daemon.socket, bundle.request()) as container:
            pid = await container.shim.exec(exec_spec("cat"), stdio)
            for text in (b"one", b"two"):  # a client that comes and goes ends nothing
                writer = os.open(stdio.stdin, os.O_WRONLY)
                os.write(writer, text)
                os.close(writer)
                await output.expect(text)
            await container.shim.close_stdin(pid)
            assert await output.to_end() == b"onetwo"
            assert (await container.events.exit(pid)).status == 0


async def test_events_reach_every_reader_and_a_late_one(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    """What happened while nobody listened goes to the next reader."""
    bundle = make_bundle("sleep", "1000")
    with launched(tmp_path / "fresh") as fresh:
        async with ShimClient(fresh.socket) as shim:
            pid = await shim.create(bundle.request())
            late = Events(shim)
            await late.wait_for(EventType.CREATE, pid)
            others = [shim.events() for _ in range(3)]
            for other in others:
                await other.subscribed(5)
            await shim.start()
            await shim.kill(9)
            await late.exit(pid)
            for other in others:
                async with other, asyncio.timeout(PATIENCE):
                    kinds = [(await anext(other)).type for _ in range(2)]
                assert kinds == [EventType.START, EventType.EXIT]
            assert late.of(pid) == [EventType.CREATE, EventType.START, EventType.EXIT]
            await late.close()
            await shim.delete()


async def test_exit_deletes_what_is_there(
    tmp_path: Path, make_bundle: Callable[..., Bundle]
) -> None:
    with launched(tmp_path / "fresh") as fresh:
        async with ShimClient(fresh.socket) as shim:
            pid = await shim.create(make_bundle("sleep", "1000").request())
            await shim.start()
            await shim.exit()
        await until(lambda: fresh.process.poll() is not None, "the shim is gone")
        assert not is_alive(pid)


@pytest.mark.parametrize("command", ["start", "exec"])
async def test_a_runtime_that_hangs_does_not_keep_delete(
    make_bundle: Callable[..., Bundle], command: str
) -> None:
    """Demand: bad input never hangs. Delete ends a command of the runtime that does not end."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, command)
    async with serving(bundle) as (shim, events):
        pid = await shim.create(bundle.request(runtime=str(gate.path)))
        if command == "start":
            call = asyncio.create_task(shim.start())
        else:
            await shim.start()
            call = asyncio.create_task(shim.exec(exec_spec("true"), Stdio()))
        await gate.reached()
        assert (await shim.delete()).status == 128 + signal.SIGKILL
        with pytest.raises(ShimError):
            await call
        assert (await events.exit(pid)).status == 128 + signal.SIGKILL
