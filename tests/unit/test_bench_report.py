"""What is made from a run: its file, the report, plots, the README's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.plots import draw
from benchmarks.readme import BEGIN, END, NoMarks, updated
from benchmarks.report import markdown, number
from benchmarks.run import FILE, Round, Run
from tests.unit.bench import made_run


@pytest.fixture(scope="module", autouse=True)
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps the fonts that it has opened."""
    draw(made_run(), tmp_path_factory.mktemp("plots"))


def rows(text: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_run_is_what_it_was_before_it_was_saved(tmp_path: Path) -> None:
    made_run().save(tmp_path / "new")
    assert Run.load(tmp_path / "new") == made_run()


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    made_run().save(tmp_path)
    fields = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(fields | {"version": 0}))
    with pytest.raises(ValueError, match="another version"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.0, "0"),
        (1e-12, "0"),
        (0.012345, "0.0123"),
        (1.5, "1.50"),
        (43.21, "43.2"),
        (3, "3"),
        (1234.5, "1,234"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, wanted: str) -> None:
    assert number(value) == wanted


def test_the_report_says_what_became_of_each_claim() -> None:
    found = {row[1]: row[2:] for row in rows(markdown(made_run())) if row[0] == "Memory"}
    assert found["little memory"] == ["≤ 30 MB", "21 (20.2–21.8) MB", "–", "–", "–", "met"]
    assert found["less memory"] == ["≤ 0.100 ×", "0.500 ×", "runc's", "–", "–", "**missed**"]
    assert found["little time"] == ["≤ 1 ms", "–", "–", "5 ms", "–", "not measured"]


def test_the_report_says_what_no_shim_can_meet() -> None:
    (found,) = [row[2:] for row in rows(markdown(made_run())) if row[1] == "no time"]
    missed = "**missed**; out of any shim's reach here"
    assert found == ["≤ 1 ms", "3 ms", "–", "5 ms", "7 ms: 2 ms", missed]
    (found,) = [row for row in rows(updated(BEGIN + END, made_run())) if "no time" in row[0]]
    assert found[-1] == "3 ms (missed: out of any shim's reach here)"


def test_what_is_met_is_not_out_of_reach() -> None:
    run = made_run()
    run.records[0].rounds[0] = Round("dense_host", 0, {"life": 5.5})
    (found,) = [row[2:] for row in rows(markdown(run)) if row[1] == "no time"]
    assert found[4:] == ["7 ms: 2 ms", "met"]


def test_the_report_has_every_figure_of_every_system() -> None:
    found = rows(markdown(made_run()))
    assert ["", "runc alone", "denseshim, host", "runc's", "nothing's"] in found
    assert ["PSS at 1, MB", "–", "11 (10.2–11.8)", "4", "–"] in found
    assert ["wall time, ms", "5", "–", "–", "–"] in found


def test_the_report_shows_failures() -> None:
    assert ["memory", "runc's", "2", "OSError: no / more"] in rows(markdown(made_run()))


def test_a_run_without_failures_has_no_such_part() -> None:
    run = made_run()
    run.records[0].rounds.pop()
    assert "Failures" not in markdown(run)


def test_plots_are_files_and_the_same_each_time(tmp_path: Path) -> None:
    files = draw(made_run(), tmp_path)
    assert {path.name for path in files} == {"memory.png", "memory.svg"}
    before = [path.read_bytes() for path in files]
    assert before[0].startswith(b"\x89PNG")
    draw(made_run(), tmp_path)
    assert [path.read_bytes() for path in files] == before


def test_the_readme_changes_between_its_marks_alone() -> None:
    text = updated(f"before\n{BEGIN}\nold\n{END}\nafter\n", made_run())
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert ["10", "21 MB", "40 MB"] in rows(text)
    assert ["Memory: less memory", "21 (20.2–21.8) MB", "40 MB", "0.500 × (missed)"] in rows(text)
    assert updated(text, made_run()) == text


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}"])
def test_a_text_without_marks_is_refused(text: str) -> None:
    with pytest.raises(NoMarks):
        updated(text, made_run())


def test_the_command_tells_whether_the_readme_is_current(tmp_path: Path) -> None:
    made_run().save(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    line = ["readme", str(tmp_path), "--file", str(readme)]
    before = readme.read_text()
    assert CliRunner().invoke(main, [*line, "--check"]).exit_code == 1
    assert readme.read_text() == before
    assert CliRunner().invoke(main, line).exit_code == 0
    assert CliRunner().invoke(main, [*line, "--check"]).exit_code == 0
    assert "denseshim, host" in readme.read_text()


def test_the_command_makes_the_report_anew(tmp_path: Path) -> None:
    made_run().save(tmp_path)
    assert CliRunner().invoke(main, ["report", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "results.md").read_text() == markdown(made_run())
    assert (tmp_path / "memory.svg").exists()


def test_a_folder_without_a_run_is_no_crash(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "run.json" in result.output
