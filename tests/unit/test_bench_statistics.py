"""Medians and spreads."""

from __future__ import annotations

import pytest

from benchmarks.statistics import Spread, percentile, spread


@pytest.mark.parametrize(
    ("percent", "wanted"), [(0, 1.0), (10, 1.4), (50, 3.0), (90, 4.6), (100, 5.0)]
)
def test_a_percentile_is_between_its_neighbours(percent: float, wanted: float) -> None:
    assert percentile([5, 3, 1, 4, 2], percent) == pytest.approx(wanted)


def test_of_one_value_all_percentiles_are_that() -> None:
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_the_median_of_two_is_between_them() -> None:
    assert spread([1.0, 2.0]).median == 1.5


def test_one_outlier_does_not_move_the_median() -> None:
    assert spread([1.0, 1.0, 1000.0]).median == 1.0


def test_of_nothing_there_is_no_median() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])
