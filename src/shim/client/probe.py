"""Tells a shim that is gone from one whose front is."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def is_listening(path: Path) -> bool:
    """Whether a process, the keeper, holds the socket at `path`. It does not block."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # many wait there already
        except OSError:
            return False
    return True
