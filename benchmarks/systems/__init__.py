"""The systems under test: every subclass of System in a module of this package."""

from __future__ import annotations

from benchmarks.registry import classes_in
from benchmarks.systems.base import Can, System

__all__ = ["Can", "System", "systems"]


def systems() -> dict[str, System]:
    """All of them, by name."""
    return {cls.name: cls() for cls in classes_in(__name__, System)}
