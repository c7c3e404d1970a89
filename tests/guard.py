"""What a test may leave behind: nothing. Each kind of trace is looked at before and after."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STATE = Path("/run/denseshim")
PATIENCE = 5.0


# Another run of the tests, beside this one, has its own guard.
_TEST_ID = re.compile(r"denseshim-test-([0-9]+)-")
_TEST_RUN = re.compile(r"(-m |/)pytest ")


def _is_anothers_id(text: str) -> bool:
    """Whether a live process other than this one has made the id that is in `text`."""
    found = _TEST_ID.search(text)
    return found is not None and int(found[1]) != os.getpid() and Path(f"/proc/{found[1]}").exists()


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _is_anothers_process(pid: int) -> bool:
    """Whether `pid` descends from another run of the tests, and not from this one."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while pid > 1 and pid != os.getpid():
            if _TEST_RUN.search(_command(pid)):
                return True
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
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
    rows = _all_shims().items()
    return {f"{pid} {command}" for pid, command in rows if not _is_anothers_process(pid)}


def _children() -> set[str]:
    text = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return set(text.split())


def _mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _cgroups() -> set[str]:
    """Cgroups that containers of tests are in."""
    folders = Path("/sys/fs/cgroup").glob("**/denseshim*")
    inner = (path for folder in folders for path in (folder, *folder.glob("*")))
    found = {str(path) for path in inner if path.is_dir() and path.name != "denseshim"}
    return {path for path in found if not _is_anothers_id(path)}


def _state() -> set[str]:
    there = set(os.listdir(STATE)) if STATE.exists() else set()
    others = [line for pid, line in _all_shims().items() if _is_anothers_process(pid)]
    return {name for name in there if not any(str(STATE / name) in line for line in others)}


def _containers() -> set[str]:
    listed = subprocess.run(["runc", "list", "-q"], capture_output=True, text=True, check=True)
    return {id for id in listed.stdout.split() if not _is_anothers_id(id)}


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
        time.sleep(0.01)
