"""Variants of neuron specialization beyond the papers, to be measured against it."""

from dataclasses import dataclass, replace
from typing import ClassVar

from nspec_hf.core import require_weight
from nspec_hf.masks import SelectConfig
from nspec_hf.systems.masked import NeuronSpecialization
from nspec_hf.systems.run import Run


@dataclass(frozen=True, kw_only=True)
class SampledMasks(NeuronSpecialization):
    """As dense as the specialized masks, drawn with chances that follow the pair's activity.

    At temperature 0 these are the specialized masks, at a high one random ones; see
    `SelectConfig.temperature`.
    """

    name: ClassVar[str] = "sampled"
    source: ClassVar[str] = "beyond the papers: selection by chance, in proportion to activity"

    temperature: float = 0.3
    """Weight of chance, at least 0."""

    def __post_init__(self) -> None:
        """Check the weight, and what every system checks."""
        super().__post_init__()
        require_weight("temperature", self.temperature)

    def selection(self, run: Run) -> SelectConfig:
        """Return the rule that draws, with the run's seed."""
        return replace(super().selection(run), temperature=self.temperature, seed=run.seed)
