"""Which systems and workloads take part."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.systems import System, systems
from benchmarks.systems.dense_host import DenseHost
from benchmarks.systems.runc_v2 import RuncV2
from benchmarks.workloads import Workload, workloads

_T = TypeVar("_T")


class Unknown(Exception):
    """Something that was asked for is not there; the message says what, and what is."""


def choose_systems(names: Sequence[str], extra: Sequence[System]) -> list[System]:
    """Those named, and all extra ones; without names all whose programs are there.

    Raises Unknown, also when a program of one that was named, or is extra, is missing.
    """
    chosen = [each for each in _pick(systems(), names, "system") if names or not lacks(each)]
    for each in (*chosen, *extra):
        if program := lacks(each):
            raise Unknown(f"{each.name} needs {program}: scripts/prepare bench")
    return [*chosen, *extra]


def lacks(system: System) -> str:
    """The first of its programs that is not on its PATH; "": none."""
    path = system.environment()["PATH"]
    programs = (system.containerd, *system.programs)
    return next((each for each in programs if not shutil.which(each, path=path)), "")


def choose_workloads(names: Sequence[str], quick: bool, rounds: int | None) -> list[Workload]:
    """Those named, or all, with their sizes. Raises Unknown."""
    chosen = _pick(workloads(), names, "workload")
    change = {} if rounds is None else {"rounds": rounds}
    return [cls({**(cls.quick if quick else cls.full), **change}) for cls in chosen]


def _pick(there: Mapping[str, _T], names: Sequence[str], what: str) -> list[_T]:
    if missing := [name for name in names if name not in there]:
        raise Unknown(f"no {what} is called {', '.join(missing)}; there are {', '.join(there)}")
    return [there[name] for name in there if name in names or not names]


def extra_systems(folder: Path, containerds: Sequence[Path], shims: Sequence[str]) -> list[System]:
    """What the command line adds; links to shims are made in `folder`. Raises Unknown.

    Under another containerd both its own shim and this project run.
    """
    found: list[System] = []
    for program in containerds:
        for base in (RuncV2, DenseHost):
            found.append(_under(base, program))
    for text in shims:
        name, _, path = text.partition("=")
        if not name.isalnum() or not Path(path).is_file():
            raise Unknown(f"--shim {text}: NAME=PATH is meant, of letters and digits, and a file")
        found.append(_shim(name, Path(path).resolve(), folder))
    return found


def _under(base: type[System], program: Path) -> System:
    """A system under another containerd, whose directory has its shim."""
    made = base()
    label = program.parent.name if program.parent.name != "bin" else program.parent.parent.name
    made.name = f"{base.name}@{label}"
    made.title = f"{base.title} under {label}"
    made.containerd = str(program)
    made.folders = (*base.folders, program.parent)
    return made


def _shim(name: str, path: Path, folder: Path) -> System:
    """A runtime whose shim is the file `path`: containerd finds shims by name, on its PATH."""
    (folder / "shims").mkdir(exist_ok=True)
    (folder / "shims" / f"containerd-shim-{name}-v2").symlink_to(path)
    made: System = RuncV2()
    made.name = made.title = name
    made.runtime = f"io.containerd.{name}.v2"
    made.programs = ("containerd", "runc", "ctr")
    made.folders = (folder / "shims",)
    return made
