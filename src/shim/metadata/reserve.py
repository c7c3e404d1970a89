"""Space on the disk of a store that is kept for removing what is in it.

To forget something is to write it down first: on a full disk nothing could be removed otherwise.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

_SIZE: Final = 1 << 20  # bytes: far more than what removing one thing writes
_LEAST: Final = 1 << 14
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Reserve:
    """The file at `path`, which has nothing in it. Any thread may call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._is_whole = False

    def make(self) -> None:
        """Have as much of it as there is room for; what a dead process has left of it counts."""
        with self._lock:
            size = 0 if self._is_whole else self._room()
            while size >= _LEAST and not self._allocate(size):
                size -= _LEAST

    def release(self) -> bool:
        """Give the space back; whether there was any."""
        with self._lock:
            self._is_whole = False
            try:
                had = self._path.lstat().st_blocks > 0
                self._path.unlink()
            except OSError:
                return False
            return had

    def _room(self) -> int:
        """How large the file can be; on a small disk not as large as on others."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._path.parent)
            held = self._path.lstat().st_blocks * 512 if self._path.exists() else 0
            free = held + disk.f_bavail * disk.f_frsize
            return min(_SIZE, disk.f_blocks * disk.f_frsize // 4, free)
        return 0

    def _allocate(self, size: int) -> bool:
        # The file may be all that is between a full disk and removing something: it only grows.
        with contextlib.suppress(OSError):
            file = os.open(self._path, _FLAGS, 0o600)
            try:
                os.posix_fallocate(file, 0, size)
            finally:
                os.close(file)
            self._is_whole = size == _SIZE
            return True
        return False
