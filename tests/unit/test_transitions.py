"""What may be done to a container in which state: one row per state and operation."""

from __future__ import annotations

import itertools

import pytest

from shim.errors import FailedPrecondition
from shim.model import Status
from shim.service.transitions import Operation, check

C, R, P, S = Status.CREATED, Status.RUNNING, Status.PAUSED, Status.STOPPED

ROWS = [
    (C, Operation.START, True),
    (C, Operation.EXEC, True),
    (C, Operation.PAUSE, False),
    (C, Operation.RESUME, False),
    (C, Operation.UPDATE, True),
    (C, Operation.CHECKPOINT, False),
    (R, Operation.START, False),
    (R, Operation.EXEC, True),
    (R, Operation.PAUSE, True),
    (R, Operation.RESUME, False),
    (R, Operation.UPDATE, True),
    (R, Operation.CHECKPOINT, True),
    (P, Operation.START, False),
    (P, Operation.EXEC, False),
    (P, Operation.PAUSE, False),
    (P, Operation.RESUME, True),
    (P, Operation.UPDATE, True),
    (P, Operation.CHECKPOINT, True),
    (S, Operation.START, False),
    (S, Operation.EXEC, False),
    (S, Operation.PAUSE, False),
    (S, Operation.RESUME, False),
    (S, Operation.UPDATE, False),
    (S, Operation.CHECKPOINT, False),
]


def test_every_state_and_operation_has_a_row() -> None:
    rows = [(status, operation) for status, operation, _ in ROWS]
    assert rows == list(itertools.product(Status, Operation))


@pytest.mark.parametrize(("status", "operation", "allowed"), ROWS)
def test_a_row(status: Status, operation: Operation, allowed: bool) -> None:
    if allowed:
        check(operation, status, "c1")
        return
    with pytest.raises(FailedPrecondition) as caught:
        check(operation, status, "c1")
    wanted = [s.value for s, o, yes in ROWS if o is operation and yes]
    assert str(caught.value) == (
        f"cannot {operation.value} container c1: it is {status.value}, not {' or '.join(wanted)}"
    )
