"""What a user of ctr sees."""

from __future__ import annotations

from tests.containerd.containerd import Containerd


def test_run_prints_what_the_container_does(containerd: Containerd) -> None:
    done = containerd.run("sh", "-c", "echo out; echo err >&2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")
