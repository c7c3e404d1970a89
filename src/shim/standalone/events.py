"""The events of all tasks that were made without containerd, for everybody who listens."""

from __future__ import annotations

import logging
from pathlib import Path

from shim.events import EventLog
from shim.journal import Journal
from shim.service.teller import LogTeller
from shim.store import CorruptState

_log = logging.getLogger(__name__)


class TaskEvents:
    """One log for all tasks of a host; its journal, the file `path`, is opened when it is needed.

    A journal that cannot be read is put aside, as PATH.damaged: events to come are worth more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log: EventLog | None = None

    @property
    def log(self) -> EventLog:
        """Raises OSError."""
        if self._log is None:
            self._log = self._open()
        return self._log

    def teller(self) -> LogTeller:
        """What tells one task's events. Raises OSError."""
        return LogTeller(self.log)

    def _open(self) -> EventLog:
        journal = Journal(self._path)
        try:
            return EventLog(journal)
        except CorruptState as error:
            _log.error("events of tasks are lost: %s", error)
            journal.close()
            self._path.rename(self._path.with_name(f"{self._path.name}.damaged"))
            return EventLog(Journal(self._path))
