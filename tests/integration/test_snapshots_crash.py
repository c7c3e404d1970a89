"""SIGKILL at each step of what changes snapshots; a start-up pass leaves nothing of it.

A step is a system call that Python's audit hooks tell of, an openat2, or one of SQLite's
statements. Each is tried in a process of its own, which begins with a copy of the same state.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shim import syscalls
from shim.metadata import database
from shim.metadata.store import Store
from shim.metadata.values import Container
from shim.snapshots import overlay
from shim.snapshots.imports import import_path, import_tar
from shim.snapshots.snapshotter import Snapshotter
from tests.fakes.archives import LayoutMaker, archive, listing, member

MEMBERS = (member("d", "dir"), member("d/a", content=b"a"), member("d/l", "link", linkname="d/a"))


class Steps:
    """Counts the steps of this process, and kills it before the one of that number."""

    def __init__(self) -> None:
        self.fatal: int | None = None
        self.count = 0

    def take(self, *_: object) -> None:
        if self.fatal is not None:
            self.count += 1
            if self.count == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    def hook(self, event: str, _: object) -> None:
        if event == "open" or event.startswith("os."):
            self.take()


def open_snapshots(place: Path) -> Snapshotter:
    return Snapshotter.open(place / "snapshots", Store.open(place / "db"))


def import_a_tar(made: Snapshotter) -> None:
    import_tar(made, "new", io.BytesIO(archive(*MEMBERS)))


def import_a_directory(made: Snapshotter) -> None:
    import_path(made, "new", made.root.parent / "source")


def import_a_layout(made: Snapshotter) -> None:
    import_path(made, "new", made.root.parent / "layout")


def commit(made: Snapshotter) -> None:
    made.commit("new", "denseshim-active")


def prepare(made: Snapshotter) -> None:
    made.prepare("new", "base")


def view(made: Snapshotter) -> None:
    made.view("new", "base")


def remove(made: Snapshotter) -> None:
    made.remove("image")


def delete_container(made: Snapshotter) -> None:
    made.discard(made.store.delete_container("denseshim-1", lambda id: False))


WORKS = {
    work.__name__: work
    for work in (
        import_a_tar, import_a_directory, import_a_layout, commit, prepare, view, remove,
        delete_container,
    )
}  # fmt: skip


def set_up(place: Path) -> None:
    """The state that each attempt begins with."""
    (place / "source" / "d").mkdir(parents=True)
    (place / "source" / "d" / "a").write_bytes(b"a")
    maker = LayoutMaker(place / "layout")
    hiding = [member(".wh.d"), member("e/.wh..wh..opq"), member("b")]
    maker.image([archive(*MEMBERS), archive(*hiding)])
    maker.write()
    made = open_snapshots(place)
    import_tar(made, "base", io.BytesIO(archive(*MEMBERS)))
    import_path(made, "image", place / "layout")
    for key in ("denseshim-active", "denseshim-root"):
        made.prepare(key, "base")
        (made.files(made.store.stat(key).directory) / "written").write_bytes(b"w")
    made.store.create_container(Container("denseshim-1", rootfs="denseshim-root"))
    made.store.close()


def state(place: Path) -> tuple[object, ...]:
    """All that a later process can know; nothing may be there that no record speaks of."""
    made = open_snapshots(place)
    try:
        orphans = made.clean()
        assert orphans.damaged == orphans.forgotten == (), orphans
        records = made.store.list_snapshots()
        numbers = {str(snapshot.directory) for snapshot in records}
        assert set(os.listdir(made.root)) == numbers | {"form"}
        assert made.store.check() == []
        shown = {}
        for snapshot in records:
            inside = set(os.listdir(made.root / str(snapshot.directory)))
            assert inside <= ({"fs"} if snapshot.readonly else {"fs", "work"}), snapshot
            found = listing(made.files(snapshot.directory))
            shown[snapshot.key] = (snapshot.parent, snapshot.kind, repr(sorted(found.items())))
        containers = [container.id for container in made.store.list_containers()]
        return sorted(shown.items(), key=repr), containers
    finally:
        made.store.close()


def attempt(place: Path, work: str, fatal: int, steps: Steps) -> bool:
    """Do it in a child that is killed before its step `fatal`; False if it has ended before."""
    child = os.fork()
    if child == 0:
        made = open_snapshots(place)
        steps.fatal = fatal
        WORKS[work](made)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def try_all(work: str, form: str) -> None:
    """Print how many steps there were."""
    steps = Steps()
    prepare_counting(steps)
    if form == "copies":
        overlay.why_not = lambda directory: "the test says so"
    with tempfile.TemporaryDirectory(prefix="denseshim-", dir="/dev/shm") as folder:
        first = Path(folder) / "first"
        set_up(first)
        before = state(first)
        done = copy(first)
        assert not attempt(done, work, 1 << 60, steps)
        after = state(done)
        assert before != after
        fatal, reached = 1, before
        while attempt(place := copy(first), work, fatal, steps):
            found = state(place)
            assert found in (before, after), (fatal, found)
            assert reached != after or found == after, f"step {fatal} goes back"
            reached = found
            shutil.rmtree(place)
            fatal += 1
        print(fatal - 1)


def copy(first: Path) -> Path:
    """Another of the same state."""
    place = Path(tempfile.mkdtemp(dir=first.parent))
    subprocess.run(["cp", "--archive", f"{first}/.", place], check=True)
    return place


def prepare_counting(steps: Steps) -> None:
    """Have all steps counted, from now on until the process ends."""

    class Connection(sqlite3.Connection):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.set_trace_callback(steps.take)

    def connect(*args, **options):
        return plain_connect(*args, factory=Connection, **options)

    def open_inside(*args):
        steps.take()
        return plain_open(*args)

    plain_connect, plain_open = sqlite3.connect, syscalls.open_inside
    database.sqlite3.connect = connect
    syscalls.open_inside = open_inside
    sys.addaudithook(steps.hook)


@pytest.mark.parametrize("form", ["overlay", "copies"])
@pytest.mark.parametrize("work", WORKS)
def test_a_death_at_any_step_leaves_the_old_or_the_new_state(work, form):
    command = [sys.executable, "-m", "tests.integration.test_snapshots_crash", work, form]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


if __name__ == "__main__":
    try_all(*sys.argv[1:])
