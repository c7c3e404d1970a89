"""A run as plots: one for each workload, PNG and SVG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot

from benchmarks.run import Record, Run
from benchmarks.statistics import spread
from benchmarks.workloads.base import Figure

KINDS: Final = ("png", "svg")
_COLUMNS: Final = 3
# By the system's place in the run: the same colour in all plots.
_COLOURS: Final = ("#999999", "#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")
# The end of a title in a series: "PSS at 10", "blocks, 100 streams".
_NUMBER: Final = re.compile(r",?( at)? [\d,]+.*$")
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


def _plot(run: Run, record: Record, figures: Sequence[Figure]) -> Plot:
    """A panel for each figure, with a bar for each system, or for each series, with lines."""
    panels: dict[str, list[Figure]] = {}
    for row in figures:
        panels.setdefault(row.series or row.name, []).append(row)
    rows = -(-len(panels) // _COLUMNS)
    plot = Plot(figsize=(4 * _COLUMNS, 0.6 + 2 * rows), layout="constrained")
    plot.suptitle(record.title)
    for axes, panel in zip(
        plot.subplots(rows, _COLUMNS, squeeze=False).flat, panels.values(), strict=False
    ):
        if panel[0].series:
            _lines(axes, run, record, panel)
        else:
            _bars(axes, run, record, panel[0])
    for axes in plot.axes[len(panels) :]:
        axes.remove()
    return plot


def _colour(run: Run, system: str) -> str:
    return _COLOURS[list(run.systems).index(system) % len(_COLOURS)]


def _label(title: str, unit: str) -> str:
    return f"{title} [{unit}]" if unit else title


def _bars(axes: Axes, run: Run, record: Record, figure: Figure) -> None:
    """The median, and the spread around it."""
    values = record.values(figure.name)
    names = [name for name in run.systems if name in values]
    found = [spread(list(values[name].values())) for name in names]
    below = [row.median - row.low for row in found]
    above = [row.high - row.median for row in found]
    axes.barh(
        [run.systems[name] for name in names],
        [row.median for row in found],
        xerr=[below, above],
        color=[_colour(run, name) for name in names],
        capsize=2,
    )
    axes.invert_yaxis()
    axes.set_title(_label(figure.title, figure.unit))


def _lines(axes: Axes, run: Run, record: Record, panel: Sequence[Figure]) -> None:
    """Medians, both axes logarithmic."""
    for name in run.systems:
        points = [
            (row.at, spread(list(values[name].values())).median)
            for row in panel
            if name in (values := record.values(row.name))
        ]
        if points:
            places, medians = zip(*points, strict=True)
            label = run.systems[name]
            axes.plot(places, medians, "o-", color=_colour(run, name), label=label, markersize=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(_label(_NUMBER.sub("", panel[0].title), panel[0].unit))
    axes.legend(fontsize=6)
