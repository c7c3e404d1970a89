"""What processes use, by the kernel's own counts (proc(5))."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_GONE = (FileNotFoundError, ProcessLookupError)


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far, of all its threads, those that have ended among them.

    By the process's CPU clock: see clock_getcpuclockid(3) for the clock's number.
    """
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def threads(pids: Iterable[int]) -> int:
    """How many threads all these processes have."""
    return sum(_count(pid, "task") for pid in pids)


def descriptors(pids: Iterable[int]) -> int:
    """How many descriptors all these processes have open."""
    return sum(_count(pid, "fd") for pid in pids)


def _count(pid: int, what: str) -> int:
    with contextlib.suppress(*_GONE):
        return len(os.listdir(f"/proc/{pid}/{what}"))
    return 0


def switches(pids: Iterable[int]) -> int:
    """How often the threads of all these processes have waited, and so been woken."""
    return sum(_switches(pid) for pid in pids)


def _switches(pid: int) -> int:
    found = 0
    with contextlib.suppress(*_GONE):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(*_GONE):
                for row in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines():
                    if row.startswith("voluntary_ctxt_switches:"):
                        found += int(row.split()[1])
    return found


def command_of(pid: int) -> list[str]:
    """A process's command line; [] when it is gone."""
    with contextlib.suppress(*_GONE):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def parent_of(pid: int) -> int:
    """The pid of a process's parent. Raises FileNotFoundError, ProcessLookupError."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@dataclass(frozen=True)
class _Mapping:
    file: str  # "" for what is no file's
    place: str
    rss: int
    pss: int


def memory(pids: Iterable[int]) -> int:
    """PSS of these processes, in bytes, as if this process did not share files with them.

    PSS divides each page by the number of processes that have it. This process is of the same
    interpreter and libraries as the product, which would make the product look smaller: of files
    that this process has mapped, too, all that the fullest of `pids` has in memory is counted.
    """
    ours = {row.file for row in _mappings(os.getpid()) if row.file}
    fullest: dict[tuple[str, str], int] = defaultdict(int)
    total = 0
    for pid in pids:
        if not _is_of_python(pid, ours):
            total += _pss(pid)
            continue
        for row in _mappings(pid):
            if row.file in ours:
                key = (row.file, row.place)
                fullest[key] = max(fullest[key], row.rss)
            else:
                total += row.pss
    return total + sum(fullest.values())


def _is_of_python(pid: int, files: set[str]) -> bool:
    with contextlib.suppress(*_GONE):
        return os.readlink(f"/proc/{pid}/exe") in files
    return False


def _pss(pid: int) -> int:
    with contextlib.suppress(*_GONE):
        for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if row.startswith("Pss:"):
                return int(row.split()[1]) << 10
    return 0


def _mappings(pid: int) -> Iterator[_Mapping]:
    with contextlib.suppress(*_GONE):
        head: list[str] = []
        sizes: dict[str, int] = {}
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            words = line.split()
            if words[0].endswith(":"):
                if words[0] in ("Rss:", "Pss:"):
                    sizes[words[0]] = int(words[1]) << 10
                if words[0] == "VmFlags:":
                    yield _mapping(head, sizes)
            else:
                head = words


def _mapping(head: list[str], sizes: dict[str, int]) -> _Mapping:
    """From a mapping's first line: range, permissions, offset, device, inode, path."""
    # A file's page that was written to is the process's own.
    file = head[5] if len(head) > 5 and head[5].startswith("/") and "w" not in head[1] else ""
    return _Mapping(file, head[2], sizes["Rss:"], sizes["Pss:"])
