"""Everything that masks, statistics and scores say, in one call and one folder.

`analyze` runs the analyses of the files above and gathers the results; masks alone are enough, statistics
add sweeps and importance curves, scores add gains. What only the model can answer (ablation, stability; see
`probing.py`) is handed in. `Analysis.save` writes each result as JSON and CSV, with an overview of the
numbers that matter and how they were made.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nspec_hf import __version__
from nspec_hf.analysis.ablation import Ablation
from nspec_hf.analysis.gain_tables import Efficiency, Gains, SettingGains, efficiency, gains, setting_gains
from nspec_hf.analysis.general_specific import (
    ImportanceCurves,
    LScore,
    MScore,
    Ownership,
    general_share,
    importance_curves,
    layer_score,
    module_score,
    ownership,
    recorded_importance,
)
from nspec_hf.analysis.language_families import (
    FamilyAgreement,
    LanguageTree,
    family_agreement,
    known_families,
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
from nspec_hf.analysis.result import Result, site_label
from nspec_hf.analysis.sweeps import (
    AllocationSweep,
    CoverageSweep,
    Stability,
    allocation_sweep,
    coverage_sweep,
)
from nspec_hf.core import (
    ConfigError,
    Pair,
    Table,
    languages_of,
    pivot_of,
    plain,
    require,
    write_json,
    write_text,
)
from nspec_hf.evaluation import Comparison
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats

Scores = Mapping[str, float]
"""Pair → score."""

_FAMILY_OF = "family of"


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
    ablation: Ablation | None = None
    stability: Stability | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """Result → why it is missing."""

    @property
    def pairs(self) -> list[Pair]:
        """The pairs of the masks."""
        return self.masks.pairs

    def results(self) -> dict[str, Result]:
        """Return name → result, for those that are there; importance curves are only drawn."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        results = {name: value for name, value in values.items() if isinstance(value, Result)}
        if self.gains is not None:
            results["gains_by_group"] = self.gains.by_group()
        results |= {file_name("gains against", gains.setting): gains for gains in self.setting_gains}
        return results | {f"tree_{name.replace('.', '_')}": tree for name, tree in self.trees.items()}

    def overview(self) -> dict[str, Any]:
        """Return the numbers that matter and the recipe of the masks, as JSON can hold them."""
        agreement = self.agreement
        sites = {
            site_label(site): {
                "density": self.density.density[number].mean(),
                "iou_within_families": agreement.within[number],
                "iou_across_families": agreement.across[number],
                "p_value": agreement.p_value[number],
                "exact": bool(agreement.exact[number]),
                "relabelings": int(agreement.relabelings[number]),
                "specific": self.module_score.score[number],
            }
            for number, site in enumerate(self.density.sites)
        }
        return plain(
            {
                "pairs": len(self.pairs),
                "languages": sorted(languages_of(self.pairs)),
                "pivot": self.pivot,
                "families": self.families,
                "density": float(self.masks.density()),
                "general": general_share(self.masks),
                "sites": sites,
                "masks": self.masks.fingerprint(),
                "recipe": self.masks.recipe,
                "missing": self.notes,
                "nspec_hf": __version__,
            }
        )

    def agreement_table(self) -> Table:
        """Return how much pairs share at every site, within language families and across them."""
        columns = ("site", "density", "IoU within families", "IoU across families", "p")
        keys = ("density", "iou_within_families", "iou_across_families", "p_value")
        rows = tuple((site, *(line[key] for key in keys)) for site, line in self.overview()["sites"].items())
        notes: tuple[str, ...] = (
            "density: mean share of neurons kept; IoU of two languages, by source in the encoder, by target "
            "in the decoder",
        )
        if ways := int(self.agreement.relabelings.max()):
            dealt = f"{'all' if self.agreement.exact.all() else 'of'} {ways}"
            notes += (
                f"p: share of {dealt} ways to deal out the family names in which families overlap as much",
            )
        notes += tuple(f"no {name}: {why}" for name, why in self.notes.items() if name.startswith(_FAMILY_OF))
        title = f"Overlap of {len(self.pairs)} pairs"
        return Table(title=title, columns=columns, rows=rows, notes=notes, digits=4)

    def save(self, folder: str | Path) -> list[Path]:
        """Write every result as JSON and CSV, the trees as text, and `overview.json`; return the paths."""
        folder = Path(folder)
        paths = [path for name, result in self.results().items() for path in result.save(folder, name)]
        contents = {"overview.json": self.overview()}
        if self.comparison is not None:
            contents["comparison.json"] = self.comparison.to_dict()
        for name, content in contents.items():
            write_json(folder / name, content)
        if self.trees:
            trees = [f"{name}\n{tree.to_text()}\n" for name, tree in self.trees.items()]
            write_text(folder / "trees.txt", "\n".join(trees))
        return [*paths, *(folder / name for name in [*contents, *(["trees.txt"] if self.trees else [])])]


def analyze(
    masks: NeuronMasks,
    stats: ActivationStats | None = None,
    scores: Mapping[str, Scores] | None = None,
    families: Mapping[str, str] | None = None,
    *,
    comparison: Comparison | None = None,
    baseline: str | None = None,
    metric: str = "",
    tiers: Mapping[str, str] | None = None,
    pivot: str | None = None,
    seconds: float = math.nan,
    model_width: int | None = None,
    by_setting: Mapping[str, Mapping[float, Scores]] | None = None,
    probed: Sequence[Ablation | Stability | SettingGains] = (),
    seed: int = 1,
) -> Analysis:
    """Run every analysis that the given things allow.

    Args:
        masks: The masks.
        stats: What they were selected from; adds sweeps, and importance curves where importance was recorded.
        scores: System → pair → score; adds gains over the baseline.
        families: Language → family; None takes those that `language_families.FAMILIES`
            has.
        comparison: Significance of the gains, shown beside them.
        baseline: Which system of `scores` the others are compared with; None takes the first.
        metric: The name of the scores.
        tiers: Language → resource tier, for groups of gains.
        pivot: The language that the trained pairs share; None finds it.
        seconds: How long recording and selection took, for the efficiency table.
        model_width: D of the model, for the size of the masks in the released format.
        by_setting: Setting → value → pair → score, of models trained with other settings; adds their mean
            gain over the baseline.
        probed: Results of `probing.py`.
        seed: Of the permutation test.

    Raises:
        ConfigError: If the scores lack the baseline, or there are settings' scores without it.
    """
    pivot = pivot_of(languages_of(masks.pairs), pivot) if pivot else find_pivot(masks.pairs)
    languages = sorted(languages_of(masks.pairs))
    known = known_families(languages) if families is None else families
    families = {code: known[code] for code in languages if code in known}
    overlaps = overlap(masks)
    course = progression(overlaps).without([pivot] if pivot else [])
    notes: dict[str, str] = {}
    nameless = [code for code in course.languages if code not in families]
    if nameless:
        notes[f"{_FAMILY_OF} {', '.join(nameless)}"] = (
            "none is known or given, so they are in no family's mean"
        )
    reference = baseline or next(iter(scores or {}), "")
    gained = None
    if scores and (baseline is not None or len(scores) > 1):
        gained = gains(scores, reference, tiers=tiers, pivot=pivot or "en", metric=metric)
        tested = {system for system, _ in comparison.tested()} if comparison else set(gained.systems)
        untested = [name for name in gained.systems if name not in tested]
        if untested:  # their gains are shown without a verdict
            why = f"the comparison tests {', '.join(sorted(tested))}"
            notes[f"significance of {', '.join(untested)}"] = why
    if gained is None or not gained.systems:
        gained, notes["groups of gains"] = None, "scores of a baseline and another system were not given"
    require(not by_setting or bool(scores), "gains against a setting need scores of the baseline")
    trained = [
        setting_gains(setting, values, (scores or {}).get(reference, {}), pivot=pivot or "en")
        for setting, values in (by_setting or {}).items()
    ]
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
        efficiency=efficiency(masks, seconds=seconds, model_width=model_width),
        gains=gained,
        comparison=comparison,
        setting_gains=(*trained, *(each for each in probed if isinstance(each, SettingGains))),
        ablation=next((each for each in probed if isinstance(each, Ablation)), None),
        stability=next((each for each in probed if isinstance(each, Stability)), None),
        notes=notes,
        **_from_stats(stats, notes),
    )


def file_name(*words: str) -> str:
    """Return words as a file's name: letters, digits and underscores."""
    return "_".join(re.findall(r"[a-z0-9]+", " ".join(words).lower()))


def _trees(course: Progression, notes: dict[str, str]) -> dict[str, LanguageTree]:
    trees = {}
    for number, site in enumerate(course.sites):
        try:
            trees[site.name] = language_tree(course.languages, course.iou[number])
        except ConfigError as error:
            notes[f"tree of {site.name}"] = str(error)
    return trees


def _from_stats(stats: ActivationStats | None, notes: dict[str, str]) -> dict[str, Any]:
    """Return what statistics add to an `Analysis`."""
    if stats is None:
        notes["sweeps and importance curves"] = "no statistics were given"
        return {}
    results: dict[str, Any] = {}
    # The last layer of each side, whose importance is drawn as in the paper.
    last = {site.side: site.name for site in stats.sites if site.kind == "ffn"}
    if last:
        results["coverage_sweep"] = coverage_sweep(stats)
    measure = recorded_importance(stats)
    if measure is None:
        notes["importance curves"] = "the statistics hold counts only; record with RecordConfig(te=True)"
        return results
    results["allocation_sweep"] = allocation_sweep(stats, measure)
    results["curves"] = tuple(importance_curves(stats, measure, name) for name in last.values())
    return results
