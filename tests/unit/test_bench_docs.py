"""benchmarks/README.md names all that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import benchmarks
from benchmarks.__main__ import main
from benchmarks.report import markdown
from benchmarks.run import Run
from benchmarks.systems import systems
from benchmarks.workloads import workloads

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
FOLDER = Path(benchmarks.__file__ or "").parent
TEXT = (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", [*systems(), *workloads()])
def test_each_system_and_workload_has_a_row(name: str) -> None:
    assert re.search(rf"^\| `{name}` \|", TEXT, re.M)


def test_each_row_is_of_something_that_is_there() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M))
    assert named == {*systems(), *workloads()}


def test_the_readme_has_the_figures_of_the_results() -> None:
    command = ["readme", str(RESULTS), "--file", str(RESULTS.parents[1] / "README.md"), "--check"]
    assert CliRunner().invoke(main, command).exit_code == 0


def test_the_results_are_what_was_measured() -> None:
    assert (RESULTS / "results.md").read_text() == markdown(Run.load(RESULTS))
