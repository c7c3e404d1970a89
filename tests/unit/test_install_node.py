"""packaging/install-node, with directories of its own, a small wheel and daemons that are none."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging" / "install-node"
PATIENCE = 300.0
DENSE = {"runtime_type": "io.containerd.dense.v2"}
RUNC = {"runtime_type": "io.containerd.runc.v2"}
CRI_V2 = "io.containerd.grpc.v1.cri"
CRI_V3 = "io.containerd.cri.v1.runtime"

# Outside /run is as it is; inside there is no shim, and systemd where `systemd` is a word of $0.
_ROOM = """
mount -t tmpfs none /run
case $0 in *systemd*) mkdir -p /run/systemd/system ;; esac
exec "$@"
"""
# A host is there as long as the file is.
_PROGRAM = """#!python
import os, sys
host = os.environ["FAKE_HOST"]
if sys.argv[1:] == ["--version"]:
    print("denseshim, version {version}")
elif sys.argv[1:] == ["host", "--status"]:
    sys.exit(not os.path.exists(host))
elif sys.argv[1:] == ["host", "--stop"]:
    if open(host).read() != "empty":
        sys.exit("3 containers live here")
    os.unlink(host)
else:
    sys.exit(2)
"""
_DEBIAN = """version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
"""


def make_wheel(folder: Path, version: str, programs: Sequence[str] = ()) -> Path:
    """A wheel of the product's name that has but the programs."""
    wheel = folder / f"denseshim-{version}-py3-none-any.whl"
    info = f"denseshim-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: denseshim\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    for name in programs or ("denseshim", "containerd-shim-dense-v2"):
        text = _PROGRAM.format(version=version)
        files[f"denseshim-{version}.data/scripts/{name}"] = text
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFREG | 0o755) << 16
            archive.writestr(entry, text)
    return wheel


class Node:
    """Where the script installs to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefix, self.bin, self.units = (folder / name for name in ("opt", "bin", "units"))
        self.config = folder / "containerd/config.toml"
        self.unit = self.units / "denseshim.service"
        self.host = folder / "host"
        self.calls = folder / "calls"
        self.fakes = folder / "fakes"
        self.fakes.mkdir(parents=True)
        self.fake("systemctl", f'echo "$@" >>{self.calls}')
        self.fake("containerd", "exit 0")

    def fake(self, name: str, body: str) -> None:
        """A program that comes first on PATH."""
        path = self.fakes / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def environment(self) -> Mapping[str, str]:
        return {
            "PATH": f"{self.fakes}:{os.environ['PATH']}",
            "PREFIX": str(self.prefix),
            "BIN": str(self.bin),
            "UNITS": str(self.units),
            "CONFIG": str(self.config),
            "PYTHON": sys.executable,
            "FAKE_HOST": str(self.host),
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }

    def run(
        self, *arguments: str | Path, room: str = "room"
    ) -> subprocess.CompletedProcess[str]:
        """Run the script to its end, whatever its status."""
        place = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ROOM, room]
        return subprocess.run(
            [*place, SCRIPT, *arguments],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def do(self, *arguments: str | Path, room: str = "room") -> str:
        """What the script prints; it must succeed."""
        done = self.run(*arguments, room=room)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *arguments: str | Path) -> str:
        """Why the script does nothing."""
        done = self.run(*arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    def versions(self) -> set[Path]:
        """The directories with environments."""
        if not self.prefix.exists():
            return set()
        return {path for path in self.prefix.iterdir() if not path.is_symlink()}

    def configure(self, text: str) -> None:
        """Write containerd's configuration."""
        self.config.parent.mkdir(exist_ok=True)
        self.config.write_text(text)

    def runtimes(self, section: str) -> object:
        """Those in containerd's configuration."""
        found = tomllib.loads(self.config.read_text())
        return found["plugins"][section]["containerd"]["runtimes"]

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything below the folder but the fakes, by inode number and time of change."""
        found = (
            Path(folder, name)
            for folder, folders, names in os.walk(self.folder)
            for name in (*folders, *names)
            if "__pycache__" not in folder and name != "__pycache__"
        )
        return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("wheel"), "1.0")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Node:
    """A node on which the package is installed."""
    made = Node(tmp_path_factory.mktemp("shared") / "node")
    made.do("--wheel", wheel)
    return made


@pytest.fixture
def configured(shared: Node, tmp_path: Path) -> Node:
    """The same with a configuration of containerd's for one test."""
    shared.config = tmp_path / "containerd/config.toml"
    shared.fake("containerd", "exit 0")
    return shared


def version_of(node: Node) -> str:
    """What the program that is linked to calls itself."""
    program = [node.bin / "denseshim", "--version"]
    return subprocess.check_output(program, text=True, env=node.environment()).strip()


# -- installing


def test_a_node_gets_environment_links_and_unit(node: Node, wheel: Path) -> None:
    node.do("--wheel", wheel, room="with systemd")
    (place,) = node.versions()
    for name in ("denseshim", "containerd-shim-dense-v2"):
        assert (node.bin / name).resolve() == place / "bin" / name
    assert version_of(node) == "denseshim, version 1.0"
    unit = node.unit.read_text()
    assert re.findall("^ExecStart=(.*)$", unit, re.M) == [f"{node.bin}/denseshim host"]
    assert re.findall("^KillMode=(.*)$", unit, re.M) == ["process"]
    assert node.calls.read_text().splitlines() == [
        "daemon-reload",
        "enable --quiet denseshim.service",
    ]


def test_a_second_time_changes_nothing(shared: Node, wheel: Path) -> None:
    before = shared.files()
    assert "is there already" in shared.do("--wheel", wheel)
    assert shared.files() == before


def test_without_systemd_nobody_asks_it(shared: Node) -> None:
    assert shared.unit.exists()
    assert not shared.calls.exists()


def test_another_version_takes_the_place_of_one_that_nobody_uses(
    node: Node, wheel: Path, tmp_path: Path
) -> None:
    node.do("--wheel", wheel)
    (old,) = node.versions()
    with subprocess.Popen([old / "bin/python3", "-c", "input()"], stdin=subprocess.PIPE) as user:
        node.do("--wheel", make_wheel(tmp_path, "1.1"))
        assert version_of(node) == "denseshim, version 1.1"
        assert old in node.versions()
        assert len(node.versions()) == 2
        assert user.stdin is not None
        user.stdin.close()
    node.do("--wheel", make_wheel(tmp_path, "1.1"))
    assert old not in node.versions()


def test_a_package_that_does_not_fit_leaves_what_is_there(
    node: Node, wheel: Path, tmp_path: Path
) -> None:
    node.do("--wheel", wheel)
    before = node.versions()
    broken = make_wheel(tmp_path, "1.1", programs=["denseshim"])
    assert "no containerd-shim-dense-v2" in node.refused("--wheel", broken)
    assert node.versions() == before
    assert version_of(node) == "denseshim, version 1.0"


def test_what_was_cut_off_is_no_installation(node: Node, wheel: Path) -> None:
    node.do("--wheel", wheel)
    (place,) = node.versions()
    (place / ".denseshim-version").unlink()
    (place / "bin/denseshim").unlink()
    node.do("--wheel", wheel)
    assert version_of(node) == "denseshim, version 1.0"


def test_a_dry_run_does_nothing(node: Node, wheel: Path) -> None:
    node.configure(_DEBIAN)
    before = node.files()
    text = node.do("--wheel", wheel, "--configure-containerd", "--dry-run", room="with systemd")
    assert node.files() == before
    assert f"{node.bin}/denseshim" in text
    assert "+  runtime_type = 'io.containerd.dense.v2'" in text


def test_without_a_unit(node: Node, wheel: Path) -> None:
    node.do("--wheel", wheel, "--no-unit")
    assert not node.units.exists()


# -- refusing


def test_only_root_installs(node: Node, wheel: Path) -> None:
    """Read from stdin: nobody else can reach the folder."""
    with SCRIPT.open() as script:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-s", "--", "--wheel", wheel],
            stdin=script,
            env=node.environment(),
            capture_output=True,
            text=True,
            cwd="/",
        )
    assert (done.returncode, done.stderr) == (1, "install-node: run this as root\n")


def test_an_old_python_is_refused(node: Node, wheel: Path) -> None:
    node.fake("python-old", "exit 1")
    done = subprocess.run(
        [SCRIPT, "--wheel", wheel],
        env={**node.environment(), "PYTHON": str(node.fakes / "python-old")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no Python 3.11 or later" in done.stderr


def test_a_wheel_that_is_not_there(node: Node) -> None:
    assert "there is no wheel /nowhere.whl" in node.refused("--wheel", "/nowhere.whl")


def test_a_program_of_somebody_else_s_stays(shared: Node, wheel: Path, tmp_path: Path) -> None:
    ours, shared.bin = shared.bin, tmp_path / "bin"
    try:
        shared.bin.mkdir()
        (shared.bin / "denseshim").write_text("mine")
        assert "is no link; move it away" in shared.refused("--wheel", wheel)
        assert (shared.bin / "denseshim").read_text() == "mine"
    finally:
        shared.bin = ours


def test_a_unit_of_somebody_else_s_stays(shared: Node, wheel: Path, tmp_path: Path) -> None:
    ours = shared.units, shared.unit
    try:
        shared.units, shared.unit = tmp_path, tmp_path / "denseshim.service"
        shared.unit.write_text("[Unit]\n")
        assert "is not ours" in shared.refused("--wheel", wheel)
        assert shared.unit.read_text() == "[Unit]\n"
    finally:
        shared.units, shared.unit = ours


def test_words_that_it_does_not_know(node: Node) -> None:
    done = node.run("--frobnicate")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: install-node")


# -- removing


def test_nothing_is_left(node: Node, wheel: Path) -> None:
    node.configure(_DEBIAN)
    node.do("--wheel", wheel, "--configure-containerd")
    node.host.write_text("empty")
    node.do("--uninstall", room="with systemd")
    assert node.config.read_text() == _DEBIAN
    assert [path.name for path in node.config.parent.iterdir()] == ["config.toml"]
    assert not node.prefix.exists()
    assert list(node.bin.iterdir()) == list(node.units.iterdir()) == []
    assert not node.host.exists()
    assert node.calls.read_text().splitlines() == [
        "disable --quiet denseshim.service",
        "daemon-reload",
    ]
    node.do("--uninstall")


def test_a_host_with_containers_stays(shared: Node) -> None:
    shared.host.write_text("3")
    try:
        before = shared.files()
        assert "remove its containers first" in shared.refused("--uninstall")
        assert shared.files() == before
    finally:
        shared.host.unlink()


def test_what_runs_stays(shared: Node) -> None:
    (place,) = shared.versions()
    with subprocess.Popen([place / "bin/python3", "-c", "input()"], stdin=subprocess.PIPE) as user:
        before = shared.files()
        assert f"/proc/{user.pid}/cmdline" in shared.refused("--uninstall")
        assert shared.files() == before
        assert user.stdin is not None
        user.stdin.close()


# -- containerd's configuration


def test_without_being_asked_it_only_shows(configured: Node, wheel: Path) -> None:
    configured.configure(_DEBIAN)
    text = configured.do("--wheel", wheel)
    assert f"+[plugins.'{CRI_V2}'.containerd.runtimes.dense]" in text
    assert configured.config.read_text() == _DEBIAN


def test_a_configuration_without_runtimes_gets_the_default_one_too(
    configured: Node, wheel: Path
) -> None:
    configured.configure(_DEBIAN)
    configured.config.chmod(0o640)
    configured.do("--wheel", wheel, "--configure-containerd")
    assert configured.runtimes(CRI_V2) == {"runc": RUNC, "dense": DENSE}
    assert configured.config.read_text().startswith(_DEBIAN)
    assert configured.config.stat().st_mode & 0o777 == 0o640
    assert configured.config.with_name("config.toml.before-denseshim").read_text() == _DEBIAN


def test_containerd_itself_finds_both_runtimes(configured: Node, wheel: Path) -> None:
    (configured.fakes / "containerd").unlink()
    configured.configure(_DEBIAN)
    configured.do("--wheel", wheel, "--configure-containerd")
    line = ["containerd", "--config", configured.config, "config", "dump"]
    dumped = tomllib.loads(subprocess.check_output(line, text=True, stderr=subprocess.DEVNULL))
    runtimes = dumped["plugins"][CRI_V2]["containerd"]["runtimes"]
    assert runtimes["dense"]["runtime_type"] == "io.containerd.dense.v2"
    assert runtimes["runc"]["runtime_type"] == "io.containerd.runc.v2"


@pytest.mark.parametrize(("version", "section"), [(2, CRI_V2), (3, CRI_V3), (4, CRI_V3)])
def test_runtimes_that_there_are_stay(
    configured: Node, wheel: Path, version: int, section: str
) -> None:
    text = f"version = {version}\n[plugins.'{section}'.containerd.runtimes.mine]\nx = 1"
    configured.configure(text)
    configured.do("--wheel", wheel, "--configure-containerd")
    assert configured.runtimes(section) == {"mine": {"x": 1}, "dense": DENSE}


def test_a_second_time_the_configuration_stays(configured: Node, wheel: Path) -> None:
    configured.configure(_DEBIAN)
    configured.do("--wheel", wheel, "--configure-containerd")
    before = configured.config.stat()  # reading it sets its time of access
    assert "is as it should be" in configured.do("--wheel", wheel, "--configure-containerd")
    after = configured.config.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_configuration_is_made(configured: Node, wheel: Path) -> None:
    configured.do("--wheel", wheel, "--configure-containerd")
    assert configured.runtimes(CRI_V2) == {"runc": RUNC, "dense": DENSE}
    assert tomllib.loads(configured.config.read_text())["version"] == 2
    assert [path.name for path in configured.config.parent.iterdir()] == ["config.toml"]


def test_a_configuration_that_was_made_is_removed(node: Node, wheel: Path) -> None:
    node.fake("containerd", "exit 0")
    node.do("--wheel", wheel, "--configure-containerd")
    assert node.config.exists()
    node.do("--uninstall")
    assert list(node.config.parent.iterdir()) == []


def test_the_old_configuration_stays_beside_one_that_has_been_changed(
    node: Node, wheel: Path
) -> None:
    node.fake("containerd", "exit 0")
    node.configure(_DEBIAN)
    node.do("--wheel", wheel, "--configure-containerd")
    text = node.config.read_text()
    node.config.write_text(text.replace("version = 2", "version = 2\noom_score = -999"))
    node.do("--uninstall")
    backup = node.config.with_name("config.toml.before-denseshim")
    assert backup.read_text() == _DEBIAN
    assert "oom_score" in node.config.read_text()
    assert "dense" not in node.config.read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('disabled_plugins = ["cri"]\n', "is of version 1"),
        ("version = 5\n", "is of version 5"),
        ("version = [\n", "is not TOML"),
        (
            f"version = 2\n[plugins.'{CRI_V2}'.containerd.runtimes.dense]\n"
            "runtime_type = 'other'\n",
            "another runtime of the name dense",
        ),
        (
            f"version = 2\n[plugins.'{CRI_V2}'.containerd]\nruntimes = {{ mine = {{ x = 1 }} }}\n",
            "no table can be added",
        ),
        ("version = 2\nimports = ['more/*.toml']\n", "add it there"),
    ],
    ids=["version 1", "unknown version", "no TOML", "other runtime", "inline", "imports"],
)
def test_what_only_a_person_can_edit(
    configured: Node, wheel: Path, text: str, why: str
) -> None:
    configured.configure(text)
    imported = configured.config.parent / "more/cri.toml"
    imported.parent.mkdir()
    imported.write_text(f"version = 2\n[plugins.'{CRI_V2}']\nsandbox_image = 'pause'\n")
    assert why in configured.refused("--wheel", wheel, "--configure-containerd")
    assert configured.config.read_text() == text
    assert {path.name for path in configured.config.parent.iterdir()} == {"config.toml", "more"}


def test_a_link_is_left_alone(configured: Node, wheel: Path, tmp_path: Path) -> None:
    configured.configure(_DEBIAN)
    configured.config.rename(tmp_path / "elsewhere")
    configured.config.symlink_to(tmp_path / "elsewhere")
    assert "no regular file" in configured.refused("--wheel", wheel, "--configure-containerd")
    assert (tmp_path / "elsewhere").read_text() == _DEBIAN


def test_files_beside_a_configuration_that_is_not_there(configured: Node, wheel: Path) -> None:
    """containerd 2 imports them by default, and not when there is a configuration."""
    folder = configured.config.parent / "conf.d"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("version = 3\n")
    assert "add one there" in configured.refused("--wheel", wheel, "--configure-containerd")
    assert not configured.config.exists()


def test_what_containerd_does_not_take_is_not_written(configured: Node, wheel: Path) -> None:
    configured.fake("containerd", "exit 1")
    configured.configure(_DEBIAN)
    refused = configured.refused("--wheel", wheel, "--configure-containerd")
    assert "containerd does not take" in refused
    assert configured.config.read_text() == _DEBIAN
    assert [path.name for path in configured.config.parent.iterdir()] == ["config.toml"]
