"""Controls that keep as many neurons as neuron specialization does, chosen without regard to the pair.

Random masks (`masked.py`) ask whether it matters which neurons are kept; these two ask whether it matters
that they are a pair's own. One shared mask is generic pruning: all pairs keep the neurons that are most
active over all of them. Swapped masks are the specialized ones, each given to a pair that shares few of them.

Shape letters: P = pairs, F = neurons of a site.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from nspec_hf.analysis import overlap
from nspec_hf.core import in_short, require, warn
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats
from nspec_hf.systems.masked import NeuronSpecialization, activation_shares
from nspec_hf.systems.run import Run


@dataclass(frozen=True, kw_only=True)
class SharedMask(NeuronSpecialization):
    """One mask for all pairs, as dense as the specialized ones are on average at each site."""

    name: ClassVar[str] = "shared"
    source: ClassVar[str] = "control: generic pruning by activity"

    def select(self, stats: ActivationStats, run: Run) -> NeuronMasks:
        """Return the neurons with the highest mean share of activations over pairs, for every pair.

        The mean is over pairs, not over tokens, so that a pair with more text has no more say.
        """
        specialized, keep = super().select(stats, run), {}
        for name, keep_PF in specialized.keep.items():
            share_F = activation_shares(stats, specialized.pairs, name).mean(dim=0)
            kept = round(keep_PF.sum().item() / len(keep_PF))
            shared_F = torch.zeros_like(keep_PF[0])
            shared_F[share_F.argsort(descending=True, stable=True)[:kept]] = True
            keep[name] = shared_F.expand_as(keep_PF)
        return NeuronMasks(specialized.pairs, keep, recipe=specialized.recipe)


@dataclass(frozen=True, kw_only=True)
class SwappedMasks(NeuronSpecialization):
    """The specialized masks, each given to another pair: as dense, as structured, and the wrong ones."""

    name: ClassVar[str] = "swapped"
    source: ClassVar[str] = "control: masks of other pairs"

    def check(self, run: Run) -> None:
        """Refuse a single pair, which has nothing to swap with, and pairs that share a mask by a language."""
        super().check(run)
        require(len(run.pairs) > 1, "swapped masks need two pairs or more")
        by = self.selection(run).by
        require(
            by == "pair",
            f"with by={by!r} a pair may get another one's mask that is its own too; swap masks of by='pair'",
        )

    def select(self, stats: ActivationStats, run: Run) -> NeuronMasks:
        """Return the masks in the order that leaves no pair its own and as few of its neurons as can be.

        An order drawn at random will not do: pairs with a source in common have nearly the same encoder's
        neurons (the same, where they were counted on the same sentences), those with a target the decoder's.
        What overlaps is the mean IoU over sites; the seed decides between orders that are as good.

        Warns:
            UserWarning: If pairs keep all their own neurons on a side, since any other pair has the same.
        """
        specialized = super().select(stats, run)
        pairs, keep = specialized.pairs, specialized.keep
        shared_PP = np.nan_to_num(overlap(specialized).iou).mean(axis=0)
        np.fill_diagonal(shared_PP, len(pairs))  # more than all others together
        order_P = np.random.default_rng(run.seed).permutation(len(pairs))
        rows, columns = linear_sum_assignment(shared_PP[np.ix_(order_P, order_P)])
        taken_P = torch.empty(len(pairs), dtype=torch.long)
        taken_P[order_P[rows]] = torch.from_numpy(order_P[columns])
        swapped = {name: keep_PF[taken_P] for name, keep_PF in keep.items()}
        for side in dict.fromkeys(site.side for site in specialized.sites):
            names = [site.name for site in specialized.sites if site.side == side]
            differs_P = torch.stack([(swapped[name] != keep[name]).any(dim=1) for name in names]).any(dim=0)
            own = [pair for pair, differs in zip(pairs, differs_P.tolist(), strict=True) if not differs]
            if own:
                warn(f"masks are swapped, and still {in_short(own)} keep their own neurons in the {side}")
        return NeuronMasks(pairs, swapped, recipe=specialized.recipe)
