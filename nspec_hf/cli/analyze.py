"""What `nspec analyze` and `nspec report` do: all that masks, statistics and scores say about neurons."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nspec_hf.analysis import Analysis, analyze as analyze_masks, draw_all, write_report
from nspec_hf.core import ConfigError, Table
from nspec_hf.evaluation import Comparison, SystemScores
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats


def analyze(
    masks: str,
    output: str = "analysis",
    stats: str | None = None,
    scores: Sequence[str] = (),
    comparison: str | None = None,
    baseline: str | None = None,
    metric: str = "bleu",
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
    pivot: str | None = None,
    seconds: float | None = None,
    model_width: int | None = None,
    by_setting: Mapping[str, Mapping[float, str]] | None = None,
    figures: bool = True,
) -> None:
    """Draw and tabulate what each pair's neurons have in common: overlap, progression, tree, density, gains.

    Example: nspec analyze --masks masks --stats nspec_stats.safetensors --output analysis

    It works on files alone; `nspec probe` asks the model what erasing neurons costs and how stable masks are.

    Args:
        masks: Folder or Hub repository of masks.
        output: Folder of tables (JSON, CSV) and figures (PNG, SVG).
        stats: File of the statistics that they were selected from; adds sweeps over coverage k and, where
            importance was recorded, over ρ, and importance curves.
        scores: JSON files that `nspec evaluate --output` wrote, one a system; adds gains.
        comparison: JSON file that `nspec compare --output` wrote; adds significance.
        baseline: Name of the system that the others are compared with; null takes the first of `scores`.
        metric: Which of the scores.
        families: Language → family, '{de: Germanic, es: Romance}'; null takes a table of 60 languages.
        tiers: Language → resource tier, '{de: high, sv: low}', for gains by tier.
        pivot: The language that the trained pairs share; null finds it.
        seconds: How long recording and selection took, for the table of costs.
        model_width: Width D of the model; adds the size of the masks in the released format.
        by_setting: Setting → value → JSON file of scores, of models trained with other settings:
            '{coverage k: {0.9: a.json, 0.95: b.json}}'; adds mean gains over the baseline.
        figures: Whether to draw; without, only tables are written.
    """
    found = _analyzed(
        masks,
        stats,
        scores,
        comparison,
        seconds,
        metric=metric,
        families=families,
        baseline=baseline,
        tiers=tiers,
        pivot=pivot,
        model_width=model_width,
        by_setting=_by_setting(by_setting or {}, metric),
    )
    found.save(output)
    drawn = draw_all(found, output) if figures else []
    sys.stdout.write(f"{_agreement_table(found)}\n{output}: tables and {len(drawn)} files of figures\n")


def report(
    masks: str,
    output: str = "report.html",
    title: str | None = None,
    stats: str | None = None,
    scores: Sequence[str] = (),
    comparison: str | None = None,
    baseline: str | None = None,
    metric: str = "bleu",
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
    pivot: str | None = None,
    seconds: float | None = None,
    model_width: int | None = None,
) -> None:
    """Write one HTML page that shows what each pair's neurons do; it opens anywhere and loads nothing.

    Example: nspec report --masks masks --stats nspec_stats.safetensors --output report.html

    Args:
        masks: Folder or Hub repository of masks.
        output: The page.
        title: Its title; null names the base model.
        stats: File of the statistics that they were selected from; adds sweeps over coverage k and, where
            importance was recorded, over ρ, and importance curves.
        scores: JSON files that `nspec evaluate --output` wrote, one a system; adds gains.
        comparison: JSON file that `nspec compare --output` wrote; adds significance.
        baseline: Name of the system that the others are compared with; null takes the first of `scores`.
        metric: Which of the scores.
        families: Language → family, '{de: Germanic, es: Romance}'; null takes a table of 60 languages.
        tiers: Language → resource tier, '{de: high, sv: low}', for gains by tier.
        pivot: The language that the trained pairs share; null finds it.
        seconds: How long recording and selection took, for the table of costs.
        model_width: Width D of the model; adds the size of the masks in the released format.
    """
    found = _analyzed(
        masks,
        stats,
        scores,
        comparison,
        seconds,
        metric=metric,
        families=families,
        baseline=baseline,
        tiers=tiers,
        pivot=pivot,
        model_width=model_width,
    )
    path = write_report(found, output, title)
    sys.stdout.write(f"{path}: {path.stat().st_size / 1024:.0f} KiB\n")


def _analyzed(
    masks: str,
    stats: str | None,
    scores: Sequence[str],
    comparison: str | None,
    seconds: float | None,
    *,
    metric: str,
    **settings: Any,
) -> Analysis:
    """Read the files and return what they say; `settings` are arguments of `nspec_hf.analyze`."""
    return analyze_masks(
        NeuronMasks.from_pretrained(masks),
        ActivationStats.load(stats) if stats else None,
        _values(scores, metric),
        comparison=_comparison(comparison),
        metric=metric,
        seconds=math.nan if seconds is None else seconds,
        **settings,
    )


def _agreement_table(found: Analysis) -> Table:
    """Return how much pairs share at every site, within language families and across them."""
    columns = ("site", "density", "IoU within families", "IoU across families", "p")
    keys = ("density", "iou_within_families", "iou_across_families", "p_value")
    rows = tuple((site, *(own[key] for key in keys)) for site, own in found.overview()["sites"].items())
    note = "p: permutation test, families against random groups of languages"
    title = f"Overlap of {len(found.masks.pairs)} pairs"
    return Table(title=title, columns=columns, rows=rows, notes=(note,), digits=4)


def _values(paths: Sequence[str], metric: str) -> dict[str, dict[str, float]] | None:
    """Return system → pair → score of the files of scores."""
    systems = [_read_scores(path) for path in paths]
    return {each.name: {pair: each.value(pair, metric) for pair in each.pairs} for each in systems} or None


def _by_setting(
    files: Mapping[str, Mapping[float, str]], metric: str
) -> dict[str, dict[float, dict[str, float]]]:
    """Return setting → value → pair → score."""
    return {
        setting: {_number(setting, value): _one(path, metric) for value, path in paths.items()}
        for setting, paths in files.items()
    }


def _number(setting: str, value: float | str) -> float:
    """Return a setting's value; the keys of JSON are text, also where they are numbers."""
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"by_setting: the values of {setting!r} are numbers, got {value!r}") from None


def _one(path: str, metric: str) -> dict[str, float]:
    return next(iter((_values([path], metric) or {}).values()))


def _comparison(path: str | None) -> Comparison | None:
    return Comparison.from_json(Path(path).read_text(encoding="utf-8")) if path else None


def _read_scores(path: str) -> SystemScores:
    """Read the scores of `nspec evaluate`, or those in a recipe's result."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    nested = content.get("scores", {})
    return SystemScores.from_json(json.dumps(nested if "scores" in nested else content))
