"""A process that is killed at any step of a change leaves the store before it or after it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from shim.metadata.store import Store
from shim.metadata.values import Container, Layer

DATABASE = "metadata.db"

# Does one change as its callers do, directories included. Each statement, and each step between
# them, is counted before it is taken; the one of the given number kills. Number 0 kills at the end.
CHILD = """
import functools, os, signal, sqlite3, sys
from pathlib import Path
from shim.metadata.store import Store
from shim.metadata.values import Container, Layer

place, operation, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
steps = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def step(*_):
    global steps
    steps += 1
    if steps == last:
        die()

class Traced(sqlite3.Connection):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.set_trace_callback(step)

sqlite3.connect = functools.partial(sqlite3.connect, factory=Traced)

def make():
    number = store.allocate()
    step()
    (place / str(number)).mkdir()
    step()
    return number

def clear(directories):
    for number in directories:
        step()
        (place / str(number)).rmdir()

def add_image(*keys):
    clear(store.add_image([Layer(key, make()) for key in keys], b"config"))

CHANGES = {
    "open": lambda: None,
    "create": lambda: store.create_container(Container("d", {"a": "1", "b": "2"}, rootfs="loose")),
    "update": lambda: store.update_container(Container("c", {"x": "1"}, "new", rootfs="loose")),
    "delete": lambda: clear(store.delete_container("c", lambda id: False)),
    "prepare": lambda: store.prepare("new", "image", False, make()),
    "commit": lambda: store.commit("mine", "loose"),
    "import": lambda: add_image("bottom", "middle", "other"),
    "remove": lambda: clear(store.remove("other-image")),
}
store = Store.open(place / "metadata.db")
CHANGES[operation]()
step()
if not last:
    die()
store.close()
"""

CHANGES = ["create", "update", "delete", "prepare", "commit", "import", "remove"]

State = Any


def make_directory(store: Store, place: Path) -> int:
    number = store.allocate()
    (place / str(number)).mkdir()
    return number


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A store with something of everything, closed."""
    place = tmp_path / "template"
    place.mkdir()
    store = Store.open(place / DATABASE)
    for keys in (["bottom", "image"], ["other-bottom", "other-image"]):
        store.add_image([Layer(key, make_directory(store, place)) for key in keys], b"config")
    store.prepare("root", "image", False, make_directory(store, place))
    store.prepare("loose", "image", False, make_directory(store, place))
    store.create_container(Container("c", {"tier": "front"}, "image", rootfs="root"))
    store.close()
    return place


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    numbers = count()

    def copy(place: Path) -> Path:
        return Path(shutil.copytree(place, tmp_path / f"copy-{next(numbers)}"))

    return copy


def change(place: Path, operation: str, last: int) -> bool:
    """Whether the child was killed before its end."""
    command = [sys.executable, "-c", CHILD, place, operation, str(last)]
    status = subprocess.run(command, check=False).returncode
    assert status in (0, -signal.SIGKILL)
    return status != 0


def directories(place: Path) -> set[int]:
    return {int(path.name) for path in place.iterdir() if path.name.isdigit()}


def recovered(place: Path) -> State:
    """What the next process finds, once it has done its start-up pass."""
    store = Store.open(place / DATABASE)
    try:
        assert store.check() == []
        orphans = store.free_orphans(directories(place))
        assert orphans.forgotten == orphans.damaged == ()
        for number in orphans.directories:
            (place / str(number)).rmdir()
        snapshots = store.list_snapshots()
        assert directories(place) == {snapshot.directory for snapshot in snapshots}
        # As of a container that was made anew, the times differ from run to run.
        containers = [
            replace(container, created_at=0, updated_at=0) for container in store.list_containers()
        ]
        return containers, snapshots, [store.image_config(each.key) for each in snapshots]
    finally:
        store.close()


def killed(
    template: Path, operation: str, copy_of: Callable[[Path], Path]
) -> Iterator[tuple[bool, State]]:
    """What is found after a kill at the first step, the second and so on, to the end."""
    for last in count(1):
        place = copy_of(template)
        if not change(place, operation, last):
            return
        yield recovered(place)


@pytest.mark.parametrize("operation", CHANGES)
def test_killed_at_any_statement(operation, template, copy_of):
    before = recovered(copy_of(template))
    done = copy_of(template)
    assert change(done, operation, last=0)
    after = recovered(done)
    assert before != after
    states = list(killed(template, operation, copy_of))
    first = states.index(after)
    assert len(states) > 8
    assert states == [before] * first + [after] * (len(states) - first)
    assert first > 0


def test_killed_while_a_new_store_is_made(tmp_path, copy_of):
    empty = tmp_path / "empty"
    empty.mkdir()
    states = list(killed(empty, "open", copy_of))
    assert len(states) > 10
    assert all(state == ([], [], []) for state in states)


def cuts(log: bytes) -> list[int]:
    """In the log's header, at each frame's start, in its header and in its page."""
    frame = 24 + 4096
    assert (len(log) - 32) % frame == 0
    starts = range(32, len(log), frame)
    return [0, 16, *(start + more for start in starts for more in (0, 12, 24, 2000)), len(log)]


@pytest.mark.parametrize("operation", CHANGES)
def test_whatever_of_the_log_has_reached_the_disk(operation, template, copy_of):
    before = recovered(copy_of(template))
    done = copy_of(template)
    assert change(done, operation, last=0)
    log = (done / f"{DATABASE}-wal").read_bytes()
    whole = copy_of(done)
    after = recovered(whole)
    found = []
    for cut in cuts(log):
        # Nothing is removed until the log is on the disk. What was made may be there before it.
        place = copy_of(template)
        shutil.copy(done / DATABASE, place)
        for number in directories(done) - directories(place):
            (place / str(number)).mkdir()
        (place / f"{DATABASE}-wal").write_bytes(log[:cut])
        found.append(recovered(place))
    first = found.index(after)
    assert found == [before] * first + [after] * (len(found) - first)
    assert first > 1
