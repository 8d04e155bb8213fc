"""Ablation: what it costs to erase general neurons, neurons specific to a pair, or those of another pair.

Shape letters: P = pairs, F = neurons of a site, K = kinds of ablation.

Xie et al. (ACL 2021), Fig. 5: losing a fifth of the general neurons hurts every pair, losing half of the
neurons specific to one pair hurts that pair. Erased neurons are themselves a mask, so this file makes masks;
a function of `probing.py` translates with them and scores.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from nspec_hf.analysis.general_specific import general_neurons, specific_neurons
from nspec_hf.analysis.result import Result, axes
from nspec_hf.core import Pair, as_pairs, by_pair, pair_index, require_share
from nspec_hf.masks import NeuronMasks

GENERAL_SHARE = 0.2
"""Share of general neurons that the paper erases."""
SPECIFIC_SHARE = 0.5
"""Share of specific neurons that the paper erases."""


def erase_general(masks: NeuronMasks, share: float = GENERAL_SHARE, seed: int = 1) -> NeuronMasks:
    """Return masks in which no pair keeps a random share of each site's general neurons.

    Args:
        masks: What to erase from; not changed.
        share: Share of the general neurons of each site, in [0, 1], rounded to whole neurons.
        seed: Of the draw; with one seed a larger share erases a superset.

    Raises:
        ConfigError: If the share lies outside [0, 1].
    """
    return _without(masks, general_neurons(masks), share, seed, "the general neurons")


def erase_specific(
    masks: NeuronMasks, share: float = SPECIFIC_SHARE, of: str | None = None, seed: int = 1
) -> NeuronMasks:
    """Return masks without a random share of specific neurons.

    Args:
        masks: What to erase from; not changed.
        share: Share of the specific neurons of each site, in [0, 1], rounded to whole neurons.
        of: A pair: the neurons specific to it are erased from all masks (so for every other pair this erases
            another pair's neurons). None: each pair loses a share of those specific to it.
        seed: Of the draw; with one seed a larger share erases a superset.

    Raises:
        ConfigError: If the share lies outside [0, 1].
        UnknownPairError: If the masks do not hold the pair `of`.
    """
    specific = specific_neurons(masks)
    if of is None:
        return _without(masks, specific, share, seed, "each pair's own specific neurons")
    row = pair_index(masks.pairs, of, "masks")
    own = {name: specific_PF[row] for name, specific_PF in specific.items()}
    return _without(masks, own, share, seed, f"{of}'s specific neurons")


@dataclass(frozen=True, kw_only=True)
class Ablation(Result):
    """Scores before and after erasing neurons (Xie et al., Fig. 5)."""

    kinds: tuple[str, ...]
    """`nothing`, `general`, `own`, and `of PAIR` for each pair whose neurons were taken from all."""
    pairs: tuple[Pair, ...]
    score: np.ndarray = field(metadata=axes(kind="kinds", pair="pairs"))
    """float64 [K, P]; NaN where a pair was not scored."""
    change: np.ndarray = field(metadata=axes(kind="kinds", pair="pairs"))
    """Score minus the score with nothing erased, float64 [K, P]."""
    general_share: float
    specific_share: float
    seed: int

    def mean_change(self, kind: int) -> tuple[float, float, float | None, float | None]:
        """Return mean score and change of a kind; where one pair's neurons go, its change and the others'."""
        score, change = float(np.nanmean(self.score[kind])), float(np.nanmean(self.change[kind]))
        if not self.kinds[kind].startswith("of "):
            return score, change, None, None
        own = np.array([pair == self.kinds[kind].removeprefix("of ") for pair in self.pairs])
        others = self.change[kind][~own]
        known = others[~np.isnan(others)]  # none where there is one pair
        of_others = float(known.mean()) if len(known) else None
        return score, change, float(self.change[kind][own].mean()), of_others


def ablate(
    masks: NeuronMasks,
    score_masks: Callable[[NeuronMasks], Mapping[str, float]],
    of: Sequence[str] = (),
    seed: int = 1,
) -> Ablation:
    """Score the masks as they are and after each ablation.

    Args:
        masks: What to erase from; not changed.
        score_masks: Translates with the given masks and returns pair → score (BLEU, say).
        of: Pairs whose specific neurons are taken from all masks, one ablation each.
        seed: Of the draws.
    """
    given = {
        "nothing": masks,
        "general": erase_general(masks, seed=seed),
        "own": erase_specific(masks, seed=seed),
        **{f"of {pair}": erase_specific(masks, of=pair, seed=seed) for pair in as_pairs(of)},
    }
    scores = [by_pair(score_masks(ablated)) for ablated in given.values()]
    score_KP = np.array([[row.get(pair, np.nan) for pair in masks.pairs] for row in scores], dtype=float)
    return Ablation(
        kinds=tuple(given),
        pairs=tuple(masks.pairs),
        score=score_KP,
        change=score_KP - score_KP[0],
        general_share=GENERAL_SHARE,
        specific_share=SPECIFIC_SHARE,
        seed=seed,
    )


def _without(
    masks: NeuronMasks, neurons: Mapping[str, Tensor], share: float, seed: int, whose: str
) -> NeuronMasks:
    """Return masks without a random share of some neurons; a larger share takes the same ones first.

    The neurons are booleans for each site, [F] for all pairs or [P, F] for each; the recipe says whose.
    """
    require_share("share of neurons to erase", share)
    generator, keep = torch.Generator().manual_seed(seed), {}
    for name, of_PF in neurons.items():
        erased_PF = torch.zeros_like(torch.atleast_2d(of_PF))
        for erased_F, of_F in zip(erased_PF, torch.atleast_2d(of_PF), strict=True):
            numbers = of_F.nonzero()[:, 0]
            order = torch.randperm(len(numbers), generator=generator)
            erased_F[numbers[order[: round(share * len(numbers))]]] = True
        keep[name] = masks.keep[name] & ~erased_PF
    general = masks.general and {name: masks.general[name] & keep[name].all(dim=0) for name in keep}
    how = f"{share:.0%} of {whose} erased (seed {seed})"
    recipe = replace(masks.recipe, derived=(*masks.recipe.derived, how))
    return NeuronMasks(masks.pairs, keep, general=general, recipe=recipe)
