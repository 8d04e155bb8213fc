"""Figures of masks, one function each: overlap, progression, density, trees, importance."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.cluster.hierarchy import dendrogram

from nspec_hf.analysis.figures.style import (
    BELOW,
    BLUE,
    GREY,
    INK,
    IOU,
    ORANGE,
    PALETTE,
    SKY,
    by_side,
    heat_map,
    label_size,
    legend_below,
    panel,
    side_panels,
)
from nspec_hf.analysis.general_specific import ImportanceCurves, LScore, MScore, Ownership
from nspec_hf.analysis.language_families import FamilyAgreement, LanguageTree, family_colours
from nspec_hf.analysis.mask_overlap import Density, Overlap, Progression, couples, order_by_family
from nspec_hf.analysis.result import p_text, site_label

_FEWEST_OF_A_DISTRIBUTION = 10
"""Values; fewer are drawn one by one."""
_MOST_ABREAST = 6
"""P-values that fit side by side under a panel."""


def draw_overlap(result: Overlap | Progression, number: int, families: Mapping[str, str]) -> Figure:
    """Draw IoU at one site as a heat map, rows by family (Tan et al., Fig. 1 and 8 to 10).

    Args:
        result: Overlap of pairs, or of languages.
        number: Which of its sites.
        families: Language → family. A pair stands with the family of its source in the encoder, of its
            target in the decoder.
    """
    site = result.sites[number]
    if isinstance(result, Progression):
        labels = spoken = list(result.languages)
    else:
        labels = list(result.pairs)
        spoken = [p.source if site.side == "encoder" else p.target for p in result.pairs]
    order = order_by_family(spoken, families)
    size = max(4.0, min(11.0, 1.8 + 0.19 * len(labels)))
    figure, axes = panel(size + 1.2, size)
    image = heat_map(axes, result.iou[number][np.ix_(order, order)])
    font = label_size(len(labels), 300)
    axes.set_xticks(range(len(order)), [labels[i] for i in order], rotation=90, fontsize=font)
    axes.set_yticks(range(len(order)), [labels[i] for i in order], fontsize=font)
    colours = family_colours(families)
    _frame_families(axes, [families.get(spoken[i], "") for i in order], colours)
    if colours:
        legend_below(figure, colours, columns=4)
    figure.colorbar(image, ax=axes, label=IOU, shrink=0.8)
    axes.set_title(f"Overlap of neurons, {site_label(site)}")
    return figure


def draw_overlap_layers(course: Progression, families: Mapping[str, str]) -> Figure:
    """Draw the heat maps of all layers side by side, languages by family (Tan et al., Fig. 8–10)."""
    rows = list(by_side(course.sites).values())
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.5 + 2.2 * columns, 2.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    order = order_by_family(course.languages, families)
    codes = [course.languages[i] for i in order]
    colours = family_colours(families)
    values = np.concatenate([couples(iou_LL) for iou_LL in course.iou])
    # Of one value alone each map would choose a colour of its own, and the scale tell that of the last.
    limits = (values.min(), values.max()) if len(set(values)) > 1 else (0.0, 1.0)
    # More names than these would not be legible at this size.
    named = codes if len(codes) <= 16 else []
    for axes in grid.flat:
        axes.set_axis_off()
    for row, numbers in enumerate(rows):
        for axes, number in zip(grid[row], numbers, strict=False):
            axes.set_axis_on()
            image = heat_map(axes, course.iou[number][np.ix_(order, order)], limits)
            _frame_families(axes, [families.get(code, "") for code in codes], colours)
            axes.set_xticks(range(len(named)), named, rotation=90, fontsize=6)
            axes.set_yticks(range(len(named)), named, fontsize=6)
            axes.set_title(site_label(course.sites[number]), fontsize=9)
    figure.colorbar(image, ax=grid, label=IOU, shrink=0.8)
    legend_below(figure, colours)
    return figure


def draw_progression(course: Progression, agreement: FamilyAgreement) -> Figure:
    """Draw the overlap of languages at each layer, and its mean within and across families (Fig. 2).

    Where the languages are too few for that comparison, the mean of all stands in its place.
    """
    figure, panels = side_panels(course.sites, "IoU of two languages")
    for axes, numbers in panels:
        spread = {at: values for at, n in enumerate(numbers) if len(values := couples(course.iou[n]))}
        _draw_spread(axes, spread)
        if np.isnan(agreement.across[numbers]).all():
            axes.plot(list(spread), [each.mean() for each in spread.values()], "o-", color=BLUE, label="mean")
        else:
            axes.plot(agreement.within[numbers], "o-", color=BLUE, label="same family")
            axes.plot(agreement.across[numbers], "s--", color=ORANGE, label="different families")
        # Of more layers they stand upright, or they would lie on each other.
        font, upright = min(7, label_size(len(numbers), 160)), 90 * (len(numbers) > _MOST_ABREAST)
        below: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
        below |= {"fontsize": font, "rotation": upright}
        for at, p_value in enumerate(agreement.p_value[numbers]):
            if not np.isnan(p_value):
                axes.annotate(p_text(p_value), (at, 0.015), **below)
    panels[0][0].legend(frameon=False, loc="best", fontsize=8)
    return figure


def _draw_spread(axes: Axes, spread: Mapping[int, np.ndarray]) -> None:
    """Draw the overlaps at each place: their distribution, or the values where there are too few for one."""
    many = {at: values for at, values in spread.items() if len(values) >= _FEWEST_OF_A_DISTRIBUTION}
    if many:
        violins = axes.violinplot(list(many.values()), positions=list(many), showextrema=False)
        for body in cast("list[Any]", violins["bodies"]):
            body.set(facecolor=GREY, alpha=0.45)
    for at in spread.keys() - many.keys():
        axes.plot([at] * len(spread[at]), spread[at], ".", color=GREY)


def draw_sparsity(result: Density, pivot: str | None = None) -> Figure:
    """Draw the share of silenced neurons at each layer, by direction (Tan et al., Fig. 6)."""
    figure, panels = side_panels(result.sites, "sparsity (share of neurons off)")
    groups = np.array([pair.group(pivot) if pivot else "all pairs" for pair in result.pairs])
    for axes, numbers in panels:
        for colour, name in zip(PALETTE, sorted(set(groups)), strict=False):
            off = result.sparsity[numbers][:, groups == name]
            axes.plot(off.mean(axis=1), "o-", color=colour, label=f"{name} ({(groups == name).sum()})")
            span = {"color": colour, "alpha": 0.18, "lw": 0}
            axes.fill_between(range(len(numbers)), off.min(axis=1), off.max(axis=1), **span)
        axes.set_ylim(0, 1)
    panels[0][0].legend(frameon=False, fontsize=8, title="mean, lowest to highest", title_fontsize=7)
    return figure


def draw_tree(tree: LanguageTree, families: Mapping[str, str], title: str = "") -> Figure:
    """Draw the tree of languages, leaves coloured by family (Tan et al., Fig. 7)."""
    plan = dendrogram(tree.linkage, no_plot=True)
    leaves, colours = tree.leaves, family_colours(families)
    figure, axes = panel(7.5, 1.4 + 0.2 * len(leaves))
    for heights, places in zip(plan["dcoord"], plan["icoord"], strict=True):
        axes.plot(heights, places, color=INK, lw=1.2)
    for i, code in enumerate(leaves):
        colour = colours.get(families.get(code, ""), "#ffffff")
        axes.plot(0, 5 + 10 * i, "s", ms=7, color=colour, mec=INK, clip_on=False)
    axes.set_yticks([5 + 10 * i for i in range(len(leaves))], leaves)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.yaxis.tick_right()
    axes.set_xlim(tree.linkage[:, 2].max() * 1.03 or 1.0, 0)  # 0 where all have the same neurons
    axes.set_ylim(10 * len(leaves), 0)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("1 − IoU, complete linkage")
    axes.set_title(title or "Languages by the overlap of their neurons", fontsize=10)
    legend_below(figure, colours)
    return figure


def draw_importance(curves: ImportanceCurves, pairs: Sequence[str] = ()) -> Figure:
    """Draw each neuron's importance for some pairs, most important on average first (Xie et al., Fig. 2).

    Without pairs it shows three of them, first, middle and last.
    """
    spread = np.linspace(0, len(curves.pairs) - 1, 3).round().astype(int).tolist()
    shown = [curves.pairs.index(pair) for pair in pairs] or list(dict.fromkeys(spread))
    figure, axes = panel(7.5, 3.6)
    for colour, row in zip(PALETTE, shown, strict=False):
        axes.plot(curves.importance[row], ".", ms=2, alpha=0.5, color=colour, rasterized=True)
        axes.plot([], "s", color=colour, label=curves.pairs[row])
    axes.plot(curves.mean, color="black", lw=1.4, label=f"mean of {len(curves.pairs)}")
    axes.set(xlabel="neurons, by mean importance", ylabel=f"importance ({curves.measure.upper()})")
    axes.set_ylim(0, None)
    axes.set_title(f"Importance, {site_label(curves.site)}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def draw_specific(layers: LScore, modules: MScore) -> Figure:
    """Draw LScore of each pair and MScore of each site (Xie et al., Eq. 10, 11, Fig. 3)."""
    height = 1.2 + 0.14 * max(len(layers.pairs), len(modules.sites))
    figure = Figure(figsize=(9.5, max(3.2, height)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    image = left.imshow(layers.score.T, cmap="cividis", aspect="auto", interpolation="nearest")
    left.set_xticks(range(len(layers.layers)), layers.layers, rotation=60, ha="right", fontsize=8)
    left.set_yticks(range(len(layers.pairs)), layers.pairs, fontsize=label_size(len(layers.pairs)))
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
    figure, panels = side_panels(result.sites, "share of the site's neurons")
    last = len(result.owners) - 1
    bands = {
        "no pair": (GREY, slice(0, 1)),
        "one pair": (ORANGE, slice(1, 2)),
        "some pairs": (SKY, slice(2, last)),
        "all pairs": (BLUE, slice(last, None)),
    }
    for axes, numbers in panels:
        floor = np.zeros(len(numbers))
        for name, (colour, band) in bands.items():
            height = share[numbers, band].sum(axis=1)
            axes.bar(range(len(numbers)), height, bottom=floor, color=colour, label=f"kept by {name}")
            floor += height
        axes.set_ylim(0, 1)
    columns = 2 * len(panels)  # as many as one panel, of a model without an encoder, or two are wide
    figure.legend(handles=panels[0][0].get_legend_handles_labels()[0], ncols=columns, **BELOW)
    return figure


def _frame_families(axes: Axes, names: Sequence[str], colours: Mapping[str, str]) -> None:
    """Draw a coloured square around each run of languages of one family."""
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or names[end] != names[start]:
            colour = colours.get(names[start], "#ffffff")
            corner, size = (start - 0.5, start - 0.5), end - start
            axes.add_patch(Rectangle(corner, size, size, fill=False, ec=colour, lw=2, clip_on=False))
            start = end
