"""Figures of scores and settings, one function each: sweeps, stability, ablation, gains, zero-shot."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nspec_hf.analysis.ablation import Ablation
from nspec_hf.analysis.figures.style import (
    BELOW,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALETTE,
    PINK,
    RED,
    by_side,
    heat_map,
    label_size,
    panel,
    shade,
)
from nspec_hf.analysis.gain_tables import Gains, SettingGains
from nspec_hf.analysis.sweeps import AllocationSweep, CoverageSweep, Stability
from nspec_hf.core import ZERO_SHOT
from nspec_hf.evaluation import Comparison

VERDICTS = {"better": GREEN, "worse": RED, "not significant": GREY}


def draw_coverage_sweep(sweep: CoverageSweep, mean_gains: Mapping[float, float] | None = None) -> Figure:
    """Draw sparsity at each coverage k, and the mean gain where models were trained (Tan et al., Fig. 5)."""
    figure, axes = panel(6.5, 3.6)
    for side, numbers in by_side(sweep.sites).items():
        colour = BLUE if side == "encoder" else ORANGE
        sparsity, overlap = (1 - sweep.density)[:, numbers], sweep.overlap[:, numbers]
        axes.plot(sweep.coverages, sparsity.mean(1), "o-", color=colour, label=f"sparsity, {side}")
        axes.plot(sweep.coverages, overlap.mean(1), ":", color=colour, label=f"mean IoU, {side}")
    axes.set(xlabel="coverage k", ylabel="share", ylim=(0, 1))
    if mean_gains:
        gained = axes.twinx()
        gained.plot(list(mean_gains), list(mean_gains.values()), "D-", color=GREEN, label="mean gain")
        gained.axhline(0, color=GREEN, lw=0.6)
        gained.set_ylabel("mean gain over the baseline", color=GREEN)
    # Outside: the lines cross the whole panel.
    figure.legend(ncols=3, **BELOW)
    return figure


def draw_setting_gains(result: SettingGains) -> Figure:
    """Draw mean gain against a setting, a line a group of pairs (Tan et al., Fig. 5; Xie et al., Fig. 4)."""
    figure, axes = panel(6.5, 3.6)
    styles = [("--o", BLUE), ("--s", ORANGE), ("--^", PINK), ("-D", "black")]
    # "all" comes last, and is the one in black.
    shown = [*result.groups[:-1][:3], "all"] if len(result.groups) > 2 else ["all"]
    for name, (style, colour) in zip(shown, styles[-len(shown) :], strict=True):
        column = result.groups.index(name)
        label = f"{name} ({int(result.pairs[:, column].max())})"
        axes.plot(result.values, result.mean[:, column], style, color=colour, label=label, ms=5)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set(xlabel=result.setting, ylabel="mean gain over the baseline")
    figure.legend(ncols=4, **BELOW)  # lines may lie anywhere
    return figure


def draw_allocation_sweep(sweep: AllocationSweep) -> Figure:
    """Draw the share of specific neurons against k, a line for each ρ (Xie et al., Fig. 4, Table 3)."""
    figure, axes = panel(6.5, 3.6)
    depths = np.linspace(0.0, 0.85, len(sweep.generals))
    for depth, general, row in zip(depths, sweep.generals, sweep.specific.mean(axis=2), strict=True):
        axes.plot(sweep.thresholds, row, "o-", color=shade(depth), label=f"ρ = {general:.0%}")
    axes.set(xlabel="threshold k", ylabel="share of neurons specific to a pair", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_stability(result: Stability) -> Figure:
    """Draw how alike the masks from every two recordings are."""
    figure, axes = panel(5.0, 4.2)
    mean = np.nanmean(result.iou, axis=(2, 3))
    image = heat_map(axes, mean)
    places = range(len(result.recordings))
    axes.set_xticks(places, result.recordings, rotation=45, ha="right")
    axes.set_yticks(places, result.recordings)
    for (i, j), value in np.ndenumerate(mean):
        # White on the dark half of the colours; the diagonal is grey.
        ink = "white" if i != j and np.less(image.norm(value), 0.5) else "black"
        axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=axes, label="mean IoU of a pair's masks")
    return figure


def draw_ablation(result: Ablation) -> Figure:
    """Draw the change of score after each ablation, a panel each, pair by pair (Xie et al., Fig. 5)."""
    kinds, places = result.kinds[1:], range(len(result.pairs))
    size = (max(5.0, min(14.0, 1.5 + 0.2 * len(places))), 1.0 + 1.5 * len(kinds))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(kinds), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    names = {
        "general": f"{result.general_share:.0%} of general neurons",
        "own": f"{result.specific_share:.0%} of each pair's own",
    }
    for axes, kind, change in zip(panels, kinds, result.change[1:], strict=True):
        # Of another pair's neurons: that pair itself stands out.
        colours = [ORANGE if kind == f"of {pair}" else BLUE for pair in result.pairs]
        axes.bar(places, change, 0.8, color=colours)
        axes.axhline(0, color="black", lw=0.8)
        erased = names.get(kind, f"{result.specific_share:.0%} {kind}'s own")
        axes.set_title(f"erased: {erased}", fontsize=9)
    panels[-1].set_xticks(places, result.pairs, rotation=90, fontsize=label_size(len(places), smallest=5.0))
    panels[-1].set_xlim(-0.6, len(places) - 0.4)
    figure.supylabel("change of score", fontsize=9)
    return figure


def draw_gains(result: Gains, system: str, comparison: Comparison | None = None) -> Figure:
    """Draw one system's gain on every pair, coloured by significance where it was tested."""
    row = result.systems.index(system)
    rows = [r for r in (comparison.rows if comparison else ()) if r.system_name == system]
    alpha = comparison.alpha if comparison else 0.0
    # A comparison may hold several metrics; the verdict must be that of the metric whose gains are drawn.
    metric = result.metric or next((r.metric for r in rows), None)
    tested = [r for r in rows if r.metric == metric]
    verdicts = {r.pair: "not significant" if r.owed_to_ties(alpha) else r.verdict for r in tested}
    order = np.argsort(result.change[row])
    figure, axes = panel(6.5, 1.2 + 0.17 * len(order))
    shown = [verdicts.get(result.pairs[i], "") for i in order]
    colours = [VERDICTS.get(name, BLUE) for name in shown]
    axes.barh(range(len(order)), result.change[row][order], color=colours)
    axes.set_yticks(range(len(order)), [result.pairs[i] for i in order], fontsize=7)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlabel(f"{metric or 'score'}: {system} − {result.baseline}")
    axes.margins(y=0.01)
    named = [Patch(color=colour, label=name) for name, colour in VERDICTS.items() if name in shown]
    if named:
        axes.legend(handles=named, frameon=False, fontsize=8)
    return figure


def draw_groups(result: Gains) -> Figure:
    """Draw mean gain by group of pairs: interference below zero, synergy above (Tan et al., Table 4)."""
    grouped = result.by_group()
    figure, axes = panel(max(5.0, 1.0 * len(grouped.groups) + 1.5), 3.6)
    width, groups = 0.8 / len(grouped.systems), np.arange(len(grouped.groups))
    for place, name in enumerate(grouped.systems):
        offset = (place - (len(grouped.systems) - 1) / 2) * width
        colour = PALETTE[place % len(PALETTE)]
        axes.bar(groups + offset, grouped.mean[place], width, label=name, color=colour)
    axes.set_xticks(groups, [name.replace(" ", "\n") for name in grouped.groups], fontsize=8)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_ylabel(f"mean gain over {result.baseline}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_zero_shot(result: Gains, system: str, pivot: str = "en") -> Figure:
    """Draw zero-shot pairs' scores against the baseline's (Tan et al., Fig. 4).

    Above the line is better, or below it where a smaller score is.
    """
    row = result.systems.index(system)
    shown = np.array([pair.group(pivot) == ZERO_SHOT for pair in result.pairs])
    shown &= ~np.isnan(result.change[row])  # a pair without a score is neither better nor not
    figure, axes = panel(4.8, 4.8)
    x, y = result.reference[shown], result.score[row][shown]
    better = y < x if result.lower_is_better else y > x
    for name, of, marker, colour in (("better", better, "^", BLUE), ("not better", ~better, "v", ORANGE)):
        axes.plot(x[of], y[of], marker, color=colour, ms=5, alpha=0.8, label=f"{name} ({of.sum()})")
    top = 1.05 * float(np.nanmax([*x, *y, 0.0])) or 1.0
    axes.plot([0, top], [0, top], color=INK, lw=0.8)
    axes.set(xlim=(0, top), ylim=(0, top), xlabel=result.baseline, ylabel=system, aspect="equal")
    axes.legend(frameon=False)
    return figure
