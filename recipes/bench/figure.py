"""The benchmark's figure: time against density, beside the line that counting operations or bytes draws.

Shape letters: none; it draws what was measured.
"""

from collections import defaultdict
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nspec_hf.analysis import BLUE, ORANGE, RED
from recipes.bench.clock import Measured

_WAYS = {
    "slice": ("mode slice", BLUE),
    "mask": ("mode mask", ORANGE),
    "released": ("weights masked each step, as released", RED),
}
_MARKERS = ("o", "s", "v", "D")
_FLOOR = "in theory: operations (training) or bytes read (decoding)"
_PANELS = {
    "block_train": ("One block: forward and backward pass", (0.3, 1.6)),
    "block_decode": ("One block: forward pass of a few tokens", (0.3, 1.6)),
    "train": ("Whole model: training step", (0.65, 1.3)),
    "decode": ("Whole model: greedy decoding", (0.65, 1.3)),
}
"""Kind of work → its title and the ends of its axis of time; what lies above is marked, with its number."""

Point = tuple[float, float, float, float]
"""Density, median, and how far the spread reaches below and above it."""


def draw(found: Mapping[str, Measured], path: str) -> None:
    """Write the figure: a panel a kind of work, a curve a shape, a dotted line for the least possible.

    Args:
        found: What was measured; keys without a density or a number are left out.
        path: Where to; its ending says the format.
    """
    figure = Figure(figsize=(9.6, 7.8), layout="constrained")
    panels = figure.subplots(2, 2)
    entries = {}
    for axes, (work, (title, ends)) in zip(panels.flat, _PANELS.items(), strict=True):
        axes.set_ylim(*ends)
        _draw_panel(axes, found, work)
        axes.set_title(title, fontsize=11, loc="left")
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    for axes in panels[-1]:
        axes.set_xlabel("density: share of neurons that a pair keeps")
    for axes in panels[:, 0]:
        axes.set_ylabel("time, dense = 1 (median, lowest, highest)")
    first = [_FLOOR, *(name for name, _ in _WAYS.values())]
    names = sorted(entries, key=lambda name: first.index(name.rsplit(", ", 1)[0]))
    figure.legend(
        [entries[name] for name in names],
        names,
        loc="outside lower center",
        ncols=2,
        fontsize=9,
        frameon=False,
    )
    figure.savefig(path, dpi=130)


def _draw_panel(axes: Axes, found: Mapping[str, Measured], work: str) -> None:
    curves = points_of(found, work)
    # One density is no curve; it is drawn where there is nothing else, as after a quick run.
    several = [shape for (way, shape), points in curves.items() if way == "slice" and len(points) > 1]
    shapes = several or list(dict.fromkeys(shape for _, shape in curves))
    for (way, shape), points in curves.items():
        if shape in shapes:
            _draw_curve(axes, way, shape, points, shapes.index(shape))
    for shape, floor in floors_of(found, work).items():
        if shape in shapes:
            axes.plot(*zip(*floor, strict=True), color="black", linestyle=":", label=_FLOOR)
    axes.axhline(1, color="black", linewidth=0.8)
    ticks = (0.5, 0.75, 0.85, 0.95, 1)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(0.47, 1.03)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curve(axes: Axes, way: str, shape: str, points: list[Point], number: int) -> None:
    name, color = _WAYS[way]
    # "1024×4096" of "1024×4096, 4+4 layers, …", so that a block and a model share an entry of the legend.
    label = f"{name}, {shape.replace(',', ' ').split()[0]}"
    # Side by side, since the ways and shapes are measured at the same densities.
    shift = 0.008 * (number + (0 if way == "slice" else 1.5 if way == "mask" else -2.5))
    highest = axes.get_ylim()[1]
    inside = [each for each in points if each[1] <= highest]
    axes.errorbar(
        [density + shift for density, *_ in inside],
        [median for _, median, *_ in inside],
        yerr=([low for _, _, low, _ in inside], [high for *_, high in inside]),
        color=color,
        linestyle=("-", "--", "-.", ":")[number % 4] if way == "slice" else "none",
        marker=_MARKERS[number % 4],
        markerfacecolor=color if number == 0 else "white",
        markersize=6,
        elinewidth=1,
        capsize=2,
        label=label,
    )
    for density, median, *_ in set(points) - set(inside):
        axes.plot(density + shift, highest, color=color, marker="^", clip_on=False, zorder=3)
        axes.annotate(
            f"{median:.1f}",
            (density + shift, highest),
            xytext=(7, -9),
            textcoords="offset points",
            color=color,
            fontsize=9,
        )


def points_of(found: Mapping[str, Measured], work: str) -> dict[tuple[str, str], list[Point]]:
    """Return (way, shape) → its points, by density."""
    curves: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for way in _WAYS:
        for each in _of_work(found, f"{work}_{way}_vs_dense"):
            spread = (each.median - each.minimum, each.maximum - each.median)
            curves[way, each.setting["shape"]].append((each.setting["density"], each.median, *spread))
    return {name: sorted(points) for name, points in curves.items()}


def floors_of(found: Mapping[str, Measured], work: str) -> dict[str, list[tuple[float, float]]]:
    """Return shape → density and least ratio, by operations or, where those do not count, by bytes."""
    lines: dict[str, list[tuple[float, float]]] = defaultdict(lambda: [(1.0, 1.0)])
    for each in _of_work(found, f"{work}_slice_vs_dense"):
        lines[each.setting["shape"]].append(
            (each.setting["density"], next(iter(each.setting["floor"].values())))
        )
    return {shape: sorted(points) for shape, points in lines.items()}


def _of_work(found: Mapping[str, Measured], key: str) -> list[Measured]:
    own = [each for name, each in found.items() if name == key or name.startswith(f"{key}.")]
    return [
        each
        for each in own
        if each.median is not None
        and "density" in each.setting
        and each.setting.get("beams", 1) == 1
        and "multiple_of" not in each.setting
    ]
