"""A run as plots: one for each workload, PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure as Plot

from benchmarks.run import Record, Run
from benchmarks.statistics import spread
from benchmarks.workloads.base import Figure

KINDS: Final = ("png", "svg")
_COLUMNS: Final = 3
# By the system's place in the run: the same colour in all plots.
_COLOURS: Final = ("#999999", "#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")
# Reproducible files: no random ids, no date.
_SETTINGS: Final[Any] = {"svg.hashsalt": "denseshim", "font.size": 8}


def draw(run: Run, folder: Path) -> list[Path]:
    """Write them to `folder`; the files."""
    files = []
    with mpl.rc_context(_SETTINGS):
        for record in run.records:
            shown = [row for row in record.figures if record.values(row.name)]
            if shown:
                plot = _plot(run, record, shown)
                for kind in KINDS:
                    files.append(folder / f"{record.name}.{kind}")
                    metadata = {"Date": None} if kind == "svg" else {}
                    plot.savefig(files[-1], dpi=120, metadata=metadata)
    return files


def _plot(run: Run, record: Record, figures: list[Figure]) -> Plot:
    """A panel for each figure, with a bar for each system."""
    rows = -(-len(figures) // _COLUMNS)
    plot = Plot(figsize=(4 * _COLUMNS, 0.6 + 1.9 * rows), layout="constrained")
    plot.suptitle(record.title)
    for axes, figure in zip(
        plot.subplots(rows, _COLUMNS, squeeze=False).flat, figures, strict=False
    ):
        values = record.values(figure.name)
        names = [name for name in run.systems if name in values]
        found = [spread(list(values[name].values())) for name in names]
        medians = [row.median for row in found]
        errors = [
            [row.median - row.low for row in found],
            [row.high - row.median for row in found],
        ]
        places = list(run.systems)
        colours = [_COLOURS[places.index(name) % len(_COLOURS)] for name in names]
        titles = [run.systems[name] for name in names]
        axes.barh(titles, medians, xerr=errors, color=colours, capsize=2)
        axes.invert_yaxis()
        axes.set_title(f"{figure.title} [{figure.unit}]" if figure.unit else figure.title)
    for axes in plot.axes[len(figures) :]:
        axes.remove()
    return plot
