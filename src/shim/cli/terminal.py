"""The terminal that this program runs on."""

from __future__ import annotations

import contextlib
import os
import termios
import tty
from collections.abc import Iterator


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Put the terminal into raw mode, and back whatever happens; other files are left alone."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSANOW)
        yield
    finally:
        # A terminal that hung up meanwhile has nothing to be restored.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def size() -> tuple[int, int] | None:
    """Width and height, in characters, of our terminal; None without one, or if it has none."""
    for descriptor in (0, 1, 2):
        if os.isatty(descriptor):
            width, height = os.get_terminal_size(descriptor)
            return (width, height) if width and height else None
    return None
