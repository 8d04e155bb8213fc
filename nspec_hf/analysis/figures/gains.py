"""Figures of scores and settings: sweeps, stability, erasure, gains, zero-shot; and all figures at once.

Drawn with the means of `plots.py`, which see for colours and files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nspec_hf.analysis.ablation import Erasure
from nspec_hf.analysis.analysis import Analysis, file_name
from nspec_hf.analysis.figures.neurons import (
    BLUE,
    GREEN,
    ORANGE,
    PALETTE,
    RED,
    SIDES,
    Figure,
    Patch,
    draw_importance,
    draw_overlap,
    draw_overlap_layers,
    draw_ownership,
    draw_progression,
    draw_sparsity,
    draw_specific,
    draw_tree,
    heat_map,
    save_figure,
    shade,
)
from nspec_hf.analysis.gain_tables import Gains, SettingGains
from nspec_hf.analysis.result import site_label
from nspec_hf.analysis.sweeps import AllocationSweep, CoverageSweep, Stability
from nspec_hf.core import ZERO_SHOT
from nspec_hf.evaluation import Comparison
from nspec_hf.recording import Site

VERDICTS = {"better": GREEN, "worse": RED, "not significant": PALETTE[7]}


def draw_coverage_sweep(sweep: CoverageSweep, mean_gains: Mapping[float, float] | None = None) -> Figure:
    """Draw sparsity at each coverage k, and the mean gain where models were trained (Tan et al., Fig. 5).

    Args:
        sweep: Densities from recorded statistics.
        mean_gains: Coverage → mean gain over the baseline, for the coverages that were trained.
    """
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, side in zip((BLUE, ORANGE), SIDES, strict=True):
        numbers = [n for n, site in enumerate(sweep.sites) if site.side == side]
        if numbers:
            axes.plot(
                sweep.coverages,
                1 - sweep.density[:, numbers].mean(axis=1),
                "o-",
                color=colour,
                label=f"sparsity, {side}",
            )
            axes.plot(
                sweep.coverages,
                sweep.overlap[:, numbers].mean(axis=1),
                ":",
                color=colour,
                label=f"mean IoU, {side}",
            )
    axes.set(xlabel="coverage k", ylabel="share", ylim=(0, 1))
    if mean_gains:
        gained = axes.twinx()
        gained.plot(list(mean_gains), list(mean_gains.values()), "D-", color=GREEN, label="mean gain")
        gained.axhline(0, color=GREEN, lw=0.6)
        gained.set_ylabel("mean gain over the baseline", color=GREEN)
    # Outside: the lines cross the whole panel.
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def draw_setting_gains(result: SettingGains) -> Figure:
    """Draw mean gain against a setting, a line a group of pairs (Tan et al., Fig. 5; Xie et al., Fig. 4)."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = zip(("--o", "--s", "--^", "-D"), (BLUE, ORANGE, PALETTE[4], "black"), strict=True)
    # "all" comes last, and is the one in black.
    shown = [*result.groups[:-1][:3], "all"] if len(result.groups) > 2 else ["all"]
    for name, (style, colour) in zip(shown, list(styles)[-len(shown) :], strict=True):
        column = result.groups.index(name)
        label = f"{name} ({int(result.pairs[:, column].max())})"
        axes.plot(result.values, result.mean[:, column], style, color=colour, label=label, ms=5)
    axes.axhline(0, color="#444444", lw=0.8)
    axes.set(xlabel=result.setting, ylabel="mean gain over the baseline")
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_allocation_sweep(sweep: AllocationSweep) -> Figure:
    """Draw the share of specific neurons against k, a line for each ρ (Xie et al., Fig. 4, Table 3)."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    depths = np.linspace(0.0, 0.85, len(sweep.generals))
    for depth, general, row in zip(depths, sweep.generals, sweep.specific.mean(axis=2), strict=True):
        axes.plot(sweep.thresholds, row, "o-", color=shade(depth), label=f"ρ = {general:.0%}")
    axes.set(xlabel="threshold k", ylabel="share of neurons specific to a pair", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_stability(result: Stability) -> Figure:
    """Draw how alike the masks from every two recordings are."""
    figure = Figure(figsize=(5.0, 4.2), layout="constrained")
    axes = figure.subplots()
    mean = np.nanmean(result.iou, axis=(2, 3))
    image = heat_map(axes, mean)
    places = range(len(result.recordings))
    axes.set_xticks(places, result.recordings, rotation=45, ha="right")
    axes.set_yticks(places, result.recordings)
    for (i, j), value in np.ndenumerate(mean):
        # White on the dark half of the colours; the diagonal is grey.
        ink = "white" if i != j and image.norm(value) < 0.5 else "black"
        axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=axes, label="mean IoU of a pair's masks")
    return figure


def draw_erasure(result: Erasure) -> Figure:
    """Draw the change of score after each erasure, a panel each, pair by pair (Xie et al., Fig. 5)."""
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
        said = names.get(kind, f"{result.specific_share:.0%} {kind}'s own")
        axes.set_title(f"erased: {said}", fontsize=9)
    panels[-1].set_xticks(places, result.pairs, rotation=90, fontsize=max(5.0, min(9.0, 330 / len(places))))
    panels[-1].set_xlim(-0.6, len(places) - 0.4)
    figure.supylabel("change of score", fontsize=9)
    return figure


def draw_gains(
    result: Gains, system: str, comparison: Comparison | None = None, metric: str | None = None
) -> Figure:
    """Draw one system's gain on every pair, coloured by significance where it was tested."""
    row = result.systems.index(system)
    rows = [r for r in (comparison.rows if comparison else ()) if r.system_name == system]
    # A comparison may hold several metrics; the verdict must be that of the metric whose gains are drawn.
    metric = metric or result.metric or next((r.metric for r in rows), None)
    verdicts = {
        r.pair: "not significant" if r.owed_to_ties(comparison.alpha) else r.verdict
        for r in rows
        if r.metric == metric
    }
    order = np.argsort(result.change[row])
    figure = Figure(figsize=(6.5, 1.2 + 0.17 * len(order)), layout="constrained")
    axes = figure.subplots()
    shown = [verdicts.get(result.pairs[i], "") for i in order]
    axes.barh(
        range(len(order)), result.change[row][order], color=[VERDICTS.get(name, BLUE) for name in shown]
    )
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
    figure = Figure(figsize=(max(5.0, 1.0 * len(grouped.groups) + 1.5), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(grouped.systems)
    for place, name in enumerate(grouped.systems):
        offset = (place - (len(grouped.systems) - 1) / 2) * width
        axes.bar(
            np.arange(len(grouped.groups)) + offset,
            grouped.mean[place],
            width,
            label=name,
            color=PALETTE[place % len(PALETTE)],
        )
    axes.set_xticks(
        range(len(grouped.groups)), [name.replace(" ", "\n") for name in grouped.groups], fontsize=8
    )
    axes.axhline(0, color="black", lw=0.8)
    axes.set_ylabel(f"mean gain over {result.baseline}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_zero_shot(result: Gains, system: str, pivot: str = "en") -> Figure:
    """Draw zero-shot pairs' scores against the baseline's; above the line is better (Tan et al., Fig. 4)."""
    row = result.systems.index(system)
    shown = np.array([pair.group(pivot) == ZERO_SHOT for pair in result.pairs])
    figure = Figure(figsize=(4.8, 4.8), layout="constrained")
    axes = figure.subplots()
    x, y = result.reference[shown], result.score[row][shown]
    better = y > x
    axes.plot(x[better], y[better], "^", color=BLUE, ms=5, alpha=0.8, label=f"better ({better.sum()})")
    axes.plot(
        x[~better], y[~better], "v", color=ORANGE, ms=5, alpha=0.8, label=f"not better ({(~better).sum()})"
    )
    top = 1.05 * float(np.nanmax([*x, *y, 0.0])) or 1.0
    axes.plot([0, top], [0, top], color="#444444", lw=0.8)
    axes.set(xlim=(0, top), ylim=(0, top), xlabel=result.baseline, ylabel=system, aspect="equal")
    axes.legend(frameon=False)
    return figure


def draw_all(analysis: Analysis, folder: str | Path) -> list[Path]:
    """Draw every figure that an analysis holds into a folder; return the paths."""
    figures = {
        "overlap_layers": draw_overlap_layers(analysis.progression, analysis.families),
        "progression": draw_progression(analysis.progression, analysis.agreement),
        "sparsity": draw_sparsity(analysis.density, analysis.pivot),
        "ownership": draw_ownership(analysis.ownership),
        "specific": draw_specific(analysis.layer_score, analysis.module_score),
    }
    # The first layer of each side at full size; `overlap_layers` shows them all.
    for number in _first_layers(analysis.progression.sites):
        site = analysis.progression.sites[number]
        name = site_label(site).replace(" ", "_")
        figures[f"overlap_{name}"] = draw_overlap(analysis.progression, number, analysis.families)
        if site.name in analysis.trees:
            figures[f"tree_{name}"] = draw_tree(
                analysis.trees[site.name], analysis.families, site_label(site)
            )
    if analysis.coverage_sweep is not None:
        against = next((each for each in analysis.setting_gains if each.setting.startswith("coverage")), None)
        mean_gains = against and dict(zip(against.values, against.mean[:, -1], strict=True))
        figures["coverage_sweep"] = draw_coverage_sweep(analysis.coverage_sweep, mean_gains)
    if analysis.allocation_sweep is not None:
        figures["allocation_sweep"] = draw_allocation_sweep(analysis.allocation_sweep)
    for curve in analysis.curves:
        figures[f"importance_{site_label(curve.site).replace(' ', '_')}"] = draw_importance(curve)
    figures |= _gain_figures(analysis)
    if analysis.erasure is not None:
        figures["erasure"] = draw_erasure(analysis.erasure)
    if analysis.stability is not None:
        figures["stability"] = draw_stability(analysis.stability)
    for each in analysis.setting_gains:
        figures[file_name("gains against", each.setting)] = draw_setting_gains(each)
    return [path for name, figure in figures.items() for path in save_figure(figure, folder, name)]


def _gain_figures(analysis: Analysis) -> dict[str, Figure]:
    if analysis.gains is None:
        return {}
    pivot = analysis.pivot or "en"
    figures = {"gains_by_group": draw_groups(analysis.gains)}
    for system in analysis.gains.systems:
        figures[f"gains_{system}"] = draw_gains(analysis.gains, system, analysis.comparison)
        if any(pair.group(pivot) == ZERO_SHOT for pair in analysis.gains.pairs):
            figures[f"zero_shot_{system}"] = draw_zero_shot(analysis.gains, system, pivot)
    return figures


def _first_layers(sites: Sequence[Site]) -> list[int]:
    sides = [site.side for site in sites]
    return [sides.index(side) for side in SIDES if side in sides]
