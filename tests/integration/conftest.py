"""What the tests against a real runtime share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.oci.busybox import make_rootfs
from tests.integration.support import Bundle


@pytest.fixture(scope="session", autouse=True)
def _runtime() -> None:
    """Missing what can be installed is a failure, not a reason to skip."""
    assert shutil.which("runc"), "runc is missing: run `make system`"


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root file system of busybox for all containers."""
    path = tmp_path_factory.mktemp("busybox") / "rootfs"
    path.mkdir()
    make_rootfs(path)
    return path


@pytest.fixture
def make_bundle(tmp_path: Path, rootfs: Path) -> Callable[..., Bundle]:
    """Makes bundles: make_bundle("sh", "-c", "…", terminal=False)."""
    made = []

    def make(*command: str, terminal: bool = False) -> Bundle:
        made.append(Bundle.make(tmp_path / f"bundle{len(made)}", rootfs, command, terminal))
        return made[-1]

    return make
