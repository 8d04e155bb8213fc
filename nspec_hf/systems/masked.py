"""Systems that are masks: neuron specialization, allocation by importance, and the control, random masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from transformers import PreTrainedModel

from nspec_hf.attachment import Attachment
from nspec_hf.config import GateConfig, RecordConfig, SelectConfig
from nspec_hf.gate import NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.provenance import plain
from nspec_hf.systems.system import System, Workbench

_MASKS = "masks"


@dataclass(frozen=True, kw_only=True)
class Masked(System):
    """A system whose pairs keep some neurons each; a setting that is None is the experiment's.

    No parameter is added; what is kept is a bit for each neuron, pair and site. A zero-shot pair has the
    encoder masks of its source and the decoder masks of its target, through the pivot.
    """

    extracts: ClassVar[bool] = True

    silence: Literal["neuron", "weights"] | None = None
    """What becomes of a neuron that is not kept; see `GateConfig.silence`."""

    mode: Literal["mask", "slice", "gradient"] | None = None
    """How the masks act; see `GateConfig.mode`."""

    def masks(self, model: PreTrainedModel, bench: Workbench) -> NeuronMasks:
        """Return the system's masks for this base."""
        raise NotImplementedError

    def prepare(self, model: PreTrainedModel, bench: Workbench) -> Mapping[str, Any]:
        """Select the masks and keep them in `folder/masks`."""
        masks = self.masks(model, bench)
        bench.save(lambda: masks.save_pretrained(bench.folder / _MASKS, model=str(bench.folder / "model")))
        return {
            "masks": masks.fingerprint(),
            "density": {site.name: masks.density(site=site.name) for site in masks.sites},
            "density_by_pair": {str(pair): masks.density(pair) for pair in masks.pairs},
            "mask_recipe": plain(masks.recipe),
        }

    def attach(self, model: PreTrainedModel, bench: Workbench) -> Attachment:
        """Put the gate on the model."""
        given = {"silence": self.silence, "mode": self.mode}
        settings: GateConfig = dataclasses.replace(
            bench.config.gate,
            zero_shot="compose",
            pivot=bench.config.data.pivot,
            **{name: value for name, value in given.items() if value is not None},
        )
        masks = NeuronMasks.from_pretrained(bench.folder / _MASKS)
        return NeuronGate(model, masks, settings).attach()

    def extra_bytes(self, bench: Workbench) -> int:
        """Return the size of the masks: a bit for each neuron, whole bytes a site and pair."""
        masks = NeuronMasks.from_pretrained(bench.folder / _MASKS)
        return len(masks) * sum((site.width + 7) // 8 for site in masks.sites)


@dataclass(frozen=True, kw_only=True)
class NeuronSpecialization(Masked):
    """Continue training with each pair's most active neurons only (Tan et al. 2024, Eq. 1 and 4)."""

    name: ClassVar[str] = "neuron_specialization"
    source: ClassVar[str] = "Tan et al. 2024"

    coverage: float | None = None
    """k of Eq. 1: share of a layer's activations that the kept neurons cover, in (0, 1]."""

    sides: Sequence[str] | None = None
    """Which sides are gated: encoder, decoder."""

    count: Literal["tokens", "sentences"] | None = None
    """What is counted; see `RecordConfig.count`."""

    def masks(self, model: PreTrainedModel, bench: Workbench) -> NeuronMasks:
        """Return the masks by coverage."""
        record = _with(bench.config.record, count=self.count)
        sides = None if self.sides is None else tuple(self.sides)
        select = _with(bench.config.select, method="coverage", coverage=self.coverage, sides=sides)
        return NeuronMasks.from_config(bench.recorded(model, record), select)


@dataclass(frozen=True, kw_only=True)
class RandomMasks(NeuronSpecialization):
    """Random masks: as dense as the specialized ones site by site and pair by pair, or of one density.

    The control of Tan et al. 2024 (`density` 0.7: 30 % of each layer off), and the stricter one of equal
    density.
    """

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "control; Tan et al. 2024 silence 30 % at random"

    density: float | None = None
    """Share of neurons kept at every gated site; None takes the specialized masks' own, site by site."""

    def masks(self, model: PreTrainedModel, bench: Workbench) -> NeuronMasks:
        """Return the random masks, drawn with the run's seed."""
        specialized = super().masks(model, bench)
        if self.density is None:
            return NeuronMasks.random(like=specialized, seed=bench.seed)
        widths = {site.name: site.width for site in specialized.sites}
        return NeuronMasks.random(
            sites=widths, pairs=specialized.pairs, density=self.density, seed=bench.seed
        )


@dataclass(frozen=True, kw_only=True)
class Allocation(Masked):
    """General neurons for all pairs, the others for those they matter to (Xie et al. 2021, Eq. 5 to 9).

    Over the outputs of all linears: attention, feed-forward and down projections.
    """

    name: ClassVar[str] = "allocation_te"
    source: ClassVar[str] = "Xie et al. 2021, importance by Taylor expansion"
    score: ClassVar[Literal["te", "av"]] = "te"

    general: float | None = None
    """ρ: share of neurons that every pair keeps, in [0, 1]."""

    threshold: float | None = None
    """k of Eq. 9: a pair gets a specific neuron where its importance exceeds k·max, in [0, 1]."""

    by: Literal["pair", "source", "target", "separate"] | None = None
    """Whom specific neurons belong to; see `SelectConfig.by`."""

    def masks(self, model: PreTrainedModel, bench: Workbench) -> NeuronMasks:
        """Return the masks by importance."""
        kinds = ("ffn", "attention", "ffn_out")
        record = _with(bench.config.record, kinds=kinds, **{self.score: True})
        given = {"general": self.general, "threshold": self.threshold, "by": self.by}
        select = _with(bench.config.select, method=self.score, **given)
        return NeuronMasks.from_config(bench.recorded(model, record), select)


@dataclass(frozen=True, kw_only=True)
class AllocationByValue(Allocation):
    """The same with importance by absolute value (Xie et al. 2021, Eq. 8)."""

    name: ClassVar[str] = "allocation_av"
    source: ClassVar[str] = "Xie et al. 2021, importance by absolute value"
    score: ClassVar[Literal["te", "av"]] = "av"


def _with(settings: RecordConfig | SelectConfig, **given: Any) -> Any:
    """Return the settings with those that are given."""
    return dataclasses.replace(
        settings, **{name: value for name, value in given.items() if value is not None}
    )
