"""The records of the channel between front and keeper.

One record is one packet of a SOCK_SEQPACKET socket and always has the same layout; the other
description of it is `src/_native/wire.pxd`, and says what each kind means.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import astuple, dataclass


class Kind(enum.IntEnum):
    """What a record asks or tells."""

    SNAPSHOT = 1
    SERVE = 2
    SPAWN = 3
    RELEASE = 4
    TRACK = 5
    SIGNAL = 6
    RELAY = 7
    UNHOLD = 8
    FINISH = 9
    CUT = 10
    RESIZE = 11
    FORGET = 12
    READY = 13
    STOP = 14
    PONG = 15

    EXITED = 20
    ENDED = 21
    PROCESS = 22
    STREAM = 23
    LISTENER = 24
    PING = 25
    TERMINATE = 26


class Flag(enum.IntFlag):
    """RELAY: which end the hold keeps open. Snapshot: what the object's state is."""

    OUTPUT = 1
    INPUT = 2
    GONE = 4
    SPAWNED = 8


LAYOUT = struct.Struct("<2I5Qi3I")


@dataclass(frozen=True)
class Record:
    """One record. `error` is an errno, `time` nanoseconds since the epoch; unused fields are 0."""

    kind: int
    error: int = 0
    serial: int = 0
    id: int = 0
    owner: int = 0
    time: int = 0
    moved: int = 0
    pid: int = 0
    status: int = 0
    number: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        """The record's LAYOUT.size bytes."""
        return LAYOUT.pack(*astuple(self))


def unpack(data: bytes) -> Record:
    """The record in one packet. Raises ValueError when its size is wrong."""
    if len(data) != LAYOUT.size:
        raise ValueError(f"a record of {len(data)} bytes instead of {LAYOUT.size}")
    return Record(*LAYOUT.unpack(data))
