"""The end of a logging program whose keeper has died."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from shim.service import logger
from shim.service.logger import Identity, end_left

DEAF = "trap '' TERM; echo; exec sleep 1000"


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "END_PAUSE", 0.1)
    monkeypatch.setattr(logger, "TERM_LIMIT", 0.1)


@pytest.fixture
def program(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sh", "-c", request.param], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        yield process
        process.kill()


def identity(process: subprocess.Popen[bytes]) -> Identity:
    return Identity(process.pid, logger._began(process.pid))


@pytest.mark.parametrize(
    ("program", "ended"),
    [
        ("exit 3", 3),
        ("echo; exec sleep 1000", -signal.SIGTERM),
        (DEAF, -signal.SIGKILL),
    ],
    indirect=["program"],
)
async def test_how_it_ends(program: subprocess.Popen[bytes], ended: int) -> None:
    await end_left(identity(program))
    assert program.wait() == ended


@pytest.mark.parametrize("program", [DEAF], indirect=True)
async def test_another_process_with_its_pid_is_spared(program: subprocess.Popen[bytes]) -> None:
    pid, began = identity(program)
    await end_left(Identity(pid, began - 1))
    assert program.poll() is None


@pytest.mark.parametrize("program", ["exit 0"], indirect=True)
async def test_one_that_is_gone(program: subprocess.Popen[bytes]) -> None:
    left = identity(program)
    program.wait()
    await end_left(left)
    await end_left(Identity())  # there never was one
