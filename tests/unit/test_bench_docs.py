"""benchmarks/README.md names all that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import benchmarks
from benchmarks.systems import systems
from benchmarks.workloads import workloads

FOLDER = Path(benchmarks.__file__ or "").parent
TEXT = (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", [*systems(), *workloads()])
def test_each_system_and_workload_has_a_row(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", TEXT, re.M)


def test_each_row_is_of_something_that_is_there() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M))
    assert named == {*systems(), *workloads()}
