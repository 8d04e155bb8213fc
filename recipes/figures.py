"""Draw the papers' figures from the runs of a plan: of a row of masks, and of rows with another setting.

    python recipes/figures.py recipes/configs/multi30k.yaml --row ns
    python recipes/figures.py recipes/configs/multi30k.yaml --row allocation_te --lines 100

Masks and statistics are those of the run, or taken from the base anew; gains are those of the results that
there are, over the row `baseline`. With `--lines`, so many sentences of each direction are translated again
with a part of the neurons erased, by the trained model or, where there is none, by the base.
All figures and their numbers go to `work/figures/ROW`, those of the papers also to
`recipes/results/NAME.ROW.FIGURE.png`.
"""

import dataclasses
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

from nspec_hf.analysis import Ablation, ablate, analyze, draw_all, scorer
from nspec_hf.comparison import PlannedRow, planned_rows
from nspec_hf.core import ConfigError, exit_status, require_writable
from nspec_hf.data import PairText
from nspec_hf.recording import ActivationStats
from nspec_hf.systems import ExperimentConfig, Masked, read_settings
from nspec_hf.training import load_weights

SHOWN = """
    coverage_sweep sparsity progression zero_shot_*
    importance_* specific gains_against_* gains_by_group ablation
""".split()
"""Tan et al., Fig. 5, 6, 2 and 4; Xie et al., Fig. 2, 3, 4 and Table 3, Fig. 5 and 6."""

BASELINE = "baseline"
Scores = dict[str, float]


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, chosen = read_settings(
        ExperimentConfig,
        argv,
        description=__doc__,
        row={"type": str, "default": "ns", "help": "A row of masks that has been run."},
        lines={"type": int, "default": 0, "help": "Sentences a direction to translate with neurons erased."},
        metric={"type": str, "default": "bleu", "help": "Which of the scores."},
    )
    rows = {row.name: row for row in planned_rows(config)}
    if chosen.row not in rows:
        raise ConfigError(f"the plan has no row {chosen.row!r}; it has: {', '.join(rows)}")
    row = rows[chosen.row]
    if not isinstance(row.system, Masked):
        raise ConfigError(f"row {row.name!r} is {row.system.name}, which has no masks to draw")
    folder = Path(config.work) / "figures" / row.name
    require_writable(folder, is_folder=True)
    require_writable(Path(config.results) / f"{config.name}.{row.name}.png")
    run = row.runs[0]
    if not (run.folder / "masks").is_dir():
        row.system.extraction(run.base(), run)
    scores, by_setting = compared(row, rows, chosen.metric)
    result = analyze(
        row.system.kept_masks(run),
        ActivationStats.load(run.folder / "nspec_stats.safetensors"),
        scores,
        config.data.families or None,
        baseline=BASELINE if scores else None,
        metric=chosen.metric,
        tiers=config.data.tiers or None,
        pivot=config.data.pivot,
        by_setting=by_setting,
        probed=[erased(row, row.system, chosen.lines, chosen.metric)] if chosen.lines else [],
    )
    result.save(folder)
    for path in draw_all(result, folder):
        if path.suffix == ".png" and any(fnmatch(path.stem, shown) for shown in SHOWN):
            kept = Path(config.results) / f"{config.name}.{row.name}.{path.name}"
            shutil.copyfile(path, kept)
            print(kept)


def values(row: PlannedRow, metric: str) -> Scores:
    """Return the scores of a row's first seed, by direction."""
    outcome = row.runs[0].outcome()
    return {} if outcome is None else {**outcome.values(metric)}


def compared(
    row: PlannedRow, rows: dict[str, PlannedRow], metric: str
) -> tuple[dict[str, Scores], dict[str, dict[float, Scores]]]:
    """Return the scores of a row, the base, and rows that differ in one setting: these by value if a number.

    Without the base's or the row's own there are none.
    """
    base = values(rows[BASELINE], metric) if BASELINE in rows else {}
    scores = {BASELINE: base, row.name: values(row, metric)}
    by_setting: dict[str, dict[float, Scores]] = {}
    if not all(scores.values()):
        return {}, {}
    for other in rows.values():
        same = type(other.system) is type(row.system) and other.plan.base == row.plan.base
        own = values(other, metric) if same and other.plan.train == row.plan.train else {}
        fields = [field.name for field in dataclasses.fields(row.system)] if own else []
        differing = [name for name in fields if getattr(other.system, name) != getattr(row.system, name)]
        if len(differing) != 1:
            continue
        ours, theirs = (getattr(each.system, differing[0]) for each in (row, other))
        ours = getattr(row.runs[0].config.select, differing[0], None) if ours is None else ours
        if isinstance(theirs, float) and isinstance(ours, float):
            by_setting.setdefault(differing[0], {ours: scores[row.name]})[theirs] = own
        else:
            scores[other.name] = own
    return scores, by_setting


def erased(row: PlannedRow, system: Masked, lines: int, metric: str) -> Ablation:
    """Return what erasing general, and each pair's specific neurons, costs the trained model, or its base."""
    run = row.runs[0]
    masks, model = system.kept_masks(run), run.base()
    if (run.folder / "model").is_dir():
        load_weights(model, run.folder / "model")
    else:
        print(f"{run.name} has not been trained: neurons are erased from the base")
    texts = [PairText(text.pair, text.sources[:lines], text.targets[:lines]) for text in run.tests]
    texts = [text for text in texts if text.pair in masks.pairs]
    return ablate(masks, scorer(model, run.tags, texts, metric, run.config.translate), masks.pairs[:3])


if __name__ == "__main__":
    sys.exit(exit_status("figures.py", main))
