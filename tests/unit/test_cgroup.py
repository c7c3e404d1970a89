"""On whatever cgroups are mounted here: v1, v2 or both."""

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from shim import cgroup
from shim.cgroup import Cgroup

UNIFIED = frozenset({""})


def hierarchies():
    found = cgroup._hierarchies()
    if not found:
        pytest.skip("no cgroups are mounted")
    return found


def unified():
    return next((h.mount for h in hierarchies() if h.options == UNIFIED), None)


def first_v1():
    """The v1 hierarchy that is looked at first."""
    known = [h for h in hierarchies() if h.options != UNIFIED]
    for names in cgroup._memberships("self"):
        for hierarchy in known:
            if names <= hierarchy.options:
                return hierarchy.mount
    return None


@pytest.fixture
def make():
    """Make a cgroup of a name below a mount point; all go away in the end."""
    made, unique = [], f"denseshim-test-{uuid.uuid4().hex[:8]}"

    def make(mount, below=""):
        path = Path(mount, unique, below)
        path.mkdir()
        made.append(path)
        return path

    yield make
    for path in reversed(made):
        if path.exists():
            path.rmdir()


@pytest.fixture
def sleeper():
    children = []

    def start():
        children.append(subprocess.Popen(["sleep", "1000"]))
        return children[-1].pid

    yield start
    for child in children:
        child.kill()
        child.wait()


def join(path, pid):
    (path / "cgroup.procs").write_text(str(pid))


@pytest.fixture(params=["v1", "v2"])
def mount(request):
    found = first_v1() if request.param == "v1" else unified()
    if found is None:
        pytest.skip(f"no cgroup {request.param} here")
    return found


def test_a_process_with_a_cgroup_of_its_own(mount, make, sleeper):
    pid, path = sleeper(), make(mount)
    join(path, pid)
    assert cgroup.find(pid) == Cgroup(str(path))
    assert Cgroup(str(path)).pids() == [pid]


def test_v2_is_preferred(make, sleeper):
    if not (unified() and first_v1()):
        pytest.skip("not hybrid")
    pid, ours, other = sleeper(), make(unified()), make(first_v1())
    join(ours, pid)
    join(other, pid)
    assert cgroup.find(pid) == Cgroup(str(ours))


def test_a_process_in_the_shims_own_cgroup_has_none(sleeper):
    assert cgroup.find(sleeper()) is None


def test_a_cgroup_above_the_shims_own_is_not_taken(mount, make, sleeper):
    pid, above = sleeper(), make(mount)
    below = make(mount, "below")
    home = (cgroup._locate(*entry, hierarchies()) for entry in cgroup._memberships("self").items())
    former = next(path for path in home if path and path.startswith(mount))
    join(above, pid)
    join(below, os.getpid())
    try:
        assert cgroup.find(pid) is None
    finally:
        join(Path(former), os.getpid())
    assert cgroup.find(pid) == Cgroup(str(above))


def test_processes_below_are_found_and_sorted(mount, make, sleeper):
    top, inner, pids = make(mount), make(mount, "inner"), [sleeper(), sleeper(), sleeper()]
    for pid, path in zip(pids, (inner, top, inner), strict=True):
        join(path, pid)
    assert Cgroup(str(top)).pids() == sorted(pids)


def test_a_cgroup_that_is_gone_has_no_processes(mount, make):
    path = make(mount)
    path.rmdir()
    assert Cgroup(str(path)).pids() == []


def test_a_file_whose_cgroup_goes_while_it_is_open_is_absent(mount, make, monkeypatch):
    path, real_open = make(mount), os.open

    def open_too_late(name, flags):
        descriptor = real_open(name, flags)
        path.rmdir()
        return descriptor

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", open_too_late)
        assert cgroup.content(f"{path}/cgroup.procs") == b""
    assert cgroup.content(f"{path}/cgroup.procs") == b""


def test_a_process_that_is_gone_has_none():
    child = subprocess.Popen(["true"])
    child.wait()
    assert cgroup.find(child.pid) is None


def mounted(line):
    [found] = filter(None, [cgroup._hierarchy(line)])
    return found


def test_mounts_of_several_controllers_and_odd_names():
    found = mounted(
        r"33 31 0:30 / /sys/fs/cgroup/cpu\040x rw shared:9 - cgroup cgroup rw,xattr,cpu,cpuacct"
    )
    both = frozenset({"cpu", "cpuacct"})
    assert cgroup._locate(both, "/a", [found]) == "/sys/fs/cgroup/cpu x/a"
    assert cgroup._locate(frozenset({"memory"}), "/a", [found]) is None


def test_a_mount_that_shows_a_part_of_the_hierarchy():
    found = mounted("41 31 0:38 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    assert cgroup._locate(UNIFIED, "/docker/x/a", [found]) == "/sys/fs/cgroup/a"
    for outside in ("/docker/xy", "/docker", "/docker/x/../y", "/../y"):
        assert cgroup._locate(UNIFIED, outside, [found]) is None


def test_what_a_child_joins_to_be_in_a_cgroup(mount, make, sleeper):
    pid, path = sleeper(), make(mount)
    join(path, pid)
    memberships = Path(f"/proc/{pid}/cgroup").read_text()
    assert cgroup.procs_files(memberships) == (f"{path}/cgroup.procs",)


def test_our_own_cgroups_need_no_joining():
    assert cgroup.procs_files(Path("/proc/self/cgroup").read_text()) == ()


@pytest.mark.parametrize(
    "memberships",
    ["", "no lines of it", "99:no-such-controller:/denseshim-test", "0::/a/../../denseshim-test"],
)
def test_what_names_no_cgroup_here_is_not_joined(memberships):
    assert cgroup.procs_files(memberships) == ()
