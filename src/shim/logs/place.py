"""Where a log is."""

from __future__ import annotations

from pathlib import Path

from shim.errors import InvalidArgument
from shim.stdio import Scheme, parse_log, parse_place


def path_of(output: str) -> Path | None:
    """The newest file of the log that an output goes to, log:///PATH; None for another output."""
    try:
        place = parse_place(output)
        if place.scheme is not Scheme.LOG:
            return None
        files = parse_log(place)
    except InvalidArgument:  # of a version that knows more
        return None
    return Path(files.directory, files.name)
