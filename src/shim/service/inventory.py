"""Whether this version can go on with the records that another one has written."""

from __future__ import annotations

from pathlib import Path

from shim.keeper.client import Held
from shim.service.process import Process
from shim.service.record import ContainerRecord, Facts


def check_records(directory: Path) -> None:
    """Read all containers' records of the pair in `directory`, as a front that begins does.

    Needs a running event loop; changes nothing. Raises what `recovery.MISSHAPEN` names.
    """
    for place in (*directory.glob("tasks/*"), *directory.glob("shims/*/")):
        record = ContainerRecord(place)
        state = record.load()
        if state is not None:
            Facts.from_state(state["facts"])
            Process.from_state(state["init"], Held())
        for one in record.load_execs():
            Process.from_state(one["process"], Held())
