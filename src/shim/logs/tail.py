"""The last lines of a log, found from its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shim.logs.records import Record, parse

# Bytes that are looked at for the beginnings of the last lines, when these are found.
LOOK_BACK: Final = 1 << 20


def last_lines(backwards: Iterable[bytes], count: int) -> list[Record]:
    """The records of the last `count` lines, in order.

    backwards: all lines of the files, the last one first. A line of either stream counts where it
    ends, or where its last record is; its records may have the other stream's between them.
    """
    found: list[Record] = []
    going: set[bytes] = set()  # streams whose records belong to a line that was counted
    ended: set[bytes] = set()  # streams whose records are of lines that are not wanted
    left = LOOK_BACK
    for text in backwards if count else ():
        record = parse(text)
        stream = record.stream
        if record.whole or stream not in going:  # a line's last record
            going.discard(stream)
            if not count:
                ended.add(stream)
            else:
                count -= 1
                going.add(stream)
        if stream not in ended:
            found.append(record)
        if not count:
            left -= len(text)
            if not going or left < 0:
                break
    return found[::-1]
