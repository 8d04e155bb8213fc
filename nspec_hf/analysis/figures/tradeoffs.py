"""Figures of one number against another over many runs: a gain against what it costs or depends on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nspec_hf.analysis.figures.style import BELOW, INK, PALETTE

_MARKERS = "os^Dv"
_COLOURS = (*PALETTE, "black")


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that share a colour, a marker and an entry of the legend; one point is a mean over seeds."""

    label: str
    """In the legend."""

    x: Sequence[float]
    """Where the points lie."""

    y: Sequence[float]
    """Their heights."""

    spread: Sequence[float] | None = None
    """How far each reaches below and above, such as a standard deviation."""

    joined: bool = False
    """Whether a line runs through them, in the order of x."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    x: str
    """What lies on the horizontal axis, with its unit."""

    y: str
    """What lies on the vertical axis, with its unit."""

    series: Sequence[Series]
    """A colour each; the same colours in all panels."""

    rule: float | None = None
    """Height of a horizontal line: the reference, below which something is lost."""

    title: str = ""
    """What stands above it."""


def draw_tradeoffs(panels: Sequence[Panel]) -> Figure:
    """Draw panels, up to three in a row, with one legend below for the labels of all of them.

    Panels with the same on their horizontal axes have the same range there.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.0 + 4.6 * columns, 0.7 + 3.7 * rows), layout="constrained")
    places: list[Axes] = []
    scales: dict[str, Axes] = {}
    for number, panel in enumerate(panels, 1):
        places.append(figure.add_subplot(rows, columns, number, sharex=scales.get(panel.x)))
        scales[panel.x] = places[-1]
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    entries = {}
    for axes, panel in zip(places, panels, strict=True):
        for series in panel.series:
            order, place = np.argsort(series.x, kind="stable"), labels.index(series.label)
            axes.errorbar(
                np.asarray(series.x)[order],
                np.asarray(series.y)[order],
                yerr=None if series.spread is None else np.asarray(series.spread)[order],
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                linestyle="-" if series.joined else "none",
                markersize=5,
                elinewidth=0.8,
                capsize=2,
                label=series.label,
            )
        if panel.rule is not None:
            axes.axhline(panel.rule, color=INK, lw=0.8)
        axes.set(xlabel=panel.x, ylabel=panel.y, title=panel.title)
        entries |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend([entries[label] for label in labels], labels, ncols=min(4, len(labels)), **BELOW)
    return figure
