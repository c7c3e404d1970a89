"""A real host with a real runtime in a machine of its own, without containerd."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from shim.oci.busybox import make_rootfs
from tests.standalone.support import Api, StandaloneNode


@pytest.fixture(scope="session", autouse=True)
def _runtime() -> None:
    """Missing what can be installed is a failure, not a reason to skip."""
    assert shutil.which("runc"), "runc is missing: run `make system`"


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root file system of busybox, to be imported."""
    path = tmp_path_factory.mktemp("busybox") / "rootfs"
    path.mkdir()
    make_rootfs(path)
    return path


@pytest.fixture
def node() -> Iterator[StandaloneNode]:
    """A machine without a host yet: `start` one, or let a program do it."""
    made = StandaloneNode()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
async def api(node: StandaloneNode) -> AsyncIterator[Api]:
    """A client of a host on `node` that serves containers."""
    async with Api(node.start().serve()) as client:
        yield client


@pytest.fixture
async def image(api: Api, rootfs: Path) -> str:
    """The name of a committed snapshot of busybox on the host of `api`."""
    await api.import_path("busybox", rootfs)
    return "busybox"


@pytest.fixture
def new_id() -> Callable[[], str]:
    """Makes ids of containers, which are cgroups on this machine."""
    numbers = itertools.count()
    return lambda: f"denseshim-test-{os.getpid()}-s{next(numbers)}"
