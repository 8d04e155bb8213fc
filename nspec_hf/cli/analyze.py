"""What `nspec analyze` and `nspec report` do: all that masks, statistics and scores say about neurons."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nspec_hf import analysis, evaluation, masks as masks_room, recording, systems
from nspec_hf.core import (
    ConfigError,
    NspecError,
    languages_of,
    needs,
    read_json,
    require,
    require_count,
    require_writable,
)


@needs(metric="scores or by_setting", baseline="scores", tiers="scores")
def analyze(
    output: str = "analysis",
    by_setting: Mapping[str, Mapping[float, str]] | None = None,
    figures: bool = True,
    **files: Any,
) -> None:
    """Draw and tabulate what each pair's neurons have in common: overlap, progression, tree, density, gains.

    Example: nspec analyze --masks masks --stats nspec_stats.safetensors --output analysis

    It works on files alone; `nspec probe` asks the model what erasing neurons costs and how stable masks are.

    Args:
        output: Folder of tables (JSON, CSV) and figures (PNG, SVG).
        by_setting: Setting → value → JSON file of scores, of models trained with other settings:
            '{coverage k: {0.9: a.json, 0.95: b.json}}'; adds mean gains over the baseline.
        figures: Whether to draw; without, only tables are written.
        **files: What is analyzed; see `_analyzed`.
    """
    require_writable(output, is_folder=True)
    result = _analyzed(by_setting=by_setting, **files)
    result.save(output)
    drawn = analysis.draw_all(result, output) if figures else []
    sys.stdout.write(f"{result.agreement_table()}\n{output}: tables and {len(drawn)} files of figures\n")


@needs(metric="scores", baseline="scores", tiers="scores")
def report(output: str = "report.html", title: str | None = None, **files: Any) -> None:
    """Write one HTML page that shows what each pair's neurons do; it opens anywhere and loads nothing.

    Example: nspec report --masks masks --stats nspec_stats.safetensors --output report.html

    Args:
        output: The page.
        title: Its title; null names the base model.
        **files: What is analyzed; see `_analyzed`.
    """
    require_writable(output)
    path = analysis.write_report(_analyzed(by_setting=None, **files), output, title)
    sys.stdout.write(f"{path}: {path.stat().st_size / 1024:.0f} KiB\n")


def _analyzed(
    masks: str,
    by_setting: Mapping[str, Mapping[float, str]] | None,
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
) -> "analysis.Analysis":
    """Read the files and return what they say.

    Args:
        masks: Folder or Hub repository of masks.
        by_setting: Setting → value → JSON file of scores.
        stats: File of the statistics that they were selected from; adds sweeps over coverage k and, where
            importance was recorded, over ρ, and importance curves.
        scores: JSON files that `nspec evaluate --output` wrote, one a system; adds gains.
        comparison: JSON file that `nspec compare --output` wrote; adds significance.
        baseline: Name of the system that the others are compared with; null takes the first of `scores`.
        metric: Which of the scores.
        families: Language → family, '{de: Germanic, es: Romance}'; null takes those known
            of the languages of M2M-100, mBART and NLLB.
        tiers: Language → resource tier, '{de: high, sv: low}', for gains by tier.
        pivot: The language that the trained pairs share; null finds it.
        seconds: How long recording and selection took, for the table of costs.
        model_width: Width D of the model; adds the size of the masks in the released format.
    """
    if model_width is not None:
        require_count("model_width", model_width)
    require(seconds is None or seconds >= 0, f"seconds is not negative, got {seconds}")
    systems_of = [_read_scores(path, metric) for path in scores]
    evaluation.require_names([name for name, _ in systems_of])
    held = masks_room.NeuronMasks.from_pretrained(masks)
    languages = sorted(languages_of(held.pairs))
    require(
        pivot in (None, *languages), f"pivot {pivot!r} is no language of the masks: {', '.join(languages)}"
    )
    return analysis.analyze(
        held,
        recording.ActivationStats.load(stats) if stats else None,
        dict(systems_of) or None,
        families,
        comparison=evaluation.Comparison.load(comparison) if comparison else None,
        baseline=baseline,
        metric=metric,
        tiers=tiers,
        pivot=pivot,
        seconds=math.nan if seconds is None else seconds,
        model_width=model_width,
        by_setting={
            setting: {_number(setting, value): _read_scores(path, metric)[1] for value, path in paths.items()}
            for setting, paths in (by_setting or {}).items()
        },
    )


def _number(setting: str, value: float | str) -> float:
    """Return a setting's value; the keys of JSON are text, also where they are numbers."""
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"by_setting: the values of {setting!r} are numbers, got {value!r}") from None


def _read_scores(path: str, metric: str) -> tuple[str, dict[str, float]]:
    """Return a system's name and pair → score, from `nspec evaluate`'s file or a recipe's result."""
    content = read_json(path)
    if isinstance(content, dict) and "decoding" in content:
        result = systems.RunResult.of(content, path)
        return result.name, {**result.values(metric)}
    try:
        system = evaluation.SystemScores.from_dict(content)
    except NspecError as error:
        raise ConfigError(f"{path}: {error}") from error
    return system.name, {pair: system.value(pair, metric) for pair in system.pairs}
