"""Waiting until files are on the disk, and not only in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from cffi import FFI

_ffi = FFI()
_ffi.cdef("int syncfs(int fd);")
_libc: Final[Any] = _ffi.dlopen(None)

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def flush(directory: Path) -> None:
    """Write the file system of `directory` out (syncfs(2)). Raises OSError.

    After a power loss, a record would otherwise speak of files that were never written. Since
    Linux 5.8 this tells of errors that came while the kernel wrote.
    """
    opened = os.open(directory, _DIRECTORY)
    try:
        if _libc.syncfs(opened) < 0:
            raise OSError(_ffi.errno, f"syncfs: {os.strerror(_ffi.errno)}", str(directory))
    finally:
        os.close(opened)
