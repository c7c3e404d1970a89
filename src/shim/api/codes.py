"""The table between the shim's errors and gRPC's status codes, for both ends of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc

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

CODES: Final[Mapping[type[ShimError], grpc.StatusCode]] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    RuntimeFailed: grpc.StatusCode.UNKNOWN,
}

# A server that is stopped cancels its calls: to the caller that is a front that went away.
_ERRORS: Final = {code: error for error, code in CODES.items()} | {
    grpc.StatusCode.CANCELLED: Unavailable
}


def code_of(error: ShimError) -> grpc.StatusCode:
    """The status code that `error`, or the nearest class it derives from, travels as."""
    codes = (CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    return next(codes, grpc.StatusCode.UNKNOWN)


def number_of(error: ShimError) -> int:
    """The same code as its number, as ttrpc has it (google.rpc.Code)."""
    number: int = code_of(error).value[0]
    return number


def error_of(code: grpc.StatusCode, message: str) -> ShimError:
    """The error that status `code` stands for; what the table does not know is RuntimeFailed."""
    return _ERRORS.get(code, RuntimeFailed)(message)
