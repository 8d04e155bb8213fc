"""The figure of growth: time and memory against what grows, each with its slope where it is largest.

On axes that are both logarithmic a power law is a straight line, and its exponent is the slope: 0 is no
growth, 1 grows as the work does. A slope is that of the least squares line through the last three points,
since the smallest sizes show what is there without any work.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nspec_hf.analysis import BLUE, ORANGE, RED
from recipes.bench.clock import Measured

_LAST = 3
_COLORS = (BLUE, ORANGE, RED, "0.35", "#117733")


@dataclass(frozen=True)
class _Curve:
    """A number that was measured at several sizes."""

    key: str
    label: str
    of_one: float = 0
    """Where it was told for one of what grows: what all of them are multiplied by."""

    def points(self, found: Mapping[str, Measured]) -> list[tuple[int, float]]:
        """Return sizes and numbers; what is 0 has no place on such axes."""
        sizes = {name.removeprefix(f"{self.key}."): each.median for name, each in found.items()}
        points = [(int(size), value) for size, value in sizes.items() if size.isdigit() and value]
        return sorted((size, value * size * self.of_one if self.of_one else value) for size, value in points)


_PANELS: Mapping[str, Sequence[_Curve]] = {
    "masks: pairs": (
        _Curve("growth_pairs.memory_mb", "in memory, MB"),
        _Curve("growth_pairs.file_mb", "file, MB"),
        _Curve("growth_pairs.compose_ms", "composing all, ms", of_one=1),
        _Curve("growth_pairs.load_ms", "load, ms"),
        _Curve("growth_pairs.gate_ms", "gate on the model, ms"),
    ),
    "masks of 100 pairs: layers of each side": (
        _Curve("growth_sites.load_ms", "load, ms"),
        _Curve("growth_sites.file_mb", "file, MB"),
    ),
    "plan of an epoch: sentence pairs": (
        _Curve("growth_plan.seconds", "seconds to the first batch"),
        _Curve("growth_plan.memory_mb", "memory, MB"),
    ),
    "text on disk: lines": (
        _Curve("growth_text.first_start_us", "read and encode, seconds", of_one=1e-6),
        _Curve("growth_text.memory_mb", "memory, MB"),
        _Curve("growth_text.second_start_seconds", "second start, seconds"),
    ),
    "plan of a million, one of so many processes": (
        _Curve("growth_ranks.seconds", "seconds to its first batch"),
        _Curve("growth_ranks.memory_mb", "its memory, MB"),
    ),
    "the same work by so many processes, seconds of all": (
        _Curve("growth_processes.encode_seconds", "read and encode text"),
        _Curve("growth_processes.run_seconds", "record, train, evaluate (DDP)"),
    ),
}


def slope_of(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the exponent of growth through the last points, or None where there are not two."""
    last = [(math.log(size), math.log(value)) for size, value in points[-_LAST:]]
    return float(np.polyfit(*zip(*last, strict=True), 1)[0]) if len(last) > 1 else None


def slopes(found: Mapping[str, Measured]) -> Iterator[tuple[str, Measured]]:
    """Yield the slope of every curve that has two points."""
    for title, curves in _PANELS.items():
        for curve in curves:
            points = curve.points(found)
            slope = slope_of(points)
            if slope is not None:
                setting = {"shape": f"{title}; {curve.label}", "sizes": [size for size, _ in points[-_LAST:]]}
                yield f"{curve.key}.slope", Measured.exactly(round(slope, 3), **setting)


def draw_growth(found: Mapping[str, Measured], path: str) -> None:
    """Write the figure: a panel for each that grows, a dotted line that grows as the work does."""
    figure = Figure(figsize=(10.4, 11.4), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(3, 2).flat, _PANELS.items(), strict=True):
        for curve, color in zip(curves, _COLORS, strict=False):
            points = curve.points(found)
            slope = slope_of(points)
            if slope is not None:
                label = f"{curve.label}: slope {slope:.2f}"
                axes.loglog(*zip(*points, strict=True), marker="o", markersize=4, color=color, label=label)
        axes.set_title(title, fontsize=11, loc="left")
        if axes.lines:
            _finish(axes)
    figure.savefig(path, dpi=130)


def _finish(axes: Axes) -> None:
    """Add the line of slope 1 from the lowest corner, and room for the legend above the curves."""
    sizes = sorted({float(size) for line in axes.lines for size in line.get_xdata()})
    low, high = axes.get_ylim()
    axes.plot(
        [sizes[0], sizes[-1]],
        [low, low * sizes[-1] / sizes[0]],
        color="black",
        linestyle=":",
        linewidth=1,
        label="slope 1: as the work",
    )
    room = (high / low) ** (0.13 * len(axes.lines))
    axes.set_ylim(low, high * max(room, 4))
    if len(sizes) <= 6:
        axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axes.set_xticks([], minor=True)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, frameon=False, loc="upper left")
