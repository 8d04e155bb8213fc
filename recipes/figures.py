"""Draw the papers' figures from the runs of a plan: of a row of masks, and of rows with another setting.

    python recipes/figures.py recipes/configs/multi30k.yaml --row ns
    python recipes/figures.py recipes/configs/multi30k.yaml --row allocation_te --lines 100

Masks, statistics and scores are those of the runs' folders and results; gains are over the row `baseline`.
With `--lines`, so many sentences of each direction are translated again with a part of the neurons erased.
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
    row, base = (finished(rows, name) for name in (chosen.row, "baseline"))
    if not isinstance(row.system, Masked):
        raise ConfigError(f"row {row.name!r} is {row.system.name}, which has no masks to draw")
    folder = Path(config.work) / "figures" / row.name
    require_writable(folder, is_folder=True)
    require_writable(Path(config.results) / f"{config.name}.{row.name}.png")
    run = row.runs[0]
    masks = row.system.kept_masks(run)
    by_setting, varieties = neighbours(row, rows, chosen.metric)
    scores = {base.name: values(base, chosen.metric), row.name: values(row, chosen.metric), **varieties}
    result = analyze(
        masks,
        ActivationStats.load(run.folder / "nspec_stats.safetensors"),
        scores,
        config.data.families or None,
        baseline=base.name,
        metric=chosen.metric,
        tiers=config.data.tiers or None,
        pivot=config.data.pivot,
        by_setting=by_setting,
        probed=[erased(row, chosen.lines, chosen.metric)] if chosen.lines else [],
    )
    result.save(folder)
    for path in draw_all(result, folder):
        if path.suffix == ".png" and any(fnmatch(path.stem, shown) for shown in SHOWN):
            kept = Path(config.results) / f"{config.name}.{row.name}.{path.name}"
            shutil.copyfile(path, kept)
            print(kept)


def finished(rows: dict[str, PlannedRow], name: str) -> PlannedRow:
    """Return a row whose first seed has been run.

    Raises:
        ConfigError: If there is no such row, or its result is missing.
    """
    if name not in rows:
        raise ConfigError(f"the plan has no row {name!r}; it has: {', '.join(rows)}")
    why = rows[name].runs[0].why_not_done()
    if why:
        raise ConfigError(f"{rows[name].runs[0].name}: {why}; run recipes/compare.py with --rows {name}")
    return rows[name]


def values(row: PlannedRow, metric: str) -> Scores:
    """Return the scores of a row's first seed, by direction."""
    outcome = row.runs[0].outcome()
    return {} if outcome is None else {**outcome.values(metric)}


def neighbours(
    row: PlannedRow, rows: dict[str, PlannedRow], metric: str
) -> tuple[dict[str, dict[float, Scores]], dict[str, Scores]]:
    """Return the scores of rows that differ in one setting: by its value if a number, else by name."""
    by_setting: dict[str, dict[float, Scores]] = {}
    varieties: dict[str, Scores] = {}
    for other in rows.values():
        same = type(other.system) is type(row.system) and other.plan.base == row.plan.base
        if not same or other.plan.train != row.plan.train or other.runs[0].why_not_done():
            continue
        fields = [field.name for field in dataclasses.fields(row.system)]
        differing = [name for name in fields if getattr(other.system, name) != getattr(row.system, name)]
        if len(differing) != 1:
            continue
        ours, theirs = (getattr(each.system, differing[0]) for each in (row, other))
        ours = getattr(row.runs[0].config.select, differing[0], None) if ours is None else ours
        if isinstance(theirs, float) and isinstance(ours, float):
            own = by_setting.setdefault(differing[0], {ours: values(row, metric)})
            own[theirs] = values(other, metric)
        else:
            varieties[other.name] = values(other, metric)
    return by_setting, varieties


def erased(row: PlannedRow, lines: int, metric: str) -> Ablation:
    """Return what erasing general, and each pair's specific neurons, costs the trained model."""
    run = row.runs[0]
    masks, model = row.system.kept_masks(run), run.base()  # type: ignore[attr-defined]
    load_weights(model, run.folder / "model")
    texts = [PairText(text.pair, text.sources[:lines], text.targets[:lines]) for text in run.tests]
    texts = [text for text in texts if text.pair in masks.pairs]
    score = scorer(model, run.tags, texts, metric, run.config.translate)
    return ablate(masks, score, masks.pairs[:3])


if __name__ == "__main__":
    sys.exit(exit_status("figures.py", main))
