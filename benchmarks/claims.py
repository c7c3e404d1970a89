"""What a workload must show, and whether a run has shown it."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from benchmarks.statistics import Spread, spread

BASELINES: Final = ("runc_v2", "shim_v1")
SUBJECT: Final = "dense_host"
FLOOR: Final = "bare"

# The values of one figure: by system, by round.
Values = Mapping[str, Mapping[int, float]]


class Kind(enum.StrEnum):
    """How a figure is compared. Everything is of one round: rounds pair systems."""

    VALUE = "value"  # the subject's figure itself
    RATIO = "ratio"  # the subject's, divided by the better baseline's
    BEYOND = "beyond"  # the same, after the floor's has been taken from both
    ABOVE = "above"  # the subject's less the floor's


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

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        made = cls(**fields)
        return replace(made, kind=Kind(made.kind), baselines=tuple(made.baselines))


@dataclass(frozen=True)
class Verdict:
    """A claim after a run; `found` and `met` are None when the run has not what it needs."""

    claim: Claim
    found: Spread | None
    baseline: str = ""  # the better one, where there is one
    floor: Spread | None = None  # the floor's own figure, where it has been measured

    @property
    def met(self) -> bool | None:
        return None if self.found is None else self.found.median <= self.claim.most


def judge(claim: Claim, values: Values) -> Verdict:
    """Compare; `values` are those of the claim's figure.

    Of several baselines the better one counts: the one with which the comparison is worst.
    """
    floor = values.get(claim.floor, {})
    shown = spread(list(floor.values())) if floor else None
    subject = values.get(claim.subject, {})
    if claim.kind is Kind.VALUE:
        found = list(subject.values())
        return Verdict(claim, spread(found) if found else None, floor=shown)
    if claim.kind is Kind.ABOVE:
        found = [value - floor[turn] for turn, value in subject.items() if turn in floor]
        return Verdict(claim, spread(found) if found else None, floor=shown)
    least = floor if claim.kind is Kind.BEYOND else dict.fromkeys(subject, 0.0)
    best = Verdict(claim, None, floor=shown)
    for name in claim.baselines:
        pairs = ratios(subject, values.get(name, {}), least)
        if pairs and (best.found is None or spread(pairs).median > best.found.median):
            best = Verdict(claim, spread(pairs), name, shown)
    return best


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
