"""What `denseshim top` makes of counters."""

from __future__ import annotations

import pytest

from shim.cli.top import Rates, Row, to_size, to_words
from shim.client.host import TaskUsage

SECOND = 10**9


def usage(id: str, cpu: int = 0, output: int = 0, limit: int = 0) -> TaskUsage:
    return TaskUsage(id, cpu, 1 << 20, limit, 3, output)


def test_a_rate_is_known_at_the_second_look() -> None:
    rates = Rates()
    assert rates.rows([usage("a", 5, 7)], 100) == [Row("a", None, 1 << 20, None, 3, None)]
    rows = rates.rows([usage("a", 5 + SECOND, 7 + 4096, 1 << 30)], 100 + 2 * SECOND)
    assert rows == [Row("a", 50.0, 1 << 20, 1 << 30, 3, 2048.0)]


def test_who_uses_most_comes_first_and_a_new_one_last() -> None:
    rates = Rates()
    rates.rows([usage("a"), usage("b"), usage("c"), usage("gone")], 0)
    rows = rates.rows([usage("a", 4), usage("new", 9), usage("c"), usage("b")], 1000)
    assert [row.id for row in rows] == ["a", "b", "c", "new"]


def test_a_counter_that_begins_anew_gives_no_rate() -> None:
    """Another task of the container; and a stream that has ended counts no more."""
    rates = Rates()
    rates.rows([usage("a", 10, 10), usage("b", 10, 10)], 0)
    rows = {row.id: row for row in rates.rows([usage("a", 9, 20), usage("b", 10, 9)], SECOND)}
    assert (rows["a"].cpu, rows["a"].output) == (None, None)
    assert (rows["b"].cpu, rows["b"].output) == (0, 0)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999.4, "999 B"),
        (1000, "1.0 KiB"),
        (102400, "100 KiB"),
        (1 << 20, "1.0 MiB"),
        (1536 << 20, "1.5 GiB"),
        (1 << 50, "1.0 PiB"),
        (1 << 62, "4096.0 PiB"),
    ],
)
def test_sizes_are_short(count: float, text: str) -> None:
    assert to_size(count) == text


def test_words() -> None:
    assert to_words(Row("a", 12.345, 1 << 20, None, 3, None)) == (
        "a", "12.3", "1.0 MiB", "-", "3", "-"
    )  # fmt: skip
