"""What is known of one container and survives the front: its state files and its events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shim.events import EventLog
from shim.journal import Journal
from shim.model import Status
from shim.service.process import Process
from shim.store import Store

CONTAINER = "container"
ORPHAN = "orphan"
DELETED = "deleted"
_EXEC = "exec-"


@dataclass
class Facts:
    """The container's own state. Until `created` it has to be taken back.

    `intent` names the runtime's command that is under way, and the spawn it runs as; a front
    that finds one has to learn how it ended.
    """

    id: str
    bundle: str
    runtime: str
    no_pivot: bool
    mounts: int
    created: bool = False
    status: Status = Status.CREATED
    cgroup: str = ""
    restored: bool = False
    intent: dict[str, Any] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """All fields as JSON has them."""
        return {**vars(self), "status": self.status.value}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Facts:
        """The inverse. Raises TypeError or ValueError for what is not one."""
        return cls(**{**state, "status": Status(state["status"])})


class ContainerRecord:
    """The files of one container in a directory of its own.

    Each change is one file, replaced as a whole, so that any moment's death leaves it before or
    after. An event is journalled before the state that follows from it: what dies between them
    finds the event there, and does not tell it twice.
    """

    def __init__(self, directory: Path) -> None:
        self._store = Store(directory)
        self.directory = directory
        self.journal = Journal(directory / "events")
        self.events = EventLog(self.journal)

    def save(self, facts: Facts, init: Process | None = None) -> None:
        """Write the container's own state, with its init process."""
        state = {"facts": facts.to_state(), "init": init.to_state() if init else None}
        self._store.write(CONTAINER, state)

    def load(self) -> dict[str, Any] | None:
        """What `save` has written, or None. Raises CorruptState."""
        return self._store.read(CONTAINER)

    def load_orphan(self) -> dict[str, Any] | None:
        """What the front of a dead keeper has written (see `shim.launch`), or None."""
        return self._store.read(ORPHAN)

    def save_exec(self, process: Process, spawn: int = 0) -> None:
        """Write an exec's state; while the runtime starts it, `spawn` is the command's id."""
        state = {"spawn": spawn, "process": process.to_state()}
        self._store.write(f"{_EXEC}{process.child_id}", state)

    def load_execs(self) -> list[dict[str, Any]]:
        """What `save_exec` has written and nobody removed. Raises CorruptState."""
        names = [name for name in self._store.names() if name.startswith(_EXEC)]
        return [state for name in names if (state := self._store.read(name)) is not None]

    def remove_exec(self, process: Process) -> None:
        """The exec is forgotten."""
        self._store.remove(f"{_EXEC}{process.child_id}")

    def clear(self, deleted: str = "") -> None:
        """The container is gone; its undelivered events stay.

        deleted: its id when that is for good. A repeated Delete asks for it, when the front died
        before it could answer the first.
        """
        if deleted:
            self._store.write(DELETED, {"id": deleted})
        for name in self._store.names():
            if not (deleted and name == DELETED):
                self._store.remove(name)

    def load_deleted(self) -> str:
        """The id of the container that was deleted last, or "". Raises CorruptState."""
        return str((self._store.read(DELETED) or {"id": ""})["id"])

    def destroy(self) -> None:
        """Remove everything."""
        self.journal.close()
        self._store.destroy()
