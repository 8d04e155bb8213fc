"""Variants of neuron specialization beyond the papers, to be measured against it.

Shape letters: P = pairs, F = neurons of a site.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError
from nspec_hf.gating import Attachment
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats
from nspec_hf.systems.masked import NeuronSpecialization, activation_shares
from nspec_hf.systems.run import Run
from nspec_hf.training import load_weights


@dataclass(frozen=True, kw_only=True)
class VarianceMasks(NeuronSpecialization):
    """As dense as the specialized masks, but for neurons that pairs use differently.

    Of two neurons that are as active for a pair, the one is kept whose activity varies more from pair to
    pair: neurons are ranked by share · (1 + standard deviation / mean of the share over pairs).
    """

    name: ClassVar[str] = "variance"
    source: ClassVar[str] = "beyond the papers: selection by variance across pairs"

    def select(self, stats: ActivationStats, run: Run) -> NeuronMasks:
        """Return the masks; a site of one pair has no variance, and the specialized mask."""
        specialized, keep = super().select(stats, run), {}
        for name, keep_PF in specialized.keep.items():
            share_PF = activation_shares(stats, specialized.pairs, name)
            variation_F = share_PF.std(dim=0, correction=0) / share_PF.mean(dim=0).clamp_min(1e-12)
            order_PF = (share_PF * (1 + variation_F)).argsort(dim=1, descending=True, stable=True)
            within_PF = torch.arange(keep_PF.shape[1]) < keep_PF.sum(dim=1, keepdim=True)
            keep[name] = torch.zeros_like(keep_PF).scatter(1, order_PF, within_PF)
        return NeuronMasks(specialized.pairs, keep, recipe=specialized.recipe)


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


@dataclass(frozen=True, kw_only=True)
class Averaged(NeuronSpecialization):
    """The mean of the weights of trainings that began with the same base; nothing is trained here."""

    name: ClassVar[str] = "averaged"
    source: ClassVar[str] = "beyond the papers: mean of weights, as in Wortsman et al. 2022 (model soups)"
    trains: ClassVar[bool] = False
    once: ClassVar[str] = "averaged: nothing is trained"
    needs: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("coverage", "coverage_decoder", "by", "sides", "count", "silence", "mode"), "masked"
    )

    rows: Sequence[str] = ("finetune", "ns")
    """What is averaged: rows of the same experiment and seed, or `ROW/sSEED`; they have been run."""

    masked: bool = True
    """Run each pair with its own neurons by `coverage`; False: with all."""

    @property
    def counts(self) -> bool:
        """Only where pairs run with their own neurons."""
        return self.masked

    def check(self, run: Run) -> None:
        """Refuse rows that have not been run."""
        super().check(run)
        if missing := [row for row in self.rows if not (self._trained(run, row) / "config.json").is_file()]:
            raise ConfigError(f"averaged: not run yet: {', '.join(missing)}")
        if not self.rows:
            raise ConfigError("averaged: rows names what is averaged")

    def _trained(self, run: Run, row: str) -> Path:
        """Return the folder of a row's trained model."""
        name, _, seed = row.partition("/s")
        return Run.of(run.config, name, int(seed or run.seed)).folder / "model"

    def prepare(self, model: PreTrainedModel, run: Run) -> Mapping[str, Any]:
        """Select the masks, if pairs run with their own neurons."""
        return super().prepare(model, run) if self.masked else {}

    def attach(self, model: PreTrainedModel, run: Run) -> Attachment | None:
        """Put the gate on, if pairs run with their own neurons."""
        return super().attach(model, run) if self.masked else None

    def train(self, run: Run) -> dict[str, Any]:
        """Average the weights, and look at the validation loss."""
        model = self.model(run)
        extraction = self.extraction(model, run)
        total: dict[str, Tensor] = {}
        for row in self.rows:
            load_weights(model, self._trained(run, row))
            for name, value in model.state_dict().items():
                total[name] = total[name] + value if name in total else value.clone()
        model.load_state_dict({name: value / len(self.rows) for name, value in total.items()})
        run.save(lambda: model.save_pretrained(run.folder / "model"))
        loss = run.loss(model, self.attach(model, run))
        nothing = {"updates": 0, "training_seconds": 0.0, "extra_parameters": 0}
        size = self.extra_bytes(run) if self.masked else 0
        return {"extraction": extraction, "validation_loss": {0: loss}, "extra_bytes": size, **nothing}
