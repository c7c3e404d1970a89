"""What a workload must show, and whether a run has shown it."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from benchmarks.statistics import Spread, spread

BASELINES: Final = ("runc_v2", "shim_v1")
SUBJECT: Final = "dense_host"
FLOOR: Final = "bare"
# A shim that does nothing.
NULL: Final = "null_shim"
# A client that has nothing done.
CLIENT: Final = "client"

# The values of one figure: by system, by round.
Values = Mapping[str, Mapping[int, float]]


class Kind(enum.StrEnum):
    """How a figure is compared. Everything is of one round: rounds pair systems."""

    VALUE = "value"  # the subject's figure itself
    RATIO = "ratio"  # the subject's, divided by the better baseline's
    BEYOND = "beyond"  # the same, after the floor's has been taken from both
    ABOVE = "above"  # the subject's less the floor's


# What makes up the figure of a shim without any cost of its own: systems, each of whose figures is
# multiplied by what stands beside it, and added.
Least = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Claim:
    """The figure is at most `most`, by way of `kind`."""

    text: str
    figure: str
    most: float
    kind: Kind = Kind.VALUE
    subject: str = SUBJECT
    baselines: tuple[str, ...] = BASELINES
    floor: str = FLOOR
    least: Least = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        made = cls(**fields)
        least = tuple((system, times) for system, times in made.least)
        baselines = tuple(made.baselines)
        return replace(made, kind=Kind(made.kind), baselines=baselines, least=least)


@dataclass(frozen=True)
class Verdict:
    """A claim after a run; `found` and `met` are None when the run has not what it needs."""

    claim: Claim
    found: Spread | None
    baseline: str = ""  # the better one, where there is one
    floor: Spread | None = None  # the floor's own figure, where it has been measured
    least: Spread | None = None  # the figure of a shim without any cost of its own
    reach: Spread | None = None  # what would be found for that one

    @property
    def met(self) -> bool | None:
        return None if self.found is None else self.found.median <= self.claim.most

    @property
    def possible(self) -> bool | None:
        """Whether a shim without any cost of its own would meet it; None: that is not known."""
        return None if self.reach is None else self.reach.median <= self.claim.most


def judge(claim: Claim, values: Values) -> Verdict:
    """Compare; `values` are those of the claim's figure.

    Of several baselines the better one counts: the one with which the comparison is worst.
    """
    floor = values.get(claim.floor, {})
    subject = values.get(claim.subject, {})
    best = Verdict(claim, None, floor=_spread(floor.values()))
    names = claim.baselines if claim.kind in (Kind.RATIO, Kind.BEYOND) else ("",)
    for name in names:
        found = _spread(_compared(claim.kind, subject, values.get(name, {}), floor))
        if found and (best.found is None or found.median > best.found.median):
            best = replace(best, found=found, baseline=name)
    least = total(claim.least, values)
    reach = _compared(claim.kind, least, values.get(best.baseline, {}), floor)
    return replace(best, least=_spread(least.values()), reach=_spread(reach))


def total(parts: Sequence[tuple[str, int]], values: Values) -> dict[int, float]:
    """The sum of systems' figures, each multiplied, of all rounds that have them all."""
    there = [values.get(system, {}).keys() for system, _ in parts]
    turns = sorted(set(there[0]).intersection(*there[1:])) if there else []
    return {turn: sum(values[system][turn] * times for system, times in parts) for turn in turns}


def _spread(values: Iterable[float]) -> Spread | None:
    """None: there are no values."""
    found = list(values)
    return spread(found) if found else None


def _compared(
    kind: Kind,
    subject: Mapping[int, float],
    baseline: Mapping[int, float],
    floor: Mapping[int, float],
) -> list[float]:
    """What a claim of the kind is about, of all rounds that have what it needs."""
    match kind:
        case Kind.VALUE:
            return list(subject.values())
        case Kind.ABOVE:
            return [value - floor[turn] for turn, value in subject.items() if turn in floor]
        case Kind.RATIO:
            return ratios(subject, baseline, dict.fromkeys(subject, 0.0))
        case Kind.BEYOND:
            return ratios(subject, baseline, floor)


def ratios(
    subject: Mapping[int, float], baseline: Mapping[int, float], floor: Mapping[int, float]
) -> list[float]:
    """Of all rounds that have the three, the ratio of what is beyond the floor.

    Where the baseline has nothing beyond it there is nothing to be better than: infinity, or 1
    when the subject has nothing either.
    """
    found = []
    for turn in sorted(subject.keys() & baseline.keys() & floor.keys()):
        ours, theirs = subject[turn] - floor[turn], baseline[turn] - floor[turn]
        if theirs > 0:
            found.append(ours / theirs)
        else:
            found.append(math.inf if ours > 0 else 1.0)
    return found
