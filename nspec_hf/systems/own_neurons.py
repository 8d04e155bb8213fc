"""Own neurons: a wider feed-forward layer in which each pair has some neurons of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from transformers import PreTrainedModel

from nspec_hf.gating import grow, grown_masks
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from nspec_hf.systems.masked import NeuronSpecialization
from nspec_hf.systems.run import Run


@dataclass(frozen=True, kw_only=True)
class OwnNeurons(NeuronSpecialization):
    """Add neurons to a trained base, give each pair its own of them, and go on training all (`growth.py`).

    Masks by coverage only take away; where the base is too small for its pairs, this gives. Its controls are
    the same neurons for all pairs: `owner` all with as many as a pair computes here, or as many as there are.
    """

    name: ClassVar[str] = "own_neurons"
    source: ClassVar[str] = "beyond the papers: growth.py"
    once: ClassVar[str] = "own neurons keep their masks"  # what a new neuron does is not counted yet
    needs: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("coverage", "coverage_decoder", "by", "count", "sides"), "old=specialized"
    )

    share: float = 0.25
    """New neurons of each owner, as a share of a layer's."""

    owner: Literal["pair", "source", "target", "separate", "all"] = "pair"
    """Who shares new neurons; `separate`: by source in the encoder, by target in the decoder."""

    old: Literal["all", "specialized"] = "all"
    """Which of the base's neurons a pair keeps; `specialized`: by coverage, with the settings of
    `neuron_specialization`."""

    @property
    def counts(self) -> bool:
        """Only where old neurons are specialized."""
        return self.old == "specialized"

    def model(self, run: Run) -> PreTrainedModel:
        """Return the wider base."""
        model = self.base(run)
        grow(model, run.pairs, self.share, self.owner, seed=run.seed)
        return model

    def masks(self, model: PreTrainedModel, run: Run) -> NeuronMasks:
        """Return which old and new neurons each pair has."""
        base = run.base()
        old = super().masks(base, run) if self.old == "specialized" else None
        return grown_masks(find_sites(base), run.pairs, self.share, self.owner, old)
