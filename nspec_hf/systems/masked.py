"""Systems that are masks: neuron specialization, allocation by importance, and the control, random masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, packed_width, warn, warn_unused
from nspec_hf.gating import MASKS_FOLDER, Attachment, GateConfig, GateMode, NeuronGate, Silence
from nspec_hf.masks import NeuronMasks, SelectConfig
from nspec_hf.recording import ActivationStats, RecordConfig
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System
from nspec_hf.training import last_checkpoint

Method = Literal["coverage", "te", "av", "random"]
_MASKS = "masks"
_KINDS = ("ffn", "attention", "ffn_out")  # what allocation counts
_SELECTS = {"allocation_te": "te", "allocation_av": "av", "random": "random"}


@dataclass(frozen=True, kw_only=True)
class Masked(System):
    """A system whose pairs keep some neurons each; a setting that is None is the experiment's.

    No parameter is added; what is kept is a bit for each neuron, pair and site. A zero-shot pair has the
    encoder masks of its source and the decoder masks of its target, through the pivot.
    """

    extracts: ClassVar[bool] = True
    prepared_from: ClassVar[tuple[str, ...]] = ("validation",)

    method: ClassVar[Method] = "coverage"
    """What `SelectConfig.method` is for this system, whatever the experiment says."""

    silence: Silence | None = None
    """What becomes of a neuron that is not kept; see `GateConfig.silence`."""

    mode: GateMode | None = None
    """How the masks act; see `GateConfig.mode`."""

    def check(self, run: Run) -> None:
        """Refuse to count on no text, and warn where the experiment selects by another method.

        Raises:
            ConfigError: If the experiment has no validation text, on which neurons are counted.
        """
        if not run.config.data.valid_split:
            raise ConfigError(f"{self.name} counts neurons on validation text; name it: data.valid_split")
        wanted = run.config.select.method
        if wanted not in (SelectConfig().method, self.method):
            warn(
                f"select.method is {wanted!r}, but {self.name} selects by {self.method}; the system decides: "
                f"{', '.join(name for name, method in _SELECTS.items() if method == wanted)}"
            )

    def masks(self, model: PreTrainedModel, run: Run) -> NeuronMasks:
        """Return the system's masks for this base."""
        raise NotImplementedError

    def prepare(self, model: PreTrainedModel, run: Run) -> Mapping[str, Any]:
        """Select the masks and keep them in `folder/masks`."""
        masks = self.masks(model, run)
        run.save(lambda: masks.save_pretrained(run.folder / _MASKS, model=str(run.folder / "model")))
        return {
            "masks": masks.fingerprint(),
            "density": {site.name: masks.density(site=site.name) for site in masks.sites},
        }

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment:
        """Put the gate on the model."""
        gate, pivot = run.config.gate, run.config.data.pivot
        settings = _with(gate, silence=self.silence, mode=self.mode, zero_shot="compose", pivot=pivot)
        return NeuronGate(model, self.kept_masks(run), settings).attach()

    def kept_masks(self, run: Run) -> NeuronMasks:
        """Return the masks that training goes on with, or ended with: the last checkpoint's, if any."""
        checkpoint = last_checkpoint(run.folder)
        folder = run.folder / _MASKS if checkpoint is None else Path(checkpoint) / MASKS_FOLDER
        return NeuronMasks.from_pretrained(folder)

    def extra_bytes(self, run: Run) -> int:
        """Return the size of the masks: a bit for each neuron, whole bytes a site and pair."""
        masks = self.kept_masks(run)
        return len(masks) * sum(packed_width(site.width) for site in masks.sites)


@dataclass(frozen=True, kw_only=True)
class NeuronSpecialization(Masked):
    """Continue training with each pair's most active neurons only (Tan et al. 2024, Eq. 1 and 4)."""

    name: ClassVar[str] = "neuron_specialization"
    source: ClassVar[str] = "Tan et al. 2024"

    needs: ClassVar[Mapping[str, str]] = {}
    """Setting → what it needs to be read; see `core/settings.py`."""

    coverage: float | None = None
    """k of Eq. 1: share of a layer's activations that the kept neurons cover, in (0, 1]."""

    coverage_decoder: float | None = None
    """The decoder's k, where it is not the encoder's."""

    by: Literal["pair", "source", "target", "separate"] | None = None
    """Who shares a mask; see `SelectConfig.by`."""

    sides: Sequence[str] | None = None
    """Which sides are gated: encoder, decoder."""

    count: Literal["tokens", "sentences"] | None = None
    """What is counted; see `RecordConfig.count`."""

    def check(self, run: Run) -> None:
        """Warn of settings that nothing reads."""
        super().check(run)
        warn_unused(self, self.needs, "settings.")

    def masks(self, model: PreTrainedModel, run: Run) -> NeuronMasks:
        """Return the masks by coverage."""
        return self.select(run.recorded(model, self.record(run)), run)

    def record(self, run: Run) -> RecordConfig:
        """Return what is counted."""
        return _with(run.config.record, count=self.count)

    def select(self, stats: ActivationStats, run: Run) -> NeuronMasks:
        """Return the masks by coverage of what was counted."""
        return NeuronMasks.from_config(stats, self.selection(run))

    def selection(self, run: Run) -> SelectConfig:
        """Return the rule that selects."""
        given = {"coverage": self.coverage, "coverage_decoder": self.coverage_decoder, "by": self.by}
        sides = None if self.sides is None else tuple(self.sides)
        return _with(run.config.select, method="coverage", sides=sides, **given)


@dataclass(frozen=True, kw_only=True)
class RandomMasks(NeuronSpecialization):
    """Random masks: as dense as the specialized ones site by site and pair by pair, or of one density.

    The control of Tan et al. 2024 (`density` 0.7: 30 % of each layer off), and the stricter one of equal
    density.
    """

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "control; Tan et al. 2024 silence 30 % at random"
    method: ClassVar[Method] = "random"
    needs: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("coverage", "coverage_decoder", "by", "count"), "not density"
    )

    density: float | None = None
    """Share of neurons kept at every gated site; None takes the specialized masks' own, site by site."""

    def masks(self, model: PreTrainedModel, run: Run) -> NeuronMasks:
        """Return the random masks, drawn with the run's seed."""
        specialized = super().masks(model, run)
        if self.density is None:
            return NeuronMasks.random(like=specialized, seed=run.seed)
        widths = {site.name: site.width for site in specialized.sites}
        return NeuronMasks.random(sites=widths, pairs=specialized.pairs, density=self.density, seed=run.seed)


@dataclass(frozen=True, kw_only=True)
class Allocation(Masked):
    """General neurons for all pairs, the others for those they matter to (Xie et al. 2021, Eq. 5 to 9).

    Over the outputs of all linears: attention, feed-forward and down projections.
    """

    name: ClassVar[str] = "allocation_te"
    source: ClassVar[str] = "Xie et al. 2021, importance by Taylor expansion"
    method: ClassVar[Method] = "te"

    general: float | None = None
    """ρ: share of neurons that every pair keeps, in [0, 1]."""

    threshold: float | None = None
    """k of Eq. 9: a pair gets a specific neuron where its importance exceeds k·max, in [0, 1]."""

    by: Literal["pair", "source", "target", "separate"] | None = None
    """Whom specific neurons belong to; see `SelectConfig.by`."""

    def check(self, run: Run) -> None:
        """Warn where the experiment records other sites than this system."""
        super().check(run)
        if run.config.record.kinds not in (RecordConfig().kinds, _KINDS):
            warn(f"record.kinds has no effect with {self.name}, which counts {', '.join(_KINDS)}")

    def masks(self, model: PreTrainedModel, run: Run) -> NeuronMasks:
        """Return the masks by importance."""
        record = _with(run.config.record, kinds=_KINDS, **{self.method: True})
        chosen = {name: getattr(self, name) for name in ("method", "general", "threshold", "by")}
        return NeuronMasks.from_config(run.recorded(model, record), _with(run.config.select, **chosen))


@dataclass(frozen=True, kw_only=True)
class AllocationByValue(Allocation):
    """The same with importance by absolute value (Xie et al. 2021, Eq. 8)."""

    name: ClassVar[str] = "allocation_av"
    source: ClassVar[str] = "Xie et al. 2021, importance by absolute value"
    method: ClassVar[Method] = "av"


def activation_shares(stats: ActivationStats, pairs: Sequence[str], site: str) -> Tensor:
    """Return each neuron's share of its pair's activations at a site, [P, F], in float64.

    So a pair with more text has no more say. A pair without activations has shares of 0.
    """
    counts_PF = torch.stack([stats[pair][site].double() for pair in pairs])
    return counts_PF / counts_PF.sum(dim=1, keepdim=True).clamp_min(1)


def _with(settings: RecordConfig | SelectConfig | GateConfig, **given: Any) -> Any:
    """Return the settings with those that are given."""
    return dataclasses.replace(
        settings, **{name: value for name, value in given.items() if value is not None}
    )
