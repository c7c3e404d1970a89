"""zstd through the machine's own libzstd: the standard library has none before Python 3.14.

Only what zstd.h has called stable since version 1.4 is used.
"""

from __future__ import annotations

import os
from typing import Any, Final

from cffi import FFI

from shim.errors import FailedPrecondition

_LIBRARY: Final = "libzstd.so.1"
_ROOM: Final = 1 << 18

_ffi = FFI()
_ffi.cdef(
    """
    typedef struct ZSTD_DCtx_s ZSTD_DStream;
    typedef struct { const void *src; size_t size; size_t pos; } ZSTD_inBuffer;
    typedef struct { void *dst; size_t size; size_t pos; } ZSTD_outBuffer;
    ZSTD_DStream *ZSTD_createDStream(void);
    size_t ZSTD_freeDStream(ZSTD_DStream *stream);
    size_t ZSTD_decompressStream(ZSTD_DStream *stream, ZSTD_outBuffer *to, ZSTD_inBuffer *from);
    unsigned ZSTD_isError(size_t code);
    const char *ZSTD_getErrorName(size_t code);
    """
)


class ZstdError(Exception):
    """The data are not zstd's, or damaged."""


class Decompressor:
    """One frame, read as bz2.BZ2Decompressor reads one stream.

    Memory is bounded by the library's default window, 128 MiB. Raises FailedPrecondition where
    the library is missing, MemoryError.
    """

    def __init__(self) -> None:
        self._lib = _load()
        stream = self._lib.ZSTD_createDStream()
        if stream == _ffi.NULL:
            raise MemoryError("no memory for a zstd stream")
        self._stream = _ffi.gc(stream, self._lib.ZSTD_freeDStream)
        self._input = b""
        self._room = _ffi.new("char[]", _ROOM)
        self.eof = False
        self.needs_input = True
        self.unused_data = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most `max_length` bytes more. Raises ZstdError."""
        self._input += data
        source = _ffi.from_buffer(self._input)
        size = min(max_length, _ROOM)
        taken: Any = _ffi.new("ZSTD_inBuffer *", (source, len(self._input), 0))
        given: Any = _ffi.new("ZSTD_outBuffer *", (self._room, size, 0))
        left = self._lib.ZSTD_decompressStream(self._stream, given, taken)
        if self._lib.ZSTD_isError(left):
            raise ZstdError(os.fsdecode(_ffi.string(self._lib.ZSTD_getErrorName(left))))
        self._input = self._input[taken.pos :]
        self.eof = left == 0
        self.needs_input = not self._input and given.pos < size
        if self.eof:
            self.unused_data, self._input = self._input, b""
        return bytes(_ffi.buffer(self._room, given.pos))


def _load() -> Any:
    try:
        return _ffi.dlopen(_LIBRARY)
    except OSError as error:
        raise FailedPrecondition(
            f"this is compressed with zstd, and {_LIBRARY} is not here: install libzstd, or "
            "unpack it first"
        ) from error
