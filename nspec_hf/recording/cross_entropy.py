"""The cross entropy of target tokens, which training descends and whose gradient importance (TE) is made of.

Shape letters: B = samples, T = target tokens, V = vocabulary, N = B·T, n = the tokens of a block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nspec_hf.data import IGNORED


def token_losses(logits_BTV: Tensor, labels_BT: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy of every target token in nats, [B, T]; padding has 0.

    With smoothing ε it is (1 − ε)·(−log p(y)) + ε·(the mean of −log p over the vocabulary). Computed and
    returned in float32, of float64 logits in float64.
    """
    return _TokenLosses.apply(logits_BTV.flatten(0, 1), labels_BT.flatten(), label_smoothing).view_as(
        labels_BT
    )


class _TokenLosses(torch.autograd.Function):
    """Cross entropy by blocks of tokens, so that no second array as large as the logits is held.

    The library's own makes four in float32 (a copy, the logarithms, two gradients), which is most of what an
    update of a small model reads and writes, and most of the memory of one with a large vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, labels_N: Tensor, smoothing: float) -> Tensor:
        precision = torch.promote_types(logits_NV.dtype, torch.float32)
        sums_N = logits_NV.new_empty(len(logits_NV), dtype=precision)  # log Σ exp
        losses_N = torch.empty_like(sums_N)
        for part in _blocks(logits_NV):
            part_nV = logits_NV[part].to(precision)
            sums_N[part] = part_nV.logsumexp(dim=-1)
            right_n = part_nV.gather(1, _right(labels_N[part])).squeeze(1)
            losses_N[part] = sums_N[part] - (1 - smoothing) * right_n
            if smoothing:
                losses_N[part] -= smoothing * part_nV.mean(dim=-1)
        ctx.save_for_backward(logits_NV, labels_N, sums_N)
        ctx.smoothing = smoothing
        return losses_N.masked_fill_(labels_N == IGNORED, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grads_N: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, labels_N, sums_N = ctx.saved_tensors
        grads_NV = torch.empty_like(logits_NV)
        grads_N = grads_N.masked_fill(labels_N == IGNORED, 0)
        for part in _blocks(logits_NV):
            # p(v) − ε/V, and (1 − ε) less where v is right
            part_nV = (logits_NV[part].to(sums_N.dtype) - sums_N[part, None]).exp_()
            if ctx.smoothing:
                part_nV.sub_(ctx.smoothing / part_nV.shape[1])
            right_n1 = _right(labels_N[part])
            part_nV.scatter_add_(
                1, right_n1, torch.full_like(right_n1, ctx.smoothing - 1, dtype=part_nV.dtype)
            )
            grads_NV[part] = part_nV.mul_(grads_N[part, None])
        return grads_NV, None, None


def tokens_of_block(logits: Tensor) -> int:
    """Return of how many tokens the logits [..., V] stay in a core's cache, or fill a GPU."""
    return max(1, (2**20 if logits.device.type == "cpu" else 2**26) // max(1, logits.shape[-1]))


def _blocks(logits_NV: Tensor) -> Iterator[slice]:
    tokens = tokens_of_block(logits_NV)
    return (slice(first, first + tokens) for first in range(0, len(logits_NV), tokens))


def _right(labels_n: Tensor) -> Tensor:
    """Return where the right entry of each row is, [n, 1]; for padding, whose loss is 0 anyway, the first."""
    return labels_n.masked_fill(labels_n == IGNORED, 0)[:, None]
