"""Where a container's output may go beside a FIFO: files, and programs that log."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.containerd.containerd import Containerd, finish
from tests.containerd.support import lines, new_id, until

# Says that it is ready by closing descriptor 5, and writes what the container does to a file.
LOGGER = """#!/bin/sh
exec 5>&-
echo "$CONTAINER_ID $CONTAINER_NAMESPACE $# $1 $2" > "$2.facts"
cat <&3 > "$2" &
cat <&4 > "$2.errors"
wait
"""


@pytest.fixture
def logger(tmp_path: Path) -> Path:
    path = tmp_path / "logger"
    path.write_text(LOGGER)
    path.chmod(stat.S_IRWXU)
    return path


def run_logged(daemon: Containerd, uri: str, *command: str) -> str:
    """Run a container to its end with its output going to `uri`; its id."""
    container = daemon.start_container(*command, options=["--log-uri", uri])
    container.wait_stopped()
    container.remove()
    return container.id


def test_a_file_gets_both_streams(containerd: Containerd, tmp_path: Path) -> None:
    """It is made with its directory, and appended to."""
    path = tmp_path / "logs" / "out"
    uri = f"file://{path}"
    run_logged(containerd, uri, "sh", "-c", "echo first; echo second >&2")
    assert sorted(path.read_text().splitlines()) == ["first", "second"]
    run_logged(containerd, uri, "echo", "third")
    assert path.read_text().endswith("third\n")


def test_a_file_gets_everything(containerd: Containerd, tmp_path: Path) -> None:
    path = tmp_path / "out"
    run_logged(containerd, f"file://{path}", "seq", "300000")
    assert path.read_bytes() == lines(300000)


def test_a_program_that_logs(containerd: Containerd, logger: Path, tmp_path: Path) -> None:
    """It gets the pipes themselves, the query as arguments, and nothing else to know it by."""
    path = tmp_path / "log"
    uri = f"binary://{logger}?out={path}"
    id = run_logged(containerd, uri, "sh", "-c", "seq 100000; echo trouble >&2")
    assert path.read_bytes() == lines(100000)
    assert path.with_name("log.errors").read_text() == "trouble\n"
    facts = path.with_name("log.facts").read_text().split()
    assert facts == [id, containerd.namespace, "2", "out", str(path)]


def test_a_program_that_is_not_there(containerd: Containerd, tmp_path: Path) -> None:
    """Create fails with its name, and leaves nothing."""
    line = containerd.run_line(
        new_id(), "true", options=["--rm", "--log-uri", f"binary://{tmp_path}/missing"]
    )
    done = containerd.ctr(*line[line.index("run") :])
    assert done.returncode != 0
    assert b"missing" in done.stderr
    until(lambda: not containerd.states(), "nothing is left")


def test_an_unknown_scheme(containerd: Containerd) -> None:
    line = containerd.run_line(new_id(), "true", options=["--rm", "--log-uri", "gopher://x/y"])
    done = containerd.ctr(*line[line.index("run") :])
    assert done.returncode != 0
    assert b"gopher" in done.stderr
    until(lambda: not containerd.states(), "nothing is left")


def test_a_mount_that_is_made_later_is_seen(own_containerd: Containerd, tmp_path: Path) -> None:
    """The host has no copy of the mounts, also where / propagates nothing."""
    daemon = own_containerd
    inside = daemon.machine.inside
    assert finish(inside("mount", "--make-rprivate", "/")).returncode == 0
    later = tmp_path / "later"
    later.mkdir()
    assert finish(inside("mount", "-t", "tmpfs", "denseshim-later", str(later))).returncode == 0
    try:
        assert finish(inside("sh", "-c", f"echo fresh > {later}/file")).returncode == 0
        mount = f"type=bind,src={later},dst=/mnt,options=rbind:ro"
        done = daemon.run("cat", "/mnt/file", options=["--mount", mount])
        assert done.stdout == b"fresh\n", done.stderr.decode()
    finally:
        assert finish(inside("umount", str(later))).returncode == 0
