"""The training loss: cross entropy summed over target tokens, divided once by all tokens of the global batch.

Shape letters: B = samples, T = target tokens, V = vocabulary, P = pairs.

The trap: for M2M-100, mBART, Marian and T5 the Trainer's own loss and gradients come out multiplied by
gradient accumulation × processes, and its label smoothing crashes on M2M-100. A sum over tokens with one
division is exact for uneven batches too, and gives the loss of each pair on the way.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nspec_hf.core import NotFiniteError, Pair, TrainingSetupError, add_up
from nspec_hf.data import IGNORED
from nspec_hf.recording import token_losses


class PairTally:
    """Sums of loss and of target tokens for every pair, kept on the device until they are asked for."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)
        self.sums_P2 = torch.zeros(len(self.pairs), 2, dtype=torch.float64)

    def add(self, losses_BT: Tensor, labels_BT: Tensor, pair_ids_B: Tensor) -> None:
        """Count one batch; `pair_ids_B` may also be one number for all rows, shape [1]."""
        self.sums_P2 = self.sums_P2.to(losses_BT.device)
        sums_B2 = torch.stack(
            [losses_BT.detach().double().sum(1), (labels_BT != IGNORED).double().sum(1)], dim=1
        )
        self.sums_P2.index_add_(0, pair_ids_B.to(losses_BT.device).expand(len(sums_B2)), sums_B2)

    def take(self) -> tuple[float, dict[Pair, float]]:
        """Return the mean loss a token, overall and of each pair that was counted, and start anew.

        Sums over all processes, so all of them must call it together.
        """
        sums_P2 = add_up(self.sums_P2.clone()).cpu()
        self.sums_P2.zero_()
        total, tokens = sums_P2.sum(dim=0).tolist()
        rows = zip(self.pairs, sums_P2.tolist(), strict=True)
        return total / max(tokens, 1), {pair: loss / count for pair, (loss, count) in rows if count}


class TokenLoss:
    """The Trainer's `compute_loss_func`.

    While gradients are on it smooths labels and counts the loss of each pair; in an evaluation it does
    neither, so that a validation loss means the same whatever the smoothing.

    Args:
        label_smoothing: Share ε of the probability that is spread evenly over the vocabulary, in [0, 1).
        tally: Where the loss of each pair is counted; None does not count.
        pair_ids: Returns the pair of each row of the batch at hand, [B] or [1].
        shifts: Whether the model is decoder-only: position t predicts the label at t + 1.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        tally: PairTally | None = None,
        pair_ids: Callable[[], Tensor | None] = lambda: None,
        shifts: bool = False,
    ) -> None:
        self.label_smoothing, self.tally = label_smoothing, tally
        self.pair_ids, self.shifts = pair_ids, shifts
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
            TrainingSetupError: If the batch has no labels, or they are not those of the logits.
        """
        if labels is None:
            raise TrainingSetupError("the batch has no labels; PairCollator makes them of rows with targets")
        logits_BTV = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        if logits_BTV.shape[:2] != labels.shape:
            raise TrainingSetupError(
                f"labels {list(labels.shape)} are not those of logits {list(logits_BTV.shape)}: a decoder "
                "needs one input for each label (decoder_input_ids, or input_ids in a decoder-only model)"
            )
        labels_BT = predicted(labels.to(logits_BTV.device), self.shifts)
        training = torch.is_grad_enabled()
        losses_BT = token_losses(logits_BTV, labels_BT, self.label_smoothing if training else 0.0)
        if training:
            self.calls += 1
            pair_ids_B = None if self.tally is None else self.pair_ids()
            if self.tally is not None and pair_ids_B is not None:
                self.tally.add(losses_BT, labels_BT, pair_ids_B)
        tokens = (labels_BT != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return losses_BT.sum() / tokens

    def begin(self) -> None:
        """Begin a training: what an earlier one has counted, and not logged, is none of it."""
        self.calls = 0
        if self.tally is not None:
            self.tally.sums_P2.zero_()

    def take(self) -> dict[str, float]:
        """Return the mean loss of each pair since the last call, as a log names it; all processes call it.

        Raises:
            NotFiniteError: If one is NaN or infinite; the Trainer's own log would pass over it.
        """
        losses = {} if self.tally is None else self.tally.take()[1]
        broken = [f"{pair} ({loss})" for pair, loss in losses.items() if not math.isfinite(loss)]
        if broken:
            raise NotFiniteError(
                f"the training loss is not finite for {', '.join(broken)}; lower the learning rate, "
                "warm up for longer, or train in float32"
            )
        return {f"loss_{pair}": round(loss, 4) for pair, loss in losses.items()}


def predicted(labels_BT: Tensor, shifts: bool) -> Tensor:
    """Return the label that the logits at each place predict: the one there, or, if it `shifts`, the next."""
    return nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED) if shifts else labels_BT


def shifts_labels(model: nn.Module) -> bool:
    """Return whether a model is decoder-only, so that its logits at t belong to the label at t + 1."""
    return not getattr(getattr(model, "config", None), "is_encoder_decoder", True)
