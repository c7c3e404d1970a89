"""Upgrade in place, under containerd: another version takes over, or shows that it cannot."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shim
from shim._pb.containerd.task.v3.task_pb2 import WaitRequest, WaitResponse
from tests.containerd.conftest import PROGRAMS, serving
from tests.containerd.containerd import Container, Containerd, finish
from tests.containerd.guard import inside, nothing_left
from tests.containerd.rootfs import Rootfs
from tests.containerd.support import client, until
from tests.containerd.ttrpc import ShimCaller

PACKAGE = Path(shim.__file__).parent
DENSESHIM = "from shim.cli import main; main()"
MEBIBYTE = 1 << 20


class Version:
    """Another version, installed beside the one under test."""

    def __init__(self, folder: Path, number: str) -> None:
        self.number = number
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.python = folder / "venv" / "bin" / "python3"
        self.package = folder / "src" / "shim"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        (self.package / "__init__.py").write_text(f'"""denseshim."""\n\n__version__ = "{number}"\n')
        libraries = "\n".join([str(self.package.parent), *site.getsitepackages()])
        (packages,) = (folder / "venv").glob("lib/python*/site-packages")
        (packages / "version.pth").write_text(f"{libraries}\n")

    def upgrade(self, daemon: Containerd) -> subprocess.CompletedProcess[bytes]:
        """What `denseshim upgrade` of this version does."""
        line = daemon.machine.inside(str(self.python), "-I", "-c", DENSESHIM, "upgrade")
        return finish(line)


@pytest.fixture
def own_containerd(
    tmp_path: Path, rootfs: Rootfs, search_path: tuple[Path, ...], clean: None
) -> Iterator[Containerd]:
    """A containerd for one test, whose host has another command line afterwards."""
    folder = tmp_path / "containerd"
    folder.mkdir()
    with serving(folder, rootfs, search_path) as daemon:
        looks = {kind: look for kind, look in inside(daemon).items() if kind != "shims"}
        with nothing_left(looks):
            yield daemon


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return Version(tmp_path / "next", "99.0")


def status(daemon: Containerd) -> dict[str, Any]:
    """What the host says of itself."""
    line = daemon.machine.inside(str(PROGRAMS / "denseshim"), "host", "--status", "--json")
    done = finish(line)
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(done.stdout))


@pytest.fixture
def sleeper(containerd: Containerd) -> Iterator[Container]:
    with containerd.living() as container:
        yield container


def test_another_version_takes_over(own_containerd: Containerd, version: Version) -> None:
    """The keeper stays the same process, and containerd does not notice."""
    with own_containerd.living() as sleeper:
        before = status(own_containerd)
        done = version.upgrade(own_containerd)
        assert done.returncode == 0, done.stderr.decode()
        assert version.number in done.stdout.decode()
        after = status(own_containerd)
        assert after["version"] == version.number
        assert after["keeper_pid"] == before["keeper_pid"]
        assert after["front_pid"] != before["front_pid"]
        assert sleeper.status == "RUNNING"
        assert sleeper.exec("echo", "still here").stdout == b"still here\n"
    assert own_containerd.run("true").returncode == 0
    assert "cleaning up after shim disconnected" not in _log_of(own_containerd, sleeper.id, 1)


def _log_of(daemon: Containerd, id: str, deletions: int) -> str:
    """What containerd logged of a container beyond its own deletion."""
    lines = [line for line in daemon.log.splitlines() if id in line and "disconnected" in line]
    return "\n".join(lines[2 * deletions :])


def test_output_and_waits_go_on(
    own_containerd: Containerd, version: Version, tmp_path: Path
) -> None:
    """During 1 GiB of output, with 50 calls of Wait pending."""
    daemon = own_containerd
    size = 1024 * MEBIBYTE
    line = daemon.run_line(
        "denseshim-output", "dd", "if=/dev/zero", "bs=65536", f"count={size // 65536}",
        options=["--rm"],
    )  # fmt: skip
    with daemon.living() as waited, _waiting(daemon, waited, 50) as callers, client(line) as run:
        assert run.stdout is not None
        received = len(run.stdout.read(MEBIBYTE))
        for _ in range(3):
            assert version.upgrade(daemon).returncode == 0
            received += len(run.stdout.read(MEBIBYTE))
        while chunk := run.stdout.read(MEBIBYTE):
            received += len(chunk)
        assert run.wait() == 0
        assert received == size
        assert waited.kill("TERM").returncode == 0
        assert waited.kill("KILL").returncode == 0
        answers = [caller.answer() for caller in callers]
    statuses = [WaitResponse.FromString(answer.payload).exit_status for answer in answers]
    assert statuses == [137] * 50


class _waiting:
    """Pending calls of Wait for a container, each on a connection of its own."""

    def __init__(self, daemon: Containerd, container: Container, count: int) -> None:
        path = daemon.machine.root / "run/containerd/s"
        (socket,) = path.iterdir()
        self._callers = [ShimCaller(socket) for _ in range(count)]
        for caller in self._callers:
            caller.ask("Wait", WaitRequest(id=container.id))

    def __enter__(self) -> list[ShimCaller]:
        return self._callers

    def __exit__(self, *_: object) -> None:
        for caller in self._callers:
            caller.__exit__()


def break_front(version: Version) -> None:
    (version.package / "service" / "tasks.py").write_text("import a_module_that_is_missing\n")


def break_syntax(version: Version) -> None:
    (version.package / "front.py").write_text("def main(:\n")


def break_keeper(version: Version) -> None:
    for library in version.package.glob("_keeper*.so"):
        library.write_bytes(b"no library")


def break_records(version: Version) -> None:
    path = version.package / "service" / "record.py"
    path.write_text(path.read_text().replace("namespace: str", "name_space: str"))


@pytest.mark.parametrize("damage", [break_front, break_syntax, break_keeper, break_records])
def test_a_version_that_cannot_be_loaded_changes_nothing(
    containerd: Containerd, sleeper: Container, version: Version, damage: Any
) -> None:
    """The caller learns why; the old version serves on, with all that it had."""
    before = status(containerd)
    # Asked by the command line of a whole version, on behalf of the broken one.
    whole = Version(version.package.parents[1] / "whole", "99.1")
    damage(version)
    asked = f"import sys; sys.executable = {str(version.python)!r}; {DENSESHIM}"
    line = containerd.machine.inside(str(whole.python), "-I", "-c", asked, "upgrade")
    done = finish(line)
    assert done.returncode == 1
    assert b"the running version stays" in done.stderr
    assert status(containerd) == before
    assert sleeper.exec("echo", "still here").stdout == b"still here\n"


def test_a_version_whose_front_cannot_serve_is_left_again(
    own_containerd: Containerd, version: Version
) -> None:
    """It can be loaded and reads all records, but ends before it serves: the old one is back."""
    whole = Version(version.package.parents[1] / "whole", "99.1")
    path = version.package / "front.py"
    path.write_text(path.read_text().replace("    host, held = await _begin()", "    os._exit(7)"))
    with own_containerd.living() as sleeper:
        before = status(own_containerd)
        done = version.upgrade(own_containerd)
        assert done.returncode == 1
        assert b"did not come to serve" in done.stderr
        after = status(own_containerd)
        assert after["version"] == before["version"]
        assert after["keeper_pid"] == before["keeper_pid"]
        assert sleeper.exec("echo", "still here").stdout == b"still here\n"
        assert whole.upgrade(own_containerd).returncode == 0
        assert status(own_containerd)["version"] == whole.number


def test_upgrades_while_containers_come_and_go(
    own_containerd: Containerd, version: Version
) -> None:
    """Ten in a row; every container runs to its own end."""

    def run(number: int) -> bool:
        code = number % 7 + 1
        done = own_containerd.run("sh", "-c", f"seq 1000; exit {code}")
        return done.returncode == code and done.stdout.count(b"\n") == 1000

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(run, number) for number in range(40)]
        for _ in range(10):
            done = version.upgrade(own_containerd)
            assert done.returncode == 0, done.stderr.decode()
        assert all(future.result() for future in runs)
    until(lambda: status(own_containerd)["containers"] == 0, "all are deleted")
