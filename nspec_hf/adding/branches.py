"""Branches: what rows of some pairs compute beside, or in the place of, the weights that all pairs share.

Shape letters: R = rows along a layer's first axis, r = those of them that a branch acts on, L = tokens, D =
model width, W = new neurons, I = inputs and O = outputs of a linear, K = rank.

The old layer always computes the whole batch, in the shapes that it had, and what a branch makes is put to
its own rows alone. So the other rows come out bit for bit as they did: a wider matrix in the old one's
place would add up its sums in another order, and so may a smaller batch.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nspec_hf.core import Pair
from nspec_hf.gating import Routing, TakenOver
from nspec_hf.recording import Site, linear_at, site_activation

Chosen = Tensor | bool
"""Rows: their numbers, int64 [r], or True for all and False for none."""


@dataclass(eq=False)
class Whose:
    """Tells which rows of a batch are of some pairs."""

    routing: Routing
    """Knows each row's pair."""
    pairs: frozenset[Pair]

    def rows(self, x: Tensor) -> Chosen:
        """Return which rows of x [R, …] are theirs.

        Raises:
            RoutingError: If a row's pair is not known.
        """
        route, pairs = self.routing.current(), self.routing.pairs
        if route.pair is not None:
            return pairs[route.pair] in self.pairs
        entries = route.entries_of_pairs(x)
        own = [rows for index, rows in entries.items() if pairs[index] in self.pairs]
        return len(own) == len(entries) or (bool(own) and torch.cat(own))


def of_rows(x: Tensor, rows: Chosen) -> Tensor:
    """Return those rows of x; all where they are not told apart."""
    return x[rows] if isinstance(rows, Tensor) else x


def add_to(out: Tensor, rows: Chosen, more: Tensor) -> Tensor:
    """Return out [R, …] with `more` [r, …] added to the rows; the others are what they were."""
    more = more.to(out.dtype)
    return out.index_add(0, rows, more) if isinstance(rows, Tensor) else out + more


def put_into(out: Tensor, rows: Chosen, other: Tensor) -> Tensor:
    """Return out [R, …] with the rows replaced by `other` [r, …]."""
    other = other.to(out.dtype)
    return out.index_copy(0, rows, other) if isinstance(rows, Tensor) else other


class Branch(TakenOver):
    """What rows of some pairs run beside, or in the place of, a module that is taken over."""

    def __init__(self, module: nn.Module, whose: Whose) -> None:
        super().__init__()
        self._module, self._whose = module, whose

    def forward(self, x: Tensor) -> Tensor:
        """Stand in for the module."""
        raise NotImplementedError

    def _forwards(self) -> Sequence[tuple[nn.Module, Any]]:
        return [(self._module, self.forward)]


class OwnModule(Branch):
    """A module of some pairs: its output is added to the old one's for their rows, or put in its place.

    Args:
        module: The old one.
        own: Theirs: a low-rank change, or a copy of the old one.
        whose: Tells their rows.
        instead: Whether rows go through theirs instead of the old one.
    """

    def __init__(self, module: nn.Module, own: nn.Module, whose: Whose, instead: bool = False) -> None:
        super().__init__(module, whose)
        self._own, self._instead = own, instead

    def forward(self, x: Tensor) -> Tensor:
        """Stand in for the old module: x [R, L, I] → [R, L, O]."""
        rows = self._whose.rows(x)
        if rows is True and self._instead:
            return self._own(x)
        out = self._taken[0].original(x)
        if rows is False:
            return out
        return (put_into if self._instead else add_to)(out, rows, self._own(of_rows(x, rows)))


class NewNeurons(nn.Module):
    """The weights of W neurons beside a feed-forward block: rows of W1 and columns of W2.

    Args:
        block: The old linears by name: `up`, `down`, and `other` for a gated block.
        width: W.
    """

    def __init__(self, block: dict[str, nn.Linear], width: int) -> None:
        super().__init__()
        like: Any = {"device": block["up"].weight.device, "dtype": block["up"].weight.dtype}
        beside = {
            name: nn.Linear(linear.in_features, width, bias=linear.bias is not None, **like)
            for name, linear in block.items()
            if name != "down"
        }
        self.up, self.other = beside["up"], beside.get("other")
        self.down = nn.Linear(width, block["down"].out_features, bias=False, **like)


class NeuronBranch(Branch):
    """New neurons of some pairs beside one feed-forward block: its output + W2 σ(W1 x + b1).

    The block is no module of its own in most models, so x is noted where its first linear gets it and the sum
    is made where its last linear ends.
    """

    def __init__(self, model: nn.Module, site: Site, new: NewNeurons, whose: Whose) -> None:
        super().__init__(linear_at(model, site.name), whose)
        self._last = linear_at(model, site.down)
        self._activation = site_activation(model, site)
        self._new = new
        self._noted: dict[int, Tensor] = {}  # by thread: several may call one model

    def forward(self, x: Tensor) -> Tensor:
        """Stand in for the block's first linear: x [R, L, D] → [R, L, F]."""
        self._noted[threading.get_ident()] = x
        return self._taken[0].original(x)

    def add(self, h: Tensor) -> Tensor:
        """Stand in for its last: h [R, L, F] → [R, L, D]."""
        out, x = self._taken[1].original(h), self._noted.pop(threading.get_ident())
        rows, new = self._whose.rows(out), self._new
        if rows is False:
            return out
        x = of_rows(x, rows)
        h_rLW = self._activation(new.up(x))
        return add_to(out, rows, new.down(h_rLW if new.other is None else h_rLW * new.other(x)))

    def detach(self) -> None:
        """Give the linears back, and forget."""
        super().detach()
        self._noted.clear()

    def _forwards(self) -> Sequence[tuple[nn.Module, Any]]:
        return [*super()._forwards(), (self._last, self.add)]


class LowRank(nn.Module):
    """A change of rank K of a linear: B A x · α/K, with α = 2 K (Hu et al. 2022). B begins at zero.

    Args:
        linear: The old linear, [I] → [O].
        rank: K.
    """

    scale = 2.0

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        like: Any = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.a = nn.Linear(linear.in_features, rank, bias=False, **like)
        self.b = nn.Linear(rank, linear.out_features, bias=False, **like)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the linear's output: x [r, L, I] → [r, L, O]."""
        return self.b(self.a(x)) * self.scale
