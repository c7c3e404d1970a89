"""Starting by way of systemd, which is not here: programs that write down how they are called."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from shim import detach, pair
from shim.detach import CannotStart
from shim.notify import notify_ready
from shim.pair import Settings

UNIT = Path(__file__).resolve().parents[2] / "packaging/denseshim.service"
FAKE = """#!/bin/sh
echo "${0##*/} $*" >>"$DENSESHIM_CALLS"
[ "$1" = show ] && echo "$DENSESHIM_LOADED"
if [ "$1" != show ]; then echo "why  it\nfails"; exit "$DENSESHIM_STATUS"; fi
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the calls of systemctl and systemd-run are written, which are there from now on."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("systemctl", "systemd-run"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("DENSESHIM_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("DENSESHIM_LOADED", "not-found")
    monkeypatch.setenv("DENSESHIM_STATUS", "0")
    monkeypatch.setattr(detach, "_SYSTEMD", programs)
    monkeypatch.setattr(detach, "namespaces", lambda process: "the same")
    return tmp_path / "calls"


def unit_settings() -> list[str]:
    lines = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def ensure(directory: Path, settings: Settings) -> None:
    """Try: no pair comes, as nothing of this is true."""
    with pytest.raises(CannotStart):
        pair.ensure(directory, settings, ["/a/program"])
    assert not directory.exists()


def test_systemd_is_not_here() -> None:
    assert not detach.has_systemd()


def test_systemd_must_be_in_our_namespaces(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert detach.has_systemd()
    monkeypatch.setattr(detach, "namespaces", str)
    assert not detach.has_systemd()


def test_systemd_without_its_programs(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert not detach.has_systemd()


def test_a_unit_that_is_installed_is_started(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENSESHIM_LOADED", "loaded")
    ensure(tmp_path / "p", Settings())
    assert calls.read_text().splitlines() == [
        "systemctl show --property=LoadState --value denseshim.service",
        "systemctl start denseshim.service",
    ]


def test_the_host_gets_a_unit_like_the_installed_one(calls: Path, tmp_path: Path) -> None:
    ensure(tmp_path / "p", Settings())
    _, call = calls.read_text().splitlines()
    options, _, command = call.partition(" -- ")
    assert command == f"/a/program --directory {tmp_path}/p --oom-score-adj=-999"
    assert {"systemd-run", "--quiet", "--collect", "--unit=denseshim"} <= set(options.split())
    properties = {word.removeprefix("--property=") for word in options.split() if "=" in word}
    installed = {line for line in unit_settings() if not line.startswith(("ExecStart", "Restart"))}
    assert properties - {"--unit=denseshim"} == installed


def test_a_pair_apart_gets_a_unit_of_its_own(calls: Path, tmp_path: Path) -> None:
    ensure(tmp_path / "p", Settings(apart=True, oom_score_adj=8))
    show, call = calls.read_text().splitlines()
    assert show.endswith("--value denseshim-p.service")
    assert "--unit=denseshim-p" in call.split()
    assert "--property=OOMScoreAdjust=8" in call.split()
    assert call.endswith(" --oom-score-adj=8 --apart")


def test_a_pair_in_a_cgroup_that_is_there_is_no_unit(calls: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pair.ensure(tmp_path / "p", Settings(cgroup="/c"), ["/a/program"])
    assert not calls.exists()


def test_why_systemd_refuses_is_told(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DENSESHIM_STATUS", "4")
    with pytest.raises(CannotStart, match=r"^systemd-run .*: why it fails$"):
        pair.ensure(tmp_path / "p", Settings(), ["/a/program"])
    assert not (tmp_path / "p").exists()


def test_the_installed_unit_has_no_mounts_of_its_own() -> None:
    text = UNIT.read_text()
    assert "ExecStart=/usr/local/bin/denseshim host" in unit_settings()
    for word in ("PrivateTmp=", "Protect", "ReadOnlyPaths=", "MountFlags=", "WatchdogSec"):
        assert not any(line.startswith(word) for line in text.splitlines())


# ---- Readiness ----


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"\0denseshim-{os.getpid()}" if abstract else str(tmp_path / "n")
    monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(address)
        notify_ready()
        assert datagrams.recv(100) == b"READY=1"


def test_nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_ready()
