"""Medians, spreads, and ratios of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A median, and between what eight of ten values are."""

    median: float
    low: float  # the 10th percentile
    high: float  # the 90th
    count: int


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest values where it is no value itself. Raises ValueError for none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    if ordered[below] == ordered[above]:  # both may be infinite
        return ordered[below]
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError for none."""
    low, median, high = (percentile(values, percent) for percent in (10, 50, 90))
    return Spread(median, low, high, len(values))
