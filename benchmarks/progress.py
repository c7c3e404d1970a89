"""What is shown on the terminal while a run lasts, and after it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.report import figure, number
from benchmarks.run import Run
from benchmarks.systems.base import System
from benchmarks.workloads.base import Workload


class Display:
    """A bar, for as long as the block lasts."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=rounds)
        self._begun = -1

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.update(self._task, completed=self._begun + 1)
        self._bar.stop()

    def begin(self, workload: Workload, system: System, turn: int) -> None:
        """The next round begins."""
        self._begun += 1
        text = f"{workload.title}, {system.title}, round {turn + 1} of {workload.sizes['rounds']}"
        self._bar.update(self._task, completed=self._begun, description=text)
        if not self._bar.console.is_terminal:
            self._bar.console.print(text)


def show(console: Console, run: Run) -> None:
    """Claims and failures."""
    table = Table("workload", "claim", "target", "found", "")
    for record in run.records:
        for verdict in record.verdicts():
            found = figure(verdict.found) if verdict.found else "–"
            met = {True: "[green]met", False: "[red]missed", None: "not measured"}[verdict.met]
            claim = verdict.claim
            table.add_row(record.title, claim.text, f"≤ {number(claim.most)}", found, met)
    console.print(table)
    for record in run.records:
        for row in record.failures():
            where = f"{record.title}, {run.systems[row.system]}, round {row.turn + 1}"
            console.print(f"failed: {where}: {row.error}", style="red", markup=False)
