"""Statistics and masks in which the languages of a family share neurons, made without a model."""

import torch

from nspec_hf.core import english_centric
from nspec_hf.evaluation import Comparison
from nspec_hf.evaluation.significance import ComparisonRow
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats, RecordConfig

FAMILIES = {
    "de": "Germanic",
    "nl": "Germanic",
    "sv": "Germanic",
    "es": "Romance",
    "fr": "Romance",
    "it": "Romance",
}
PAIRS = english_centric(["en", *FAMILIES])


def kin_stats(width: int = 96, layers: int = 2, seed: int = 0) -> ActivationStats:
    sites = {f"model.{side}.layers.{n}.fc1": width for side in ("encoder", "decoder") for n in range(layers)}
    stats = ActivationStats(PAIRS, sites, RecordConfig(te=True))
    generator = torch.Generator().manual_seed(seed)
    for site in stats.sites:
        common = torch.randn(width, generator=generator)
        of_family = {name: torch.randn(width, generator=generator) for name in sorted(set(FAMILIES.values()))}
        for row, pair in enumerate(PAIRS):
            code = pair.source if site.side == "encoder" else pair.target
            own = torch.randn(width, generator=generator)
            height = common + 2 * of_family.get(FAMILIES.get(code), common) + 0.4 * own
            stats.counts[site.name][row] = (height.exp() * 100).long()
            stats.sums["te"][site.name][row] = height.exp().double()
    stats.sentence_counts += 40
    for side in stats.token_counts:
        stats.token_counts[side] += 900
    return stats


def kin_masks(stats: ActivationStats | None = None) -> NeuronMasks:
    return NeuronMasks.from_coverage(stats or kin_stats(), 0.8)


def kin_scores() -> dict[str, dict[str, float]]:
    baseline = {pair: 20.0 + i for i, pair in enumerate(PAIRS)}
    return {
        "baseline": baseline,
        "specialized": {pair: s + (1.5 if i % 3 else -0.5) for i, (pair, s) in enumerate(baseline.items())},
    }


def kin_comparison() -> Comparison:
    scores = kin_scores()
    rows = []
    for i, pair in enumerate(PAIRS):
        before, after = scores["baseline"][pair], scores["specialized"][pair]
        verdict = ("worse", "better", "not significant")[i % 3]
        rows.append(
            ComparisonRow(
                pair=pair,
                metric="bleu",
                system_name="specialized",
                baseline=before,
                system=after,
                delta=after - before,
                p_value=0.2 if i % 3 == 2 else 0.001,
                p_holm=0.9 if i % 3 == 2 else 0.012,
                verdict=verdict,
                verdict_holm=verdict,
                signature="nrefs:1|tok:13a|<b>",
            )
        )
    return Comparison(rows=tuple(rows), baseline_name="baseline", test="ar", n_samples=1000, seed=12345)
