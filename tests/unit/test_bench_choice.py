"""Which systems and workloads take part, and that each of them says what it must."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import choice
from benchmarks.__main__ import main
from benchmarks.choice import Unknown, choose_systems, choose_workloads, extra_systems
from benchmarks.claims import BASELINES, CLIENT, FLOOR, NULL, SUBJECT
from benchmarks.systems import systems
from benchmarks.workloads import Workload, workloads

ALL = [cls(sizes) for cls in workloads().values() for sizes in (cls.full, cls.quick)]


def name(workload: Workload) -> str:
    return f"{workload.name}-{workload.sizes['rounds']}"


def test_the_systems_that_claims_name_are_there() -> None:
    assert {*BASELINES, FLOOR, NULL, CLIENT, SUBJECT} <= systems().keys()


@pytest.mark.parametrize("workload", ALL, ids=name)
def test_figures_have_names_of_their_own(workload: Workload) -> None:
    names = [row.name for row in workload.figures()]
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("workload", ALL, ids=name)
def test_every_workload_runs_on_some_system(workload: Workload) -> None:
    assert any(workload.runs_on(each) for each in systems().values())


@pytest.mark.parametrize("cls", workloads().values(), ids=lambda cls: cls.name)
def test_claims_are_of_figures_of_the_full_run(cls: type[Workload]) -> None:
    workload = cls(cls.full)
    assert {claim.figure for claim in workload.claims()} <= {row.name for row in workload.figures()}


@pytest.mark.parametrize("cls", workloads().values(), ids=lambda cls: cls.name)
def test_quick_has_the_same_sizes_and_no_larger_ones(cls: type[Workload]) -> None:
    assert cls.quick.keys() == cls.full.keys()
    assert all(cls.quick[size] <= cls.full[size] for size in cls.full)


def test_a_system_whose_programs_are_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it was asked for: then that is said."""
    monkeypatch.setattr(choice.shutil, "which", lambda name, path: name != "containerd-shim")
    chosen = [each.name for each in choose_systems([], [])]
    assert "shim_v1" not in chosen
    assert "runc_v2" in chosen
    with pytest.raises(Unknown, match="shim_v1 needs containerd-shim"):
        choose_systems(["shim_v1"], [])


def test_an_extra_system_joins_those_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.shutil, "which", lambda name, path: True)
    extra = systems()["runc_v2"]
    extra.name = "extra"
    assert [each.name for each in choose_systems(["bare"], [extra])] == ["bare", "extra"]


def test_rounds_may_be_given() -> None:
    (life,) = choose_workloads(["life"], quick=True, rounds=7)
    assert life.sizes["rounds"] == 7
    assert life.sizes["alone"] == type(life).quick["alone"]


@pytest.mark.parametrize("line", [["run"], []])
def test_without_a_command_it_runs(line: list[str]) -> None:
    result = CliRunner().invoke(main, [*line, "--quick", "--workload", "nothing"])
    assert result.exit_code == 1
    assert "no workload is called nothing" in result.output or "needs root" in result.output


def test_help_is_of_all_commands() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert {"run", "report", "readme"} <= set(result.output.split())


def test_an_unknown_workload_is_refused() -> None:
    with pytest.raises(Unknown, match="no workload is called nothing; there are"):
        choose_workloads(["nothing"], quick=True, rounds=None)


def test_another_shim_is_found_by_containerd_under_its_name(tmp_path: Path) -> None:
    program = tmp_path / "my-shim"
    program.touch()
    (made,) = extra_systems(tmp_path, [], [f"mine={program}"])
    assert (made.name, made.runtime) == ("mine", "io.containerd.mine.v2")
    (folder,) = made.folders
    assert (folder / "containerd-shim-mine-v2").resolve() == program
    assert made.environment()["PATH"].startswith(f"{folder}:")


@pytest.mark.parametrize("text", ["mine", "=/bin/true", "a-b=/bin/true", "mine=/nowhere"])
def test_another_shim_needs_a_name_and_a_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(Unknown, match="NAME=PATH"):
        extra_systems(tmp_path, [], [text])


def test_under_another_containerd_its_shim_and_this_project_run(tmp_path: Path) -> None:
    program = tmp_path / "containerd-9" / "bin" / "containerd"
    made = extra_systems(tmp_path, [program], [])
    assert [each.name for each in made] == ["runc_v2@containerd-9", "dense_host@containerd-9"]
    assert {each.containerd for each in made} == {str(program)}
    assert all(program.parent in each.folders for each in made)
    assert systems()["runc_v2"].containerd == "containerd"
