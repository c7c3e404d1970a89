"""A floor: a shim without any cost of its own, to see what containerd and its clients cost."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from benchmarks.systems.base import Can, System

_SOURCE: Final = Path(__file__).parents[1] / "null_shim.c"


class NullShim(System):
    """`null_shim.c`: it answers every call at once, and no container is run."""

    name = "null_shim"
    title = "a shim that does nothing"
    can = Can.LIFE | Can.TASKS
    runtime = "io.containerd.null.v2"
    programs = ("containerd", "ctr", "cc")

    def prepare(self, folder: Path) -> None:
        """Compile it."""
        self.folders = (folder / self.name,)
        (folder / self.name).mkdir()
        program = folder / self.name / "containerd-shim-null-v2"
        subprocess.run(["cc", "-O2", "-static", "-o", program, _SOURCE], check=True)
