"""Variants of neuron specialization beyond the papers, to be measured against it.

Shape letters: P = pairs, F = neurons of a site.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from nspec_hf.core import is_number, require
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats
from nspec_hf.systems.masked import NeuronSpecialization, activation_shares
from nspec_hf.systems.run import Run


@dataclass(frozen=True, kw_only=True)
class SampledMasks(NeuronSpecialization):
    """As dense as the specialized masks, drawn with chances that follow the pair's activity.

    So a pair has most of its own neurons, and pairs share fewer. Drawn without replacement by Gumbel-top-k
    (Kool et al. 2019): the largest of log share + temperature · Gumbel noise. At temperature 0 these are the
    specialized masks, at a high one random ones.
    """

    name: ClassVar[str] = "sampled"
    source: ClassVar[str] = "beyond the papers: selection by chance, in proportion to activity"

    temperature: float = 0.3
    """Weight of the noise, at least 0."""

    def __post_init__(self) -> None:
        """Check the weight."""
        given = self.temperature
        require(is_number(given) and given >= 0, f"temperature is a number of at least 0, got {given!r}")

    def select(self, stats: ActivationStats, run: Run) -> NeuronMasks:
        """Return the masks, drawn with the run's seed."""
        specialized, keep = super().select(stats, run), {}
        generator = torch.Generator().manual_seed(run.seed)
        for name, keep_PF in specialized.keep.items():
            share_PF = activation_shares(stats, specialized.pairs, name)
            chance_PF = torch.rand(share_PF.shape, generator=generator, dtype=torch.float64)
            noise_PF = -(-chance_PF.clamp_min(1e-300).log()).log()
            score_PF = share_PF.clamp_min(1e-12).log() + self.temperature * noise_PF
            order_PF = score_PF.argsort(dim=1, descending=True, stable=True)
            within_PF = torch.arange(keep_PF.shape[1]) < keep_PF.sum(dim=1, keepdim=True)
            keep[name] = torch.zeros_like(keep_PF).scatter(1, order_PF, within_PF)
        return NeuronMasks(specialized.pairs, keep, recipe=specialized.recipe)
