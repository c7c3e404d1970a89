"""The keeper is killed: nothing hangs, and the bundle's next shim removes what is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from shim.client import StartedShim
from shim.client.start import PROGRAM
from shim.errors import FailedPrecondition, Unavailable
from shim.model import CreateRequest, Mount
from tests.integration.support import (
    Bundle,
    Gate,
    Reader,
    children_of,
    exec_spec,
    front_of,
    is_alive,
    serving,
    until,
)

Make = Callable[..., Bundle]
BESIDE = Path(sys.executable).parent
RUNC_STATE = Path("/run/runc")


@contextlib.asynccontextmanager
async def doomed(bundle: Bundle) -> AsyncIterator[StartedShim]:
    """A shim that nobody ends in good order: its keeper is to be killed."""
    socket = bundle.path / "shim.sock"
    process = await asyncio.create_subprocess_exec(
        BESIDE / PROGRAM, "--dedicated", "--socket", socket, cwd=bundle.path, process_group=0
    )
    try:
        await until(socket.exists, "the shim's socket")
        async with StartedShim(socket, process.pid) as shim:
            await shim.ready(10)
            yield shim
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        socket.unlink(missing_ok=True)


async def kill_keeper(shim: StartedShim) -> None:
    """SIGKILL the keeper; its spawner and front go, and the calls of clients end."""
    family = [shim.pid, front_of(shim.pid), spawner_of(shim.pid)]
    assert all(map(is_alive, family))
    os.kill(shim.pid, signal.SIGKILL)
    await until(lambda: not any(map(is_alive, family)), "the end of keeper, front and spawner", 5)
    with pytest.raises(Unavailable):
        await shim.state(timeout=5)


def spawner_of(keeper: int) -> int:
    names = {Path(f"/proc/{pid}/comm").read_text(): pid for pid in children_of(keeper)}
    return names["dense-spawner\n"]


@pytest.fixture
def overlay(rootfs: Path, tmp_path: Path) -> Mount:
    """The root file system as a snapshotter gives it."""
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    options = (f"lowerdir={rootfs}", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work")
    return Mount("overlay", "overlay", "", options)


def request(bundle: Bundle, rootfs: Path, mount: Mount, runtime: str = "") -> CreateRequest:
    """A Create with its root file system mounted on the bundle's rootfs."""
    path = bundle.path / "config.json"
    path.write_text(path.read_text().replace(str(rootfs), "rootfs"))
    return bundle.request(stdout=True, rootfs=[mount], runtime=runtime)


def left_of(bundle: Bundle) -> list[str]:
    """What there is of a container: the runtime's state, mounts, cgroups."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = [mount for mount in mounts if mount.startswith(str(bundle.path))]
    found += map(str, RUNC_STATE.glob(bundle.id))
    return found + cgroups_of(bundle)


def cgroups_of(bundle: Bundle) -> list[str]:
    """The container's cgroups; os.walk bears those that vanish meanwhile."""
    walk = os.walk("/sys/fs/cgroup")
    return [folder for folder, _, _ in walk if folder.endswith(f"-{bundle.id}")]


async def cleans_up_and_serves(bundle: Bundle, asked: CreateRequest) -> None:
    """The next shim on the bundle removes everything; the same id can be created and run."""
    async with serving(bundle) as (shim, events):
        await until(lambda: left_of(bundle) == [], "the removal of what was left")
        with pytest.raises(FailedPrecondition):
            await shim.state()
        pid = await shim.create(asked)
        await shim.start()
        await shim.kill(signal.SIGKILL)
        assert (await events.exit(pid)).status == 137
        await shim.delete()
        await until(lambda: left_of(bundle) == [], "the removal of what was left")


async def test_a_running_container_is_removed(
    make_bundle: Make, rootfs: Path, overlay: Mount
) -> None:
    """Demand 20: init, execs, their children, an overlay, cgroups and the runtime's state go."""
    bundle = make_bundle("sleep", "1000")
    asked = request(bundle, rootfs, overlay)
    async with doomed(bundle) as shim:
        init = await shim.create(asked)
        await shim.start()
        spec = exec_spec("sh", "-c", "sleep 1000 & sleep 1000 & wait")
        await shim.exec(spec, bundle.stdio("exec"))
        await until(lambda: len(pids_of(bundle)) == 4, "the exec's children")
        pids = pids_of(bundle)
        assert init in pids
        await kill_keeper(shim)
    assert all(map(is_alive, pids))
    await cleans_up_and_serves(bundle, asked)
    assert not any(map(is_alive, pids))


def pids_of(bundle: Bundle) -> list[int]:
    """The processes in the container's cgroups."""
    files = [Path(folder, "cgroup.procs") for folder in cgroups_of(bundle)]
    return sorted({int(line) for file in files for line in file.read_text().split()})


async def test_a_paused_container_is_removed(
    make_bundle: Make, rootfs: Path, overlay: Mount
) -> None:
    """Demand 20: the frozen do not even die of SIGKILL."""
    bundle = make_bundle("sleep", "1000")
    asked = request(bundle, rootfs, overlay)
    async with doomed(bundle) as shim:
        init = await shim.create(asked)
        await shim.start()
        await shim.pause()
        await kill_keeper(shim)
    await cleans_up_and_serves(bundle, asked)
    assert not is_alive(init)


async def test_a_stopped_container_is_removed(
    make_bundle: Make, rootfs: Path, overlay: Mount
) -> None:
    """Demand 20: the keeper dies between the container's end and its Delete."""
    bundle = make_bundle("sleep", "1000")
    asked = request(bundle, rootfs, overlay)
    async with doomed(bundle) as shim:
        init = await shim.create(asked)
        await shim.start()
        await shim.kill(signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{init}").exists(), "the container's end")
        await kill_keeper(shim)
    await cleans_up_and_serves(bundle, asked)


async def test_clients_are_told(make_bundle: Make) -> None:
    """Demand 20: readers of events and calls under way get Unavailable at once."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "pause")
    async with doomed(bundle) as shim:
        await shim.create(bundle.request(runtime=str(gate.path)))
        await shim.start()
        async with shim.events() as stream:
            for _ in range(2):
                await anext(stream)
            call = asyncio.create_task(shim.pause())
            await gate.reached()
            await kill_keeper(shim)
            for waiting in (call, anext(stream)):
                with pytest.raises(Unavailable):
                    await asyncio.wait_for(waiting, 5)
    async with serving(bundle):
        await until(lambda: left_of(bundle) == [], "the removal of what was left")


async def test_a_hung_front_does_not_stay(make_bundle: Make) -> None:
    """Demand 20: a stopped front cannot notice its keeper's death; the kernel ends it."""
    bundle = make_bundle("sleep", "1000")
    async with doomed(bundle) as shim:
        os.kill(front_of(shim.pid), signal.SIGSTOP)
        await kill_keeper(shim)
    async with serving(bundle):
        pass


async def run(command: list[Path | str]) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, timeout=60, check=False)
    )


async def test_the_command_line_removes_what_is_left(
    make_bundle: Make, rootfs: Path, overlay: Mount
) -> None:
    """`denseshim shim delete --bundle` is a shim that comes and goes."""
    bundle = make_bundle("sleep", "1000")
    asked = request(bundle, rootfs, overlay)
    async with doomed(bundle) as shim:
        init = await shim.create(asked)
        await shim.start()
        await kill_keeper(shim)
    assert is_alive(init)
    done = await run([BESIDE / "denseshim", "shim", "delete", "--bundle", bundle.path])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert left_of(bundle) == []
    assert not is_alive(init)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_killed_around_the_runtimes_create(
    make_bundle: Make, rootfs: Path, overlay: Mount, moment: str
) -> None:
    """Demand 20: the runtime's command has not begun, or has ended and nobody knows."""
    bundle = make_bundle("sleep", "1000")
    gate = Gate(bundle.path, "create", moment)
    asked = request(bundle, rootfs, overlay, str(gate.path))
    async with doomed(bundle) as shim:
        call = asyncio.create_task(shim.create(asked))
        await gate.reached()
        await kill_keeper(shim)
        with pytest.raises(Unavailable):
            await call
    gate.open()
    await cleans_up_and_serves(bundle, asked)


async def test_killed_in_the_middle_of_the_runtimes_create(
    make_bundle: Make, rootfs: Path, overlay: Mount
) -> None:
    """Demand 20: the runtime dies with the keeper, before it has written what it has made."""
    bundle = make_bundle("sleep", "1000")
    asked = request(bundle, rootfs, overlay)
    with hook(bundle) as reached:
        async with doomed(bundle) as shim:
            call = asyncio.create_task(shim.create(asked))
            await until(reached.exists, "the hook")
            pids = pids_of(bundle)
            assert pids
            await kill_keeper(shim)
            with pytest.raises(Unavailable):
                await call
    await until(lambda: not any(map(is_alive, pids)), "the end of the runtime's init")
    await cleans_up_and_serves(bundle, asked)


@contextlib.contextmanager
def hook(bundle: Bundle) -> Iterator[Path]:
    """A hook in which the runtime's create stays until the end of the block."""
    reached, opened = bundle.path / "hook.reached", bundle.path / "hook.opened"
    script = f": > {reached}; until [ -e {opened} ]; do sleep 0.01; done"
    path = bundle.path / "config.json"
    config = json.loads(path.read_text())
    row = {"path": shutil.which("sh"), "args": ["sh", "-c", script]}
    config["hooks"] = {"createRuntime": [row]}
    path.write_text(json.dumps(config))
    try:
        yield reached
    finally:
        opened.touch()


async def test_killed_while_output_flows(make_bundle: Make) -> None:
    """Demand 20: the reader comes to an end, and gets no byte that was not written."""
    bundle = make_bundle("sh", "-c", "while :; do echo 0123456789; done")
    async with doomed(bundle) as shim:
        with Reader(bundle.fifo("stdout")) as reader:
            await shim.create(bundle.request(stdout=True))
            await shim.start()
            found = await reader.until(b"\n")
            result = asyncio.create_task(reader.rest())
            await kill_keeper(shim)
            found += await result
    lines = found.split(b"\n")
    assert set(lines[:-1]) == {b"0123456789"}
    assert b"0123456789".startswith(lines[-1])
    async with serving(bundle):
        await until(lambda: left_of(bundle) == [], "the removal of what was left")


async def test_a_second_shim_on_a_living_ones_bundle_is_refused(make_bundle: Make) -> None:
    """What is not dead is not cleaned up."""
    bundle = make_bundle("sleep", "1000")
    async with serving(bundle) as (shim, _):
        pid = await shim.create(bundle.request())
        done = await run([BESIDE / "denseshim", "shim", "delete", "--bundle", bundle.path])
        assert done.returncode == 1
        assert b"a shim is alive in" in done.stderr
        assert (await shim.state()).pid == pid
