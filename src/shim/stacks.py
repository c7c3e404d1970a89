"""Where a front stands: what its threads and tasks do, told in its log at SIGUSR1."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
from collections import Counter

_log = logging.getLogger(__name__)


def tell_at_signal() -> None:
    """From now on SIGUSR1 has the running loop's tasks told, and every thread's stack.

    The threads' come first, and from the kernel's handler: also when the loop is stuck.
    """
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _tell_tasks)
    faulthandler.register(signal.SIGUSR1, chain=True)


def _tell_tasks() -> None:
    places = Counter(map(_place, asyncio.all_tasks()))
    for place, count in places.most_common():
        _log.warning("%d tasks at %s", count, place)


def _place(task: asyncio.Task[object]) -> str:
    stack = task.get_stack(limit=1)
    if not stack:
        return "their end"
    [frame] = stack
    return f"{frame.f_code.co_qualname}, {frame.f_code.co_filename}:{frame.f_lineno}"
