"""What a dead keeper has left in a pair's directory, before the next one begins there.

Its containers have lost their parent and their streams: the first front of the new keeper
removes them. Its sockets are nobody's.
"""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path


def disown(directory: Path) -> None:
    """Mark each recorded container as an orphan, and forget listeners. Raises OSError.

    The events of an orphan would be taken for those of the next container.
    """
    for pattern, key in (("groups/*.json", "path"), ("shims/*.json", "own_socket")):
        for listener in directory.glob(pattern):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                _remove_socket(json.loads(listener.read_bytes())["state"][key])
            listener.unlink()
    for container in (*directory.glob("tasks/*"), *directory.glob("shims/*")):
        disown_container(container)


def _remove_socket(path: str) -> None:
    """Remove a dead listener's file; its path may be somebody else's by now, or be empty."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            return


def disown_container(directory: Path) -> None:
    """Mark the container that is recorded in `directory`, if there is one, as an orphan."""
    record = directory / "container.json"
    if record.exists():
        record.rename(directory / "orphan.json")
        (directory / "events").unlink(missing_ok=True)
