"""Train one model that runs with many masks: dense, and at every level of sparsity in between.

Shape letters: B = samples, T = target tokens, V = vocabulary, N = target tokens that are no padding.

Each micro-batch draws a level. With a teacher it is run twice: with all neurons, and with the level's, which
learns from the text and from the dense pass's distribution alike (the sandwich rule and in-place distillation
of slimmable networks, Yu & Huang 2019, with masks in the place of widths). The trap: a gate's masks must not
change between a forward pass and its backward pass, so the dense pass goes all the way back before the level
begins its own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nspec_hf.core import ConfigError
from nspec_hf.data import IGNORED
from nspec_hf.gating import NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.training.trainer import SpecializationTrainer


class ElasticTrainer(SpecializationTrainer):
    """A `SpecializationTrainer` that draws masks for every micro-batch, and then gives the gate its own back.

    Args:
        levels: The masks to draw from, for the gate's pairs and sites; those that are named twice are drawn
            twice as often.
        dense: The masks of the teacher's pass, usually those of coverage 1. None: no second pass.
        teacher: With `dense`: weight of the dense distribution in the loss of the drawn level, in [0, 1].

    Raises:
        ConfigError: If there is no gate with masks, there are no levels, or the weight is out of range.
    """

    def __init__(
        self,
        *args: Any,
        levels: Sequence[NeuronMasks],
        dense: NeuronMasks | None = None,
        teacher: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.gate, NeuronGate) or not levels or not 0 <= teacher <= 1:
            raise ConfigError(
                "elastic training needs a NeuronGate, at least one level, and a weight in [0, 1]"
            )
        self.masked: NeuronGate = self.gate
        self.levels, self.dense, self.teacher = list(levels), dense, teacher
        self.drawn = 0

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
        if self.dense is None:
            self.masked.replace_masks(level)
            return super().compute_loss(model, inputs, *args, **kwargs)
        items = kwargs.get("num_items_in_batch")
        both = partial(super().compute_loss, model, return_outputs=True, num_items_in_batch=items)
        self.masked.replace_masks(self.dense)
        dense_loss, teacher = both(dict(inputs))
        self.accelerator.backward(dense_loss / 2)
        self.masked.replace_masks(level)
        loss, student = both(dict(inputs))
        apart = divergence(teacher.logits.detach(), student.logits, inputs["labels"], items)
        # The dense half has gone back already; it is added for the log alone.
        total = (dense_loss.detach() + (1 - self.teacher) * loss + self.teacher * apart) / 2
        return (total, student) if kwargs.get("return_outputs") else total

    def _draw(self) -> NeuronMasks:
        """Return the next level; the draws depend on the seed and on how many came before alone."""
        # From the number of updates, so that a resumed run draws what an uninterrupted one would.
        step = self.state.global_step * self.args.gradient_accumulation_steps + self.drawn
        self.drawn = (self.drawn + 1) % self.args.gradient_accumulation_steps
        return self.levels[np.random.default_rng((self.args.seed, step)).integers(len(self.levels))]


def divergence(
    teacher_BTV: Tensor, student_BTV: Tensor, labels_BT: Tensor, tokens: Tensor | int | None = None
) -> Tensor:
    """Return the Kullback-Leibler divergence of the student from the teacher in nats, a scalar.

    Summed over target tokens that are no padding and divided by `tokens`; None takes this batch's number.
    """
    seen_BT = labels_BT != IGNORED
    student_NV = torch.log_softmax(student_BTV[seen_BT].float(), dim=-1)
    teacher_NV = torch.log_softmax(teacher_BTV[seen_BT].float(), dim=-1)
    total = nn.functional.kl_div(student_NV, teacher_NV, log_target=True, reduction="sum")
    return total / (seen_BT.sum() if tokens is None else tokens)
