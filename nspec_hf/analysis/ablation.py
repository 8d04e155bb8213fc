"""Erase neurons and see what it costs: general ones, a pair's own, another pair's.

Shape letters: P = pairs, F = neurons of a site, K = kinds of erasure.

Xie et al. (ACL 2021), Fig. 5: losing a fifth of the general neurons hurts every pair, losing half of the
neurons specific to one pair hurts that pair. Erasing is itself a mask, so this file makes masks; whoever
holds a model and a test set scores them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from nspec_hf.analysis.general_specific import general_neurons, specific_neurons
from nspec_hf.analysis.result import Result, axes
from nspec_hf.core import ConfigError, Pair, pair_index
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
    general, draw = general_neurons(masks), _Draw(share, seed)
    doomed = {name: draw(general_F) for name, general_F in general.items()}
    return _without(masks, doomed, f"{share:.0%} of the general neurons erased (seed {seed})")


def erase_specific(
    masks: NeuronMasks, share: float = SPECIFIC_SHARE, of: str | None = None, seed: int = 1
) -> NeuronMasks:
    """Return masks without a random share of specific neurons.

    Args:
        masks: What to erase from; not changed.
        share: Share of the specific neurons of each site, in [0, 1], rounded to whole neurons.
        of: A pair: the neurons specific to it are erased from all masks (so for every other pair this erases
            another pair's neurons). None: each pair loses a share of its own.
        seed: Of the draw; with one seed a larger share erases a superset.

    Raises:
        ConfigError: If the share lies outside [0, 1].
        UnknownPairError: If the masks do not hold the pair `of`.
    """
    specific, draw = specific_neurons(masks), _Draw(share, seed)
    if of is None:
        doomed = {name: torch.stack([draw(own_F) for own_F in own_PF]) for name, own_PF in specific.items()}
    else:
        row = pair_index(masks.pairs, of, "masks")
        doomed = {name: draw(own_PF[row]) for name, own_PF in specific.items()}
    whose = "each pair's own" if of is None else f"{of}'s"
    return _without(masks, doomed, f"{share:.0%} of {whose} specific neurons erased (seed {seed})")


@dataclass(frozen=True, kw_only=True)
class Erasure(Result):
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
        return score, change, float(self.change[kind][own].mean()), float(np.nanmean(self.change[kind][~own]))


def erasure_effect(
    masks: NeuronMasks,
    score: Callable[[NeuronMasks], Mapping[str, float]],
    of: Sequence[str] = (),
    *,
    general_share: float = GENERAL_SHARE,
    specific_share: float = SPECIFIC_SHARE,
    seed: int = 1,
) -> Erasure:
    """Score the masks as they are and after each erasure.

    Args:
        masks: What to erase from; not changed.
        score: Translates with the given masks and returns pair → score (BLEU, say).
        of: Pairs whose specific neurons are taken from all masks, one erasure each.
        general_share: Share of general neurons to erase.
        specific_share: Share of specific neurons to erase.
        seed: Of the draws.
    """
    erased = {
        "nothing": masks,
        "general": erase_general(masks, general_share, seed),
        "own": erase_specific(masks, specific_share, seed=seed),
        **{f"of {pair}": erase_specific(masks, specific_share, of=pair, seed=seed) for pair in of},
    }
    found = [score(each) for each in erased.values()]
    score_KP = np.array([[scores.get(pair, np.nan) for pair in masks.pairs] for scores in found], dtype=float)
    return Erasure(
        kinds=tuple(erased),
        pairs=tuple(masks.pairs),
        score=score_KP,
        change=score_KP - score_KP[0],
        general_share=general_share,
        specific_share=specific_share,
        seed=seed,
    )


class _Draw:
    """Draws a share of some neurons; how large it is does not change which are drawn first."""

    def __init__(self, share: float, seed: int) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"a share of neurons to erase lies in [0, 1], got {share}")
        self.share = share
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, of_F: Tensor) -> Tensor:
        numbers = of_F.nonzero()[:, 0]
        order = torch.randperm(len(numbers), generator=self.generator)
        drawn_F = torch.zeros_like(of_F)
        drawn_F[numbers[order[: round(self.share * len(numbers))]]] = True
        return drawn_F


def _without(masks: NeuronMasks, doomed: Mapping[str, Tensor], how: str) -> NeuronMasks:
    keep = {site.name: masks.keep[site.name] & ~doomed[site.name] for site in masks.sites}
    general = None
    if masks.general is not None:
        general = {site.name: masks.general[site.name] & keep[site.name].all(dim=0) for site in masks.sites}
    recipe = replace(masks.recipe, derived=(*masks.recipe.derived, how))
    return NeuronMasks(masks.pairs, keep, general=general, recipe=recipe)
