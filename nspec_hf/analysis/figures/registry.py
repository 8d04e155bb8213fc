"""All figures of an analysis, registered in one line each.

A line of `FIGURES` gives the figure's name, the function that draws it, and what it draws from an analysis:
a dictionary of suffix → arguments, one entry a figure (`""` where there is only one of the kind, no entry
where the analysis lacks what the figure needs). A new figure is a function in this folder and a line here.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import nspec_hf.analysis.figures.gains as gains
import nspec_hf.analysis.figures.neurons as neurons
from nspec_hf.analysis.analysis import Analysis, file_name
from nspec_hf.analysis.figures.style import by_side, save_figure
from nspec_hf.analysis.result import site_label
from nspec_hf.core import ZERO_SHOT

Arguments = Mapping[str, tuple[Any, ...]]


def draw_all(analysis: Analysis, folder: str | Path) -> list[Path]:
    """Draw every figure that an analysis holds into a folder; return the paths."""
    paths = []
    for name, draw, arguments_of in FIGURES:
        for suffix, arguments in arguments_of(analysis).items():
            # Systems are named by their users, perhaps by a path.
            file = re.sub(r"[^\w.+-]", "_", f"{name}_{suffix}").rstrip("_")
            paths += save_figure(draw(*arguments), folder, file)
    return paths


def _if_there(value: Any, *more: Any) -> Arguments:
    return {} if value is None else {"": (value, *more)}


def _first_layers(analysis: Analysis) -> Iterable[tuple[int, str, str]]:
    """Yield number, path and label of the first site of each side; `overlap_layers` shows them all."""
    sites = analysis.progression.sites
    for number, *_ in by_side(sites).values():
        yield number, sites[number].name, site_label(sites[number])


def _overlaps(analysis: Analysis) -> Arguments:
    course, families = analysis.progression, analysis.families
    return {file_name(label): (course, number, families) for number, _, label in _first_layers(analysis)}


def _trees(analysis: Analysis) -> Arguments:
    return {
        file_name(label): (analysis.trees[path], analysis.families, label)
        for _, path, label in _first_layers(analysis)
        if path in analysis.trees
    }


def _coverage(analysis: Analysis) -> Arguments:
    trained = (result for result in analysis.setting_gains if result.setting.startswith("coverage"))
    mean_gains = next((dict(zip(result.values, result.mean[:, -1], strict=True)) for result in trained), None)
    return _if_there(analysis.coverage_sweep, mean_gains)


def _systems(analysis: Analysis) -> tuple[str, ...]:
    return analysis.gains.systems if analysis.gains else ()


def _zero_shot(analysis: Analysis) -> Arguments:
    pivot = analysis.pivot or "en"
    pairs = analysis.gains.pairs if analysis.gains else ()
    there = any(pair.group(pivot) == ZERO_SHOT for pair in pairs)
    return {name: (analysis.gains, name, pivot) for name in _systems(analysis) if there}


FIGURES: tuple[tuple[str, Callable[..., Figure], Callable[[Analysis], Arguments]], ...] = (
    ("overlap_layers", neurons.draw_overlap_layers, lambda a: {"": (a.progression, a.families)}),
    ("progression", neurons.draw_progression, lambda a: {"": (a.progression, a.agreement)}),
    ("sparsity", neurons.draw_sparsity, lambda a: {"": (a.density, a.pivot)}),
    ("ownership", neurons.draw_ownership, lambda a: {"": (a.ownership,)}),
    ("specific", neurons.draw_specific, lambda a: {"": (a.layer_score, a.module_score)}),
    ("overlap", neurons.draw_overlap, _overlaps),
    ("tree", neurons.draw_tree, _trees),
    ("coverage_sweep", gains.draw_coverage_sweep, _coverage),
    ("allocation_sweep", gains.draw_allocation_sweep, lambda a: _if_there(a.allocation_sweep)),
    (
        "importance",
        neurons.draw_importance,
        lambda a: {file_name(site_label(c.site)): (c,) for c in a.curves},
    ),
    ("gains_by_group", gains.draw_groups, lambda a: _if_there(a.gains)),
    ("gains", gains.draw_gains, lambda a: {name: (a.gains, name, a.comparison) for name in _systems(a)}),
    ("zero_shot", gains.draw_zero_shot, _zero_shot),
    ("ablation", gains.draw_ablation, lambda a: _if_there(a.ablation)),
    ("stability", gains.draw_stability, lambda a: _if_there(a.stability)),
    (
        "gains_against",
        gains.draw_setting_gains,
        lambda a: {file_name(g.setting): (g,) for g in a.setting_gains},
    ),
)
"""Name, function, and what it draws: see the module's text."""
