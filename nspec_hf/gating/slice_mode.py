"""Mode `slice`: a pair's silenced neurons are not computed, in training and in decoding.

Shape letters: U = masks that are stored, R = rows along the first axis, L = tokens, D = model width, F =
neurons of the site, K = kept neurons, rounded up to a multiple that the hardware likes.

The up projection multiplies with K of its F rows and the down projection with K of its F columns, so between
them a feed-forward block is narrower; activation and dropout act on what they are given. The numbers are
those of mode `mask`, and so are the gradients, which land in the whole weights. What may differ is which
values dropout draws.

A slice is a copy. `generate` keeps those of the decoder from step to step and drops them when it ends; every
other call cuts its own, since weights may be written in ways that nothing tells of (`parameter.data`, NumPy,
fused optimizers, FSDP), and cutting a slice costs no more than to read whether its weights have changed.

Which rows slice: those of a batch of one pair. A mixed batch is split by pair where each has enough tokens;
else, and wherever too few tokens would have to pay for copying the weights, mode `mask` does the work.

Under torch.compile the pair's index is a tensor and every site computes as many rows as the pair that keeps
most, so all pairs of `gate.use` share one graph; `pair_ids` of several rows are masked, one more graph.

Under DDP and FSDP2 all of this holds, since FSDP2 gathers a layer's weights before it runs; weights that are
sharded even while the layer runs (tensor parallelism) are refused.

With `silence="weights"` the constant that silenced neurons emit, W2[:, off] σ(b1[off]), is added to the
down projection's bias; dropout between the two leaves it alone.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as product

from nspec_hf.core import warn
from nspec_hf.gating.config import GateConfig
from nspec_hf.gating.linears import Slice, SlicedProduct, changed_linears, check_whole, cut, multiply
from nspec_hf.gating.mask_mode import GatedSite, MaskedSite
from nspec_hf.gating.routing import Routing
from nspec_hf.masks import SiteBits
from nspec_hf.recording import Site, linear_at, site_activation

logger = logging.getLogger(__name__)

_SAVED_TOKENS = 16
"""Tokens times share of rows saved from which copying pays. On one CPU core at 1024×4096, density 0.75,
cutting both projections takes 2.0 ms and landing their gradients 3.5 ms; a token saved is 0.085 ms in each
product, of which there are two forward and six in training. So it is even at 12 and 11, plus a margin."""
_SAVED_TOKENS_KEPT = 4
"""The same for the pairs of a mixed batch whose slices are kept; what it costs is to move rows."""

_Plan = list[tuple[Tensor | None, int]]
"""Which rows belong to which pair; None stands for all rows."""


@dataclass
class _Shared:
    """What the sliced sites of a gate share."""

    sites: "list[SlicedSite]"
    said: set[str] = field(default_factory=set)

    @cached_property
    def pair_bytes(self) -> int:
        """Memory of the kept slices of the pair with most neurons, in bytes."""
        return sum(site.bytes_of_widest for site in self.sites if site.is_kept)

    def say_once(self, choice: str, tokens: int) -> None:
        """Log a choice the first time that it is made, with the tokens of the batch that it was made for."""
        if choice not in self.said:
            self.said.add(choice)
            logger.info("mode slice: %s (first for one of %d tokens)", choice, tokens)


class SlicedSite(MaskedSite):
    """One feed-forward site whose silenced neurons are not computed."""

    def __init__(
        self, model: nn.Module, site: Site, masks: SiteBits, routing: Routing, config: GateConfig
    ) -> None:
        super().__init__(model, site, masks, routing, config)
        self.down = linear_at(model, site.down)
        self._linears = [self.linear, *([] if self.up is None else [self.up]), self.down]
        self.is_kept = site.side != "encoder"
        """Whether `generate` runs it again and again."""
        self._activation = site_activation(model, site)
        self._folds = config.silence == "weights" and self.linear.bias is not None
        self._shared = _Shared([self])
        self.take_masks(masks)

    @classmethod
    def at_all(
        cls, model: nn.Module, masks: Mapping[Site, SiteBits], routing: Routing, config: GateConfig
    ) -> list[GatedSite]:
        """Return the sites; those that cannot be sliced are masked, feed-forward ones with a warning."""
        reasons = {site: _why_masked(model, site, config) for site in masks if site.kind == "ffn"}
        for reason in filter(None, dict.fromkeys(reasons.values())):
            names = [site.name for site, own in reasons.items() if own == reason]
            warn(f"mode 'slice' computes all neurons of {', '.join(names)} and masks them: {reason}")
        gated: list[GatedSite] = []
        for site, bits in masks.items():
            kind = cls if reasons.get(site) == "" else MaskedSite
            gated.append(kind(model, site, bits, routing, config))
        sliced = [site for site in gated if isinstance(site, SlicedSite)]
        shared = _Shared(sliced)
        for site in sliced:
            site._shared = shared
            site.facts = f"{len(sliced)} of {len(masks)} gated sites"
        return gated

    def take_masks(self, masks: SiteBits) -> None:
        """Go on with these masks."""
        super().take_masks(masks)
        self._kept_U, self._rows = masks.bits.ones.tolist(), masks.rows.tensor.numpy()
        self._round_sizes()

    @property
    def bytes_of_widest(self) -> int:
        """Memory of the slices of the pair that keeps most, in bytes."""
        whole = sum(linear.weight.numel() * linear.weight.element_size() for linear in self._linears)
        return whole * max(self._size_U) // self.site.width

    def attach(self) -> None:
        """Take the site's modules over."""
        super().attach()
        self._follow(self.linear.weight)

    def _forwards(self) -> list[tuple[nn.Module, Callable[..., Any]]]:
        return [(linear, partial(self._compute, place)) for place, linear in enumerate(self._linears)]

    def _compute(self, place: int, x: Tensor) -> Tensor:
        """Compute one of the block's linears, of which it is given the place: what the row's pair keeps.

        The gated linear, and the other branch of a gated block: x [R, L, D] → [R, L, K], or [R, L, F] where
        masked. The down projection: [R, L, K] or [R, L, F] → [R, L, D].
        """
        linear = self._linears[place]
        whole = self._taken[place].original if place else self.forward
        if torch.compiler.is_compiling():
            return self._compiled(linear, x, whole)
        kept = self._routing.here.kept
        if kept:
            # The shortcut of decoding, where a step has few tokens and every question asked of them costs.
            held = kept.get((linear, self._routing.current().pair))
            if held is not None:
                return product(x, held.weight, held.bias)
        plan = self._plan(x)
        return whole(x) if plan is None else self._product(linear, x, plan)

    def _plan(self, x: Tensor) -> _Plan | None:
        """Return who slices what, or None to mask; the same for all linears of a block."""
        self._follow(x)
        route, shared = self._routing.current(), self._shared
        tokens = x.shape[:-1].numel()
        keeps = self._keeps()
        if route.pair is not None:
            saved = tokens * self._share_saved(route.pair)
            if saved == 0 or (not keeps and saved < _SAVED_TOKENS):
                shared.say_once("short batches of one pair are masked, slicing them costs more", tokens)
                return None
            return [(None, route.pair)]
        if self._folds:
            shared.say_once(
                "mixed batches are masked, since silence='weights' adds each pair's own constant", tokens
            )
            return None
        entries = route.entries_of_pairs(x)
        fits = not keeps or len(entries) * shared.pair_bytes <= self._config.cache_bytes
        least = _SAVED_TOKENS_KEPT if keeps else _SAVED_TOKENS
        per_row = tokens // x.shape[0]
        saved = sum(len(rows) * per_row * self._share_saved(pair) for pair, rows in entries.items())
        if not fits or saved < least * len(entries):
            shared.say_once("mixed batches with few tokens a pair are masked", tokens)
            return None
        shared.say_once("mixed batches are split by pair", tokens)
        return [(rows, pair) for pair, rows in entries.items()]

    def _share_saved(self, pair: int) -> float:
        return 1 - self._size_U[self._rows[pair]] / self.site.width

    def _keeps(self) -> bool:
        """Return whether slices that are cut now are kept: by `generate`, at a site that it runs again."""
        if not self.is_kept or self._routing.here.kept is None:
            return False
        return self._shared.pair_bytes <= self._config.cache_bytes

    def _follow(self, there: Tensor) -> None:
        """Take the masks to where a tensor is, and the multiple that is right there.

        A Trainer moves the model after the gate was made. That is noticed before a block's first product,
        since all of its products must agree on the size.
        """
        if self.placed.bits_UB.device != there.device and not there.is_meta:
            self._place(there.device)
            self._round_sizes()

    def _round_sizes(self) -> None:
        step = self._config.multiple_of or (64 if self.placed.bits_UB.device.type == "cuda" else 8)
        full = self.site.width
        self._size_U = [min(full, max(1, -(-kept // step)) * step) for kept in self._kept_U]
        vars(self._shared).pop("pair_bytes", None)

    def _compiled(self, linear: nn.Linear, x: Tensor, whole: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what `_compute` does, as one graph: `pair_ids` of several rows are masked."""
        rows, size = self._routing.current().rows_for(x), max(self._size_U)
        keep_F = self._keep_of(rows, x.device)[0]
        if rows.shape[0] != 1 or size == self.site.width:
            return whole(x)
        # Kept neurons first, in their order; what follows up to K is masked.
        index_K = torch.argsort(keep_F.to(torch.uint8), descending=True, stable=True)[:size]
        if linear is self.down:
            bias = self._fold(keep_F) if self._folds else linear.bias
            return product(x, linear.weight.index_select(1, index_K), bias)
        bias = None if linear.bias is None else linear.bias.index_select(0, index_K)
        z = product(x, linear.weight.index_select(0, index_K), bias)
        return torch.where(keep_F[index_K], z, 0.0) if linear is self.linear else z

    def _product(self, linear: nn.Linear, x: Tensor, plan: _Plan) -> Tensor:
        check_whole(self.site, linear.weight)
        dtype = linear.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x = x.to(dtype)
        pieces = [(rows, self._slice(linear, pair, dtype)) for rows, pair in plan]
        if not torch.is_grad_enabled():
            return multiply(x, pieces)
        dim = int(linear is self.down)
        if not (self._folds and dim):
            return SlicedProduct.apply(x, linear.weight, linear.bias, pieces, dim)
        # Outside of the product, so that its gradients reach W2, b1 and b2.
        folded = self._fold(self._keep_of(plan[0][1], self.linear.bias.device))
        pieces = [(rows, replace(piece, bias=None)) for rows, piece in pieces]
        out = SlicedProduct.apply(x, linear.weight, None, pieces, dim)
        return out + folded.to(out.dtype)

    def _slice(self, linear: nn.Linear, pair: int, dtype: torch.dtype) -> Slice:
        kept = self._routing.here.kept if self._keeps() else None
        if kept is not None and (linear, pair) in kept:
            return kept[linear, pair]
        keep_F, row = self._keep_of(pair, linear.weight.device), self._rows[pair]
        index_K = torch.nonzero_static(keep_F, size=self._size_U[row], fill_value=0)[:, 0]
        is_down = linear is self.down
        bias = self._fold(keep_F) if self._folds and is_down else linear.bias
        made = cut(linear, index_K, self._kept_U[row], int(is_down), dtype, bias)
        if kept is not None:
            kept[linear, pair] = made
        return made

    def _fold(self, keep_F: Tensor) -> Tensor:
        """Return b2 + W2[:, off] σ(b1[off]), [D]."""
        check_whole(self.site, self.linear.bias)
        constant_F = torch.where(keep_F, 0.0, self._activation(self.linear.bias))
        weight = self.down.weight
        return product(constant_F.to(weight.dtype), weight, self.down.bias)


def _why_masked(model: nn.Module, site: Site, config: GateConfig) -> str:
    """Return why a feed-forward site cannot be sliced, or nothing."""
    if changed_linears(model, site):
        return "slicing needs plain nn.Linear layers, not LoRA, quantized or otherwise changed ones"
    if config.silence == "weights" and site.up and site.linear(model).bias is not None:
        return "with silence='weights' a silenced neuron of a gated block with bias is no constant"
    return ""


SITE = SlicedSite
