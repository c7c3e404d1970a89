"""Reading what may be compressed: gzip, bzip2, xz, zstd, by what stands at its beginning.

Memory is bounded, however small the data are that a stranger has made.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from shim.errors import InvalidArgument
from shim.snapshots.zstd import Decompressor as ZstdDecompressor
from shim.snapshots.zstd import ZstdError

CHUNK: Final = 1 << 18

_XZ_MEMORY: Final = 256 << 20
_DAMAGED: Final = (zlib.error, lzma.LZMAError, ZstdError, OSError, EOFError)


class Source(Protocol):
    """What is read from beginning to end."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; b"" at the end."""


class Exact:
    """Gives exactly as much as is asked for, or what is left at the end."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._held = b""

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay."""
        self._held = self.read(size)
        return self._held

    def read(self, size: int, /) -> bytes:
        """Raises what the source raises."""
        parts = [self._held[:size]]
        self._held = self._held[size:]
        missing = size - len(parts[0])
        while missing and (part := self._source.read(missing)):
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Decompressor(Protocol):
    """What bz2 and lzma have."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor in the form of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        inflated = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        # With a full answer more may be inside, although all input has been taken.
        self.needs_input = not self._zlib.unconsumed_tail and len(inflated) < max_length
        return inflated


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)


_KINDS: Final[tuple[tuple[bytes, str, Callable[[], _Decompressor]], ...]] = (
    (b"\x1f\x8b", "gzip", _Gzip),
    (b"BZh", "bzip2", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x28\xb5\x2f\xfd", "zstd", ZstdDecompressor),
)


def inflated(source: Source) -> Exact:
    """`source` without its compression, if it has one.

    Reading raises InvalidArgument for damaged data, FailedPrecondition for zstd without its
    library, and what the source raises.
    """
    plain = Exact(source)
    head = plain.peek(max(len(magic) for magic, _, _ in _KINDS))
    for magic, name, make in _KINDS:
        if head.startswith(magic):
            return Exact(_Inflated(plain, name, make))
    return plain


class _Inflated:
    """One stream after the other, with zeros between and after them."""

    def __init__(self, source: Exact, name: str, make: Callable[[], _Decompressor]) -> None:
        self._source = source
        self._name = name
        self._make = make
        self._stream = make()
        self._pending = b""  # read, and not given to the decompressor

    def read(self, size: int, /) -> bytes:
        while not self._stream.eof or self._begin_next():
            if inflated := self._decompress(min(size, CHUNK)):
                return inflated
        return b""

    def _decompress(self, size: int) -> bytes:
        data = b""
        if self._stream.needs_input:
            data = self._take()
            if not data:
                raise InvalidArgument(f"the {self._name} data end too early")
        try:
            return self._stream.decompress(data, size)
        except _DAMAGED as error:
            raise InvalidArgument(f"the {self._name} data are damaged: {error}") from error

    def _begin_next(self) -> bool:
        """Whether another stream follows."""
        self._pending = self._stream.unused_data
        while rest := self._take():
            if more := rest.lstrip(b"\0"):
                self._pending = more
                self._stream = self._make()
                return True
        return False

    def _take(self) -> bytes:
        data, self._pending = self._pending, b""
        return data or self._source.read(CHUNK)
