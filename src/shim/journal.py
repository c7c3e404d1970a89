"""Events that nobody has yet, in a file, so that they outlive the process that saw them.

Each line is an event, or strikes off the oldest one before it that is not struck off yet.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from shim.model import Event, EventType
from shim.store import CorruptState

_STRIKE = b"-"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Journal:
    """An append-only file of lines, JSON for events; made (mode 0600) if it is not there.

    Owns a descriptor from construction to `close`, so that appending needs none. One process
    writes at a time. Everything raises OSError. Nothing is synced, as in `shim.store`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, _FLAGS, 0o600)

    def append(self, event: Event) -> None:
        """Add `event` by one write(2); when it fails, nothing of it stays in the file."""
        self._append(_encode(event))

    def strike(self) -> None:
        """Take off the oldest event that is left; raises as `append` does."""
        self._append(_STRIKE + b"\n")

    def load(self) -> list[Event]:
        """The events that are left, in order; a torn last line is cut off.

        Raises CorruptState, naming file and line, for any other line that is no event.
        """
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        events: deque[Event] = deque()
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            if line == _STRIKE and events:
                events.popleft()
            else:
                events.append(_decode(line, f"{self._path}:{number}"))
        return list(events)

    def clear(self) -> None:
        """Forget all events."""
        os.ftruncate(self._file, 0)

    def rewrite(self, events: Iterable[Event]) -> None:
        """Put `events` in the place of all that the file has, or fail and leave it as it is."""
        new = self._path.with_name(f"{self._path.name}.new")
        new.unlink(missing_ok=True)
        successor = Journal(new)
        try:
            successor._append(b"".join(_encode(event) for event in events))
            new.rename(self._path)
        except OSError:
            successor.close()
            new.unlink(missing_ok=True)
            raise
        self.close()
        self._file, successor._file = successor._file, -1

    def close(self) -> None:
        """Close the descriptor; the file stays."""
        file, self._file = self._file, -1
        os.close(file)

    def _append(self, data: bytes) -> None:
        written = os.write(self._file, data)
        if written < len(data):
            # Half a line would spoil the next one.
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(f"only {written} of {len(data)} bytes written to {self._path}")


def _encode(event: Event) -> bytes:
    return json.dumps({**asdict(event), "type": event.type.value}).encode() + b"\n"


def _decode(line: bytes, where: str) -> Event:
    try:
        fields = json.loads(line)
        return Event(**{**fields, "type": EventType(fields["type"])})
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptState(f"the journal's line {where} is no event: {error}") from error
