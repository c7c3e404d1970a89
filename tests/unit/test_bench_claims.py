"""Claims: what is compared with what."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from benchmarks.claims import Claim, Kind, Values, Verdict, judge, total

Turns = Mapping[int, float]


def verdict(kind: Kind, most: float, **values: Turns) -> Verdict:
    return judge(Claim("", "figure", most, kind), values)


def found(kind: Kind, **values: Turns) -> float:
    spread = verdict(kind, 1.0, **values).found
    assert spread is not None
    return spread.median


def test_a_value_is_the_subjects_own() -> None:
    assert found(Kind.VALUE, dense_host={0: 3.0}, runc_v2={0: 9.0}) == 3.0


@pytest.mark.parametrize(("most", "met"), [(3.0, True), (2.9, False)])
def test_a_claim_is_met_up_to_its_target(most: float, met: bool) -> None:
    assert verdict(Kind.VALUE, most, dense_host={0: 3.0}).met is met


def test_a_ratio_is_of_pairs_of_one_round() -> None:
    """Medians of each by itself would give 1/10."""
    ours, theirs = {0: 1.0, 1: 10.0, 2: 100.0}, {0: 2.0, 1: 20.0, 2: 200.0}
    assert found(Kind.RATIO, dense_host=ours, runc_v2=theirs) == 0.5
    mixed = {0: 200.0, 1: 2.0, 2: 20.0}
    assert found(Kind.RATIO, dense_host=ours, runc_v2=mixed) == 5.0


def test_rounds_that_lack_one_are_left_out() -> None:
    assert found(Kind.RATIO, dense_host={0: 1.0, 1: 9.0}, runc_v2={0: 2.0}) == 0.5


def test_the_better_baseline_counts() -> None:
    result = verdict(Kind.RATIO, 0.3, dense_host={0: 1.0}, runc_v2={0: 4.0}, shim_v1={0: 2.0})
    assert result.found is not None
    assert (result.baseline, result.found.median, result.met) == ("shim_v1", 0.5, False)


def test_other_systems_are_no_baselines() -> None:
    assert found(Kind.RATIO, dense_host={0: 1.0}, runc_v2={0: 4.0}, other={0: 0.1}) == 0.25


def test_beyond_the_floor_it_is_taken_from_both() -> None:
    values = {"dense_host": {0: 12.0}, "runc_v2": {0: 30.0}, "bare": {0: 10.0}}
    assert found(Kind.BEYOND, **values) == pytest.approx(0.1)


def test_without_its_floor_a_round_does_not_count() -> None:
    assert verdict(Kind.BEYOND, 1.0, dense_host={0: 1.0}, runc_v2={0: 2.0}).found is None
    assert verdict(Kind.ABOVE, 1.0, dense_host={0: 1.0}, bare={1: 2.0}).found is None


def test_above_the_floor_is_a_difference() -> None:
    assert found(Kind.ABOVE, dense_host={0: 12.0, 1: 15.0}, bare={0: 10.0, 1: 11.0}) == 3.0


@pytest.mark.parametrize(("ours", "wanted"), [(1.0, math.inf), (0.0, 1.0)])
def test_nothing_can_be_better_than_a_baseline_without_cost(ours: float, wanted: float) -> None:
    assert found(Kind.RATIO, dense_host={0: ours}, runc_v2={0: 0.0}) == wanted


@pytest.mark.parametrize("kind", list(Kind))
def test_without_the_subject_nothing_is_said(kind: Kind) -> None:
    result = verdict(kind, 1.0, runc_v2={0: 1.0}, bare={0: 1.0})
    assert result.found is None
    assert result.met is None


def test_the_floor_is_shown_beside_every_claim() -> None:
    floor = verdict(Kind.VALUE, 1.0, dense_host={0: 1.0}, bare={0: 2.0, 1: 4.0}).floor
    assert floor is not None
    assert floor.median == 3.0


LEAST = (("null_shim", 1), ("bare", 1), ("client", -1))
# bare: 30, of which 10 are the client's; with a shim that does nothing 15: so 35 at least.
LIVES = {
    "dense_host": {0: 42.0},
    "runc_v2": {0: 50.0},
    "shim_v1": {0: 70.0},
    "bare": {0: 30.0},
    "null_shim": {0: 15.0},
    "client": {0: 10.0},
}


def life(most: float, values: Values, kind: Kind = Kind.BEYOND) -> Verdict:
    return judge(Claim("", "figure", most, kind, least=LEAST), values)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(Kind.VALUE, 35.0), (Kind.RATIO, 0.7), (Kind.BEYOND, 0.25), (Kind.ABOVE, 5)],
)
def test_a_shim_without_cost_is_compared_as_the_subject_is(kind: Kind, wanted: float) -> None:
    """With the same baseline: the better one."""
    result = life(1.0, LIVES, kind)
    assert result.least is not None
    assert result.reach is not None
    assert (result.least.median, result.reach.median) == (35.0, pytest.approx(wanted))


@pytest.mark.parametrize(
    ("most", "met", "possible"),
    [(0.6, True, True), (0.5, False, True), (0.25, False, True), (0.24, False, False)],
)
def test_a_target_below_what_any_shim_can_do_is_impossible(
    most: float, met: bool, possible: bool
) -> None:
    result = life(most, LIVES)
    assert (result.met, result.possible) == (met, possible)


@pytest.mark.parametrize("missing", ["null_shim", "bare", "client"])
def test_without_one_of_its_parts_nothing_is_said_of_it(missing: str) -> None:
    result = life(1.0, {name: turns for name, turns in LIVES.items() if name != missing})
    assert (result.least, result.reach, result.possible) == (None, None, None)


def test_a_claim_need_not_say_what_is_the_least() -> None:
    result = verdict(Kind.BEYOND, 1.0, **LIVES)
    assert result.found is not None
    assert (result.least, result.possible) == (None, None)


def test_a_total_is_of_rounds_that_have_all_parts() -> None:
    values = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {1: 10.0, 2: 20.0, 3: 30.0}}
    assert total((("a", 1), ("b", -1)), values) == {1: -8.0, 2: -17.0}
    assert total((), values) == {}
