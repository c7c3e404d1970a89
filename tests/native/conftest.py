"""Fixtures of the native tests: a keeper for each test, and the program it starts."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.keeper.records import Flag
from tests.native import harness
from tests.native.frames import Host, listening
from tests.native.harness import Front, Keeper
from tests.native.support import build_program


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A keeper, which must end in good order after the test."""
    with harness.keeper() as made:
        yield made


@pytest.fixture
def front(keeper: Keeper) -> Front:
    """The keeper's first front: the test."""
    return keeper.front


@pytest.fixture
def host() -> Iterator[Host]:
    """A keeper that callers can speak ttrpc to; its front does not serve yet."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with (
            listening(Path(folder, "group")) as group,
            listening(Path(folder, "door")) as door,
            harness.keeper(
                (group.fileno(), Flag.FRAMES), (door.fileno(), Flag.FRAMES | Flag.DOOR)
            ) as made,
        ):
            yield Host(made, Path(folder))


@pytest.fixture
def target(host: Host) -> Iterator[int]:
    """The id of a process that can be signalled."""
    id = 1 << 32
    pid = host.front.spawn(id, "/bin/sleep", "1000").pid
    yield id
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that starts fast and ends as its arguments say, see `support.PROGRAM`."""
    return build_program(tmp_path_factory.mktemp("tiny"))
