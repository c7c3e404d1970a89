"""What a user asks of `run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wish:
    """A container to run; `image` is empty for one with a shim of its own."""

    id: str
    image: str
    command: tuple[str, ...]
    labels: Mapping[str, str]
    runtime: str
    terminal: bool
    interactive: bool
    remove: bool
