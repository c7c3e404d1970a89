"""The load generators: a small static program in the containers, and beside them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).parent / "pump.c"
# In a container.
PUMP: Final = "/bin/pump"


def add_pump(rootfs: Path) -> None:
    """Compile the pump into a root file system. Raises CalledProcessError without a compiler."""
    subprocess.run(["cc", "-O2", "-static", "-o", pump_of(rootfs), _SOURCE], check=True)


def pump_of(rootfs: Path) -> Path:
    """The pump as this process runs it."""
    return rootfs / PUMP.lstrip("/")
