import array
import asyncio
import os
import socket
import stat

import pytest

from shim.console import ConsoleSocket
from shim.errors import FailedPrecondition, InvalidArgument, RuntimeFailed


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "console"


@pytest.fixture
def pty():
    ends = os.openpty()
    yield ends
    for end in ends:
        os.close(end)


def send(path, descriptors, text=b"/dev/ptmx"):
    """What a runtime does."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
        passed = array.array("i", descriptors)
        client.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])


async def test_the_master_arrives_non_blocking_and_not_inherited(path, pty):
    async with ConsoleSocket(path) as console:
        send(path, pty[:1])
        master = await console.receive()
    try:
        assert os.get_blocking(master) is False
        assert os.get_inheritable(master) is False
        os.write(pty[1], b"hello")
        assert os.read(master, 100) == b"hello"
    finally:
        os.close(master)


async def test_waits_for_a_runtime_that_is_slow(path, pty):
    async with ConsoleSocket(path) as console:
        task = asyncio.create_task(console.receive())
        await asyncio.sleep(0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            await asyncio.sleep(0)
            assert not task.done()
            socket.send_fds(client, [b"x"], pty[:1])
            os.close(await task)


async def test_only_root_may_connect_and_the_path_goes_away(path):
    before = open_descriptors()
    async with ConsoleSocket(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    assert open_descriptors() == before


async def test_waiting_can_be_given_up(path):
    async with ConsoleSocket(path) as console:
        before = open_descriptors()
        task = asyncio.create_task(console.receive())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert open_descriptors() == before
        assert not asyncio.get_running_loop().remove_reader(console._listener)


@pytest.mark.parametrize(
    ("kinds", "complaint"),
    [
        ("", "0 descriptors"),
        ("mm", "2 descriptors"),
        ("m" * 16, "16 descriptors"),
        ("m" * 40, "cut off"),
        ("s", "no terminal's master"),
        ("f", "no terminal's master"),
    ],
)
async def test_anything_but_one_master_is_refused_and_closed(path, pty, kinds, complaint):
    async with ConsoleSocket(path) as console:
        sources = {"m": pty[0], "s": pty[1], "f": console._listener.fileno()}
        before = open_descriptors()
        send(path, [sources[kind] for kind in kinds])
        with pytest.raises(RuntimeFailed, match=complaint):
            await console.receive()
        assert open_descriptors() == before


async def test_a_runtime_that_closes_without_a_terminal(path):
    async with ConsoleSocket(path) as console:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
        with pytest.raises(RuntimeFailed, match="without a terminal"):
            await console.receive()


async def test_a_path_that_is_too_long_is_refused(tmp_path):
    for length, error in ((107, None), (108, InvalidArgument)):
        path = tmp_path / ("x" * (length - len(os.fsencode(tmp_path)) - 1))
        if error is None:
            async with ConsoleSocket(path):
                assert path.exists()
        else:
            with pytest.raises(error, match="108 bytes"):
                await ConsoleSocket(path).__aenter__()


async def test_a_path_that_exists_is_refused_and_stays(path):
    path.touch()
    before = open_descriptors()
    with pytest.raises(FailedPrecondition, match=str(path)):
        await ConsoleSocket(path).__aenter__()
    assert path.exists()
    assert open_descriptors() == before
