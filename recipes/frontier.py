"""Draw quality against the share of feed-forward neurons that a pair computes, with controls beside.

    python recipes/frontier.py m30k_low m30k_low_zs="six directions" --output recipes/results/frontier

Reads the results of `compare.py` (and of `dial.py`) of experiments that have these names. An experiment has a
panel, with its name above, or what stands behind `=`; a system has a colour, a row of the plan a point: the
mean over its seeds with the standard deviation. Rows of another dropout than the base's are left out. Writes
`OUTPUT.png` and `.svg`, and prints the points.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nspec_hf.analysis import Panel, Series, draw_tradeoffs, save_figure
from nspec_hf.core import ConfigError, as_pairs, english_centric, exit_status, read_json

SYSTEMS = {
    "finetune": "fine-tuning",
    "finetune_longer": "fine-tuning with more updates",
    "neuron_specialization": "each pair's own neurons",
    "random": "random neurons",
    "shared": "one mask for all pairs",
    "swapped": "neurons of another pair",
    "sampled": "drawn by activity",
    "elastic": "one model, many coverages",
    "elastic_teacher": "the same, with a teacher",
}
"""System → its entry in the legend; what is not named here is not drawn."""

Point = tuple[float, float]
"""Share of neurons kept, and the mean score of the trained directions."""


def mean_score(scores: Any, metric: str, data: Any) -> float:
    """Return the mean over the trained directions of signed scores, as results hold them."""
    pairs = as_pairs(data["pairs"]) or english_centric(data["languages"], data["pivot"])
    by_pair = {pair: value for signed in scores[metric].values() for pair, value in signed.items()}
    return fmean(by_pair[str(pair)] for pair in pairs)


def planned(result: Any) -> int:
    """Return the updates that a run was to make; with `patience`, each seed ends at another one."""
    return result["recipe"]["config"]["specialize"]["arguments"].get("max_steps", result["updates"])


def read_points(folder: Path, name: str, metric: str) -> dict[str, dict[str, list[Point]]]:
    """Return system → row (and level) → its points, one a seed.

    Raises:
        ConfigError: If the folder holds no result of that name.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    results = {path: read_json(path) for path in sorted(folder.glob(f"{name}.*.s*.json"))}
    usual = min((planned(each) for each in results.values() if each["system"] == "finetune"), default=0)
    for path, result in results.items():
        system, data = result["system"], result["recipe"]["config"]["data"]
        row = path.name.removeprefix(f"{name}.").partition(".")[0]
        settings = result["settings"]
        own_dropout = settings.get("continued_dropout") is not None
        if system not in SYSTEMS or own_dropout or (system == "elastic") != ("levels" in result):
            continue
        if settings.get("teacher") is not None:
            system += "_teacher"
        elif system == "finetune" and planned(result) > usual:  # the control of a teacher's work
            system += "_longer"
        kept = list(result.get("extraction", {}).get("density", {}).values())
        levels = result.get("levels") or [{"density": fmean(kept or [1.0]), "scores": result["scores"]}]
        for number, level in enumerate(levels):
            score = mean_score(level["scores"], metric, data)
            point = (level["density"], score)
            found.setdefault(system, {}).setdefault(f"{row}.{number}", []).append(point)
    if not found:
        raise ConfigError(f"{folder} holds no results of {name}; recipes/compare.py makes them")
    return found


def panel(found: dict[str, dict[str, list[Point]]], title: str, metric: str) -> Panel:
    """Return the picture of one experiment."""
    series = []
    for system, label in SYSTEMS.items():
        rows = list(found.get(system, {}).values())
        if rows:
            series.append(
                Series(
                    label=label,
                    x=[fmean(kept for kept, _ in row) for row in rows],
                    y=[fmean(score for _, score in row) for row in rows],
                    spread=[stdev(score for _, score in row) if len(row) > 1 else 0.0 for row in rows],
                    joined=len(rows) > 1,
                )
            )
    dense = [score for row in found.get("finetune", {}).values() for _, score in row]
    y = f"{metric.upper().replace('CHRF', 'chrF')}, mean of directions"
    rule = fmean(dense) if dense else None
    return Panel(x="share of neurons computed", y=y, series=series, rule=rule, title=title)


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", help="names of experiments, NAME or NAME=TITLE")
    parser.add_argument("--results", default="recipes/results", type=Path, help="folder of the results")
    parser.add_argument("--metric", default="bleu", help="bleu or chrf++")
    parser.add_argument("--output", default="recipes/results/frontier", type=Path, help="without its ending")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    options, panels = read_options(argv), []
    for given in options.names:
        name, _, title = given.partition("=")
        found = read_points(options.results, name, options.metric)
        panels.append(panel(found, title or name, options.metric))
        for series in panels[-1].series:
            for kept, score, spread in sorted(zip(series.x, series.y, series.spread or (), strict=True)):
                print(f"{name}: {series.label}, {kept:.2f} kept: {score:.2f} ± {spread:.2f}")
    save_figure(draw_tradeoffs(panels), options.output.parent, options.output.name)


if __name__ == "__main__":
    sys.exit(exit_status("frontier.py", main))
