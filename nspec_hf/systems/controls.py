"""Controls that keep as many neurons as neuron specialization does, chosen without regard to the pair.

Random masks (`masked.py`) ask whether it matters which neurons are kept; these two ask whether it matters
that they are a pair's own. One shared mask is generic pruning: all pairs keep the neurons that are most
active over all of them. Swapped masks are the specialized ones, each given to another pair.

Shape letters: P = pairs, F = neurons of a site.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from nspec_hf.core import require
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
        """Return the masks in an order drawn with the run's seed that leaves no pair its own."""
        specialized = super().select(stats, run)
        generator = torch.Generator().manual_seed(run.seed)
        order_P = torch.randperm(len(specialized.pairs), generator=generator)
        # One cycle through all pairs: each takes the masks of the next in a random order.
        taken_P = torch.empty_like(order_P).scatter(0, order_P, order_P.roll(-1))
        keep = {name: keep_PF[taken_P] for name, keep_PF in specialized.keep.items()}
        return NeuronMasks(specialized.pairs, keep, recipe=specialized.recipe)
