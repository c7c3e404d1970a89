"""What an error of the kernel means to whoever wanted files written or read."""

from __future__ import annotations

import errno
from typing import Final

from shim.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ShimError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_WRONG: Final = frozenset(
    {
        errno.E2BIG,
        errno.EFBIG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EOVERFLOW,
        errno.ERANGE,
    }
)


def refusal(what: str, error: OSError) -> ShimError:
    """The answer to a caller; `what` completes the sentence "cannot …"."""
    text = f"cannot {what}: {error.strerror or error}"
    if error.errno in _FULL:
        return ResourceExhausted(f"{text}; free some space, and try again")
    if error.errno in _NO_RESOURCES:
        return ResourceExhausted(text)
    if error.errno in _WRONG:
        return InvalidArgument(text)
    return FailedPrecondition(text)
