"""The records of a log: one a line, in the CRI's format of Kubernetes.

2026-01-31T23:59:59.000000000Z stdout F a whole line
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

STDERR: Final = b"stderr"
DAMAGED: Final = b""  # the stream of a line that is no record

_RECORD: Final = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) (.*)", re.DOTALL
)


class Record(NamedTuple):
    """What a stream has printed at one time: a line, or a part of one that goes on."""

    time: bytes  # RFC 3339, UTC, with nanoseconds: they compare as bytes; empty if DAMAGED
    stream: bytes
    whole: bool  # the line ends with it
    text: bytes  # without the line's end


def parse(line: bytes) -> Record:
    """The record on a line, which comes without its end. What is none is a line as it stands."""
    found = _RECORD.fullmatch(line)
    if found is None:
        return Record(b"", DAMAGED, True, line)
    time, stream, tag, text = found.groups()
    return Record(time, stream, tag == b"F", text)
