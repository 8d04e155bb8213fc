"""Everything that masks, statistics and scores say, in one call and one folder.

`analyze` runs the analyses of the files above (overlap, kinship, allocation, sweeps, effects) and gathers
the results; masks alone are enough, statistics add sweeps and importance curves, scores add gains. What only
the model can answer (erasure, stability; see `probing.py`) is handed in.
`Analysis.save` writes each result as JSON and CSV, with an overview of the numbers that matter and how they
were made.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nspec_hf import __version__
from nspec_hf.analysis.ablation import Erasure
from nspec_hf.analysis.gain_tables import (
    Cost,
    Efficiency,
    Gains,
    SettingGains,
    efficiency,
    gains,
    setting_gains,
)
from nspec_hf.analysis.general_specific import (
    ImportanceCurves,
    LScore,
    MScore,
    Ownership,
    general_neurons,
    importance_curves,
    layer_score,
    module_score,
    ownership,
)
from nspec_hf.analysis.language_families import (
    FAMILIES,
    FamilyAgreement,
    LanguageTree,
    family_agreement,
    language_tree,
)
from nspec_hf.analysis.mask_overlap import (
    Density,
    Overlap,
    Progression,
    density,
    find_pivot,
    overlap,
    progression,
)
from nspec_hf.analysis.result import Result, site_label, to_plain
from nspec_hf.analysis.sweeps import (
    AllocationSweep,
    CoverageSweep,
    Stability,
    allocation_sweep,
    coverage_sweep,
)
from nspec_hf.core import ConfigError, Pair, write_text
from nspec_hf.evaluation import Comparison
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All results about one set of masks; what could not be computed is None or empty."""

    masks: NeuronMasks
    pivot: str | None
    """The language that the trained pairs share; left out of trees and family tests."""
    families: Mapping[str, str]
    """Language → family, for the masks' languages that have one."""
    overlap: Overlap
    density: Density
    progression: Progression
    """By language, the pivot left out."""
    trees: Mapping[str, LanguageTree]
    """Site name → tree; sites with fewer than two comparable languages have none."""
    agreement: FamilyAgreement
    ownership: Ownership
    layer_score: LScore
    module_score: MScore
    efficiency: Efficiency
    coverage_sweep: CoverageSweep | None = None
    allocation_sweep: AllocationSweep | None = None
    curves: tuple[ImportanceCurves, ...] = ()
    gains: Gains | None = None
    comparison: Comparison | None = None
    setting_gains: tuple[SettingGains, ...] = ()
    erasure: Erasure | None = None
    stability: Stability | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """Result → why it is missing."""

    @property
    def pairs(self) -> list[Pair]:
        """The pairs of the masks."""
        return self.masks.pairs

    def results(self) -> dict[str, Result]:
        """Return name → result, for those that are there; importance curves are only drawn."""
        names = ("overlap", "density", "progression", "agreement", "ownership", "layer_score", "module_score")
        names += ("efficiency", "coverage_sweep", "allocation_sweep", "gains", "erasure", "stability")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.gains is not None:
            found["gains_by_group"] = self.gains.by_group()
        found |= {file_name("gains against", each.setting): each for each in self.setting_gains}
        return found | {f"tree_{name.replace('.', '_')}": tree for name, tree in self.trees.items()}

    def overview(self) -> dict[str, Any]:
        """Return the numbers that matter and the recipe of the masks, as JSON can hold them."""
        agreement = self.agreement
        sites = {
            site_label(site): {
                "density": float(np.mean(self.density.density[number])),
                "iou_within_families": agreement.within[number],
                "iou_across_families": agreement.across[number],
                "p_value": agreement.p_value[number],
                "exact": bool(agreement.exact[number]),
                "relabelings": int(agreement.relabelings[number]),
                "specific": self.module_score.score[number],
            }
            for number, site in enumerate(self.density.sites)
        }
        return to_plain(
            {
                "pairs": len(self.pairs),
                "languages": sorted({code for pair in self.pairs for code in (pair.source, pair.target)}),
                "pivot": self.pivot,
                "families": self.families,
                "density": float(self.masks.density()),
                "general": general_share(self.masks),
                "sites": sites,
                "masks": self.masks.fingerprint(),
                "recipe": recipe_of(self.masks),
                "missing": self.notes,
                "nspec_hf": __version__,
            }
        )

    def save(self, folder: str | Path) -> list[Path]:
        """Write every result as JSON and CSV, the trees as text, and `overview.json`; return the paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [path for name, result in self.results().items() for path in result.save(folder, name)]
        texts = {"overview.json": json.dumps(self.overview(), indent=2, ensure_ascii=False, allow_nan=False)}
        if self.trees:
            texts["trees.txt"] = "\n\n".join(f"{name}\n{tree.to_text()}" for name, tree in self.trees.items())
        if self.comparison is not None:
            texts["comparison.json"] = self.comparison.to_json()
        for name, text in texts.items():
            write_text(folder / name, text + "\n")
        return paths + [folder / name for name in texts]


def analyze(
    masks: NeuronMasks,
    stats: ActivationStats | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    families: Mapping[str, str] | None = None,
    *,
    comparison: Comparison | None = None,
    baseline: str | None = None,
    metric: str = "",
    tiers: Mapping[str, str] | None = None,
    pivot: str | None = None,
    seconds: float = math.nan,
    model_width: int | None = None,
    costs: Sequence[Cost] = (),
    by_setting: Mapping[str, Mapping[float, Mapping[str, float]]] | None = None,
    probed: Sequence[Erasure | Stability | SettingGains] = (),
    seed: int = 1,
) -> Analysis:
    """Run every analysis that the given things allow.

    Args:
        masks: The masks.
        stats: What they were selected from; adds sweeps, and importance curves where importance was recorded.
        scores: System → pair → score; adds gains over the baseline.
        families: Language → family; None takes `kinship.FAMILIES`.
        comparison: Significance of the gains, shown beside them.
        baseline: Which system of `scores` the others are compared with; None takes the first.
        metric: The name of the scores.
        tiers: Language → resource tier, for groups of gains.
        pivot: The language that the trained pairs share; None finds it.
        seconds: How long recording and selection took, for the efficiency table.
        model_width: D of the model, for the size of the masks in the released format.
        costs: Other systems' rows of the efficiency table.
        by_setting: Setting → value → pair → score, of models trained with other settings; adds their mean
            gain over the baseline.
        probed: Results of `probing.py`.
        seed: Of the permutation test.

    Raises:
        ConfigError: If the scores lack the baseline.
    """
    pivot = pivot or find_pivot(masks.pairs)
    languages = {code for pair in masks.pairs for code in (pair.source, pair.target)}
    known = FAMILIES if families is None else families
    families = {code: known[code] for code in sorted(languages) if code in known}
    overlaps = overlap(masks)
    course = progression(overlaps).without([pivot] if pivot else [])
    notes: dict[str, str] = {}
    gained = _gains(scores, baseline, metric, tiers, pivot, notes)
    _note_strangers(gained, comparison, notes)
    return Analysis(
        masks=masks,
        pivot=pivot,
        families=families,
        overlap=overlaps,
        density=density(masks),
        progression=course,
        trees=_trees(course, notes),
        agreement=family_agreement(course, families, seed=seed),
        ownership=ownership(masks),
        layer_score=layer_score(masks),
        module_score=module_score(masks),
        efficiency=efficiency(masks, seconds=seconds, model_width=model_width, others=costs),
        gains=gained,
        comparison=comparison,
        setting_gains=_against_settings(scores, baseline, by_setting or {}, probed, pivot or "en"),
        erasure=next((each for each in probed if isinstance(each, Erasure)), None),
        stability=next((each for each in probed if isinstance(each, Stability)), None),
        notes=notes,
        **_from_stats(stats, notes),
    )


def file_name(*words: str) -> str:
    """Return words as a file's name: letters, digits and underscores."""
    return "_".join(re.findall(r"[a-z0-9]+", " ".join(words).lower()))


def general_share(masks: NeuronMasks) -> float:
    """Return the share of neurons that are general: named so by importance masks, else kept by every pair."""
    general = general_neurons(masks)
    return sum(int(general[s.name].sum()) for s in masks.sites) / sum(s.width for s in masks.sites)


def recipe_of(masks: NeuronMasks) -> dict[str, Any]:
    """Return where the masks come from, as JSON can hold it."""
    recipe = masks.recipe
    return to_plain({name: getattr(recipe, name) for name in recipe.__dataclass_fields__})


def _trees(course: Progression, notes: dict[str, str]) -> dict[str, LanguageTree]:
    trees = {}
    for number, site in enumerate(course.sites):
        try:
            trees[site.name] = language_tree(course.languages, course.iou[number])
        except ConfigError as error:
            notes[f"tree of {site.name}"] = str(error)
    return trees


def _from_stats(stats: ActivationStats | None, notes: dict[str, str]) -> dict[str, Any]:
    if stats is None:
        notes["sweeps and importance curves"] = "no statistics were given"
        return {}
    found: dict[str, Any] = {}
    if any(site.kind == "ffn" for site in stats.sites):
        found["coverage_sweep"] = coverage_sweep(stats)
    measure = next((name for name in ("te", "av") if name in stats.sums), None)
    if measure is None:
        notes["importance curves"] = "the statistics hold counts only; record with RecordConfig(te=True)"
        return found
    found["allocation_sweep"] = allocation_sweep(stats, measure)
    # As in the paper: the last layer of each side.
    last = {site.side: site.name for site in stats.sites if site.kind == "ffn"}
    found["curves"] = tuple(importance_curves(stats, measure, name) for name in last.values())
    return found


def _gains(
    scores: Mapping[str, Mapping[str, float]] | None,
    baseline: str | None,
    metric: str,
    tiers: Mapping[str, str] | None,
    pivot: str | None,
    notes: dict[str, str],
) -> Gains | None:
    if not scores or (baseline is None and len(scores) < 2):
        notes["groups of gains"] = "scores of a baseline and another system were not given"
        return None
    name = baseline or next(iter(scores))
    return gains(scores, name, tiers=tiers, pivot=pivot or "en", metric=metric)


def _note_strangers(gained: Gains | None, comparison: Comparison | None, notes: dict[str, str]) -> None:
    """Say which systems with scores were not tested, since their gains are shown without a verdict."""
    if gained is None or comparison is None:
        return
    tested = sorted({row.system_name for row in comparison.rows})
    untested = [name for name in gained.systems if name not in tested]
    if untested:
        notes[f"significance of {', '.join(untested)}"] = f"the comparison tests {', '.join(tested)}"


def _against_settings(
    scores: Mapping[str, Mapping[str, float]] | None,
    baseline: str | None,
    by_setting: Mapping[str, Mapping[float, Mapping[str, float]]],
    probed: Sequence[Result],
    pivot: str,
) -> tuple[SettingGains, ...]:
    if by_setting and not scores:
        raise ConfigError("gains against a setting need scores of the baseline")
    name = baseline or next(iter(scores or {}), "")
    trained = [
        setting_gains(setting, values, (scores or {}).get(name, {}), pivot=pivot)
        for setting, values in by_setting.items()
    ]
    return (*trained, *(each for each in probed if isinstance(each, SettingGains)))
