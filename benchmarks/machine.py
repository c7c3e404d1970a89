"""On what a run was made."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

from benchmarks.daemon import program_version


def machine() -> dict[str, str]:
    """The machine's description, and the programs' versions."""
    cpu = _row("/proc/cpuinfo", "model name") or platform.machine()
    memory = int(_row("/proc/meminfo", "MemTotal").split()[0] or 0) >> 20
    v2_alone = Path("/sys/fs/cgroup/cgroup.procs").exists()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "processors": f"{os.cpu_count()} × {cpu}",
        "memory": f"{memory} GiB",
        "kernel": platform.release(),
        "cgroups": "v2" if v2_alone else "v1",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "containerd": program_version("containerd"),
        "runc": program_version("runc"),
        "conmon": program_version("conmon"),
    }


def _row(path: str, name: str) -> str:
    rows = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for key, _, value in rows if key.strip() == name), "0")
