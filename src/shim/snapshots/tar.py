"""Reading tar archives that strangers have made: v7, ustar, pax and GNU's, with sparse files.

Formats: POSIX.1-2001 (pax, "Interchange Formats"), the manual of GNU tar ("Tar Internals"). What is
damaged or ambiguous is an error, never the archive's end; memory is bounded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from shim.errors import InvalidArgument
from shim.snapshots.entry import DEVICES, Entry, Type
from shim.snapshots.inflate import CHUNK, Exact
from shim.snapshots.limits import Budget

_BLOCK: Final = 512
_HEADER_LIMIT: Final = 1 << 20  # bytes of long names and pax records, for one entry or for all
_PIECES_LIMIT: Final = 1 << 17
_XATTR: Final = "SCHILY.xattr."

_TYPES: Final = {
    b"0": Type.FILE,
    b"\0": Type.FILE,
    b"7": Type.FILE,
    b"S": Type.FILE,
    b"1": Type.HARD_LINK,
    b"2": Type.SYMLINK,
    b"3": Type.CHARACTER,
    b"4": Type.BLOCK,
    b"5": Type.DIRECTORY,
    b"6": Type.FIFO,
}
_LABEL: Final = b"V"

_TIME: Final = re.compile(rb"(?P<sign>-?)(?P<seconds>[0-9]{1,15})(\.(?P<fraction>[0-9]*))?")

# Where in a file, and how many bytes.
Piece = tuple[int, int]


@dataclass
class _Extra:
    """What comes before a header, for it alone."""

    name: bytes | None = None
    link: bytes | None = None
    pax: list[tuple[str, bytes]] = field(default_factory=list)
    size: int = 0  # of all that has been read of it, in bytes


class Reader:
    """The entries of one archive, in order; `content` is of the one that came last."""

    def __init__(self, source: Exact, must_end: bool = True, budget: Budget | None = None) -> None:
        """must_end: an archive without the mark of its end is taken to be cut off.

        budget: where headers are counted that make no file.
        """
        self._source = source
        self._must_end = must_end
        self._budget = budget or Budget()
        self._global: dict[str, bytes] = {}
        self._pieces: tuple[Piece, ...] = ()
        self._stored = 0  # bytes of content that have not been read
        self._padding = 0  # behind them

    def __iter__(self) -> Iterator[Entry]:
        """Raises InvalidArgument for what is no sound archive, and what the source raises."""
        extra = _Extra()
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            if self._take_extra(kind, header, extra):
                continue
            if kind == _LABEL:
                self._budget.take_header()
                self._begin_content(_number(header, 124, 12))
            else:
                yield self._entry(kind, header, extra)
            extra = _Extra()
            self._skip_content()
        if extra != _Extra():
            raise InvalidArgument("the tar ends between a header and its file")

    def content(self) -> Iterator[tuple[int, bytes]]:
        """What the file holds, and from where on; between that are holes. Raises as above."""
        for offset, size in self._pieces:
            end = offset + size
            while offset < end:
                data = self._read_content(min(end - offset, CHUNK))
                yield offset, data
                offset += len(data)

    def drain(self) -> None:
        """Read what is behind the archive's end. Raises what the source raises."""
        while self._source.read(CHUNK):
            pass

    def _next_header(self) -> bytes | None:
        header = self._source.read(_BLOCK)
        if not header and not self._must_end:
            return None
        if len(header) < _BLOCK:
            raise InvalidArgument("this is no tar, or it has been cut off")
        if any(header):
            return _checked(header)
        if any(self._source.read(_BLOCK)):
            raise InvalidArgument("the tar is damaged: something follows a block of zeros")
        return None

    def _take_extra(self, kind: bytes, header: bytes, extra: _Extra) -> bool:
        """Whether this was a header about the next one."""
        if kind not in b"xgLK":
            return False
        self._budget.take_header()
        size = _number(header, 124, 12)
        extra.size += size
        if size < 0 or extra.size > _HEADER_LIMIT:
            raise InvalidArgument(f"the tar has {extra.size} bytes of headers for one file; "
                                  f"{_HEADER_LIMIT} is the limit")  # fmt: skip
        self._begin_content(size)
        data = self._read_content(size)
        self._skip_content()
        if kind == b"L":
            extra.name = data.partition(b"\0")[0]
        elif kind == b"K":
            extra.link = data.partition(b"\0")[0]
        elif kind == b"x":
            extra.pax += _pax(data)
        else:
            self._take_global(_pax(data))
        return True

    def _take_global(self, records: list[tuple[str, bytes]]) -> None:
        self._global |= records
        if sum(len(key) + len(value) for key, value in self._global.items()) > _HEADER_LIMIT:
            raise InvalidArgument("the tar has too many global headers")

    def _entry(self, kind: bytes, header: bytes, extra: _Extra) -> Entry:
        if kind not in _TYPES:
            raise InvalidArgument(f"the tar has an entry of the unknown type {kind!r}")
        pax = {**self._global, **dict(extra.pax)}
        name = _pax_name(pax) or extra.name or _header_name(header)
        link = pax.get("linkpath") or extra.link or _text(header, 157, 100)
        type = _TYPES[kind]
        if kind == b"\0" and name.endswith(b"/"):
            type = Type.DIRECTORY  # before ustar
        size = _decimal(pax, "size", _number(header, 124, 12))
        # Only files have content, whatever the size of the others is said to be.
        self._begin_content(size if type is Type.FILE else 0)
        real = self._begin_pieces(kind, header, extra.pax, pax) if type is Type.FILE else 0
        entry = Entry(
            name=os.fsdecode(name),
            type=type,
            mode=_number(header, 100, 8) & 0o7777,
            uid=_decimal(pax, "uid", _number(header, 108, 8)),
            gid=_decimal(pax, "gid", _number(header, 116, 8)),
            mtime=_time(pax, _number(header, 136, 12)),
            size=real,
            link=os.fsdecode(link) if type in (Type.SYMLINK, Type.HARD_LINK) else "",
            device=(_number(header, 329, 8), _number(header, 337, 8))
            if type in DEVICES
            else (0, 0),
            xattrs=_xattrs(pax),
        )
        entry.check()
        return entry

    def _begin_content(self, size: int) -> None:
        if size < 0:
            raise InvalidArgument("the tar is damaged: a size is negative")
        self._stored = size
        self._padding = -size % _BLOCK
        self._pieces = ((0, size),)

    def _begin_pieces(
        self, kind: bytes, header: bytes, records: list[tuple[str, bytes]], pax: Mapping[str, bytes]
    ) -> int:
        """Find out where the content belongs; the file's size."""
        if kind == b"S":
            numbers = self._old_map(header)
            size = _number(header, 483, 12)
        elif pax.get("GNU.sparse.major") == b"1":
            numbers = self._map_in_content()
            size = _decimal(pax, "GNU.sparse.realsize", -1)
        elif "GNU.sparse.size" in pax:
            numbers = _map_in_header(records)
            size = _decimal(pax, "GNU.sparse.size", -1)
        else:
            return self._stored
        self._pieces = _pieces(numbers, size, self._stored)
        return size

    def _old_map(self, header: bytes) -> list[int]:
        """GNU's first format: four pieces in the header, more in the blocks behind it."""
        numbers = _numbers(header, 386, 4)
        more = header[482]
        while more:
            block = self._source.read(_BLOCK)
            if len(block) < _BLOCK:
                raise InvalidArgument("the tar has been cut off in the map of a sparse file")
            numbers += _numbers(block, 0, 21)
            _check_pieces(len(numbers) // 2)
            more = block[504]
        return numbers

    def _map_in_content(self) -> list[int]:
        """Format 1.0: how many pieces, then where and how long each is, a number a line."""
        held = b""
        lines: list[bytes] = []
        wanted = 1
        while len(lines) < wanted:
            held += self._read_content(_BLOCK)
            *complete, held = held.split(b"\n")
            lines += complete
            if len(held) > _BLOCK:
                raise InvalidArgument("the tar is damaged in the map of a sparse file")
            if lines:
                count = _int(lines[0])
                _check_pieces(count)
                wanted = 1 + 2 * count
        return [_int(line) for line in lines[1:wanted]]

    def _read_content(self, size: int) -> bytes:
        data = self._source.read(min(size, self._stored))
        self._stored -= len(data)
        if len(data) < size:
            raise InvalidArgument("the tar is damaged, or has been cut off within a file")
        return data

    def _skip_content(self) -> None:
        while self._stored:
            self._read_content(min(self._stored, CHUNK))
        if len(self._source.read(self._padding)) < self._padding:
            raise InvalidArgument("the tar has been cut off behind a file")
        self._padding = 0


def _checked(header: bytes) -> bytes:
    """Raises InvalidArgument unless the check sum is right, as signed or unsigned bytes."""
    claimed = _number(header, 148, 8)
    rest = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(rest)
    if claimed != unsigned and claimed != unsigned - 256 * sum(byte > 127 for byte in rest):
        raise InvalidArgument("this is no tar, or it is damaged: a header's check sum is wrong")
    return header


def _text(header: bytes, start: int, size: int) -> bytes:
    return header[start : start + size].partition(b"\0")[0]


def _number(header: bytes, start: int, size: int) -> int:
    """A number in octal digits, or in base 256 with the highest bit set (GNU, star)."""
    data = header[start : start + size]
    if data[0] & 0x80:
        value = int.from_bytes(data, "big", signed=True)
        # The highest bit is a mark, and the next one the sign.
        return value if data[0] == 0xFF else int.from_bytes(bytes((data[0] & 0x7F,)) + data[1:])
    digits = data.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if digits.strip(b"01234567"):
        raise InvalidArgument("the tar is damaged: a number in a header is none")
    return int(digits or b"0", 8)


def _header_name(header: bytes) -> bytes:
    name = _text(header, 0, 100)
    prefix = _text(header, 345, 155) if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(data: bytes) -> list[tuple[str, bytes]]:
    """The records "LENGTH KEY=VALUE\\n", of which the length counts all."""
    data = data.rstrip(b"\0")
    records = []
    place = 0
    while place < len(data):
        blank = data.find(b" ", place, place + 8)
        length = _int(data[place:blank]) if blank > place else 0
        record = data[blank + 1 : place + length]
        key, equals, value = record.partition(b"=")
        if length <= 0 or place + length > len(data) or not equals or not value.endswith(b"\n"):
            raise InvalidArgument("the tar is damaged: a pax header is none")
        records.append((os.fsdecode(key), value[:-1]))
        place += length
    return records


def _pax_name(pax: Mapping[str, bytes]) -> bytes:
    return pax.get("GNU.sparse.name") or pax.get("path") or b""


def _int(text: bytes) -> int:
    if not 0 < len(text) <= 20 or text.strip(b"0123456789"):
        raise InvalidArgument(f"the tar is damaged: {text[:30]!r} should be a number")
    return int(text)


def _decimal(pax: Mapping[str, bytes], key: str, otherwise: int) -> int:
    return _int(pax[key]) if pax.get(key) else otherwise


def _time(pax: Mapping[str, bytes], seconds: int) -> int:
    """The time of change in ns since the epoch."""
    text = pax.get("mtime", b"")
    if not text:
        return seconds * 1_000_000_000
    found = _TIME.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"the tar is damaged: {text[:40]!r} is no time")
    time = int(found["seconds"] + (found["fraction"] or b"")[:9].ljust(9, b"0"))
    return -time if found["sign"] else time


def _xattrs(pax: Mapping[str, bytes]) -> dict[str, bytes]:
    return {key.removeprefix(_XATTR): value for key, value in pax.items() if key.startswith(_XATTR)}


def _numbers(block: bytes, start: int, count: int) -> list[int]:
    """Pairs of numbers of 12 bytes each, as far as they are used."""
    ends = start + 24 * count
    used = [place for place in range(start, ends, 24) if block[place + 12]]
    return [_number(block, place + shift, 12) for place in used for shift in (0, 12)]


def _map_in_header(records: list[tuple[str, bytes]]) -> list[int]:
    """Formats 0.0, one record for each number, and 0.1, one for all."""
    single = ("GNU.sparse.offset", "GNU.sparse.numbytes")
    for key, value in records:
        if key == "GNU.sparse.map":
            return [_int(number) for number in value.split(b",")] if value else []
    return [_int(value) for key, value in records if key in single]


def _check_pieces(count: int) -> None:
    if count > _PIECES_LIMIT:
        raise InvalidArgument(
            f"the tar has a sparse file in more than {_PIECES_LIMIT} pieces, which is the limit"
        )


def _pieces(numbers: list[int], size: int, stored: int) -> tuple[Piece, ...]:
    """Raises InvalidArgument unless the pieces are in order and inside, and hold all content."""
    pieces = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    _check_pieces(len(pieces))
    place = 0
    for offset, length in pieces:
        if offset < place or length < 0:
            break
        place = offset + length
    else:
        if len(numbers) % 2 == 0 and place <= size and sum(n for _, n in pieces) == stored:
            return pieces
    raise InvalidArgument("the tar is damaged: the map of a sparse file does not fit it")
