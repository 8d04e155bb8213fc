"""Figures of masks: overlap, progression, density, trees, importance. One function each, returning a Figure.

This is the only file that imports matplotlib, and it never touches pyplot, so drawing changes no global
state and needs no display. Colours are safe for colour-blind readers: cividis for shares, Okabe and Ito's
palette for families, which are also written out. Figures of scores and settings are in `effect_plots.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from scipy.cluster.hierarchy import dendrogram

from nspec_hf.analysis.general_specific import ImportanceCurves, LScore, MScore, Ownership
from nspec_hf.analysis.language_families import FamilyAgreement, LanguageTree
from nspec_hf.analysis.mask_overlap import Density, Overlap, Progression, order_by_family
from nspec_hf.analysis.result import site_label
from nspec_hf.recording import Site

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999")
"""Okabe and Ito's colours, the ones that are easiest to tell apart first."""
BLUE, ORANGE, GREEN, RED = PALETTE[:4]
SIDES = ("encoder", "decoder")
IOU = "intersection over union"


def family_colours(families: Mapping[str, str]) -> dict[str, str]:
    """Return family → colour, large families first; more than eight families share colours."""
    sizes = Counter(families.values())
    ordered = sorted(sizes, key=lambda name: (-sizes[name], name))
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(ordered)}


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name.png` (150 dots an inch) and `name.svg`; return their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    # The canvases themselves: `Figure.savefig` draws everything once more to find out how large it is.
    figure.set_dpi(150)
    FigureCanvasAgg(figure).print_png(paths[0])
    # The layout is settled; working it out again takes as long as drawing.
    figure.set_layout_engine("none")
    # Without a date and with fixed names inside, equal figures are equal files.
    with rc_context({"svg.hashsalt": "nspec_hf"}):
        FigureCanvasSVG(figure).print_svg(paths[1], metadata={"Date": None})
    return paths


def draw_overlap(result: Overlap | Progression, number: int, families: Mapping[str, str]) -> Figure:
    """Draw IoU at one site as a heat map, rows by family (Tan et al., Fig. 1 and 8 to 10).

    Args:
        result: Overlap of pairs, or of languages.
        number: Which of its sites.
        families: Language → family. A pair stands with the family of its source in the encoder, of its
            target in the decoder.
    """
    site = result.sites[number]
    labels, spoken = _labels(result, site)
    order = order_by_family(spoken, families)
    size = max(4.0, min(11.0, 1.8 + 0.19 * len(labels)))
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.subplots()
    image = heat_map(axes, result.iou[number][np.ix_(order, order)])
    font = max(4.5, min(9.0, 300 / len(labels)))
    axes.set_xticks(range(len(order)), [labels[i] for i in order], rotation=90, fontsize=font)
    axes.set_yticks(range(len(order)), [labels[i] for i in order], fontsize=font)
    _frame_families(axes, [families.get(spoken[i], "") for i in order], family_colours(families))
    figure.colorbar(image, ax=axes, label=IOU, shrink=0.8)
    axes.set_title(f"Overlap of neurons, {site_label(site)}")
    return figure


def draw_overlap_layers(course: Progression, families: Mapping[str, str]) -> Figure:
    """Draw the heat maps of all layers side by side, languages by family (Tan et al., Fig. 8–10)."""
    rows = [[n for n, site in enumerate(course.sites) if site.side == side] for side in SIDES]
    rows = [row for row in rows if row]
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.5 + 2.2 * columns, 2.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    order = order_by_family(course.languages, families)
    colours = family_colours(families)
    couples = np.concatenate([course.couples(number) for number in range(len(course.sites))])
    limits = (couples.min(), couples.max()) if len(couples) else (0.0, 1.0)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, numbers in enumerate(rows):
        for axes, number in zip(grid[row], numbers, strict=False):
            axes.set_axis_on()
            image = heat_map(axes, course.iou[number][np.ix_(order, order)], limits)
            _frame_families(
                axes, [families.get(course.languages[i], "") for i in order], colours, legend=False
            )
            # More names than these would not be legible at this size.
            named = range(len(order)) if len(order) <= 16 else ()
            codes = [course.languages[order[i]] for i in named]
            axes.set_xticks(named, codes, rotation=90, fontsize=6)
            axes.set_yticks(named, codes, fontsize=6)
            axes.set_title(site_label(course.sites[number]), fontsize=9)
    figure.colorbar(image, ax=grid, label=IOU, shrink=0.8)
    figure.legend(handles=_patches(colours), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def draw_progression(course: Progression, agreement: FamilyAgreement) -> Figure:
    """Draw the overlap of languages at each layer, and its mean within and across families (Fig. 2)."""
    figure, panels = _side_panels(course.sites, "IoU of two languages")
    for axes, numbers in panels:
        spread = [course.couples(number) for number in numbers]
        filled = [place for place, found in enumerate(spread) if len(found)]
        if filled:
            parts = axes.violinplot([spread[place] for place in filled], positions=filled, showextrema=False)
            for body in parts["bodies"]:
                body.set(facecolor=PALETTE[7], alpha=0.45)
        axes.plot(agreement.within[numbers], "o-", color=BLUE, label="same family")
        axes.plot(agreement.across[numbers], "s--", color=ORANGE, label="different families")
        for place, number in enumerate(numbers):
            p_value = agreement.p_value[number]
            if not np.isnan(p_value):
                axes.annotate(
                    _p_text(p_value),
                    (place, 0.015),
                    xycoords=("data", "axes fraction"),
                    ha="center",
                    fontsize=7,
                )
    panels[0][0].legend(frameon=False, loc="best", fontsize=8)
    return figure


def draw_sparsity(result: Density, pivot: str | None = None) -> Figure:
    """Draw the share of silenced neurons at each layer, by direction (Tan et al., Fig. 6)."""
    figure, panels = _side_panels(result.sites, "sparsity (share of neurons off)")
    groups = np.array([pair.group(pivot) if pivot else "all pairs" for pair in result.pairs])
    for axes, numbers in panels:
        for colour, name in zip(PALETTE, sorted(set(groups)), strict=False):
            found = result.sparsity[numbers][:, groups == name]
            axes.plot(found.mean(axis=1), "o-", color=colour, label=f"{name} ({(groups == name).sum()})")
            axes.fill_between(
                range(len(numbers)), found.min(axis=1), found.max(axis=1), color=colour, alpha=0.18, lw=0
            )
        axes.set_ylim(0, 1)
    panels[0][0].legend(frameon=False, fontsize=8, title="mean, lowest to highest", title_fontsize=7)
    return figure


def draw_tree(tree: LanguageTree, families: Mapping[str, str], title: str = "") -> Figure:
    """Draw the tree of languages, leaves coloured by family (Tan et al., Fig. 7)."""
    plan = dendrogram(tree.linkage, no_plot=True)
    leaves, colours = tree.leaves, family_colours(families)
    figure = Figure(figsize=(7.5, 1.4 + 0.2 * len(leaves)), layout="constrained")
    axes = figure.subplots()
    for heights, places in zip(plan["dcoord"], plan["icoord"], strict=True):
        axes.plot(heights, places, color="#444444", lw=1.2)
    for i, code in enumerate(leaves):
        axes.plot(
            0,
            5 + 10 * i,
            "s",
            ms=7,
            color=colours.get(families.get(code, ""), "#ffffff"),
            mec="#444444",
            clip_on=False,
        )
    axes.set_yticks([5 + 10 * i for i in range(len(leaves))], leaves)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.yaxis.tick_right()
    axes.set_xlim(tree.linkage[:, 2].max() * 1.03, 0)
    axes.set_ylim(10 * len(leaves), 0)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("1 − IoU, complete linkage")
    axes.set_title(title or "Languages by the overlap of their neurons", fontsize=10)
    figure.legend(handles=_patches(colours), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def draw_importance(curves: ImportanceCurves, pairs: Sequence[str] = ()) -> Figure:
    """Draw each neuron's importance for some pairs, most important on average first (Xie et al., Fig. 2).

    Args:
        curves: Of one site.
        pairs: Which pairs to show; none: three of them, first, middle and last.
    """
    spread = np.linspace(0, len(curves.pairs) - 1, 3).round().astype(int).tolist()
    shown = [curves.pairs.index(pair) for pair in pairs] or list(dict.fromkeys(spread))
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, row in zip(PALETTE, shown, strict=False):
        axes.plot(curves.importance[row], ".", ms=2, alpha=0.5, color=colour, rasterized=True)
        axes.plot([], "s", color=colour, label=curves.pairs[row])
    axes.plot(curves.mean, color="black", lw=1.4, label=f"mean of {len(curves.pairs)}")
    axes.set(
        xlabel="neurons, by mean importance", ylabel=f"importance ({curves.measure.upper()})", ylim=(0, None)
    )
    axes.set_title(f"Importance, {site_label(curves.site)}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def draw_specific(layers: LScore, modules: MScore) -> Figure:
    """Draw LScore of each pair and MScore of each site (Xie et al., Eq. 10, 11, Fig. 3)."""
    figure = Figure(figsize=(9.5, max(3.2, 1.2 + 0.14 * len(layers.pairs))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    image = left.imshow(layers.score.T, cmap="cividis", aspect="auto", interpolation="nearest")
    left.set_xticks(range(len(layers.layers)), layers.layers, rotation=60, ha="right", fontsize=8)
    left.set_yticks(
        range(len(layers.pairs)), layers.pairs, fontsize=max(4.5, min(9.0, 330 / len(layers.pairs)))
    )
    left.set_title("LScore: share of a layer specific to a pair", fontsize=10)
    figure.colorbar(image, ax=left)
    right.barh([site_label(site) for site in modules.sites], modules.score, color=BLUE)
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=8)
    right.set_title("MScore: mean over pairs", fontsize=10)
    return figure


def draw_ownership(result: Ownership) -> Figure:
    """Draw how many neurons of each site are kept by no pair, by some, by all."""
    share = result.neurons / result.neurons.sum(axis=1, keepdims=True)
    figure, panels = _side_panels(result.sites, "share of the site's neurons")
    last = len(result.owners) - 1
    bands = {
        "no pair": slice(0, 1),
        "one pair": slice(1, 2),
        "some pairs": slice(2, last),
        "all pairs": slice(last, None),
    }
    for axes, numbers in panels:
        floor = np.zeros(len(numbers))
        for colour, (name, band) in zip((PALETTE[7], ORANGE, PALETTE[5], BLUE), bands.items(), strict=True):
            height = share[numbers, band].sum(axis=1)
            axes.bar(range(len(numbers)), height, bottom=floor, color=colour, label=f"kept by {name}")
            floor += height
        axes.set_ylim(0, 1)
    handles = panels[0][0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _labels(result: Overlap | Progression, site: Site) -> tuple[list[str], list[str]]:
    """Return the rows' names, and the language by which each row belongs to a family."""
    if isinstance(result, Progression):
        return list(result.languages), list(result.languages)
    return list(result.pairs), [p.source if site.side == "encoder" else p.target for p in result.pairs]


def heat_map(axes: Axes, share: np.ndarray, limits: tuple[float, float] | None = None) -> AxesImage:
    """Draw a square matrix of shares; undefined cells and the diagonal are grey.

    Args:
        axes: Where to draw.
        share: Square matrix.
        limits: The shares at both ends of the colours; None takes the lowest and highest.
    """
    # The diagonal is 1 by definition; left out, the colours are spent on what differs.
    shown = np.where(np.eye(len(share), dtype=bool), np.nan, share)
    low, high = limits or (None, None)
    image = axes.imshow(shown, cmap="cividis", interpolation="nearest", vmin=low, vmax=high)
    axes.set_facecolor("#dddddd")
    return image


def _frame_families(
    axes: Axes, names: Sequence[str], colours: Mapping[str, str], legend: bool = True
) -> None:
    """Draw a coloured square around each run of languages of one family."""
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or names[end] != names[start]:
            colour = colours.get(names[start], "#ffffff")
            corner, size = (start - 0.5, start - 0.5), end - start
            axes.add_patch(Rectangle(corner, size, size, fill=False, ec=colour, lw=2, clip_on=False))
            start = end
    if legend and colours:
        axes.figure.legend(
            handles=_patches(colours), loc="outside lower center", ncols=4, fontsize=8, frameon=False
        )


def _patches(colours: Mapping[str, str]) -> list[Patch]:
    return [Patch(color=colour, label=name) for name, colour in colours.items()]


def _side_panels(sites: Sequence[Site], label: str) -> tuple[Figure, list[tuple[Axes, list[int]]]]:
    """Return a figure with one panel for each side that has sites, and the numbers of its sites."""
    rows = {side: [n for n, site in enumerate(sites) if site.side == side] for side in SIDES}
    rows = {side: numbers for side, numbers in rows.items() if numbers}
    figure = Figure(figsize=(1.5 + 4.0 * len(rows), 3.6), layout="constrained")
    panels = list(
        zip(figure.subplots(1, len(rows), sharey=True, squeeze=False)[0], rows.values(), strict=True)
    )
    for (axes, numbers), side in zip(panels, rows, strict=True):
        names = [site_label(sites[n]).removeprefix(f"{side} ") for n in numbers]
        axes.set_xticks(range(len(numbers)), names, rotation=0 if max(map(len, names)) < 4 else 60)
        axes.set(title=side, xlabel="layer")
        axes.set_xlim(-0.6, len(numbers) - 0.4)
    panels[0][0].set_ylabel(label)
    return figure, panels


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def shade(share: float) -> tuple[float, float, float, float]:
    """Return the colour of a share in [0, 1]: dark blue to yellow."""
    return colormaps["cividis"](share)
