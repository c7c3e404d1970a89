"""Regular expressions that may be anybody's: RE2 takes time in proportion to the text."""

from __future__ import annotations

from collections.abc import Callable

from shim.errors import InvalidArgument

_LIMIT = 1000  # characters
_MEMORY = 256 << 10  # bytes that RE2 may use for one expression


def searcher(pattern: str) -> Callable[[str], bool]:
    """Whether an expression, in RE2's syntax, matches anywhere in a text.

    Raises InvalidArgument for what is none, or is too large.
    """
    # Most hosts are never asked for one, and it has a MiB of its own.
    import re2

    if len(pattern) > _LIMIT:
        raise InvalidArgument(f"the expression has more than {_LIMIT} characters")
    options = re2.Options()
    options.max_mem = _MEMORY
    options.never_capture = True
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        raise InvalidArgument(f"the expression is wrong: {_reason(error)}") from error
    # re2 would keep the last 128.
    re2.purge()
    return lambda text: compiled.search(text) is not None


def _reason(error: Exception) -> str:
    (reason,) = error.args
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
