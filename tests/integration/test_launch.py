"""containerd-shim-dense as the daemon of 2017 launches it (contract: How the daemon launches)."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.client import ShimClient
from shim.errors import FailedPrecondition
from shim.launch import state_directory
from shim.model import Mount, Status
from shim.pair import STATE
from tests.fakes.daemon import SHIM, Launched, launched, living
from tests.integration.support import PATIENCE, Bundle, front_of, is_alive, until

DIAL_S = 2.0  # what the grpc-go of 2017 gives a connection


def end(shim: Launched) -> int:
    return shim.process.wait(PATIENCE)


def run(bundle: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The shim without a daemon; it must refuse."""
    line = [SHIM, "--dedicated", *args]
    return subprocess.run(
        line, cwd=bundle, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def one_line(text: str) -> bool:
    return text.startswith("containerd-shim-dense: ") and text.count("\n") == 1


def test_a_dial_before_the_front_is_up_is_answered_in_time(tmp_path: Path) -> None:
    """HTTP/2's preface is answered by the server's settings; nothing is refused meanwhile."""
    shim = Launched(tmp_path)
    try:
        began = time.monotonic()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DIAL_S)
            client.connect(str(shim.socket))
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            head = client.recv(9)
        assert head[3] == 4  # SETTINGS
        assert time.monotonic() - began < DIAL_S
        shim.process.terminate()
        assert end(shim) == 0
    finally:
        shim.close()


async def test_the_daemon_s_launch(
    tmp_path: Path, make_bundle: Callable[..., Bundle], rootfs: Path
) -> None:
    """Its own process group and mounts: nothing of them is seen outside."""
    bundle = make_bundle("sleep", "1000")
    target = str(bundle.path / "rootfs")
    request = bundle.request(rootfs=[Mount("bind", str(rootfs), "", ("rbind",))])
    with launched(bundle.path) as shim:
        assert os.getpgid(shim.process.pid) == shim.process.pid != os.getpgid(0)
        assert propagations(shim.process.pid) == set()
        async with living(shim.socket, request) as container:
            assert (await container.shim.state()).status is Status.RUNNING
            assert target in shim.mounts()
            assert target not in here()
        assert shim.log() == ""


def propagations(pid: int) -> set[str]:
    """The tags of mounts that pass on what is mounted."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    tags = {word for line in lines for word in line.split(" - ")[0].split()[6:]}
    return {tag for tag in tags if tag.startswith("shared:")}


def here() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_the_root_is_made_a_slave_of_a_shared_one(tmp_path: Path) -> None:
    """As on hosts of systemd, where everything is shared at first."""
    unshare = "unshare --mount --propagation unchanged"
    inner = f'mount --make-rshared /; exec {unshare} {SHIM} --dedicated "$@"'
    path = tmp_path / "shim.sock"
    shim = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"{inner} & wait", "sh", "--socket", str(path)],
        cwd=tmp_path, process_group=0,
    )  # fmt: skip
    try:
        wait_for(path.exists)
        [keeper] = [int(pid) for pid in children(shim.pid)]
        assert shared(shim.pid)
        wait_for(lambda: front_of(keeper))
        assert not shared(keeper)
        os.kill(keeper, 15)
        assert shim.wait(PATIENCE) == 0
    finally:
        shim.kill()
        shim.wait()


def shared(pid: int) -> bool:
    return bool(propagations(pid))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def wait_for(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.005)


def test_without_a_listening_socket_it_says_so(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert one_line(done.stderr)
    assert "descriptor 3" in done.stderr


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Launched]:
    """A shim as the daemon launches it."""
    with launched(tmp_path / "bundle") as shim:
        yield shim


def test_a_second_shim_on_a_bundle_is_refused(shim: Launched, tmp_path: Path) -> None:
    for bundle in (shim.bundle, tmp_path / "link"):
        if not bundle.exists():
            bundle.symlink_to(shim.bundle)
        done = run(bundle, "--socket", str(tmp_path / "second.sock"))
        assert done.returncode == 1
        assert one_line(done.stderr)
        assert "a shim is alive in" in done.stderr
        assert not (tmp_path / "second.sock").exists()


def test_a_socket_that_somebody_listens_on_is_left_alone(shim: Launched, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    done = run(other, "--socket", str(shim.socket))
    assert (done.returncode, one_line(done.stderr)) == (1, True)
    assert "somebody listens" in done.stderr


def test_a_dead_shim_s_socket_gives_way_and_ours_is_private(tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    shim = subprocess.Popen([SHIM, "--dedicated", "--socket", path], cwd=tmp_path)
    try:
        wait_for(lambda: answers(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        asyncio.run(exit_at(path))
        assert shim.wait(PATIENCE) == 0
        assert not path.exists()
    finally:
        shim.kill()
        shim.wait()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    refused = run(tmp_path, "--socket", str(path))
    assert refused.returncode == 1
    assert one_line(refused.stderr)
    assert "no socket" in refused.stderr
    assert path.read_text() == "data"


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def exit_at(path: Path) -> None:
    async with ShimClient(path) as shim:
        await shim.ready(PATIENCE)
        await shim.exit()


async def test_the_daemon_s_socket_file_stays(shim: Launched) -> None:
    """It is the daemon's; the state directory is ours, and goes."""
    state = state_directory(shim.bundle)
    assert state.parent == STATE
    await exit_at(shim.socket)
    await until(lambda: shim.process.poll() is not None, "the shim is gone")
    assert (shim.socket.exists(), state.exists()) == (True, False)


async def test_debug_tells_more(tmp_path: Path) -> None:
    with launched(tmp_path / "bundle", "--debug") as shim:
        async with ShimClient(shim.socket) as client:
            with pytest.raises(FailedPrecondition):
                await client.state()
        assert "refused: there is no container yet" in shim.log()


async def test_sigterm_does_not_take_a_container_away(
    shim: Launched, make_bundle: Callable[..., Bundle]
) -> None:
    async with living(shim.socket, make_bundle("sleep", "1000").request()) as container:
        shim.process.terminate()
        await until(lambda: "staying" in shim.log(), "the shim says so")
        assert is_alive(container.pid)
        assert (await container.shim.state()).status is Status.RUNNING
