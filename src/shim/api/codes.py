"""The table between the shim's errors and status codes, for both ends of a call.

The codes are the numbers of google.rpc.Code, which ttrpc has on the wire, and gRPC by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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
    Unimplemented,
)

CANCELLED: Final = 1
UNKNOWN: Final = 2

CODES: Final[Mapping[type[ShimError], int]] = {
    RuntimeFailed: UNKNOWN,
    InvalidArgument: 3,
    DeadlineExceeded: 4,
    NotFound: 5,
    AlreadyExists: 6,
    ResourceExhausted: 8,
    FailedPrecondition: 9,
    Unimplemented: 12,
    Unavailable: 14,
}

# A server that is stopped cancels its calls: to the caller that is a front that went away.
_ERRORS: Final = {code: error for error, code in CODES.items()} | {CANCELLED: Unavailable}


def code_of(error: ShimError) -> int:
    """The status code that `error`, or the nearest class it derives from, travels as."""
    codes = (CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return next(codes, UNKNOWN)


def error_of(code: int, message: str) -> ShimError:
    """The error that a status code stands for; what the table does not know is RuntimeFailed."""
    return _ERRORS.get(code, RuntimeFailed)(message)
