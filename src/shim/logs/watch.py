"""Learning that a log has grown."""

from __future__ import annotations

import asyncio
import contextlib
import os
from types import TracebackType
from typing import Final, Self

from shim.syscalls import IN_MODIFY, inotify, inotify_watch

_QUEUE: Final = 65536  # bytes of one read; it gives whole events


class LogWatch:
    """Wakes who follows the log in a directory (borrowed); belongs to the running event loop.

    Use as a context manager. Raises OSError: EMFILE or ENOSPC when the user's limits of
    inotify(7) are reached.
    """

    def __init__(self, directory: int) -> None:
        self._grown = asyncio.Event()
        self._descriptor = inotify()
        try:
            # Of its files: whatever else happens to them, the next record is written to one.
            inotify_watch(self._descriptor, f"/proc/self/fd/{directory}", IN_MODIFY)
        except BaseException:
            os.close(self._descriptor)
            raise
        asyncio.get_running_loop().add_reader(self._descriptor, self._take)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    async def grown(self) -> None:
        """Return when something was written since the last call, or since the beginning."""
        await self._grown.wait()
        self._grown.clear()

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, _QUEUE):
                self._grown.set()
