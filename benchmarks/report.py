"""A run as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.claims import Kind, Verdict
from benchmarks.run import Record, Run
from benchmarks.statistics import Spread, spread

_LEAST = "with a shim that does nothing"
_MET = {True: "met", False: "**missed**", None: "not measured"}
# Said of a miss alone: what is met is not out of reach, whatever a sum of floors may say.
_BEYOND = "; out of any shim's reach here"


def markdown(run: Run) -> str:
    """All of it: the machine, the claims, every figure, every failure."""
    parts = [
        "# Results",
        "Made by `python -m benchmarks report` from `run.json`; do not edit.",
        _quick(run),
        table(["", ""], [[key, value] for key, value in run.machine.items()]),
        f"Duration: {run.seconds / 60:.1f} minutes. Each figure is a median, with the 10th and the "
        "90th percentile of its rounds in parentheses. Ratios are of pairs of the same round.",
        "## Claims",
        _claims(run),
        *(_workload(run, record) for record in run.records),
        _failures(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _quick(run: Run) -> str:
    return "**Made with `--quick`: sizes are small, and figures rough.**" if run.quick else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown has it; an empty string without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def number(value: float) -> str:
    """With three digits that count, and no more."""
    if not math.isfinite(value):
        return str(value)
    value = round(value, 6)
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(digits, 0), 6)}f}"


def figure(found: Spread) -> str:
    """A median with its spread, where there is one."""
    if found.low == found.high:
        return number(found.median)
    return f"{number(found.median)} ({number(found.low)}–{number(found.high)})"


def _claims(run: Run) -> str:
    head = ["workload", "claim", "target", "found", "baseline", "floor", _LEAST, ""]
    rows = [
        [record.title, verdict.claim.text, *_verdict(run, record, verdict)]
        for record in run.records
        for verdict in record.verdicts()
    ]
    return table(head, rows)


def _verdict(run: Run, record: Record, verdict: Verdict) -> list[str]:
    claim = verdict.claim
    unit = next((row.unit for row in record.figures if row.name == claim.figure), "")
    suffix = " ×" if claim.kind in (Kind.RATIO, Kind.BEYOND) else f" {unit}".rstrip()
    return [
        f"≤ {number(claim.most)}{suffix}",
        f"{figure(verdict.found)}{suffix}" if verdict.found else "–",
        run.systems.get(verdict.baseline, verdict.baseline) or "–",
        f"{figure(verdict.floor)} {unit}".rstrip() if verdict.floor else "–",
        _least(verdict, unit, suffix),
        _MET[verdict.met] + (_BEYOND if (verdict.met, verdict.possible) == (False, False) else ""),
    ]


def _least(verdict: Verdict, unit: str, suffix: str) -> str:
    """The least figure that any shim can have here, and what would be found for it."""
    if verdict.least is None:
        return "–"
    text = f"{figure(verdict.least)} {unit}".rstrip()
    return f"{text}: {figure(verdict.reach)}{suffix}" if verdict.reach else text


def _workload(run: Run, record: Record) -> str:
    there = {row.system for row in record.rounds}
    names = [name for name in run.systems if name in there]
    rows = []
    for row in record.figures:
        values = record.values(row.name)
        title = f"{row.title}, {row.unit}" if row.unit else row.title
        cells = [
            figure(spread(list(values[name].values()))) if name in values else "–" for name in names
        ]
        rows.append([title, *cells])
    sizes = ", ".join(f"{key} {value}" for key, value in record.sizes.items())
    head = ["", *(run.systems[name] for name in names)]
    return f"## {record.title}\n\n`{record.name}`: {sizes}.\n\n{table(head, rows)}"


def _failures(run: Run) -> str:
    rows = [
        [record.name, run.systems[row.system], str(row.turn + 1), " ".join(row.error.split())]
        for record in run.records
        for row in record.failures()
    ]
    return "## Failures\n\n" + table(["workload", "system", "round", "why"], rows) if rows else ""
