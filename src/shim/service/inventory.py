"""Whether this version can go on with the records that another one has written."""

from __future__ import annotations

import contextlib
from pathlib import Path

from shim.keeper.client import Held
from shim.service.process import Process
from shim.service.record import ContainerRecord, Facts


def check_records(directory: Path) -> None:
    """Read all containers' records of the pair in `directory`, as a front that begins does.

    The front that serves them goes on meanwhile: what it removes is not looked for. Needs a
    running event loop; changes nothing. Raises what `recovery.MISSHAPEN` names, and OSError.
    """
    for place in (*directory.glob("tasks/*"), *directory.glob("shims/*/")):
        with contextlib.suppress(FileNotFoundError):
            _check_record(ContainerRecord(place, create=False))


def _check_record(record: ContainerRecord) -> None:
    state = record.load()
    if state is not None:
        Facts.from_state(state["facts"])
        Process.from_state(state["init"], Held())
    for one in record.load_execs():
        Process.from_state(one["process"], Held())
