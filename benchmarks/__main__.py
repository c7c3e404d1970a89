"""python -m benchmarks: measures this project side by side with what people run today."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from benchmarks.choice import Unknown, choose_systems, choose_workloads, extra_systems, lacks
from benchmarks.load import add_pump
from benchmarks.machine import machine
from benchmarks.place import PREFIX
from benchmarks.plots import draw
from benchmarks.progress import Display, show
from benchmarks.readme import NoMarks, updated
from benchmarks.report import markdown
from benchmarks.run import Run
from benchmarks.runner import Runner, count
from benchmarks.systems import systems as all_systems
from shim.oci.busybox import make_rootfs

_FOLDER = click.Path(file_okay=False, path_type=Path)
_PROGRAM = click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path)


class _Main(click.Group):
    """Options without a command are those of `run`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args[:1] != ["--help"] and not (args and args[0] in self.commands):
            args = ["run", *args]
        return super().parse_args(context, args)


@click.group(cls=_Main)
def main() -> None:
    """Benchmarks of container shims; without a command: run."""


@main.command()
@click.option("--quick", is_flag=True, help="Small sizes: under 3 minutes.")
@click.option("--out", type=_FOLDER, default=Path("build/benchmarks"), show_default=True)
@click.option("--workload", "names", multiple=True, help="Only these. Repeatable.")
@click.option("--system", "only", multiple=True, help="Only these. Repeatable.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of every workload.")
@click.option("--containerd", type=_PROGRAM, multiple=True, help="Another containerd.")
@click.option("--shim", multiple=True, metavar="NAME=PATH", help="Another v2 shim.")
def run(
    quick: bool,
    out: Path,
    names: tuple[str, ...],
    only: tuple[str, ...],
    rounds: int | None,
    containerd: tuple[Path, ...],
    shim: tuple[str, ...],
) -> None:
    """Measure, and write run.json, results.md and plots to --out.

    Exits with 1 when anything has failed; a claim that is missed is no failure.
    """
    if os.geteuid() != 0:
        raise click.ClickException("containers need root: run this with sudo")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}-") as name:
        folder = Path(name)
        try:
            extra = extra_systems(folder, containerd, shim)
            systems = choose_systems(only, extra)
            workloads = choose_workloads(names, quick, rounds)
        except Unknown as error:
            raise click.ClickException(str(error)) from None
        for system in () if only else all_systems().values():
            if program := lacks(system):
                console.print(f"{system.name} is left out: there is no {program}")
        make_rootfs(folder / "rootfs")
        add_pump(folder / "rootfs")
        for system in systems:
            system.prepare(folder)
        made = Run(machine(), {each.name: each.title for each in systems}, quick)
        began = time.monotonic()
        with Display(console, count(workloads, systems)) as display:
            try:
                Runner(folder, folder / "rootfs", display.begin).run(made, workloads, systems)
            finally:
                made.seconds = time.monotonic() - began
                made.save(out)
    _write(made, out)
    show(console, made)
    sys.exit(1 if made.failures() else 0)


@main.command()
@click.argument("folder", type=_FOLDER)
def report(folder: Path) -> None:
    """Make results.md and the plots of FOLDER anew from its run.json."""
    _write(_load(folder), folder)


@main.command()
@click.argument("folder", type=_FOLDER)
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 when it would.")
@click.option("--file", type=click.Path(dir_okay=False, path_type=Path), default=Path("README.md"))
def readme(folder: Path, check: bool, file: Path) -> None:
    """Put the figures of FOLDER's run.json into the README, between its marks."""
    text = file.read_text()
    try:
        wanted = updated(text, _load(folder))
    except NoMarks as error:
        raise click.ClickException(f"{file}: {error}") from None
    if check and text != wanted:
        raise click.ClickException(f"{file} has other figures than {folder}")
    file.write_text(wanted)


def _write(made: Run, folder: Path) -> None:
    (folder / "results.md").write_text(markdown(made))
    draw(made, folder)


def _load(folder: Path) -> Run:
    try:
        return Run.load(folder)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
