"""What a test may leave behind: nothing. Each kind of trace is looked at before and after."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

STATE = Path("/run/denseshim")
RUNC = Path("/run/runc")
PATIENCE = 5.0
# Every container of a test, and of the command line, has an id that begins so.
OURS = "denseshim-"


# Another run of the tests, beside this one, has its own guard.
_TEST_ID = re.compile(r"denseshim-test-([0-9]+)-")


def _is_anothers_id(text: str) -> bool:
    """Whether a live process other than this one has made the id that is in `text`."""
    found = _TEST_ID.search(text)
    return found is not None and int(found[1]) != os.getpid() and Path(f"/proc/{found[1]}").exists()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _ancestors(pid: int) -> list[int]:
    """From the parent upwards; shorter when one of them ends meanwhile."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(pid)
    return found


def _is_anothers_process(pid: int, shims: Collection[int]) -> bool:
    """Whether a program beside this one has started the shim that `pid` is of.

    What this one has started and lost is a child of one of its ancestors: of a subreaper.
    """
    starter = next((parent for parent in _ancestors(pid) if parent not in shims), 0)
    if starter == os.getpid():
        return False
    return starter not in (0, *_ancestors(os.getpid())) or _is_elsewhere(pid)


def _is_elsewhere(pid: int) -> bool:
    """Whether a process that is detached lives in other mounts: who made them looks after it."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino
    return False


def _descriptors() -> set[str]:
    """This process's descriptors, without those of libraries that keep theirs (epoll, eventfd)."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith("anon_inode:"):
                found.add(f"{number} -> {target}")
    return found


def _all_shims() -> dict[int, str]:
    """The command lines of all shims: keepers, spawners, fronts."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = _command(int(entry.name))
                if "shim/boot.py" in command or "-m shim.front" in command:
                    found[int(entry.name)] = command
    return found


def _shims() -> set[str]:
    found = _all_shims()
    return {
        f"{pid} {command}" for pid, command in found.items() if not _is_anothers_process(pid, found)
    }


def _children() -> set[str]:
    text = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return set(text.split())


def _mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _cgroups() -> set[str]:
    """Cgroups that containers of tests are in; os.walk bears others that vanish meanwhile."""
    found = (
        os.path.join(folder, name)
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(OURS)
    )
    return {path for path in found if not _is_anothers_id(path)}


def _state() -> set[str]:
    there = set(os.listdir(STATE)) if STATE.exists() else set()
    shims = _all_shims()
    others = [line for pid, line in shims.items() if _is_anothers_process(pid, shims)]
    return {name for name in there if not any(str(STATE / name) in line for line in others)}


def _containers() -> set[str]:
    there = os.listdir(RUNC) if RUNC.exists() else ()
    return {id for id in there if id.startswith(OURS) and not _is_anothers_id(id)}


def _threads() -> set[str]:
    return {f"{thread.name} {thread.ident}" for thread in threading.enumerate()}


KINDS = {
    "descriptors": _descriptors,
    "threads": _threads,
    "children": _children,
    "shim processes": _shims,
    "mounts": _mounts,
    "cgroups": _cgroups,
    "state directories": _state,
    "runtime containers": _containers,
}


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail when the block leaves anything behind that is not gone within PATIENCE seconds."""
    before = {kind: look() for kind, look in KINDS.items()}
    yield
    end = time.monotonic() + PATIENCE
    while left := {kind: new for kind, look in KINDS.items() if (new := look() - before[kind])}:
        assert time.monotonic() < end, f"left behind: {left}"
        gc.collect()  # a broken off call and its connection may be a cycle
        time.sleep(0.01)
