"""Three hundred containers at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.containerd.containerd import Container, Containerd, Result
from tests.containerd.support import PATIENCE, client, is_alive, until

SIZE = 300
INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")


@pytest.fixture
def few_inotify_instances() -> Iterator[None]:
    """As many as the kernel's own default, however many the machine allows."""
    before = INSTANCES.read_text()
    INSTANCES.write_text("128")
    yield
    INSTANCES.write_text(before)


@pytest.mark.usefixtures("few_inotify_instances")
def test_demand_11_13_many_limited_containers_outlive_containerd(
    own_containerd: Containerd, tmp_path: Path
) -> None:
    """After its restart they are known, run, and can be exec'd in, attached to and killed."""
    containerd = own_containerd
    limit = ("--memory-limit", "32000000")
    options = ["--null-io", *limit]

    def start(_: int) -> Container:
        return containerd.start_container("sleep", "1000", options=options)

    script = ("sh", "-c", "read line; echo got $line; exit 4")
    talker = containerd.start_container(*script, options=["--fifo-dir", str(tmp_path), *limit])
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(start, range(SIZE - 1)))
        pids = containerd.pids().values()
        containerd.stop()
        begin = time.monotonic()
        containerd.start()
        states = containerd.states()
        print(f"{SIZE} containers known again after {time.monotonic() - begin:.2f} s")
        assert states == dict.fromkeys((c.id for c in (*crowd, talker)), "RUNNING")
        assert {d.stdout for d in pool.map(_echo, crowd[::30])} == {b"words\n"}
        with client(containerd.line("tasks", "attach", talker.id)) as running:
            output, _ = running.communicate(b"words\n", PATIENCE)
            assert (running.returncode, output) == (4, b"got words\n")
        assert {d.returncode for d in pool.map(Container.kill, crowd)} == {0}
        until(lambda: not any(map(is_alive, pids)), "the containers end")
        until(lambda: set(containerd.states().values()) == {"STOPPED"}, "all have stopped")
        list(pool.map(Container.remove, [*crowd, talker]))


def _echo(container: Container) -> Result:
    return container.exec("echo", "words")
