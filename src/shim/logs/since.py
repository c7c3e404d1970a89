"""From when on a log is wanted."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from shim.errors import InvalidArgument

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO: Final = re.compile(r"(?:[0-9]{1,9}[smhd])+", re.ASCII)
_PART: Final = re.compile(r"([0-9]+)([smhd])", re.ASCII)
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_SECOND: Final = 10**9


def parse_since(text: str, now: int) -> int:
    """Nanoseconds since the epoch: of a time as in RFC 3339, or so long before `now`, as 1h30m.

    Raises InvalidArgument for what is neither, or before 1970.
    """
    if _AGO.fullmatch(text):
        return max(now - sum(_seconds(part) for part in _PART.findall(text)) * _SECOND, 0)
    found = _TIME.fullmatch(text)
    if found is not None:
        date, fraction, zone = found.groups()
        try:
            second = datetime.fromisoformat(date.upper() + zone.upper()).timestamp()
        except ValueError:  # the 31st of February
            second = -1
        if second >= 0:
            return int(second) * _SECOND + int((fraction or "0").ljust(9, "0"))
    raise InvalidArgument(
        f"{text!r} is no time: give one as 2026-01-31T23:59:59Z, or how long ago, as 1h30m"
    )


def to_record_time(time: int) -> bytes:
    """The same as records have it: see `shim.logs.records`. Of a time before the year 10000."""
    second, rest = divmod(time, _SECOND)
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z".encode()


def _seconds(part: tuple[str, str]) -> int:
    number, unit = part
    return int(number) * _UNITS[unit]
