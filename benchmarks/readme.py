"""The README's figures, made from a run: what stands between two marks is never edited."""

from __future__ import annotations

from typing import Final

from benchmarks.claims import SUBJECT, Kind, Verdict
from benchmarks.report import figure, table
from benchmarks.run import Record, Run
from benchmarks.statistics import spread

BEGIN: Final = "<!-- figures: made by `python -m benchmarks readme`, do not edit -->"
END: Final = "<!-- end of figures -->"
# Of the workload `memory`: its series, and how a row names them.
_SERIES: Final = {"pss": "", "threads": "threads"}
_STATES: Final = {True: "", False: " (missed)", None: " (not measured)"}


class NoMarks(Exception):
    """The text has no place for figures."""


def updated(text: str, run: Run) -> str:
    """The text with the run's figures between its marks. Raises NoMarks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise NoMarks(f"the marks are missing: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{figures(run)}\n{END}{after}"


def figures(run: Run) -> str:
    """Memory by the number of containers, then each claim."""
    parts = [_memory(run, record) for record in run.records if record.name == "memory"]
    parts += [_claims(run), _machine(run)]
    return "\n\n".join(part for part in parts if part)


def _memory(run: Run, record: Record) -> str:
    """A row for each number of containers, a column for each system."""
    names = [name for name in run.systems if record.values("pss_1").get(name)]
    counts = sorted({row.at for row in record.figures if row.series == "pss"})
    rows = []
    for count in counts:
        cells = [_at(record, name, count) for name in names]
        rows.append([f"{count:,}", *cells])
    return table(["containers", *(run.systems[name] for name in names)], rows)


def _at(record: Record, system: str, count: int) -> str:
    """What so many containers of a system need."""
    found = []
    for row in record.figures:
        values = record.values(row.name).get(system)
        if row.at == count and row.series in _SERIES and values:
            median = figure(spread(list(values.values()))).partition(" ")[0]
            found.append(f"{median} {row.unit or _SERIES[row.series]}")
    return ", ".join(found) or "–"


def _claims(run: Run) -> str:
    rows = []
    for record in run.records:
        for verdict in record.verdicts():
            rows.append([f"{record.title}: {verdict.claim.text}", *_compared(record, verdict)])
    return table(["what, and what it is meant to be", "denseshim", "theirs", "found"], rows)


def _compared(record: Record, verdict: Verdict) -> list[str]:
    claim = verdict.claim
    values = record.values(claim.figure)
    unit = next((row.unit for row in record.figures if row.name == claim.figure), "")

    def cell(system: str) -> str:
        there = values.get(system)
        return f"{figure(spread(list(there.values())))} {unit}".rstrip() if there else "–"

    if verdict.found is None:
        found = "–"
    elif claim.kind in (Kind.RATIO, Kind.BEYOND):
        found = f"{figure(verdict.found)} ×"
    else:
        found = f"{figure(verdict.found)} {unit}".rstrip()
    return [
        cell(claim.subject),
        cell(verdict.baseline or _best(record, verdict)),
        found + _state(verdict),
    ]


def _state(verdict: Verdict) -> str:
    if (verdict.met, verdict.possible) == (False, False):
        return " (missed: out of any shim's reach here)"
    return _STATES[verdict.met]


def _best(record: Record, verdict: Verdict) -> str:
    """The baseline to show where none was compared with: the least median."""
    values = record.values(verdict.claim.figure)
    there = [name for name in verdict.claim.baselines if values.get(name)]
    return min(there, key=lambda name: spread(list(values[name].values())).median, default="")


def _machine(run: Run) -> str:
    machine = run.machine
    text = (
        f"Measured on {machine['processors']}, {machine['memory']}, Linux {machine['kernel']}, "
        f"{machine['date']}; {run.systems[SUBJECT]} against the better of containerd's two shims. "
        "Medians, with the 10th and 90th percentile."
    )
    return f"{text} Made with `--quick`: figures are rough." if run.quick else text
