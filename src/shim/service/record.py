"""What is known of one container and survives the front: its state files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shim.model import Launcher, RuntimeOptions, Status
from shim.service.process import Process
from shim.store import CorruptState, Store

CONTAINER = "container"
ORPHAN = "orphan"
DELETED = "deleted"
_EXEC = "exec-"

_log = logging.getLogger(__name__)


@dataclass
class Facts:
    """The container's own state. Until `created` it has to be taken back.

    `address` is containerd's own socket and `namespace` one of its namespaces, both empty for
    the service of 2017; `group` is the listener whose client has created the container.
    `intent` names the runtime's command that is under way, the spawn it runs as and the call
    that asked for it: a front that finds one has to learn how it ended. `request` is the call
    whose change was the last, so that it can be answered again.
    """

    id: str
    bundle: str
    options: RuntimeOptions
    launcher: Launcher
    address: str = ""
    namespace: str = ""
    group: int = 0
    mounts: int = 0
    created: bool = False
    status: Status = Status.CREATED
    cgroup: str = ""
    cgroups: dict[str, Any] = field(default_factory=dict)  # see shim.metrics.locate
    oom: int = 0  # OOM kills that have been told
    private_pids: bool = True
    restored: bool = False
    deleting: bool = False
    request: int = 0
    intent: dict[str, Any] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """All fields as JSON has them. Nothing is copied: it is written often."""
        return {
            **vars(self),
            "status": self.status.value,
            "options": vars(self.options),
            "launcher": vars(self.launcher),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Facts:
        """The inverse. Raises TypeError, KeyError or ValueError for what is not one."""
        return cls(
            **{
                **state,
                "status": Status(state["status"]),
                "options": RuntimeOptions(**state["options"]),
                "launcher": Launcher.from_state(state["launcher"]),
            }
        )


class ContainerRecord:
    """The files of one container in a directory of its own.

    Each change is one file, replaced as a whole, so that any moment's death leaves it before or
    after. An event is told before the state that follows from it is written: what dies between
    them finds that it was told, and does not tell it twice.

    create: make the directory if it is not there (see `Store`).
    """

    def __init__(self, directory: Path, *, create: bool = True) -> None:
        self._store = Store(directory, create=create)
        self.directory = directory

    def save(self, facts: Facts, init: Process | None = None) -> None:
        """Write the container's own state, with its init process."""
        state = {"facts": facts.to_state(), "init": init.to_state() if init else None}
        self._store.write(CONTAINER, state)

    def load(self) -> dict[str, Any] | None:
        """What `save` has written, or None. Raises CorruptState."""
        return self._store.read(CONTAINER)

    def exists(self) -> bool:
        """Whether a container is recorded."""
        return CONTAINER in self._store.names()

    def load_orphan(self) -> dict[str, Any] | None:
        """What the front of a dead keeper has written (see `shim.orphans`), or None."""
        return self._store.read(ORPHAN)

    def save_exec(self, process: Process, spawn: int = 0) -> None:
        """Write an exec's state; while the runtime starts it, `spawn` is the command's id."""
        state = {"spawn": spawn, "process": process.to_state()}
        self._store.write(f"{_EXEC}{process.child_id}", state)

    def load_execs(self) -> list[dict[str, Any]]:
        """What `save_exec` has written and nobody removed, as far as it can be read."""
        names = [name for name in self._store.names() if name.startswith(_EXEC)]
        return [state for name in names if (state := self._load_exec(name)) is not None]

    def _load_exec(self, name: str) -> dict[str, Any] | None:
        try:
            return self._store.read(name)
        except CorruptState as error:
            _log.error("an exec is not known any more: %s", error)
            return None

    def remove_exec(self, process: Process) -> None:
        """The exec is forgotten."""
        self.spec_file(process).unlink(missing_ok=True)
        self._store.remove(f"{_EXEC}{process.child_id}")

    def spec_file(self, process: Process) -> Path:
        """Where an exec's OCI process is until it is started."""
        return self.directory / f"{_EXEC}{process.child_id}.spec"

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
        self._store.destroy()
