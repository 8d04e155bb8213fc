"""The linears of a site: which are plain enough to be sliced or written to, their sizes, and their slices.

Shape letters: R = rows of the batch, L = tokens, I = inputs and O = outputs of a linear, K = kept neurons
rounded up. Of an up projection K of the O rows are kept, of a down projection K of the I columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear as product

from nspec_hf.core import UnsupportedModelError
from nspec_hf.gating.internals import is_plain, is_sharded
from nspec_hf.recording import Site


def changed_linears(model: nn.Module, site: Site) -> list[str]:
    """Return the paths of a site's linears that are no plain nn.Linear, as with LoRA or quantized."""
    paths = [path for path in (site.name, site.up, site.down) if path]
    return [path for path in paths if not is_plain(model.get_submodule(path))]


def refuse_changed_linears(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse sites whose weights, or those of the down and up projections beside them, cannot be written to.

    Raises:
        UnsupportedModelError: If one of these layers is not a plain linear (LoRA, quantized).
    """
    for path in (path for site in sites for path in changed_linears(model, site)):
        raise UnsupportedModelError(
            f"{path!r} is a {type(model.get_submodule(path)).__name__}; only plain nn.Linear layers can be "
            "written to: merge LoRA layers (merge_and_unload), load without quantization or offloading"
        )


def check_whole(site: Site, tensor: Tensor) -> None:
    """Refuse weights of which this process sees a shard only, while the layer runs.

    FSDP and ZeRO-3 gather the weights of what they shard before its forward, so it is whole layers that they
    must shard where one linear reads another's bias; tensor parallelism gathers nothing.

    Raises:
        UnsupportedModelError: If it is a shard.
    """
    if is_sharded(tensor):
        raise UnsupportedModelError(
            f"mode 'slice' needs the whole weights of {site.name} and {site.down} while they run, but here "
            "they are sharded; shard whole layers (fully_shard(layer)), not linears or along their width, "
            "or use mode 'mask'"
        )


def resize(linear: nn.Linear, weight_OI: Tensor, bias_O: Tensor | None) -> None:
    """Give a linear other weights and biases, if it has some, and their sizes; frozen ones stay frozen."""
    linear.out_features, linear.in_features = weight_OI.shape
    linear.weight = nn.Parameter(weight_OI.detach().contiguous(), linear.weight.requires_grad)
    if bias_O is not None and bias_O is not linear.bias:
        linear.bias = nn.Parameter(bias_O.detach().contiguous(), linear.bias.requires_grad)


@dataclass(frozen=True, eq=False)
class Slice:
    """What one pair uses of one linear: a copy."""

    index_K: Tensor
    """Numbers of the kept neurons, then zeros up to K."""
    kept: int
    """How many of them are real; the rest has weights and bias of zero."""
    weight: Tensor
    """[K, I] of an up projection, [O, K] of a down projection."""
    bias: Tensor | None
    """[K] or [O]."""


def cut(
    linear: nn.Linear, index_K: Tensor, kept: int, dim: int, dtype: torch.dtype, bias: Tensor | None
) -> Slice:
    """Copy a slice out of a linear: its rows and those of a bias (dim 0), or its columns (dim 1).

    Of the index, what is behind the `kept` first is padding. The bias is whole, as it is to be used.
    """
    # Not under inference_mode, whose tensors could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        weight = linear.weight.detach().index_select(dim, index_K)
        weight.narrow(dim, kept, len(index_K) - kept).zero_()
        bias = None if bias is None else bias.detach()
        if bias is not None and dim == 0:
            bias = bias.index_select(0, index_K)
            bias[kept:] = 0
        return Slice(index_K, kept, weight.to(dtype), None if bias is None else bias.to(dtype))


Pieces = Sequence[tuple[Tensor | None, Slice]]
"""Which rows of the batch use which slice; None stands for all rows."""


def multiply(x: Tensor, pieces: Pieces) -> Tensor:
    """Return x [R, L, I or K] times each row's slice, [R, L, K or O]; narrower slices leave zeros behind."""
    rows, piece = pieces[0]
    if rows is None:
        return product(x, piece.weight, piece.bias)
    width = max(piece.weight.shape[0] for _, piece in pieces)
    out = x.new_zeros(*x.shape[:-1], width)
    for rows, piece in pieces:
        size_out, size_in = piece.weight.shape
        out[rows, ..., :size_out] = product(x[rows][..., :size_in], piece.weight, piece.bias)
    return out


class SlicedProduct(torch.autograd.Function):
    """`multiply`, with gradients that land in the whole weight and bias.

    The slices are constants here, so the backward pass needs no second copy. A neuron that is not kept gets
    a gradient of exactly zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pieces: Pieces, dim: int) -> Tensor:
        """Compute `multiply(x, pieces)`."""
        ctx.save_for_backward(x, *(piece.weight for _, piece in pieces))
        ctx.pieces = [(rows, piece.index_K, piece.kept) for rows, piece in pieces]
        ctx.dim, ctx.shape, ctx.dtype = dim, weight.shape, weight.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return multiply(x, pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, the whole weight and the whole bias."""
        x, *weights = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = torch.zeros_like(x) if needs_x and ctx.pieces[0][0] is not None else None
        grad_weight = grad.new_zeros(ctx.shape, dtype=ctx.dtype) if needs_weight else None
        grad_bias = grad.new_zeros(ctx.shape[0], dtype=ctx.bias_dtype) if needs_bias else None
        for (rows, index_K, kept), weight in zip(ctx.pieces, weights, strict=True):
            size_out, size_in = weight.shape
            own_x, own_grad = (x, grad) if rows is None else (x[rows], grad[rows])
            own_x, own_grad = own_x[..., :size_in], own_grad[..., :size_out]
            if needs_x and grad_x is None:
                grad_x = own_grad @ weight
            elif grad_x is not None:
                grad_x[rows, ..., :size_in] = own_grad @ weight
            own_grad, index = own_grad.flatten(0, -2), index_K[:kept]
            if grad_weight is not None:
                landing = (own_grad.T @ own_x.flatten(0, -2)).narrow(ctx.dim, 0, kept)
                grad_weight.index_add_(ctx.dim, index, landing.to(ctx.dtype))
            if grad_bias is not None and ctx.dim == 0:
                grad_bias.index_add_(0, index, own_grad.sum(0)[:kept].to(ctx.bias_dtype))
            elif grad_bias is not None:
                grad_bias += own_grad.sum(0)
        return grad_x, grad_weight, grad_bias, None, None
