"""How big the tests of users' demands are.

DENSESHIM_TEST_FULL: set, the sizes that the demands name, as far as a machine can, for more than an
hour; unset or empty, sizes that ask for the same in seconds.
"""

from __future__ import annotations

import os
from typing import Final, TypeVar

FULL: Final = bool(os.environ.get("DENSESHIM_TEST_FULL"))

_T = TypeVar("_T")


def sized(quick: _T, full: _T) -> _T:
    """The size of a test: `full` when the demands' own are asked for."""
    return full if FULL else quick
