"""What can go wrong, as the callers of the shim see it.

Each class stands for one gRPC status code; `shim.api` translates. A message names what
failed, on what, and, where the caller can do something about it, what to do.
"""

from __future__ import annotations


class ShimError(Exception):
    """Base of all errors that are answers to a caller, not defects of the shim."""


class InvalidArgument(ShimError):
    """The request itself is wrong, whatever the state: gRPC INVALID_ARGUMENT."""


class NotFound(ShimError):
    """No such container or process: gRPC NOT_FOUND."""


class AlreadyExists(ShimError):
    """There is one of that name already: gRPC ALREADY_EXISTS."""


class FailedPrecondition(ShimError):
    """Right request, wrong state of the container: gRPC FAILED_PRECONDITION."""


class ExecNotReady(FailedPrecondition):
    """An exec that has not been started yet, or can be no more: what it is in either API."""


class ResourceExhausted(ShimError):
    """Descriptors, processes or memory have run out: gRPC RESOURCE_EXHAUSTED."""


class DeadlineExceeded(ShimError):
    """The kernel or the runtime did not answer in time: gRPC DEADLINE_EXCEEDED."""


class Unavailable(ShimError):
    """The shim cannot serve at this moment; the same call may go through later: UNAVAILABLE."""


class RuntimeFailed(ShimError):
    """The OCI runtime refused or failed, with its own last log message: gRPC UNKNOWN."""


class Unimplemented(ShimError):
    """No such service or method: gRPC UNIMPLEMENTED."""
