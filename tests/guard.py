"""What a test may leave behind: nothing. Each kind of trace is looked at before and after."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STATE = Path("/run/denseshim")
PATIENCE = 5.0


def _descriptors() -> set[str]:
    """This process's descriptors, without those of libraries that keep theirs (epoll, eventfd)."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith("anon_inode:"):
                found.add(f"{number} -> {target}")
    return found


def _shims() -> set[str]:
    """Processes of any shim: keepers, spawners, fronts."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                if b"shim/boot.py" in command or b"-m shim.front" in command:
                    found.add(f"{entry.name} {command.decode(errors='replace')}")
    return found


def _children() -> set[str]:
    text = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return set(text.split())


def _mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _cgroups() -> set[str]:
    """Cgroups that containers of tests are in."""
    folders = Path("/sys/fs/cgroup").glob("**/denseshim*")
    inner = (path for folder in folders for path in (folder, *folder.glob("*")))
    return {str(path) for path in inner if path.is_dir() and path.name != "denseshim"}


def _state() -> set[str]:
    return set(os.listdir(STATE)) if STATE.exists() else set()


def _containers() -> set[str]:
    listed = subprocess.run(["runc", "list", "-q"], capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


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
