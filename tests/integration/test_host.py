"""One host for every container, as the daemon of 2017 launches them; and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shim.client import ShimClient, steadily
from shim.model import ContainerState, EventType, Mount, Status
from tests.fakes.daemon import living
from tests.fakes.node import (
    PATIENCE,
    Node,
    cgroups,
    command_of,
    listening,
    members,
    mount_namespace,
    names,
    outcome,
    wait_for_end,
    wait_until,
)
from tests.integration.support import (
    Bundle,
    Reader,
    Writer,
    children_of,
    exec_spec,
    front_of,
    is_alive,
    kill_front,
    until,
)

SHIMS = 30
RACERS = 50
LIFE = [EventType.CREATE, EventType.START, EventType.EXIT]
MakeBundle = Callable[..., Bundle]


@pytest.fixture
def node() -> Iterator[Node]:
    """Where a host may be; nothing of it is left afterwards."""
    made = Node()
    try:
        yield made
    finally:
        made.close()


def launched(node: Node, bundle: Path, **more: Any) -> Path:
    """Launch a shim as the daemon does; its socket."""
    path = bundle / "shim.sock"
    with listening(path) as listener:
        process = node.launch_2017(bundle, listener=listener, **more)
        assert outcome(process) == (0, "")
    return path


@contextlib.asynccontextmanager
async def shim_at(path: Path) -> AsyncIterator[ShimClient]:
    """A client of a shim, which is told to exit at the end."""
    async with ShimClient(path) as shim:
        try:
            yield shim
        finally:
            await shim.exit()


# ---- Many launchers, one host ----


async def test_of_fifty_launchers_at_once_one_starts_the_host(
    node: Node, tmp_path: Path, make_bundle: MakeBundle
) -> None:
    bundles = [make_bundle("sleep", "1000") for _ in range(SHIMS)]
    folders = [bundle.path for bundle in bundles]
    for number in range(RACERS - SHIMS):
        folders.append(tmp_path / f"empty{number}")
        folders[-1].mkdir()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listening(path / "shim.sock")) for path in folders]
        racers = [
            node.launch_2017(path, listener=listener)
            for path, listener in zip(folders, listeners, strict=True)
        ]
        assert [outcome(racer) for racer in racers] == [(0, "")] * RACERS
    assert sum("-m shim.front" in command_of(pid) for pid in node.processes()) == 1
    assert node.status()["containers"] == RACERS
    assert mount_namespace(node.keeper) == node.mount_namespace
    assert all(node.keeper in members(path) for path in cgroups())
    lives = asyncio.Semaphore(4)
    await asyncio.gather(*(live_and_exit(bundle, lives) for bundle in bundles))
    assert node.status()["containers"] == RACERS - SHIMS
    for path in folders[SHIMS:]:
        async with shim_at(path / "shim.sock"):
            pass
    await until(lambda: node.status()["containers"] == 0, "all shims are gone")
    assert names(node.state / "shims") == []
    assert node.status()["keeper_pid"] == node.keeper  # it survives being empty


async def live_and_exit(bundle: Bundle, lives: asyncio.Semaphore) -> None:
    """Each socket is one container's."""
    async with lives, shim_at(bundle.path / "shim.sock") as shim:
        pid = await shim.create(bundle.request())
        await shim.start()
        state = await shim.state()
        assert (state.id, state.pid, state.status) == (bundle.id, pid, Status.RUNNING)
        assert not await asyncio.to_thread(is_ended, pid)
        await shim.kill(signal.SIGKILL)
        events = [event async for event in until_exit(shim)]
        assert {event.id for event in events} == {bundle.id}
        assert (await shim.delete()).status == 128 + signal.SIGKILL
        assert is_ended(pid)


async def until_exit(shim: ShimClient) -> AsyncIterator[object]:
    async with asyncio.timeout(PATIENCE), shim.events() as stream:
        async for event in stream:
            yield event
            if event.type is EventType.EXIT:
                return


def is_ended(pid: int) -> bool:
    return not is_alive(pid)


async def test_a_shim_of_the_host_serves_every_call(
    node: Node, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle("sh", "-c", "read line; echo got $line; exec sleep 1000")
    path = launched(node, bundle.path)
    request = bundle.request(stdin=True, stdout=True)
    with Reader(request.stdio.stdout) as stdout:
        async with living(path, request) as container:
            shim = container.shim
            with Writer(request.stdio.stdin) as stdin:
                await stdin.write(b"it\n")
            assert await stdout.until(b"\n") == b"got it\n"
            await shim.close_stdin(container.pid)
            other = await shim.exec(exec_spec("sh", "-c", "exit 7"), bundle.stdio("e"))
            assert (await container.events.exit(other)).status == 7
            assert (await shim.delete(other)).status == 7
            shell = await shim.exec(
                exec_spec("sleep", "1000", terminal=True),
                bundle.stdio("t", "stdout", terminal=True),
            )
            await shim.pty(shell, 80, 24)
            assert {one.pid for one in await shim.processes()} >= {container.pid, shell}
            await shim.pause()
            assert (await shim.state()).status is Status.PAUSED
            await shim.resume()
            await shim.kill(signal.SIGKILL, all=True)
            await container.events.exit(shell)
            assert (await container.events.exit(container.pid)).status == 137
            assert (await shim.delete(shell)).status == 137
            assert (await shim.delete()).status == 137
            assert container.events.of(container.pid) == [*LIFE[:2], EventType.PAUSED, LIFE[2]]


# ---- What the runtime gets of the launcher ----


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup of the launcher's own, where there is one that needs no set-up."""
    name = f"denseshim-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    roots = [path for path in Path("/sys/fs/cgroup").iterdir() if path.name in ("pids", "freezer")]
    made = [root / name for root in roots or [Path("/sys/fs/cgroup")]]
    for path in made:
        path.mkdir()
    yield name
    for path in made:
        wait_until(lambda path=path: not members(path), lambda: f"somebody is in {made}")
        path.rmdir()


# Stands before runc, and notes what it has got.
SPY = """#!/bin/sh
{{ umask; ulimit -n; cat /proc/self/cgroup; readlink /proc/self/ns/mnt
grep SigIgn /proc/self/status
echo "$LD_LIBRARY_PATH" "${{NOTIFY_SOCKET-no socket}}"; }} >{0}/seen.$$ && mv {0}/seen.$$ {0}/seen
exec {1} "$@"
"""


@pytest.fixture
def spy(tmp_path: Path) -> Path:
    """The program; what it has seen is beside its directory."""
    path = tmp_path / "programs/denseshim-spy"
    path.parent.mkdir()
    path.write_text(SPY.format(tmp_path, shutil.which("runc")))
    path.chmod(0o755)
    return path


def ignored_by(status: str) -> int:
    """The signals that a process ignores, of its /proc/PID/status."""
    return int(status.partition("SigIgn:")[2].split()[0], 16)


async def test_the_runtime_gets_what_the_launcher_had(
    node: Node, make_bundle: MakeBundle, tmp_path: Path, cgroup: str, spy: Path
) -> None:
    """The host has been started by another one, with other things."""
    other, bundle = make_bundle("true"), make_bundle("sleep", "1000")
    launched(node, other.path)
    joins = "".join(f"; echo $$ >{path}/cgroup.procs" for path in directories(cgroup))
    env = {**os.environ, "PATH": f"{spy.parent}:{os.environ['PATH']}"}
    env |= {"LD_LIBRARY_PATH": "/opt/lib", "NOTIFY_SOCKET": "/run/notify"}
    path = launched(
        node, bundle.path, before=f"umask 031; ulimit -n 1234; trap '' USR1 INT{joins}", env=env
    )
    async with living(path, bundle.request(runtime=spy.name)) as container:
        umask, files, *memberships, namespace, ignored, environment = text(
            tmp_path / "seen"
        ).splitlines()
        assert environment == "/opt/lib no socket"
        assert (umask, files) == ("0031", "1234")
        assert sum(line.endswith(f":/{cgroup}") for line in memberships) >= 1
        assert namespace == f"mnt:[{node.mount_namespace}]"
        assert ignored_by(ignored) == 0
        assert ignored_by(text(Path(f"/proc/{container.pid}/status"))) == 0


def directories(cgroup: str) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"**/{cgroup}"))


def text(path: Path) -> str:
    return path.read_text()


async def test_mounts_are_the_hosts_and_go_at_delete(
    node: Node, make_bundle: MakeBundle, rootfs: Path
) -> None:
    bundle = make_bundle("sleep", "1000")
    target = str(bundle.path / "rootfs")
    path = launched(node, bundle.path)
    request = bundle.request(rootfs=[Mount("bind", str(rootfs), "", ("rbind",))])
    async with living(path, request) as container:
        assert target in node.mounts()
        assert target not in text(Path("/proc/self/mountinfo"))
        await container.shim.delete()
        assert target not in node.mounts()


# ---- Each shim by itself ----


async def test_the_end_of_one_leaves_the_others(node: Node, make_bundle: MakeBundle) -> None:
    first, second = make_bundle("sleep", "1000"), make_bundle("sleep", "1000")
    paths = [launched(node, bundle.path) for bundle in (first, second)]
    async with living(paths[0], first.request()), living(paths[1], second.request()) as other:
        async with ShimClient(paths[0]) as shim:
            await shim.exit()
        await until(lambda: node.status()["containers"] == 1, "the first shim is gone")
        assert (await other.shim.state()).status is Status.RUNNING
        paths[0].unlink()
        launched(node, first.path)  # at once: the bundle is free
        assert node.status()["containers"] == 2


async def test_a_socket_of_the_shims_own(node: Node, make_bundle: MakeBundle) -> None:
    bundle = make_bundle("sleep", "1000")
    path = bundle.path / "own.sock"
    assert outcome(node.launch_2017(bundle.path, "--socket", path)) == (0, "")
    async with living(path, bundle.request()) as container:
        assert (await container.shim.state()).status is Status.RUNNING
    await exit_at(path)
    await until(lambda: not path.exists(), "its file goes")
    wait_until(lambda: node.status()["containers"] == 0, lambda: "the shim is still there")


def test_a_second_launcher_on_a_bundle_is_refused(node: Node, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "link").symlink_to("bundle")
    launched(node, tmp_path / "bundle")
    for bundle in (tmp_path / "bundle", tmp_path / "link"):
        code, errors = outcome(node.launch_2017(bundle, "--socket", tmp_path / "second.sock"))
        assert code == 1
        assert errors.startswith("containerd-shim-dense: a shim is alive on bundle ")
        assert errors.count("\n") == 1
        assert not (tmp_path / "second.sock").exists()
    assert node.status()["containers"] == 1


# ---- Deaths ----


async def state_of(shim: ShimClient) -> ContainerState:
    """Its state, once the next front answers."""
    return await steadily(shim, shim.state)


async def all_told(node: Node) -> None:
    """Return when no event is on its way: that one might come again."""
    journals = list((node.state / "shims").glob("*/events"))
    await until(lambda: not any(path.stat().st_size for path in journals), "all events are told")


async def test_the_front_dies(node: Node, make_bundle: MakeBundle) -> None:
    bundle, other = make_bundle("sleep", "1000"), make_bundle("sleep", "1000")
    paths = [launched(node, one.path) for one in (bundle, other)]
    keeper = node.keeper
    async with living(paths[0], bundle.request()) as container:
        await all_told(node)
        await kill_front(keeper)
        assert (await state_of(container.shim)).status is Status.RUNNING
        async with living(paths[1], other.request()) as second:
            await kill_front(keeper)
            await state_of(container.shim)
            await container.shim.kill(signal.SIGKILL)
            await container.events.exit(container.pid)
            await all_told(node)
            await kill_front(keeper)
            await state_of(container.shim)
            assert (await state_of(second.shim)).status is Status.RUNNING
            assert (await container.shim.delete()).status == 137
            assert container.events.of(container.pid) == LIFE
    assert node.keeper == keeper


def test_a_front_tells_where_it_stands(node: Node, tmp_path: Path) -> None:
    """At SIGUSR1, in its log; it goes on."""
    with listening(tmp_path / "shim.sock") as listener:
        assert outcome(node.launch_2017(tmp_path, "--debug", listener=listener)) == (0, "")
    log, front = node.state / "log", front_of(node.keeper)
    os.kill(front, signal.SIGUSR1)
    wait_until(lambda: "tasks at serve_pair, " in text(log), lambda: text(log))
    assert "most recent call first" in text(log)
    asyncio.run(exit_at(tmp_path / "shim.sock"))
    assert front_of(node.keeper) == front


async def test_a_launch_survives_the_front(node: Node, tmp_path: Path) -> None:
    """Whenever it dies, the launcher is answered once, and well."""
    first = tmp_path / "first"
    first.mkdir()
    launched(node, first)
    keeper = node.keeper
    for number in range(5):
        bundle = tmp_path / f"bundle{number}"
        bundle.mkdir()
        front = front_of(keeper)
        os.kill(front, signal.SIGSTOP)
        with listening(bundle / "shim.sock") as listener:
            launcher = node.launch_2017(bundle, listener=listener)
            await until(partial(unanswered, launcher.pid), "the launcher's call")
            os.kill(front, signal.SIGKILL)
            assert outcome(launcher) == (0, "")
        async with ShimClient(bundle / "shim.sock") as shim:
            await shim.ready(PATIENCE)
    assert node.status()["containers"] == 6


def unanswered(daemon: int) -> bool:
    """Whether the launcher below `daemon` waits in recvfrom(2) or so for the host's answer."""
    for pid in (pid for child in children_of(daemon) for pid in [child, *children_of(child)]):
        with contextlib.suppress(OSError):
            links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
            waits = Path(f"/proc/{pid}/wchan").read_text()
            if sum(link.startswith("socket:") for link in links) == 2 and "unix" in waits:
                return True
    return False


async def test_the_keeper_dies(node: Node, make_bundle: MakeBundle, tmp_path: Path) -> None:
    """The next launcher starts another host, which removes what is left."""
    bundle = make_bundle("sleep", "1000")
    own = bundle.path / "own.sock"
    assert outcome(node.launch_2017(bundle.path, "--socket", own)) == (0, "")
    async with ShimClient(own) as shim:
        pid = await shim.create(bundle.request())
        await shim.start()
        keeper = node.keeper
        os.kill(keeper, signal.SIGKILL)
        wait_for_end(keeper)
    assert is_alive(pid)
    (tmp_path / "next").mkdir()
    launched(node, tmp_path / "next")
    assert node.keeper != keeper
    await until(lambda: not is_alive(pid), "the container is gone")
    await until(lambda: names(node.run_folder / "runc") == [], "its runtime's state is gone")
    assert not own.exists()
    await until(lambda: node.status()["containers"] == 1, "it is forgotten")


async def test_a_launcher_on_the_bundle_of_a_dead_keeper(
    node: Node, make_bundle: MakeBundle
) -> None:
    """It makes its socket before there is a host; the dead one's container goes first."""
    bundle = make_bundle("sleep", "1000")
    own = bundle.path / "own.sock"
    assert outcome(node.launch_2017(bundle.path, "--socket", own)) == (0, "")
    async with ShimClient(own) as shim:
        pid = await shim.create(bundle.request())
    keeper = node.keeper
    os.kill(keeper, signal.SIGKILL)
    wait_for_end(keeper)
    assert outcome(node.launch_2017(bundle.path, "--socket", own)) == (0, "")
    async with living(own, bundle.request()) as container:
        assert not is_alive(pid)
        assert container.pid != pid


# ---- The end ----


async def test_a_stop_is_refused_while_there_are_containers(
    node: Node, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle("sleep", "1000")
    own = bundle.path / "own.sock"
    assert outcome(node.launch_2017(bundle.path, "--socket", own)) == (0, "")
    async with ShimClient(own) as shim:
        pid = await shim.create(bundle.request())
        await shim.start()
        keeper = node.keeper
        refused = node.host("--stop")
        assert refused.returncode == 1
        assert b"1 containers live here" in refused.stderr
        assert (await shim.state()).status is Status.RUNNING
        os.kill(keeper, signal.SIGTERM)
        await until(lambda: node.status(), "it goes on")
        assert (await shim.state()).status is Status.RUNNING
        done = node.host("--stop", "--force")
        assert (done.returncode, done.stderr) == (0, b"")
    assert not is_alive(pid)
    assert not is_alive(keeper)
    assert not own.exists()
    node.settled()


def test_sigterm_ends_an_empty_host(node: Node, tmp_path: Path) -> None:
    launched(node, tmp_path)
    keeper = node.keeper
    asyncio.run(exit_at(tmp_path / "shim.sock"))
    wait_until(lambda: node.status()["containers"] == 0, lambda: "the shim is still there")
    os.kill(keeper, signal.SIGTERM)
    wait_for_end(keeper)
    node.settled()


async def exit_at(path: Path) -> None:
    async with ShimClient(path) as shim:
        await shim.exit()


def test_info_starts_no_host(node: Node) -> None:
    assert node.launch(Path("/"), "-info", input=b"").returncode == 0
    assert not node.state.exists()
    assert node.host("--status").returncode == 1


async def test_the_front_dies_at_the_hosts_end(node: Node, tmp_path: Path) -> None:
    """A front that is killed once its door is closed: the next one completes the end."""
    launched(node, tmp_path)
    await exit_at(tmp_path / "shim.sock")
    await until(lambda: node.status()["containers"] == 0, "the shim is gone")
    keeper = node.keeper
    front = front_of(keeper)
    os.kill(keeper, signal.SIGTERM)
    while node.state.exists():
        pass
    with contextlib.suppress(ProcessLookupError):
        os.kill(front, signal.SIGKILL)
    wait_for_end(keeper)
    node.settled()
