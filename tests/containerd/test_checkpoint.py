"""Checkpoint as containerd asks for it: its bundle's `work` is a link to a directory of its own.

CRIU runs on few kernels; here the runtime only says that it has done it, or that it has not.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.containerd.containerd import Container, Containerd, Result
from tests.containerd.gate import Runtime


def checkpoint(container: Container, image: Path) -> Result:
    line = ("tasks", "checkpoint", "--image-path", str(image), container.id)
    return container.daemon.ctr(*line)


def work_of(container: Container) -> Path:
    """The directory that containerd has for what is left of a runtime's work."""
    daemon = container.daemon
    link = daemon.bundles / daemon.namespace / container.id / "work"
    return daemon.machine.root / os.readlink(link).lstrip("/")


def test_a_checkpoint(containerd: Containerd, tmp_path: Path) -> None:
    """Nothing of CRIU's is left, and all of containerd's."""
    script = 'case " $* " in *"/work/criu-work "*) exit 0;; esac\nexit 1'
    runtime = Runtime(tmp_path, "checkpoint", script)
    with containerd.living(options=["--null-io", *runtime.options]) as container:
        found = checkpoint(container, tmp_path / "image")
        assert (found.returncode, found.stderr) == (0, b"")
        assert work_of(container).is_dir()
        assert not (work_of(container) / "criu-work").exists()


def test_a_checkpoint_that_fails_says_why(containerd: Containerd, tmp_path: Path) -> None:
    script = 'echo "criu is not there" >&2\nexit 1'
    runtime = Runtime(tmp_path, "checkpoint", script)
    with containerd.living(options=["--null-io", *runtime.options]) as container:
        found = checkpoint(container, tmp_path / "image")
        assert found.returncode != 0
        assert b"criu is not there" in found.stderr
        assert work_of(container).is_dir()
