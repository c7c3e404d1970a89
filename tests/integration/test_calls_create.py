"""Create: runtimes, root file systems, and nothing left of a failed one (contract: Create)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.client import ShimClient
from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RuntimeFailed,
    ShimError,
)
from shim.model import ContainerState, EventType, Mount, Status
from tests.fakes.daemon import WRAPPER, Launched, Output, launched, living
from tests.integration.support import PATIENCE, Bundle, is_alive


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """One shim for the tests of this file."""
    with launched(tmp_path_factory.mktemp("shim")) as shim:
        yield shim


@pytest.mark.parametrize("runtime", ["", "runc", shutil.which("runc"), str(WRAPPER)])
async def test_the_runtime_by_name_or_path(
    runtime: str, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("sh", "-c", "exit 3")
    async with living(daemon.socket, bundle.request(runtime=runtime), start=False) as container:
        assert is_alive(container.pid)
        state = await container.shim.state()
        assert (state.id, state.bundle) == (bundle.id, str(bundle.path))
        assert (state.pid, state.status) == (container.pid, Status.CREATED)
        await container.shim.start()
        assert (await container.events.exit(container.pid)).status == 3
        assert (await container.shim.delete(container.pid)).status == 3


def crun_works(folder: Path, rootfs: Path) -> bool:
    """Whether crun itself, without any shim, runs a container here (it refuses hybrid cgroups)."""
    bundle = Bundle.make(folder / "probe", rootfs, ["true"])
    done = subprocess.run(
        ["crun", "run", "--bundle", bundle.path, bundle.id], capture_output=True, check=False
    )
    subprocess.run(["crun", "delete", "--force", bundle.id], capture_output=True, check=False)
    return done.returncode == 0


async def test_another_runtime(
    daemon: Launched, make_bundle: Callable[..., Bundle], tmp_path: Path, rootfs: Path
) -> None:
    if not crun_works(tmp_path, rootfs):
        pytest.skip("crun by itself runs no container on this machine")
    request = make_bundle("sh", "-c", "exit 3").request(runtime="crun")
    async with living(daemon.socket, request) as container:
        assert (await container.events.exit(container.pid)).status == 3


@pytest.mark.parametrize("no_pivot", [False, True])
async def test_the_command_line(
    no_pivot: bool, daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("true")
    request = bundle.request(runtime=str(WRAPPER), no_pivot=no_pivot)
    async with living(daemon.socket, request, start=False):
        words = (bundle.path / "argv.create").read_text().splitlines()
    path = str(bundle.path)
    assert words == [
        *("--log", f"{path}/log.json", "--log-format", "json", "create"),
        *("--bundle", path, "--pid-file", f"{path}/init.pid"),
        *(["--no-pivot"] if no_pivot else []),
        bundle.id,
    ]


def mounts_here() -> str:
    return Path("/proc/self/mountinfo").read_text()


@contextlib.contextmanager
def mounted(source: Path, target: Path) -> Iterator[None]:
    """`source` bound to `target` by somebody who is not the shim."""
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def bound(source: Path, *options: str) -> Mount:
    return Mount("bind", str(source), "", ("bind", *options))


def mountable(make_bundle: Callable[..., Bundle], script: str) -> Bundle:
    """A bundle whose root is BUNDLE/rootfs, which is to be mounted."""
    bundle = make_bundle("sh", "-c", script)
    config = bundle.path / "config.json"
    text = config.read_text()
    root = text.partition('"root": {"path": "')[2].partition('"')[0]
    config.write_text(text.replace(f'"path": "{root}"', '"path": "rootfs"'))
    return bundle


async def test_an_overlay_is_the_root_until_delete(
    daemon: Launched, make_bundle: Callable[..., Bundle], tmp_path: Path, rootfs: Path
) -> None:
    """As containerd's snapshots are. Nobody outside the shim's namespace sees the mount."""
    disk = tmp_path / "disk"
    for name in ("lower", "upper", "work"):
        (disk / name).mkdir(parents=True)
    (disk / "lower" / "mark").write_text("from the layer\n")
    overlay = Mount(
        "overlay", "overlay", "",
        (f"lowerdir={disk}/lower:{rootfs}", f"upperdir={disk}/upper", f"workdir={disk}/work"),
    )  # fmt: skip
    bundle = mountable(make_bundle, "cat /mark; echo mine > /written")
    request = bundle.request(stdout=True, rootfs=[overlay])
    target = str(bundle.path / "rootfs")
    with Output(request.stdio.stdout) as output:
        async with living(daemon.socket, request) as container:
            assert await output.to_end() == b"from the layer\n"
            assert daemon.mounts().count(target) == 1
            assert target not in mounts_here()
            await container.events.exit(container.pid)
            await container.shim.delete()
            assert target not in daemon.mounts()
    assert (disk / "upper" / "written").read_text() == "mine\n"


async def test_a_read_only_bind(
    daemon: Launched, make_bundle: Callable[..., Bundle], rootfs: Path
) -> None:
    bundle = mountable(make_bundle, "touch /written 2>/dev/null && exit 5; exit 6")
    request = bundle.request(rootfs=[bound(rootfs, "ro")])
    async with living(daemon.socket, request) as container:
        assert (await container.events.exit(container.pid)).status == 6
    assert not (rootfs / "written").exists()


async def test_mounts_are_made_in_order(
    daemon: Launched, make_bundle: Callable[..., Bundle], tmp_path: Path, rootfs: Path
) -> None:
    bundle = mountable(make_bundle, "exit 0")
    request = bundle.request(rootfs=[bound(tmp_path), bound(rootfs)])
    target = str(bundle.path / "rootfs")
    async with living(daemon.socket, request) as container:
        assert daemon.mounts().count(target) == 2
        assert (await container.events.exit(container.pid)).status == 0
    assert target not in daemon.mounts()


async def test_nothing_is_left_of_a_create_that_the_runtime_refuses(
    daemon: Launched, make_bundle: Callable[..., Bundle], rootfs: Path
) -> None:
    """Mounts, the runtime's container, events: none. The same shim then creates."""
    bundle = mountable(make_bundle, "true")
    config = bundle.path / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"args": ["sh"', '"args": ["/no/such/program"'))
    request = bundle.request(stdout=True, rootfs=[bound(rootfs)])
    async with ShimClient(daemon.socket) as shim:
        with pytest.raises(RuntimeFailed, match="/no/such/program"):
            await shim.create(request)
        with pytest.raises(ShimError):
            await shim.state()
    assert str(bundle.path / "rootfs") not in daemon.mounts()
    assert not (bundle.path / "init.pid").exists()
    config.write_text(whole)
    async with living(daemon.socket, request) as container:
        assert (await container.events.exit(container.pid)).status == 0
        assert container.events.of(container.pid)[0] is EventType.CREATE
        assert len({event.pid for event in container.events.seen if event.id == bundle.id}) == 1


async def test_a_failing_mount_takes_back_those_before_it(
    daemon: Launched, make_bundle: Callable[..., Bundle], tmp_path: Path, rootfs: Path
) -> None:
    bundle = mountable(make_bundle, "true")
    async with ShimClient(daemon.socket) as shim:
        with pytest.raises(InvalidArgument, match="no-such-directory"):
            await shim.create(
                bundle.request(rootfs=[bound(rootfs), bound(tmp_path / "no-such-directory")])
            )
    assert str(bundle.path / "rootfs") not in daemon.mounts()
    async with living(daemon.socket, bundle.request(rootfs=[bound(rootfs)])) as container:
        assert (await container.events.exit(container.pid)).status == 0


async def test_a_create_that_fails_before_it_mounts_unmounts_nothing(
    make_bundle: Callable[..., Bundle], tmp_path: Path, rootfs: Path
) -> None:
    """What somebody else has mounted on the root file system's directory is theirs."""
    bundle = mountable(make_bundle, "true")
    target = bundle.path / "rootfs"
    request = bundle.request(rootfs=[bound(rootfs)], stdout=True)
    os.unlink(request.stdio.stdout)
    with mounted(rootfs, target), launched(tmp_path / "shim") as fresh:
        async with ShimClient(fresh.socket) as shim:
            with pytest.raises(InvalidArgument, match="stdout"):
                await shim.create(request)
        assert fresh.mounts().count(str(target)) == 1


async def test_an_id_that_the_runtime_has_elsewhere(
    daemon: Launched, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """ALREADY_EXISTS, and the other one, which is not ours, lives on."""
    first, second = make_bundle("sleep", "1000"), make_bundle("true")
    second.id = first.id
    async with living(daemon.socket, first.request()) as container:
        with launched(tmp_path / "other") as other:
            async with ShimClient(other.socket) as shim:
                with pytest.raises(AlreadyExists, match="given ID already exists"):
                    await shim.create(second.request())
        assert (await container.shim.state()).status is Status.RUNNING
        assert is_alive(container.pid)


async def test_a_create_outlives_its_caller(
    daemon: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    """A daemon that dies in mid-Create finds the container when it dials again."""
    bundle = make_bundle("sleep", "1000")
    (bundle.path / "behaviour.create").write_text(
        ': >"$bundle/reached"; until [ -e "$bundle/gate" ]; do sleep 0.01; done'
    )
    async with ShimClient(daemon.socket) as shim:
        with pytest.raises(ShimError):
            await shim.create(bundle.request(runtime=str(WRAPPER)), timeout=1.0)
    assert (bundle.path / "reached").exists()
    (bundle.path / "gate").touch()
    async with ShimClient(daemon.socket) as shim:
        assert (await created(shim)).status is Status.CREATED
        await shim.delete()
        with pytest.raises(NotFound):
            await shim.state()


async def created(shim: ShimClient) -> ContainerState:
    """The container's state, once Create has ended."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(FailedPrecondition):
                return await shim.state()
