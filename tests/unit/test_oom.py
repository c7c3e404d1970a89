"""Kills for want of memory: real ones in cgroups of v1, and files that look like those of v2."""

import asyncio
import errno
import os
import subprocess
from pathlib import Path

import pytest

from shim import cgroup, oom, syscalls
from shim.oom import OomWatcher

PATIENCE = 20.0
# No newline ever comes: the buffer grows until the kernel kills, or the limit of addresses ends it.
GREEDY = ["sh", "-c", "read go; ulimit -v 1000000; exec tail /dev/zero"]


class Told:
    """What a watcher has told, and a way to wait for more."""

    def __init__(self):
        self.all = []
        self._more = asyncio.Event()

    def __call__(self, key, count):
        self.all.append((key, count))
        self._more.set()

    async def number(self, wanted):
        async with asyncio.timeout(PATIENCE):
            while len(self.all) < wanted:
                self._more.clear()
                await self._more.wait()
        return self.all


@pytest.fixture
async def told():
    return Told()


@pytest.fixture
async def watcher(told):
    watcher = OomWatcher(told)
    yield watcher
    watcher.close()


def anonymous():
    """How many eventfds and inotify instances this process has."""
    with os.scandir("/proc/self/fd") as entries:
        found = [os.readlink(entry.path) for entry in entries]
    return sum(name in ("anon_inode:[eventfd]", "anon_inode:inotify") for name in found)


# cgroup v1


@pytest.fixture
def memory():
    """Make a cgroup that can hold but 4 MiB, at the paths that `locate` would return."""
    mounts = [each.mount for each in cgroup._hierarchies() if "memory" in each.options]
    if not mounts:
        pytest.skip("no memory controller of v1 here")
    made = []

    def make():
        path = Path(mounts[0], f"denseshim-test-{os.getpid()}-oom{len(made)}")
        path.mkdir()
        made.append(path)
        (path / "memory.limit_in_bytes").write_text("4M")
        return {"memory": str(path)}

    yield make
    for path in made:
        if path.exists():
            path.rmdir()


def exhaust(*all_paths):
    """Let the kernel kill one process in each cgroup; they are dead when this returns."""
    children = []
    for paths in all_paths:
        children.append(subprocess.Popen(GREEDY, stdin=subprocess.PIPE))
        Path(paths["memory"], "cgroup.procs").write_text(str(children[-1].pid))
        children[-1].stdin.write(b"\n")
        children[-1].stdin.close()
    assert [child.wait(PATIENCE) for child in children] == [-9] * len(children)


async def test_those_are_told_in_which_something_was_killed(memory, watcher, told):
    all_paths = [memory() for _ in range(20)]
    for number, paths in enumerate(all_paths):
        watcher.watch(number, paths, 0)
    exhaust(*all_paths[1::2])
    assert sorted(await told.number(10)) == [(number, 1) for number in range(1, 20, 2)]
    assert [watcher.check(number) for number in range(20)] == [0, 1] * 10


async def test_the_count_goes_on(memory, watcher, told):
    paths = memory()
    watcher.watch("a", paths, 0)
    exhaust(paths)
    await told.number(1)
    exhaust(paths)
    assert await told.number(2) == [("a", 1), ("a", 2)]


async def test_the_count_is_there_when_the_process_is_dead(memory, watcher, told):
    paths = memory()
    watcher.watch("a", paths, 0)
    exhaust(paths)
    assert (watcher.check("a"), told.all) == (1, [])


async def test_what_happened_before_is_told_at_once_unless_it_is_known(memory, watcher, told):
    paths = memory()
    exhaust(paths)
    watcher.watch("known", paths, 1)
    assert told.all == []
    watcher.watch("new", paths, 0)
    assert told.all == [("new", 1)]


async def test_more_cgroups_than_eventfds(memory, watcher, told):
    before, all_paths = anonymous(), [memory() for _ in range(2 * oom._BELLS + 1)]
    for number, paths in enumerate(all_paths):
        watcher.watch(number, paths, 0)
    assert anonymous() - before == oom._BELLS
    exhaust(all_paths[0], all_paths[oom._BELLS])  # they share one
    exhaust(all_paths[-1])
    assert sorted(await told.number(3)) == [(0, 1), (oom._BELLS, 1), (2 * oom._BELLS, 1)]
    for number in range(len(all_paths)):
        watcher.unwatch(number)
    assert anonymous() == before


async def test_a_removed_cgroup_rings_and_is_not_told(memory, watcher, told, monkeypatch):
    monkeypatch.setattr(oom, "_BELLS", 1)
    gone, there = memory(), memory()
    watcher.watch("gone", gone, 0)
    watcher.watch("there", there, 0)
    os.rmdir(gone["memory"])
    exhaust(there)
    assert await told.number(1) == [("there", 1)]
    assert watcher.check("gone") == 0
    watcher.unwatch("gone")
    exhaust(there)
    assert await told.number(2) == [("there", 1), ("there", 2)]


async def test_a_cgroup_that_is_gone_before_is_borne(memory, watcher, told):
    gone, there = memory(), memory()
    os.rmdir(gone["memory"])
    watcher.watch("gone", gone, 0)
    watcher.watch("there", there, 0)
    exhaust(there)
    assert await told.number(1) == [("there", 1)]
    assert watcher.check("gone") == 0


async def test_a_forgotten_cgroup_is_not_told(memory, watcher, told, monkeypatch):
    monkeypatch.setattr(oom, "_BELLS", 1)
    forgotten, there = memory(), memory()
    watcher.watch("forgotten", forgotten, 0)
    watcher.watch("there", there, 0)
    watcher.unwatch("forgotten")
    exhaust(forgotten)
    exhaust(there)
    assert await told.number(1) == [("there", 1)]
    assert watcher.check("forgotten") == 0


async def test_a_kill_is_counted_after_the_ring(tmp_path, watcher, told, monkeypatch):
    """A later look finds it."""
    control = tmp_path / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 1\noom_kill 3\n")
    (tmp_path / "cgroup.event_control").touch()
    watcher.watch("a", {"memory": str(tmp_path)}, 3)
    looked = asyncio.Event()

    def content(path):
        looked.set()
        return cgroup.content(path)

    monkeypatch.setattr(oom, "content", content)
    eventfd = int((tmp_path / "cgroup.event_control").read_text().split()[0])
    os.eventfd_write(eventfd, 1)
    await looked.wait()
    assert told.all == []
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert await told.number(1) == [("a", 4)]


async def test_a_kernel_that_does_not_count(tmp_path, watcher, told, monkeypatch):
    """Every wake is a kill then, in all cgroups that are there."""
    monkeypatch.setattr(oom, "_BELLS", 1)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
        (tmp_path / name / "cgroup.event_control").touch()
        watcher.watch(name, {"memory": str(tmp_path / name)}, 3)
    assert (watcher.check("a"), told.all) == (3, [])
    eventfd = int((tmp_path / "a" / "cgroup.event_control").read_text().split()[0])
    os.eventfd_write(eventfd, 1)
    assert sorted(await told.number(2)) == [("a", 4), ("b", 4)]
    (tmp_path / "a" / "memory.oom_control").unlink()
    os.eventfd_write(eventfd, 1)
    assert (await told.number(3))[2:] == [("b", 5)]


# cgroup v2


def kill(directory, kills, other=0):
    text = f"low 0\nhigh {other}\nmax {other}\noom {kills}\noom_kill {kills}\noom_group_kill 0\n"
    Path(directory, "memory.events").write_text(text)


def two(directory, kills=0):
    """A directory as `locate` returns it on a host with v2 alone."""
    directory.mkdir()
    kill(directory, kills)
    return {cgroup.UNIFIED: str(directory)}


async def test_a_thousand_cgroups_have_one_descriptor(tmp_path, watcher, told):
    before = anonymous()
    for number in range(1000):
        watcher.watch(number, two(tmp_path / str(number)), 0)
    assert anonymous() - before == 1
    for number in (7, 500, 999):
        kill(tmp_path / str(number), 2)
    assert sorted(await told.number(3)) == [(7, 2), (500, 2), (999, 2)]
    assert [watcher.check(number) for number in (7, 8)] == [2, 0]


async def test_only_the_changed_files_are_read(tmp_path, watcher, told, monkeypatch):
    for name in "abc":
        watcher.watch(name, two(tmp_path / name), 0)
    looked = []
    monkeypatch.setattr(oom, "content", lambda path: looked.append(path) or cgroup.content(path))
    kill(tmp_path / "b", 1)
    await told.number(1)
    assert looked == [str(tmp_path / "b" / "memory.events")]


async def test_other_events_are_no_kills(tmp_path, watcher, told):
    watcher.watch("a", two(tmp_path / "a", 1), 1)
    watcher.watch("b", two(tmp_path / "b"), 0)
    kill(tmp_path / "a", 1, other=9)
    kill(tmp_path / "b", 1)
    assert await told.number(1) == [("b", 1)]


async def test_two_containers_in_one_cgroup(tmp_path, watcher, told):
    paths = two(tmp_path / "a")
    watcher.watch("x", paths, 0)
    watcher.watch("y", paths, 0)
    kill(tmp_path / "a", 1)
    assert sorted(await told.number(2)) == [("x", 1), ("y", 1)]
    watcher.unwatch("x")
    kill(tmp_path / "a", 2)
    assert (await told.number(3))[2:] == [("y", 2)]


def fill_the_queue(first, second):
    """Change two files by turns: two equal events in a row would be one."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with first.open("r+b", buffering=0) as one, second.open("r+b", buffering=0) as other:
        for _ in range(limit // 2 + 1):
            os.pwrite(one.fileno(), b"low", 0)
            os.pwrite(other.fileno(), b"low", 0)


async def test_a_full_queue_loses_no_kill(tmp_path, watcher, told):
    for name in "abc":
        watcher.watch(name, two(tmp_path / name), 0)
    fill_the_queue(tmp_path / "a" / "memory.events", tmp_path / "b" / "memory.events")
    kill(tmp_path / "c", 1)
    assert await told.number(1) == [("c", 1)]
    kill(tmp_path / "a", 1)
    assert await told.number(2) == [("c", 1), ("a", 1)]


async def test_a_file_that_goes_is_borne(tmp_path, watcher, told):
    for name in "abc":
        watcher.watch(name, two(tmp_path / name), 0)
    for name in "ab":
        (tmp_path / name / "memory.events").unlink()
    watcher.unwatch("a")  # the kernel has ended this watch; nobody has read so yet
    kill(tmp_path / "c", 1)
    assert await told.number(1) == [("c", 1)]
    assert watcher.check("b") == 0
    watcher.unwatch("b")
    watcher.watch("b", two(tmp_path / "again"), 0)
    kill(tmp_path / "again", 1)
    assert await told.number(2) == [("c", 1), ("b", 1)]


async def test_a_key_that_is_watched_again_has_left_the_first_cgroup(tmp_path, watcher, told):
    watcher.watch("a", two(tmp_path / "old"), 0)
    watcher.watch("a", two(tmp_path / "new"), 0)
    watcher.watch("z", two(tmp_path / "z"), 0)
    kill(tmp_path / "old", 1)
    kill(tmp_path / "z", 1)
    assert await told.number(1) == [("z", 1)]
    kill(tmp_path / "new", 1)
    assert await told.number(2) == [("z", 1), ("a", 1)]


@pytest.mark.parametrize("paths", [{}, {"pids": "/sys/fs/cgroup/pids"}])
async def test_without_a_memory_controller_there_is_nothing_to_watch(paths, watcher, told):
    before = anonymous()
    watcher.watch("a", paths, 0)
    assert (watcher.check("a"), told.all, anonymous()) == (0, [], before)
    watcher.unwatch("a")


async def test_v2_without_the_controller(tmp_path, watcher, told):
    watcher.watch("a", {cgroup.UNIFIED: str(tmp_path)}, 0)
    assert (watcher.check("a"), told.all) == (0, [])


async def test_a_refused_watch_is_an_error_and_leaves_nothing(tmp_path, watcher, monkeypatch):
    def refuse(descriptor, path, mask):
        raise OSError(errno.ENOSPC, "inotify_add_watch", path)

    paths = two(tmp_path / "a", 1)
    with monkeypatch.context() as patched:
        patched.setattr(syscalls, "inotify_watch", refuse)
        with pytest.raises(OSError, match="inotify_add_watch"):
            watcher.watch("a", paths, 0)
    assert watcher.check("a") == 0


async def test_who_is_told_may_stop_watching(memory, monkeypatch, caplog):
    monkeypatch.setattr(oom, "_BELLS", 1)
    told = Told()

    def stop(key, count):
        told(key, count)
        watcher.unwatch("a")
        watcher.unwatch("b")

    watcher, both, last = OomWatcher(stop), memory(), memory()
    watcher.watch("a", both, 0)
    watcher.watch("b", both, 0)
    watcher.watch("z", last, 0)
    exhaust(both)
    await told.number(1)
    exhaust(last)
    await told.number(2)
    assert [key for key, _ in told.all] in (["a", "z"], ["b", "z"])
    assert caplog.records == []  # the loop has seen no error
    watcher.close()


async def test_closing_leaves_no_descriptor(tmp_path, memory, told):
    before = anonymous()
    watcher = OomWatcher(told)
    watcher.watch("one", memory(), 0)
    watcher.watch("two", two(tmp_path / "two"), 0)
    assert anonymous() - before == 2
    watcher.close()
    assert anonymous() == before
    assert watcher.check("two") == 0
