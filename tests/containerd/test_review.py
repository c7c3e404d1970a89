"""What becomes of processes that share a namespace with others, when their container ends."""

from __future__ import annotations

from tests.containerd.containerd import Containerd
from tests.containerd.support import is_alive, until


def test_nothing_outlives_an_init_that_shares_another_s_pids(containerd: Containerd) -> None:
    """The kernel kills the init alone; nobody has asked for the deletion yet."""
    other = containerd.start_container("sleep", "1000")
    shared = ["--null-io", "--with-ns", f"pid:/proc/{other.pid}/ns/pid"]
    container = containerd.start_container("sh", "-c", "sleep 1001 & wait", options=shared)
    until(lambda: len(container.pids()) == 2, "it forks")
    pids = container.pids()
    container.kill("KILL")
    container.wait_stopped()
    until(lambda: not any(map(is_alive, pids)), "all have ended")
    assert other.status == "RUNNING"
    container.remove()
    other.remove()
