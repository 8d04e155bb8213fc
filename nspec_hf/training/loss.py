"""The training loss: cross entropy summed over target tokens, divided once by all tokens of the global batch.

Shape letters: B = samples, T = target tokens, V = vocabulary, P = pairs.

The trap: for M2M-100, mBART, Marian and T5 the Trainer's own loss and gradients come out multiplied by
gradient accumulation × processes, and its label smoothing crashes on M2M-100. A sum over tokens with one
division is exact for uneven batches too, and gives the loss of each pair on the way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nspec_hf.core import Pair, TrainingSetupError, add_up
from nspec_hf.data import IGNORED


def token_losses(logits_BTV: Tensor, labels_BT: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy of every target token in nats, float32 [B, T]; padding has 0.

    With smoothing ε it is (1 − ε)·(−log p(y)) + ε·(the mean of −log p over the vocabulary).
    """
    return nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(),
        labels_BT.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="none",
    ).view_as(labels_BT)


class PairTally:
    """Sums of loss and of target tokens for every pair, kept on the device until somebody asks."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)
        self.sums_P2 = torch.zeros(len(self.pairs), 2, dtype=torch.float64)

    def add(self, losses_BT: Tensor, labels_BT: Tensor, pair_ids_B: Tensor) -> None:
        """Count one batch; `pair_ids_B` may also be one number for all rows, shape [1]."""
        if self.sums_P2.device != losses_BT.device:
            self.sums_P2 = self.sums_P2.to(losses_BT.device)
        sums_B2 = torch.stack(
            [losses_BT.detach().double().sum(1), (labels_BT != IGNORED).double().sum(1)], dim=1
        )
        self.sums_P2.index_add_(0, pair_ids_B.to(losses_BT.device).expand(len(sums_B2)), sums_B2)

    def take(self) -> tuple[float, dict[Pair, float]]:
        """Return the mean loss a token, overall and of each pair that came by, and start anew.

        Sums over all processes, so all of them must call it together.
        """
        sums_P2 = add_up(self.sums_P2.clone()).cpu()
        self.sums_P2.zero_()
        total, tokens = sums_P2.sum(dim=0).tolist()
        each = {
            pair: row[0] / row[1] for pair, row in zip(self.pairs, sums_P2.tolist(), strict=True) if row[1]
        }
        return total / max(tokens, 1), each


class TokenLoss:
    """The Trainer's `compute_loss_func`.

    While gradients are on it smooths labels and counts the loss of each pair; in an evaluation it does
    neither, so that a validation loss means the same whatever the smoothing.

    Args:
        label_smoothing: Share ε of the probability that is spread evenly over the vocabulary, in [0, 1).
        tally: Where the loss of each pair is counted; None does not count.
        pair_ids: Returns the pair of each row of the batch at hand, [B] or [1].
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        tally: PairTally | None = None,
        pair_ids: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        self.label_smoothing, self.tally, self.pair_ids = label_smoothing, tally, pair_ids
        self.calls = 0
        """How often training has asked it, from which the callback knows that the Trainer uses it."""

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss of one micro-batch, a scalar: its share of the global batch's mean.

        Args:
            outputs: The model's; `logits` [B, T, V] are used.
            labels: [B, T], -100 for padding.
            num_items_in_batch: Target tokens of all micro-batches and processes; None takes this batch's.

        Raises:
            TrainingSetupError: If the batch has no labels.
        """
        if labels is None:
            raise TrainingSetupError("the batch has no labels; PairCollator makes them of rows with targets")
        logits_BTV = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        labels_BT = labels.to(logits_BTV.device)
        training = torch.is_grad_enabled()
        losses_BT = token_losses(logits_BTV, labels_BT, self.label_smoothing if training else 0.0)
        if training:
            self._count(losses_BT, labels_BT)
        tokens = (labels_BT != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return losses_BT.sum() / tokens

    def _count(self, losses_BT: Tensor, labels_BT: Tensor) -> None:
        self.calls += 1
        pair_ids_B = None if self.tally is None else self.pair_ids()
        if pair_ids_B is not None:
            self.tally.add(losses_BT, labels_BT, pair_ids_B)
