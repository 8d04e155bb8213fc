"""Train one model that runs with many masks: dense, and at every level of sparsity in between.

Shape letters: B = samples, T = target tokens, V = vocabulary, n = the tokens of a block.

Each micro-batch draws a level. With a teacher it is run twice: with the densest masks, and with the level's,
which learns from the text and from the dense pass's distribution alike (the sandwich rule and in-place
distillation of slimmable networks, Yu & Huang 2019, with masks in the place of widths).
The trap: a gate's masks must not change between a forward pass and its backward pass, so the dense pass goes
all the way back before the level begins its own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nspec_hf.core import ConfigError, TrainingSetupError, require, require_share
from nspec_hf.data import IGNORED
from nspec_hf.gating import NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import tokens_of_block
from nspec_hf.training.loss import predicted, shifts_labels
from nspec_hf.training.trainer import SpecializationTrainer


class ElasticTrainer(SpecializationTrainer):
    """A `SpecializationTrainer` that draws masks for every micro-batch, and then gives the gate its own back.

    Afterwards the model runs at each of them: `Translator(model, tokenizer, masks, coverage=0.8)`.

    Args:
        levels: The masks to draw from, for the gate's pairs and sites; those that are named twice are drawn
            twice as often. None: all that the gate's masks keep in their folder (`NeuronMasks.from_coverage(
            stats, coverage=0.6, levels=(1.0, 0.4))`), without the teacher's own.
        dense: The masks of the teacher's pass. None: the densest of them.
        teacher: Weight of the dense distribution in the loss of the drawn level, in [0, 1]: about twice the
            work of an update. None: no teacher.

    Raises:
        ConfigError: If there is no gate with masks, there are no levels, or the weight is out of range.
    """

    def __init__(
        self,
        *args: Any,
        levels: Sequence[NeuronMasks] | None = None,
        dense: NeuronMasks | None = None,
        teacher: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.gate, NeuronGate):
            raise ConfigError("elastic training draws among masks: it needs a NeuronGate")
        if teacher is not None:
            require_share("teacher", teacher)
        self.masked: NeuronGate = self.gate
        kept = all_levels(self.gate.masks) if levels is None else list(levels)
        self.dense = None if teacher is None else dense or max(kept, key=NeuronMasks.density, default=None)
        self.levels = kept if levels is not None else [each for each in kept if each is not self.dense]
        self.teacher, self.drawn = teacher, 0
        require(
            len(kept) > (levels is None),
            "elastic training needs levels to draw from, and the masks keep one coverage alone; select them "
            "together: levels=(1.0, 0.8), or nspec select --levels '[1.0, 0.8]'",
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `SpecializationTrainer` does; the draws begin with an update, also after an interrupt.

        Raises:
            TrainingSetupError: Also if there is a teacher under DeepSpeed, where the dense pass would make an
                update of its own.
        """
        if self.teacher is not None and self.is_deepspeed_enabled:
            raise TrainingSetupError(
                "elastic training with a teacher goes back twice in a micro-batch, and DeepSpeed would make "
                "an update each time; train under DDP or FSDP, or without the teacher"
            )
        self.drawn = 0
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on one micro-batch; evaluation, checkpoints and translation see the gate's own masks."""
        final = self.masked.masks
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self.masked.replace_masks(final)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of the drawn level; while gradients are off, that of the gate's own masks."""
        if not (model.training and torch.is_grad_enabled()):
            return super().compute_loss(model, inputs, *args, **kwargs)
        level = self._draw()
        if self.dense is None or self.teacher is None:
            self.masked.replace_masks(level)
            return super().compute_loss(model, inputs, *args, **kwargs)
        items = kwargs.get("num_items_in_batch")
        both = partial(super().compute_loss, model, return_outputs=True, num_items_in_batch=items)
        self.masked.replace_masks(self.dense)
        dense_loss, teacher = both(dict(inputs))
        self.accelerator.backward(dense_loss / 2)
        self.masked.replace_masks(level)
        loss, student = both(dict(inputs))
        # The mean of the processes' gradients is taken, so each counts as many times over, as in the loss.
        tokens = None if items is None else items / self.accelerator.num_processes
        seen_BT = predicted(inputs["labels"], shifts_labels(self.network))
        apart = divergence(teacher.logits.detach(), student.logits, seen_BT, tokens)
        # The dense half has gone back already; it is added for the log alone.
        total = (dense_loss.detach() + (1 - self.teacher) * loss + self.teacher * apart) / 2
        return (total, student) if kwargs.get("return_outputs") else total

    def _draw(self) -> NeuronMasks:
        """Return the next level; the draws depend on the seed and on how many came before alone."""
        # From the number of updates, so that a resumed run draws what an uninterrupted one would.
        step = self.state.global_step * self.args.gradient_accumulation_steps + self.drawn
        # The last update of an epoch may have fewer micro-batches than the others.
        self.drawn = 0 if self.accelerator.sync_gradients else self.drawn + 1
        return self.levels[np.random.default_rng((self.args.seed, step)).integers(len(self.levels))]


def all_levels(masks: NeuronMasks) -> list[NeuronMasks]:
    """Return the masks, and those of every other coverage that they keep."""
    return [masks, *(masks.at(coverage) for coverage in masks.levels)]


def divergence(
    teacher_BTV: Tensor, student_BTV: Tensor, labels_BT: Tensor, tokens: Tensor | int | None = None
) -> Tensor:
    """Return the Kullback-Leibler divergence of the student from the teacher in nats, a scalar.

    Summed over target tokens that are no padding and divided by `tokens`; None takes this batch's number.
    """
    seen_BT = labels_BT != IGNORED
    # By blocks that are computed anew on the way back: of a large vocabulary, float32 copies of both passes'
    # logits would be most of the memory of an update.
    size = tokens_of_block(student_BTV)
    blocks = (each.flatten(0, 1).split(size) for each in (teacher_BTV, student_BTV, seen_BT))
    total = torch.stack(
        [checkpoint(_divergence, *block, use_reentrant=False) for block in zip(*blocks, strict=True)]
    ).sum()
    return total / (seen_BT.sum() if tokens is None else tokens)


def _divergence(teacher_nV: Tensor, student_nV: Tensor, seen_n: Tensor) -> Tensor:
    """Return the sum over the tokens of a block that are no padding."""
    precision = torch.promote_types(student_nV.dtype, torch.float32)
    student_nV, teacher_nV = (
        torch.log_softmax(each[seen_n].to(precision), dim=-1) for each in (student_nV, teacher_nV)
    )
    return nn.functional.kl_div(student_nV, teacher_nV, log_target=True, reduction="sum")
