"""Waiting for what nothing announces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

# How long anything may take, in seconds, before its workload fails.
PATIENCE: Final = 120.0
_T = TypeVar("_T")


class NotInTime(Exception):
    """A condition that did not come true."""


def until(
    condition: Callable[[], _T], what: str, limit: float = PATIENCE, step: float = 0.005
) -> _T:
    """The first true value of a condition; looked at every `step` s. Raises NotInTime."""
    end = time.monotonic() + limit
    while not (value := condition()):
        if time.monotonic() > end:
            raise NotInTime(f"not within {limit:g} s: {what}")
        time.sleep(step)
    return value
