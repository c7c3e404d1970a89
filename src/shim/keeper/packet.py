"""Packets of the channel: a record, its payload, its descriptors. See `shim.keeper.records`."""

from __future__ import annotations

import array
import fcntl
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from shim.keeper.records import (
    LAYOUT,
    MOST_DESCRIPTORS,
    MOST_INLINE,
    MOST_PAYLOAD,
    Flag,
    Record,
    unpack,
)

ROOM = LAYOUT.size + MOST_INLINE + 1  # one byte more than any packet has

_LARGE = int(Flag.LARGE)  # each packet asks, and an IntFlag answers slowly
_ANCILLARY = socket.CMSG_LEN(MOST_DESCRIPTORS * array.array("i").itemsize)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Packet(NamedTuple):
    """What has come; the receiver owns the descriptors."""

    record: Record
    payload: bytes
    descriptors: list[int]


def sealed_memory(name: str, data: bytes) -> int:
    """A new memfd with that content, which nobody can change; the caller owns it."""
    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(memory, view) :]
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(memory)
        raise
    return memory


def send(sock: socket.socket, record: Record, payload: bytes, descriptors: Sequence[int]) -> None:
    """Send one packet; the descriptors are borrowed. Raises OSError, BlockingIOError."""
    if len(payload) <= MOST_INLINE:
        socket.send_fds(sock, [record.pack(), payload], list(descriptors))
        return
    memory = sealed_memory("payload", payload)
    try:
        large = record._replace(flags=record.flags | _LARGE)
        socket.send_fds(sock, [large.pack()], [memory, *descriptors])
    finally:
        os.close(memory)


def check_size(payload: bytes) -> None:
    """Raises ValueError when the channel does not take a payload of that size."""
    if len(payload) > MOST_PAYLOAD:
        raise ValueError(f"a payload of {len(payload)} bytes is too long (at most {MOST_PAYLOAD})")


def receive(sock: socket.socket, room: bytearray) -> Packet | None:
    """The next packet; None at the channel's end. room: ROOM bytes to read into.

    Raises OSError (BlockingIOError, ConnectionResetError), ValueError for what is no packet of
    the keeper's, or has lost descriptors on the way; none is kept then.
    """
    size, ancillary, flags, _ = sock.recvmsg_into([room], _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    found = descriptors.tolist()
    try:
        if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            raise ValueError("a packet of the channel was cut")
        return _unwrap(memoryview(room)[:size], found) if size else None
    except (OSError, ValueError):
        for descriptor in found:
            os.close(descriptor)
        raise


def _unwrap(data: memoryview, descriptors: list[int]) -> Packet:
    record = unpack(data)
    if not record.flags & _LARGE:
        return Packet(record, bytes(data[LAYOUT.size :]), descriptors)
    if not descriptors:
        raise ValueError("a large payload came without its memory")
    payload = _read(descriptors[0])
    os.close(descriptors.pop(0))
    return Packet(record._replace(flags=record.flags & ~_LARGE), payload, descriptors)


def _read(memory: int) -> bytes:
    """All of a file; a memfd's read(2) is cut by nothing but its end."""
    return os.pread(memory, os.fstat(memory).st_size, 0)
