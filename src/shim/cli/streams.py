"""This program's own stdin, stdout and stderr."""

from __future__ import annotations

import os


def open_missing_streams() -> None:
    """Open /dev/null in place of those that are closed: else other files would take their numbers.

    To be called before other files are opened: open(2) gives the lowest number that is free.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
