"""The kept part of a linear: the product with it, where its gradients land, and a cache of such parts.

Shape letters: R = rows of the batch, L = tokens, I = inputs and O = outputs of the linear, K = kept neurons
rounded up. Of an up projection K of the O rows are kept, of a down projection K of the I columns.

A part is a copy, so it can become stale. Three things tell that the weights may have changed: the parameters
themselves (another tensor, other memory, or a higher version counter: in-place edits, `load_state_dict`,
`.to()`, most optimizers), a backward pass that gave them a gradient, and the step of any `torch.optim`
optimizer (the fused ones write without a word to the version counter). What none of them sees is an edit
through `parameter.data`, outside of training; `SlicePool.clear` is there for that.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """What one pair uses of one linear."""

    index_K: Tensor
    """Numbers of the kept neurons, then zeros up to K."""
    kept: int
    """How many of them are real; the rest has weights and bias of zero."""
    weight: Tensor
    """[K, I] of an up projection, [O, K] of a down projection."""
    bias: Tensor | None
    """[K] or [O]."""

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        tensors = (self.index_K, self.weight, self.bias)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def cut(
    linear: nn.Linear, index_K: Tensor, kept: int, dim: int, dtype: torch.dtype, bias: Tensor | None
) -> Part:
    """Copy a part out of a linear.

    Args:
        linear: The whole linear.
        index_K: Numbers of the neurons; those from `kept` on are padding.
        kept: How many of them are real.
        dim: 0 cuts rows (and the bias), 1 cuts columns.
        dtype: Type of the copy.
        bias: The whole bias, as it is to be used.
    """
    # Not under inference_mode, whose tensors could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        weight = linear.weight.detach().index_select(dim, index_K)
        weight.narrow(dim, kept, len(index_K) - kept).zero_()
        bias = None if bias is None else bias.detach()
        if bias is not None and dim == 0:
            bias = bias.index_select(0, index_K)
            bias[kept:] = 0
        return Part(index_K, kept, weight.to(dtype), None if bias is None else bias.to(dtype))


Pieces = Sequence[tuple[Tensor | None, Part]]
"""Which rows of the batch use which part; None stands for all rows."""


def multiply(x: Tensor, pieces: Pieces) -> Tensor:
    """Return x [R, L, I or K] times each row's part, [R, L, K or O]; shorter parts leave zeros behind."""
    rows, part = pieces[0]
    if rows is None:
        return nn.functional.linear(x, part.weight, part.bias)
    width = max(part.weight.shape[0] for _, part in pieces)
    out = x.new_zeros(*x.shape[:-1], width)
    for rows, part in pieces:
        size_out, size_in = part.weight.shape
        out[rows, ..., :size_out] = nn.functional.linear(x[rows][..., :size_in], part.weight, part.bias)
    return out


class SlicedProduct(torch.autograd.Function):
    """`multiply`, with gradients that land in the whole weight and bias.

    The parts are constants here, so one copy serves the forward pass, its recomputation under gradient
    checkpointing and the backward pass. A neuron that is not kept gets a gradient of exactly zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        pieces: Pieces,
        dim: int,
        changed: Callable[[], None],
    ) -> Tensor:
        """Compute `multiply(x, pieces)`; `changed` is called when weight or bias get a gradient."""
        ctx.save_for_backward(x, *(part.weight for _, part in pieces))
        ctx.pieces = [(rows, part.index_K, part.kept) for rows, part in pieces]
        ctx.dim, ctx.changed = dim, changed
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
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
            if needs_x and rows is None:
                grad_x = own_grad @ weight
            elif needs_x:
                grad_x[rows, ..., :size_in] = own_grad @ weight
            own_grad, index = own_grad.flatten(0, -2), index_K[:kept]
            if needs_weight:
                part = (own_grad.T @ own_x.flatten(0, -2)).narrow(ctx.dim, 0, kept)
                grad_weight.index_add_(ctx.dim, index, part.to(ctx.dtype))
            if needs_bias and ctx.dim == 0:
                grad_bias.index_add_(0, index, own_grad.sum(0)[:kept].to(ctx.bias_dtype))
            elif needs_bias:
                grad_bias += own_grad.sum(0)
        if needs_weight or needs_bias:
            ctx.changed()
        return grad_x, grad_weight, grad_bias, None, None, None


class _Source:
    """The tensors that a part was cut from, to tell whether they are still the same and unchanged."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # The alias holds the memory, so that no other tensor can come to lie at the same address; so what was
        # moved to another device lies elsewhere too.
        self._seen = [(each, each._version, each.data_ptr(), each.dtype, each.detach()) for each in tensors]

    def unchanged(self, tensors: Sequence[Tensor]) -> bool:
        if len(tensors) != len(self._seen):
            return False
        # A plain loop, since it runs for every layer and token.
        for now, (tensor, version, address, dtype, _) in zip(tensors, self._seen, strict=True):
            if now is not tensor or now._version != version or now.data_ptr() != address:
                return False
            if now.dtype != dtype:
                return False
        return True


class SlicePool:
    """The parts that are kept between batches, for all sites of a gate: the latest pairs, within a bound.

    Args:
        bound: Memory in bytes.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.nbytes = 0
        """Memory in use, in bytes."""
        self.pair_bytes = 0
        """Memory that the pair with most neurons takes at all sites; 0 until known."""
        self._pairs: OrderedDict[int, dict[tuple, tuple[Part, _Source]]] = OrderedDict()
        self._handle: RemovableHandle | None = None
        self._said: set[str] = set()

    @property
    def pairs(self) -> int:
        """How many pairs have parts here."""
        return len(self._pairs)

    def find(self, pair: int, key: tuple, sources: Sequence[Tensor]) -> Part | None:
        """Return a pair's part, or None where there is none or the weights may have changed."""
        parts = self._pairs.get(pair)
        found = None if parts is None else parts.get(key)
        if found is None or not found[1].unchanged(sources):
            return None
        self._pairs.move_to_end(pair)
        return found[0]

    def get(self, pair: int, key: tuple, sources: Sequence[Tensor], make: Callable[[], Part]) -> Part:
        """Return a pair's part, cut anew where there is none or the weights may have changed.

        Args:
            pair: Index of the pair.
            key: Which part.
            sources: The whole tensors that it is cut from.
            make: Cuts it.
        """
        found = self.find(pair, key, sources)
        if found is not None:
            return found
        self._drop(pair, key)
        source, part = _Source(sources), make()
        self._pairs.setdefault(pair, {})[key] = (part, source)
        self._pairs.move_to_end(pair)
        self.nbytes += part.nbytes
        while self.nbytes > self.bound:
            oldest = next(iter(self._pairs))
            for name in list(self._pairs[oldest]):
                self._drop(oldest, name)
        return part

    def forget(self, key: tuple) -> None:
        """Drop the parts of that key, for every pair: their weights are about to change."""
        for pair in list(self._pairs):
            self._drop(pair, key)

    def clear(self) -> None:
        """Drop everything."""
        self._pairs.clear()
        self.nbytes = 0

    def watch(self) -> None:
        """Notice the steps of optimizers from now on."""
        if self._handle is None:
            pool = weakref.ref(self)

            def stepped(*_: Any) -> None:
                alive = pool()
                if alive is not None:
                    alive.clear()

            self._handle = register_optimizer_step_post_hook(stepped)

    def unwatch(self) -> None:
        """Stop that, and drop everything."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.clear()

    def say_once(self, choice: str, tokens: int) -> None:
        """Log a choice the first time that it is made, with the tokens of the batch that it was made for."""
        if choice not in self._said:
            self._said.add(choice)
            logger.info("mode slice: %s (first for one of %d tokens)", choice, tokens)

    def _drop(self, pair: int, key: tuple) -> None:
        parts = self._pairs.get(pair, {})
        if key in parts:
            self.nbytes -= parts.pop(key)[0].nbytes
        if not parts:
            self._pairs.pop(pair, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copy and pickle make an empty pool: a copied model has weights of its own."""
        return _empty_pool, (self.bound, self.pair_bytes, self._handle is not None)


def _empty_pool(bound: int, pair_bytes: int, watching: bool) -> SlicePool:
    pool = SlicePool(bound)
    pool.pair_bytes = pair_bytes
    if watching:
        pool.watch()
    return pool
