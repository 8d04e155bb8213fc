"""Mode `slice`: a pair's silenced neurons are not computed, in training and in decoding.

Shape letters: P = pairs, R = rows along the first axis, L = tokens, D = model width, F = neurons of the site,
K = kept neurons, rounded up to a multiple that the hardware likes.

The up projection multiplies with K of its F rows and the down projection with K of its F columns, so between
them a feed-forward block is narrower; activation and dropout act on what they are given. The numbers are
those of mode `mask`, and so are the gradients, which land in the whole weights. What may differ is which
values dropout draws.

Which rows slice: those of a batch of one pair. A mixed batch is split by pair where each has enough tokens;
else, and wherever too few tokens would have to pay for copying the weights, mode `mask` does the work.

Under torch.compile the pair's index is a tensor and every site computes as many rows as the pair that keeps
most, so all pairs of `gate.use` share one graph; `pair_ids` of several rows are masked, one more graph.

Under DDP all of this holds. FSDP2 gathers a layer's weights before it runs, so they are sliced, but it
rewrites them unseen, so nothing is kept between batches and short ones are masked; weights that are sharded
even while the layer runs (tensor parallelism) are refused.

With `silence="weights"` the constant that silenced neurons emit, W2[:, off] σ(b1[off]), is added to the
down projection's bias; dropout between the two leaves it alone.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nspec_hf.gating.config import GateConfig
from nspec_hf.gating.linears import can_keep, check_whole, modules_around, why_not
from nspec_hf.gating.mask_mode import GatedSite, MaskedSite
from nspec_hf.gating.routing import Routing
from nspec_hf.gating.slice_cache import Part, SlicedProduct, SlicePool, cut, multiply
from nspec_hf.recording import Site, site_activation

_SAVED_TOKENS = 16
"""Tokens times share of rows saved from which copying pays. On one CPU core at 1024×4096, density 0.75,
cutting both projections takes 2.0 ms and landing their gradients 3.5 ms; a token saved is 0.085 ms in each
product, of which there are two forward and six in training. So it is even at 12 and 11, plus a margin."""
_SAVED_TOKENS_CACHED = 4
"""The same for each group of a mixed batch whose parts are in the cache; what it costs is to move rows."""

_Groups = list[tuple[Tensor | None, int]]
"""Which rows belong to which pair; None stands for all rows."""


class SlicedSite(MaskedSite):
    """One feed-forward site whose silenced neurons are not computed.

    Args:
        model: The plain model.
        site: Which of its linears.
        keep_PF: The pairs' masks, bool; True = keep. Shape [P, F].
        routing: Tells which pair each row belongs to.
        config: The gate's settings.
        pool: Where parts are kept between batches; shared by the sites of a gate.
    """

    def __init__(
        self,
        model: nn.Module,
        site: Site,
        keep_PF: Tensor,
        routing: Routing,
        config: GateConfig,
        pool: SlicePool | None = None,
    ) -> None:
        super().__init__(model, site, keep_PF, routing, config)
        self.down = model.get_submodule(site.down)
        self._activation = site_activation(model, site)
        self._pool = pool or SlicePool(config.cache_bytes)
        self._folds = config.silence == "weights" and self.linear.bias is not None
        self.counts = (1, 1)
        """How many sites of the gate are sliced, and how many there are."""
        self._around = modules_around(model, site)
        self.take_masks(keep_PF)
        self._pool.pair_bytes = max(self._pool.pair_bytes, self.bytes_of_widest)

    @classmethod
    def at_all(
        cls,
        model: nn.Module,
        sites: Sequence[Site],
        keep: Mapping[str, Tensor],
        routing: Routing,
        config: GateConfig,
    ) -> list[GatedSite]:
        """Return the sites with one pool; those that cannot be sliced are masked, with a warning."""
        pool = SlicePool(config.cache_bytes)
        found: list[GatedSite] = []
        reasons: dict[str, str] = {}
        for site in sites:
            reason = "" if site.kind != "ffn" else why_not(model, site, config)
            if reason:
                reasons[site.name] = reason
            if reason or site.kind != "ffn":
                found.append(MaskedSite(model, site, keep[site.name], routing, config))
            else:
                found.append(cls(model, site, keep[site.name], routing, config, pool))
        for reason in dict.fromkeys(reasons.values()):
            names = [name for name, own in reasons.items() if own == reason]
            warnings.warn(
                f"mode 'slice' computes all neurons of {', '.join(names)} and masks them: {reason}",
                stacklevel=4,
            )
        sliced = [site for site in found if isinstance(site, SlicedSite)]
        pool.pair_bytes = sum(site.bytes_of_widest for site in sliced)
        for site in sliced:
            site.counts = (len(sliced), len(sites))
        return found

    def take_masks(self, keep_PF: Tensor) -> None:
        """Go on with these masks."""
        super().take_masks(keep_PF)
        self._kept_P = keep_PF.sum(dim=1).tolist()
        self._round_sizes()

    @property
    def bytes_of_widest(self) -> int:
        """Memory of the part of the pair that keeps most, in bytes."""
        linears = [self.linear, self.down, *([self.up] if self.up is not None else [])]
        whole = sum(linear.weight.numel() * linear.weight.element_size() for linear in linears)
        return whole * max(self._size_P) // self.site.width

    @property
    def facts(self) -> str:
        """Say how many sites are sliced and what the cache holds."""
        used, bound = self._pool.nbytes / 2**20, self._pool.bound / 2**20
        sliced, gated = self.counts
        return (
            f"{sliced} of {gated} gated sites; cache: {self._pool.pairs} pairs, {used:.1f} of {bound:.0f} MiB"
        )

    def attach(self) -> None:
        """Take the site's modules over."""
        super().attach()
        self._follow(self.linear.weight)
        self._pool.watch()

    def detach(self) -> None:
        """Give them back and drop the slices."""
        super().detach()
        self._pool.unwatch()

    def expand(self, x: Tensor) -> Tensor:
        """Compute the kept rows of the gated linear: x [R, L, D] → [R, L, K], or [R, L, F] where masked."""
        if torch.compiler.is_compiling():
            return self._compiled_rows(x)
        part = self._at_hand(self.linear, x)
        if part is not None:
            return nn.functional.linear(x, part.weight, part.bias)
        groups = self._plan(x)
        return self.forward(x) if groups is None else self._product(self.linear, x, groups)

    def expand_up(self, x: Tensor) -> Tensor:
        """Compute the same rows of a gated block's other branch."""
        if torch.compiler.is_compiling():
            index_K, _ = self._compiled_index(x)
            whole = self.up
            return self._taken[1].original(x) if index_K is None else _rows(x, whole, index_K, None)
        part = self._at_hand(self.up, x)
        if part is not None:
            return nn.functional.linear(x, part.weight, part.bias)
        groups = self._plan(x)
        return self._taken[1].original(x) if groups is None else self._product(self.up, x, groups)

    def contract(self, h: Tensor) -> Tensor:
        """Compute the kept columns of the down projection: h [R, L, K] → [R, L, D]."""
        if torch.compiler.is_compiling():
            return self._compiled_columns(h)
        part = self._at_hand(self.down, h)
        if part is not None:
            return nn.functional.linear(h, part.weight, part.bias)
        groups = self._plan(h)
        return self._taken[-1].original(h) if groups is None else self._product(self.down, h, groups)

    def _forwards(self) -> list[tuple[nn.Module, Callable[..., Any]]]:
        up = [] if self.up is None else [(self.up, self.expand_up)]
        return [(self.linear, self.expand), *up, (self.down, self.contract)]

    def _at_hand(self, linear: nn.Linear, x: Tensor) -> Part | None:
        """Return the part that all rows use, if it is in the cache and nothing has changed; else None.

        The shortcut of decoding, where a step has few tokens and every question asked of them costs. What it
        does not answer goes through `_plan`, which comes to the same part.
        """
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
            return None
        pair = self._routing.current().pair
        # Of a pair that keeps all rows a mixed batch may have left parts, but alone it is computed whole.
        if pair is None or self._size_P[pair] == self.site.width:
            return None
        sources = self._sources(linear)
        return self._pool.find(pair, self._key(linear, sources[0].dtype), sources)

    def _sources(self, linear: nn.Linear) -> list[Tensor]:
        """Return what a part of this linear is made from."""
        # Each access to a module's parameter runs Python code, for every layer and token: so once each.
        weight, bias = linear.weight, linear.bias
        sources = [weight] if bias is None else [weight, bias]
        if self._folds and linear is self.down:
            sources.append(self.linear.bias)
        return sources

    def _plan(self, x: Tensor) -> _Groups | None:
        """Return who slices what, or None to mask; the same for all linears of a block."""
        self._follow(x)
        route = self._routing.current()
        tokens = x.shape[:-1].numel()
        copies = self._copies_each_time()
        if route.pair is not None:
            saved = tokens * (1 - self._size_P[route.pair] / self.site.width)
            if saved == 0 or (copies and saved < _SAVED_TOKENS):
                self._pool.say_once("short batches of one pair are masked, slicing them costs more", tokens)
                return None
            return [(None, route.pair)]
        if self._folds:
            self._pool.say_once(
                "mixed batches are masked, since silence='weights' adds each pair's own constant", tokens
            )
            return None
        groups = route.groups(x)
        fits = copies or len(groups) * self._pool.pair_bytes <= self._pool.bound
        per_row = tokens // x.shape[0]
        least = _SAVED_TOKENS if copies else _SAVED_TOKENS_CACHED
        saved = [
            len(rows) * per_row * (1 - self._size_P[pair] / self.site.width) for pair, rows in groups.items()
        ]
        if not fits or sum(saved) < least * len(groups):
            self._pool.say_once("mixed batches with few tokens a pair are masked", tokens)
            return None
        self._pool.say_once("mixed batches are split by pair", tokens)
        return [(rows, pair) for pair, rows in groups.items()]

    def _follow(self, there: Tensor) -> None:
        """Take the masks to where a tensor is, and the multiple that is right there.

        A Trainer moves the model after the gate was made. That is noticed before a block's first product,
        since all of its products must agree on the size.
        """
        if self.keep_PF.device != there.device and not there.is_meta:
            before = self.bytes_of_widest
            self._keep_on(there.device)
            self._round_sizes()
            self._pool.pair_bytes += self.bytes_of_widest - before

    def _round_sizes(self) -> None:
        step = self._config.multiple_of or (64 if self.keep_PF.is_cuda else 8)
        full = self.site.width
        self._size_P = [min(full, max(1, -(-kept // step)) * step) for kept in self._kept_P]

    def _copies_each_time(self) -> bool:
        """Return whether parts are used once: in training, and where the cache cannot hold a pair."""
        trains = torch.is_grad_enabled() and self.linear.weight.requires_grad
        return (
            trains
            or self._pool.pair_bytes > self._pool.bound
            or not can_keep(self.linear.weight, self._around)
        )

    def _product(self, linear: nn.Linear, x: Tensor, groups: _Groups) -> Tensor:
        check_whole(self.site, linear.weight)
        dtype = linear.weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x = x.to(dtype)
        pieces = [(rows, self._part(linear, pair, dtype)) for rows, pair in groups]
        if not torch.is_grad_enabled():
            return multiply(x, pieces)
        bias, dim, folded = linear.bias, int(linear is self.down), None
        if self._folds and dim:
            # Outside of the product, so that its gradients reach W2, b1 and b2.
            folded = self._folded_bias(groups[0][1])
            pieces = [(rows, Part(part.index_K, part.kept, part.weight, None)) for rows, part in pieces]
            bias = None
        changed = partial(self._pool.forget, self._key(linear, dtype))
        out = SlicedProduct.apply(x, linear.weight, bias, pieces, dim, changed)
        return out if folded is None else out + folded.to(out.dtype)

    def _part(self, linear: nn.Linear, pair: int, dtype: torch.dtype) -> Part:
        folds = self._folds and linear is self.down

        def make() -> Part:
            keep_F = self._keep_on(linear.weight.device)[pair]
            index_K = torch.nonzero_static(keep_F, size=self._size_P[pair], fill_value=0)[:, 0]
            bias = self._folded_bias(pair) if folds else linear.bias
            return cut(linear, index_K, self._kept_P[pair], int(linear is self.down), dtype, bias)

        if self._pool.pair_bytes > self._pool.bound or not can_keep(self.linear.weight, self._around):
            return make()
        return self._pool.get(pair, self._key(linear, dtype), self._sources(linear), make)

    def _key(self, linear: nn.Linear, dtype: torch.dtype) -> tuple:
        return self.site.name, linear is self.down, linear is self.up, dtype

    def _folded_bias(self, pair: int) -> Tensor:
        """Return b2 + W2[:, off] σ(b1[off]), [D]."""
        return self._fold(self._keep_on(self.linear.bias.device)[pair])

    def _fold(self, keep_F: Tensor) -> Tensor:
        check_whole(self.site, self.linear.bias)
        constant_F = torch.where(keep_F, 0.0, self._activation(self.linear.bias))
        weight = self.down.weight
        return nn.functional.linear(constant_F.to(weight.dtype), weight, self.down.bias)

    def _compiled_index(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return neuron numbers [K] and the mask [F] that they are read from; None, None to mask."""
        rows = self._routing.current().rows
        size = max(self._size_P)
        if rows.shape[0] != 1 or size == self.site.width:
            return None, None
        keep_F = self._keep_on(x.device)[rows.to(x.device)][0]
        # Kept neurons first, in their order; what follows up to K is masked.
        return torch.argsort(keep_F.to(torch.uint8), descending=True, stable=True)[:size], keep_F

    def _compiled_rows(self, x: Tensor) -> Tensor:
        index_K, keep_F = self._compiled_index(x)
        return self.forward(x) if index_K is None else _rows(x, self.linear, index_K, keep_F[index_K])

    def _compiled_columns(self, h: Tensor) -> Tensor:
        index_K, keep_F = self._compiled_index(h)
        if index_K is None:
            return self._taken[-1].original(h)
        bias = self._fold(keep_F) if self._folds else self.down.bias
        return nn.functional.linear(h, self.down.weight.index_select(1, index_K), bias)


def _rows(x: Tensor, linear: nn.Linear, index_K: Tensor, valid_K: Tensor | None) -> Tensor:
    """Multiply with some rows of a linear; those that are not valid give 0."""
    weight, bias = linear.weight.index_select(0, index_K), linear.bias
    bias = None if bias is None else bias.index_select(0, index_K)
    z = nn.functional.linear(x, weight, bias)
    return z if valid_K is None else torch.where(valid_K, z, 0.0)
