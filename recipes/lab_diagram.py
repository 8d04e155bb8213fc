"""Draw the laboratory's phase diagram: what masks gain over fine-tuning, against how far the base overfits.

    python recipes/lab_diagram.py recipes/results/lab.json
    python recipes/lab_diagram.py --regimes nspec_hf/doctor/regimes.yaml     # and the doctor's numbers

Reads what `lab.py` has written so far and leaves a `.png` and a `.svg` beside it. A point is a cell, the mean
over its seeds; its bar reaches to the highest and the lowest seed. It also prints which property of a cell
orders the gains, by Spearman's rank correlation over the cells, and the table of `recipes/RESULTS.md`: what
came of masks by how far the base overfits.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from nspec_hf.analysis import Panel, Series, draw_tradeoffs, save_figure
from nspec_hf.core import Table, exit_status, read_json, write_text
from nspec_hf.doctor.regime import REGIMES

ROWS = {
    "ns": "own neurons",
    "finetune": "fine-tuning",
    "random": "random ones",
    "sampled": "ones drawn by activity",
    "swapped": "another pair's",
    "shared": "one mask for all pairs",
    "pair_adapters": "adapters a pair",
}
DRAWN = tuple((row, "finetune", "overfitting") for row in ("ns", "random", "sampled"))
COMPARED = (
    *((row, "finetune") for row in ROWS if row != "finetune"),
    ("ns", "random"),
    ("ns", "swapped"),
    ("ns", "shared"),
    ("sampled", "random"),
)
AXES = {
    "gap": "gap of the base: validation − training loss (nats)",
    "overfitting": "overfitting of the base: gap / validation loss",
}
ORDERS = (
    "gap",
    "overfitting",
    "training loss",
    "validation loss",
    "tokens a parameter",
    "dropout",
    "BLEU of the base",
)


def points(cells: Mapping[str, Any], row: str, against: str) -> list[dict[str, float]]:
    """Return each cell in which both rows are done: what one gains in BLEU, and what might explain it.

    Means over the seeds; `spread` is half the distance between the highest and the lowest gain.
    """
    seeds: dict[str, list[Mapping[str, Any]]] = {}
    for name, line in cells.items():
        if {row, against} <= line["rows"].keys():
            seeds.setdefault(name.rpartition(".")[0], []).append(line)
    found = []
    for lines in seeds.values():
        gains = [line["rows"][row]["bleu"] - line["rows"][against]["bleu"] for line in lines]
        bases = [line["base"] for line in lines]
        found.append(
            {
                "gain": fmean(gains),
                "spread": (max(gains) - min(gains)) / 2,
                "gap": fmean(base["text_loss"] - base["train_loss"] for base in bases),
                "overfitting": fmean(1 - base["train_loss"] / base["text_loss"] for base in bases),
                "training loss": fmean(base["train_loss"] for base in bases),
                "validation loss": fmean(base["text_loss"] for base in bases),
                "tokens a parameter": fmean(base["target_tokens"] / base["parameters"] for base in bases),
                "dropout": lines[0]["cell"]["dropout"],
                "BLEU of the base": fmean(base["bleu"] for base in bases),
            }
        )
    return found


def panel(cells: Mapping[str, Any], row: str, against: str, axis: str = "gap") -> Panel:
    """Return the picture of one difference against a property of the cells, a colour for each dropout."""
    own = points(cells, row, against)
    series = []
    for rate in sorted({point["dropout"] for point in own}):
        some = [point for point in own if point["dropout"] == rate]
        gains = {axis: [point[name] for point in some] for axis, name in (("x", axis), ("y", "gain"))}
        spread = [point["spread"] for point in some]
        series.append(Series(label=f"dropout {rate:g}", spread=spread, **gains))
    return Panel(x=AXES[axis], y=f"BLEU: {ROWS[row]} − {ROWS[against]}", series=series, rule=0.0)


def summary(cells: Mapping[str, Any], row: str, against: str) -> str:
    """Return in how many cells a row gains, and which property of a cell orders the gains."""
    own = points(cells, row, against)
    gains = [point["gain"] for point in own]
    better = sum(gain > 0 for gain in gains)
    head = f"{ROWS[row]} − {ROWS[against]}: {better} of {len(own)} cells above 0, mean {fmean(gains):+.2f}"
    ranks = {}
    for name in ORDERS:
        values = [point[name] for point in own]
        if len({*values}) > 1 < len({*gains}):  # equal values have no order
            ranks[name] = spearmanr(values, gains).statistic
    return f"{head}; rank correlation with " + ", ".join(
        f"{name} {rank:+.2f}" for name, rank in ranks.items()
    )


def of_regimes(cells: Mapping[str, Any], row: str, against: str) -> list[list[float]]:
    """Return the gains of one row over another in each of the doctor's regimes, the most overfitted first."""
    bounds = [math.inf, *(regime.least for regime in REGIMES)]
    own = points(cells, row, against)
    return [
        [point["gain"] for point in own if least <= point["overfitting"] < end]
        for end, least in pairwise(bounds)
    ]


def regimes_table(cells: Mapping[str, Any]) -> Table:
    """Return what came of masks by how far the base overfits: a line for each two rows."""
    done = [pair for pair in COMPARED if points(cells, *pair)]
    names = [f"{100 * regime.least:.0f} % and more" for regime in REGIMES[:-1]] + ["less"]
    return Table(
        title="what masks gain, by the share of the base's loss that is overfitting",
        columns=("BLEU", *names),
        rows=tuple(
            (f"{ROWS[row]} − {ROWS[against]}", *map(_mean_and_sign, of_regimes(cells, row, against)))
            for row, against in done
        ),
        notes=("mean over worlds; in brackets, in how many of them it is above 0",),
    )


def write_regimes(cells: Mapping[str, Any], path: Path) -> None:
    """Write the doctor's numbers, under the lines that its file begins with."""
    gains = [of_regimes(cells, row, against) for row, against, _ in DRAWN]
    lines = [
        f"- {{least: {regime.least:g}, cells: {len(own)}, above: {sum(gain > 0 for gain in own)}, "
        f"own: {fmean(own):.1f}, random: {fmean(random):.1f}, drawn: {fmean(drawn):.1f}}}\n"
        for own, random, drawn, regime in zip(*gains, REGIMES, strict=True)
    ]
    head = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#")]
    write_text(path, "".join([*head, *lines]))


def _mean_and_sign(gains: Sequence[float]) -> str | None:
    if not gains:
        return None
    return f"{fmean(gains):+.2f} ({sum(gain > 0 for gain in gains)} of {len(gains)})".replace("-", "−")


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="?", default="recipes/results/lab.json", type=Path)
    parser.add_argument("--regimes", type=Path, help="the doctor's file, to be written anew")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe."""
    options = read_options(argv)
    path: Path = options.results
    cells = read_json(path)["cells"]
    for row, against in COMPARED:
        if len(points(cells, row, against)) > 2:
            print(summary(cells, row, against))
    print(regimes_table(cells).render("markdown"))
    if options.regimes:
        write_regimes(cells, options.regimes)
    panels = [panel(cells, *drawn) for drawn in DRAWN if points(cells, *drawn[:2])]
    save_figure(draw_tradeoffs(panels), path.parent, path.stem)


if __name__ == "__main__":
    sys.exit(exit_status("lab_diagram.py", main))
