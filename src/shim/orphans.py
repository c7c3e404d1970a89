"""What a dead keeper has left in a pair's directory, before the next one begins there.

Its containers have lost their parent and their streams: the first front of the new keeper
removes them. Its sockets are nobody's.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path


def disown(directory: Path) -> None:
    """Mark each recorded container as an orphan, and forget listeners. Raises OSError.

    The events of an orphan would be taken for those of the next container.
    """
    for group in directory.glob("groups/*.json"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            Path(json.loads(group.read_bytes())["state"]["path"]).unlink(missing_ok=True)
        group.unlink()
    for shim in directory.glob("shims/*.json"):
        shim.unlink()
    for container in (*directory.glob("tasks/*"), *directory.glob("shims/*")):
        disown_container(container)


def disown_container(directory: Path) -> None:
    """Mark the container that is recorded in `directory`, if there is one, as an orphan."""
    record = directory / "container.json"
    if record.exists():
        record.rename(directory / "orphan.json")
        (directory / "events").unlink(missing_ok=True)
