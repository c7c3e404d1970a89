"""What may be done to a container in which state, as one table."""

from __future__ import annotations

import enum

from shim.errors import FailedPrecondition
from shim.model import Status


class Operation(enum.Enum):
    """What a caller may ask of a container that exists."""

    START = "start"
    EXEC = "exec in"
    PAUSE = "pause"
    RESUME = "resume"
    UPDATE = "update"
    CHECKPOINT = "checkpoint"


_ALLOWED: dict[Operation, tuple[Status, ...]] = {
    Operation.START: (Status.CREATED,),
    Operation.EXEC: (Status.CREATED, Status.RUNNING),
    Operation.PAUSE: (Status.RUNNING,),
    Operation.RESUME: (Status.PAUSED,),
    Operation.UPDATE: (Status.CREATED, Status.RUNNING, Status.PAUSED),
    Operation.CHECKPOINT: (Status.RUNNING, Status.PAUSED),
}


def check(operation: Operation, status: Status, id: str) -> None:
    """Raise FailedPrecondition, with the state that is and those it would take, unless allowed."""
    allowed = _ALLOWED[operation]
    if status not in allowed:
        wanted = " or ".join(state.value for state in allowed)
        raise FailedPrecondition(
            f"cannot {operation.value} container {id}: it is {status.value}, not {wanted}"
        )
