"""The workloads: every subclass of Workload in a module of this package."""

from __future__ import annotations

from benchmarks.registry import classes_in
from benchmarks.workloads.base import Figure, Sizes, Workload

__all__ = ["Figure", "Sizes", "Workload", "workloads"]


def workloads() -> dict[str, type[Workload]]:
    """All of them, by name, in the order in which they run."""
    found = classes_in(__name__, Workload)  # type: ignore[type-abstract]
    return {cls.name: cls for cls in sorted(found, key=lambda cls: (cls.order, cls.name))}
