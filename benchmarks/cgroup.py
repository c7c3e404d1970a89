"""A cgroup, in all hierarchies at once, of v1, v2, or both.

CPU is cpuacct.usage (v1, ns) or cpu.stat (v2, us): the kernel's own count of all that has ever run
there, ended processes among them. Kernel memory is memory.kmem.usage_in_bytes (v1) or `kernel` in
memory.stat (v2).
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TOP: Final = Path("/sys/fs/cgroup")
_V2_CONTROLLERS: Final = ("cpu", "memory", "pids")


def hierarchies() -> list[Path]:
    """Where hierarchies are mounted: v2's alone, or v1's, maybe with v2's beside them."""
    if (_TOP / "cgroup.procs").exists():
        return [_TOP]
    return sorted({path.resolve() for path in _TOP.iterdir() if (path / "cgroup.procs").exists()})


@dataclass(frozen=True)
class Group:
    """By its path below the root of each hierarchy."""

    name: str

    def below(self, name: str) -> Group:
        """A group in this one."""
        return Group(f"{self.name}/{name}")

    def make(self) -> None:
        """Make it everywhere. Raises OSError."""
        for root in hierarchies():
            path = root / self.name
            path.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):  # v1's take no process without them
                if root != _TOP and (path / name).exists():
                    (path / name).write_text((path.parent / name).read_text())

    def delegate(self) -> None:
        """Let its parts have controllers, where v2 is alone."""
        if hierarchies() == [_TOP]:
            for name in _V2_CONTROLLERS:
                (_TOP / self.name / "cgroup.subtree_control").write_text(f"+{name}")

    def pids(self) -> set[int]:
        """All processes in it and below."""
        found: set[int] = set()
        for folder, _, _ in os.walk(hierarchies()[-1] / self.name):
            with contextlib.suppress(FileNotFoundError):
                found.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
        return found

    def cpu(self) -> float:
        """CPU seconds used so far, in it and below."""
        if (path := _TOP / "cpuacct" / self.name / "cpuacct.usage").exists():
            return int(path.read_text()) / 1e9
        return _row(_TOP / self.name / "cpu.stat", "usage_usec") / 1e6

    def kernel_memory(self) -> int:
        """Bytes of kernel memory, in it and below."""
        if (path := _TOP / "memory" / self.name / "memory.kmem.usage_in_bytes").exists():
            return int(path.read_text())
        return _row(_TOP / self.name / "memory.stat", "kernel")

    def remove(self) -> bool:
        """Remove it and all below it, which must be without processes; False: not yet."""
        for root in hierarchies():
            for folder, _, _ in os.walk(root / self.name, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError as error:
                    if error.errno == errno.EBUSY:
                        return False
                    if error.errno != errno.ENOENT:
                        raise
        return True


def _row(path: Path, name: str) -> int:
    rows = dict(line.split() for line in path.read_text().splitlines())
    return int(rows[name])
