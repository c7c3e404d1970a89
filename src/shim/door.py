"""Calls of the Host service, over a pair's door: ttrpc, one call for each connection.

Free of grpc and asyncio, which would take a launcher longer to load than all else it does.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from shim._pb import ttrpc_pb2
from shim.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RuntimeFailed,
    ShimError,
    Unavailable,
)

SERVICE: Final = "denseshim.host.v1.Host"

# google.rpc.Code; what is not here is RuntimeFailed.
ERRORS: Final[dict[int, type[ShimError]]] = {
    1: Unavailable,
    2: RuntimeFailed,
    3: InvalidArgument,
    4: DeadlineExceeded,
    5: NotFound,
    6: AlreadyExists,
    8: ResourceExhausted,
    9: FailedPrecondition,
    14: Unavailable,
}

_HEADER: Final = struct.Struct(">2I2B")  # length, stream, type, flags
_STREAM: Final = 1
_REQUEST, _RESPONSE = 1, 2
_MAX_FRAME: Final = 4 << 20

_M = TypeVar("_M", bound=Message)


class HungUp(Unavailable):
    """The pair ended, or closed the connection, without an answer."""


def call(
    door: socket.socket,
    method: str,
    request: Message,
    reply: type[_M],
    descriptors: Sequence[int] = (),
) -> _M:
    """Ask the pair behind `door`, and return its reply; `descriptors`, borrowed, go with it.

    Waits as long as the socket's timeout lets it. Raises the ShimError that the answer's status
    stands for, HungUp without an answer, DeadlineExceeded when it takes too long.
    """
    frame = _frame(method, request)
    try:
        sent = socket.send_fds(door, [frame], descriptors) if descriptors else 0
        door.sendall(frame[sent:])
        body = _response(door)
    except TimeoutError as error:
        raise DeadlineExceeded(f"no answer to {method} within {door.gettimeout():g} s") from error
    except OSError as error:
        raise HungUp(f"no answer to {method}: {error}") from error
    return _result(method, body, reply)


def _frame(method: str, request: Message) -> bytes:
    body = ttrpc_pb2.Request(
        service=SERVICE, method=method, payload=request.SerializeToString()
    ).SerializeToString()
    if len(body) > _MAX_FRAME:
        raise InvalidArgument(f"{method} with {len(body)} bytes is longer than {_MAX_FRAME}")
    return _HEADER.pack(len(body), _STREAM, _REQUEST, 0) + body


def _response(door: socket.socket) -> bytes:
    """The body of the answer's frame. Raises OSError, HungUp, RuntimeFailed."""
    length, stream, kind, _ = _HEADER.unpack(_exactly(door, _HEADER.size))
    if stream != _STREAM or kind != _RESPONSE or length > _MAX_FRAME:
        raise RuntimeFailed(f"a frame of {length} bytes, type {kind}, stream {stream}: not ttrpc")
    return _exactly(door, length)


def _exactly(door: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = door.recv(size - len(data))
        if not chunk:
            raise HungUp("the shim hung up without an answer")
        data += chunk
    return bytes(data)


def _result(method: str, body: bytes, reply: type[_M]) -> _M:
    try:
        response = ttrpc_pb2.Response.FromString(body)
        if response.status.code:
            error = ERRORS.get(response.status.code, RuntimeFailed)
            raise error(response.status.message)
        return reply.FromString(response.payload)
    except DecodeError as error:
        raise RuntimeFailed(f"the answer to {method} cannot be read: {error}") from error
