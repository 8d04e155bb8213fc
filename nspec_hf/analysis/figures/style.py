"""What all figures share: a panel, a heat map, colours by family, and two files a figure.

The figures never touch pyplot, so drawing changes no global state and needs no display. Colours are safe for
colour-blind readers: cividis for shares, Okabe and Ito's palette for families, which are also written out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from nspec_hf.analysis.language_families import PALETTE
from nspec_hf.analysis.result import site_label
from nspec_hf.core import atomic_write
from nspec_hf.recording import SIDES, Site

BLUE, ORANGE, GREEN, RED, PINK, SKY, YELLOW, GREY = PALETTE
INK = "#444444"
"""Colour of frames and rules."""
IOU = "intersection over union"
BELOW = {"loc": "outside lower center", "fontsize": 8, "frameon": False}
"""Where and how a legend stands under a figure."""


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that size in inches with one panel."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def side_panels(sites: Sequence[Site], label: str) -> tuple[Figure, list[tuple[Axes, list[int]]]]:
    """Return a figure with one panel for each side that has sites, and the numbers of its sites."""
    rows = by_side(sites)
    figure = Figure(figsize=(1.5 + 4.0 * len(rows), 3.6), layout="constrained")
    panels = list(figure.subplots(1, len(rows), sharey=True, squeeze=False)[0])
    for axes, (side, numbers) in zip(panels, rows.items(), strict=True):
        names = [site_label(sites[n]).removeprefix(f"{side} ") for n in numbers]
        long = max(map(len, names)) > 3
        font = 7 if long else label_size(len(names), 150)
        axes.set_xticks(range(len(numbers)), names, rotation=90 * long, fontsize=font)
        axes.set(title=side, xlabel="layer", xlim=(-0.6, len(numbers) - 0.4))
    panels[0].set_ylabel(label)
    return figure, list(zip(panels, rows.values(), strict=True))


def by_side(sites: Sequence[Site]) -> dict[str, list[int]]:
    """Return the numbers of the sites of each side that has any."""
    numbers = {side: [n for n, site in enumerate(sites) if site.side == side] for side in SIDES}
    return {side: own for side, own in numbers.items() if own}


def heat_map(axes: Axes, share: np.ndarray, limits: tuple[float, float] | None = None) -> AxesImage:
    """Draw a square matrix of shares; undefined cells and the diagonal are grey.

    The limits are the shares at both ends of the colours; None takes the lowest and highest.
    """
    # The diagonal is 1 by definition; left out, the colours are spent on what differs.
    shown = np.where(np.eye(len(share), dtype=bool), np.nan, share)
    low, high = limits or (None, None)
    axes.set_facecolor("#dddddd")
    return axes.imshow(shown, cmap="cividis", interpolation="nearest", vmin=low, vmax=high)


def shade(share: float) -> tuple[float, float, float, float]:
    """Return the colour of a share in [0, 1]: dark blue to yellow."""
    return colormaps["cividis"](share)


def label_size(count: int, points: float = 330, smallest: float = 4.5) -> float:
    """Return the size of type at which `count` labels share a length of `points`."""
    return max(smallest, min(9.0, points / count))


def legend_below(figure: Figure, colours: Mapping[str, str], columns: int = 5) -> None:
    """Name colours under a figure."""
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, ncols=columns, **BELOW)


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name.png` (150 dots an inch) and `name.svg`; return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    # The canvases themselves: `Figure.savefig` draws everything once more to find out how large it is.
    figure.set_dpi(150)
    with atomic_write(paths[0]) as file:
        FigureCanvasAgg(figure).print_png(file)
    # The layout is settled; working it out again takes as long as drawing.
    figure.set_layout_engine("none")
    # Without a date and with fixed names inside, equal figures are equal files.
    with rc_context({"svg.hashsalt": "nspec_hf"}), atomic_write(paths[1]) as file:
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return paths
