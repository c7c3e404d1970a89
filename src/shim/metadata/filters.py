"""Filters of containers."""

from __future__ import annotations

from collections.abc import Callable

from shim.errors import InvalidArgument
from shim.metadata.values import Container


def parse(text: str) -> Callable[[Container], bool]:
    """What `text` asks of a container. Raises InvalidArgument, naming the place."""
    if text:
        raise InvalidArgument("filters are not there yet")
    return lambda container: True
