"""The figure of `bench.py`: time against density, beside the line that counting operations draws.

Shape letters: none; it draws what was measured.
"""

from collections import defaultdict
from collections.abc import Mapping

from bench_clock import Measured
from matplotlib.figure import Figure

from nspec_hf.plots import BLUE, GREEN, ORANGE, RED

_WAYS = {"slice": BLUE, "mask": ORANGE, "released": RED}
_PANELS = {
    "block_train": "feed-forward block, forward and backward",
    "train": "training step of the whole model",
    "decode": "greedy decoding",
}


def draw(found: Mapping[str, Measured], path: str) -> None:
    """Write the figure: a column a kind of work, a row of points a density.

    Args:
        found: What was measured; keys without a density or a number are left out.
        path: Where to; its ending says the format.
    """
    figure = Figure(figsize=(4.2 * len(_PANELS), 3.8), layout="constrained")
    for axes, (work, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        curves = points_of(found, work)
        for (way, shape), points in curves.items():
            first = shape == next(iter(curves))[1]
            densities, medians, low, high = zip(*points, strict=True)
            axes.errorbar(
                densities,
                medians,
                yerr=(low, high),
                color=_WAYS[way],
                linestyle="-" if first else "--",
                marker="o" if first else "s",
                capsize=3,
                label=f"{way}, {shape}",
            )
        for shape, floor in floors_of(found, work).items():
            axes.plot(*zip(*floor, strict=True), color=GREEN, linestyle=":", label=f"least possible, {shape}")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(title=title, xlabel="density (share of neurons kept)", ylabel="time, dense = 1")
        if curves:
            axes.legend(fontsize=6)
    figure.savefig(path, dpi=150)


def points_of(
    found: Mapping[str, Measured], work: str
) -> dict[tuple[str, str], list[tuple[float, float, float, float]]]:
    """Return (way, shape) → density, median, and how far the spread reaches below and above it."""
    curves: dict[tuple[str, str], list[tuple[float, float, float, float]]] = defaultdict(list)
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
