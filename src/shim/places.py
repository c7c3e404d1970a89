"""Where a host that stands on its own keeps its data, and where it is called.

What has to outlive a reboot is in LIBRARY, what must not is below /run. The tasks' bundles are in
the pair's own directory, for they are nothing without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

LIBRARY: Final = Path("/var/lib/denseshim")
LOCK: Final = LIBRARY / "lock"
DATABASE: Final = LIBRARY / "metadata.db"
SNAPSHOTS: Final = LIBRARY / "snapshots"
LOGS: Final = LIBRARY / "logs"
CHECKPOINTS: Final = LIBRARY / "checkpoints"

RUN: Final = Path("/run/denseshim")
# Beside RUN, which is for root alone: a group may be let in.
SOCKET: Final = Path("/run/denseshim.sock")
# FIFOs that the command line makes for a container's stdin, by its id.
IO: Final = RUN / "io"
# Of the runtimes' own state; the namespace comes below it.
RUNTIME_ROOT: Final = RUN / "runc"

# In the directory of a pair.
BUNDLES: Final = "bundles"
EVENTS: Final = "api-events"
