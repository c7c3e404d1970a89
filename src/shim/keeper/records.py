"""The records of the channel between front and keeper.

One record is one packet of a SOCK_SEQPACKET socket and always has the same layout; the other
description of it is `src/_native/wire.pxd`, and says what each kind means. A payload of at most
MOST_INLINE bytes follows it in the packet; a larger one, up to MOST_PAYLOAD, is in a sealed
memfd, the packet's first descriptor, and the record has Flag.LARGE.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple


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
    SETTLE = 16

    LISTEN = 30
    UNLISTEN = 31
    REPLAYABLE = 32
    RESPOND = 34
    DESTINATION = 35
    UNDESTINATION = 36
    PUBLISH = 37
    UPGRADE = 38
    LOG = 39

    EXITED = 20
    ENDED = 21
    PROCESS = 22
    STREAM = 23
    LISTENER = 24
    PING = 25
    TERMINATE = 26
    REQUEST = 40
    CANCELLED = 41
    LOST = 42


class Flag(enum.IntFlag):
    """RELAY: which end the hold keeps open. LOG: the stream's name. LISTEN: what is spoken.
    Snapshot: an object's state.
    """

    OUTPUT = 1
    INPUT = 2
    GONE = 4
    SPAWNED = 8
    STDERR = 16
    FRAMES = 32
    DOOR = 64
    STAY = 128
    ANYBODY = 256
    LARGE = 1 << 16


MOST_DESCRIPTORS = 17
MOST_INLINE = 60 << 10
MOST_PAYLOAD = (4 << 20) + (64 << 10)
LAYOUT = struct.Struct("<2I5Qi3I")


class Record(NamedTuple):
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
        return LAYOUT.pack(*self)


def unpack(data: bytes | memoryview) -> Record:
    """The record that a packet begins with. Raises ValueError when the packet is too short."""
    if len(data) < LAYOUT.size:
        raise ValueError(f"a record of {len(data)} bytes instead of {LAYOUT.size}")
    return Record._make(LAYOUT.unpack_from(data))
