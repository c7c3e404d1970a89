"""A containerd for each test module, and what a test under it may not leave behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containerd.containerd import Containerd, finish
from tests.containerd.guard import HERE, inside, nothing_left
from tests.containerd.machine import machine
from tests.containerd.rootfs import Rootfs
from tests.containerd.support import PRODUCT, RUNTIME, shim_binary, until

# Where the environment that runs the tests has its programs: the product is among them.
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Missing what can be installed is a failure, not a reason to skip."""
    where = f"{PROGRAMS}:{os.environ['PATH']}"
    for name in ("containerd", "ctr", "dockerd", "docker", "runc", shim_binary(RUNTIME)):
        assert shutil.which(name, path=where), f"{name} is missing: run `make test`"


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Rootfs:
    """Busybox, for all containers."""
    return Rootfs(tmp_path_factory.mktemp("busybox"))


@pytest.fixture(scope="module")
def search_path() -> tuple[Path, ...]:
    """The directories that containerd looks for shims in, before those of PATH."""
    return (PROGRAMS,)


@pytest.fixture(scope="module")
def containerd(
    tmp_path_factory: pytest.TempPathFactory, rootfs: Rootfs, search_path: tuple[Path, ...]
) -> Iterator[Containerd]:
    """A containerd for all tests of a module; they leave it running."""
    with serving(tmp_path_factory.mktemp("containerd"), rootfs, search_path) as daemon:
        yield daemon


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """In the place of the other tests' guard: shims here are the machines'."""
    with nothing_left(HERE):
        yield


@pytest.fixture
def own_containerd(
    tmp_path: Path, rootfs: Rootfs, search_path: tuple[Path, ...], clean: None
) -> Iterator[Containerd]:
    """A containerd for one test, which may kill and restart it, and its shims."""
    with serving(tmp_path, rootfs, search_path) as daemon, nothing_left(inside(daemon)):
        yield daemon


@contextlib.contextmanager
def serving(folder: Path, rootfs: Rootfs, search_path: tuple[Path, ...]) -> Iterator[Containerd]:
    """A containerd in a machine of its own, under which a container has run."""
    with machine() as room:
        daemon = Containerd(room, folder, rootfs, search_path)
        daemon.start()
        try:
            first = daemon.run("true")
            assert first.returncode == 0, first.stderr.decode()
            yield daemon
            daemon.remove_all()
        finally:
            daemon.stop()
            end_shims(daemon)
            remove_cgroups(daemon.namespace)


def end_shims(daemon: Containerd) -> None:
    """Wait until no shim runs any more: without containers none has a reason to.

    The product's stays for the next one, until it is asked to end, and refuses if it has any left.
    """
    try:
        if RUNTIME == PRODUCT:
            stop = finish(daemon.machine.inside(str(PROGRAMS / "denseshim"), "host", "--stop"))
            assert stop.returncode == 0, stop.stderr.decode()
        until(lambda: not daemon.shims(), "the shims end")
    finally:
        for pid in daemon.shims():
            os.kill(pid, signal.SIGKILL)


def remove_cgroups(name: str) -> None:
    """Remove the empty cgroups that a container's path leaves above it, in all hierarchies."""
    for path in Path("/sys/fs/cgroup").glob(f"*/{name}"):
        path.rmdir()


@pytest.fixture(autouse=True)
def clean_machine(containerd: Containerd, clean: None) -> Iterator[None]:
    """No test may leave a process, socket, FIFO, mount, bundle or state behind."""
    with nothing_left(inside(containerd)):
        yield
