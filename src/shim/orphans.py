"""What a dead keeper has left in a pair's directory, before the next one begins there.

Its containers have lost their parent and their streams: the first front of the new keeper
removes them. Its sockets are nobody's.
"""

from __future__ import annotations

import contextlib
import json
import shutil
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
    """The same for one container's directory; one without a container goes."""
    record = directory / "container.json"
    if record.exists():
        record.rename(directory / "orphan.json")
    if (directory / "orphan.json").exists():
        (directory / "events").unlink(missing_ok=True)
    else:
        shutil.rmtree(directory)
