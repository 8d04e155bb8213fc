"""Weights of their own for some rows of a batch: what adapters, own attention and split parameters share.

Shape letters: R = rows along a layer's first axis, L = tokens, D = width of the input, F = of the output.

Each pair has a *key* (the pair itself, its target language, its family …), and rows with the same key share
weights. A layer is taken over as the gate takes it over, so mixed batches, beams, gradient checkpointing and
exact removal work as they do there.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nspec_hf.attachment import OWN_WEIGHTS, Attachment, Part
from nspec_hf.errors import UnknownPairError
from nspec_hf.pairs import Pair
from nspec_hf.routing import Routing
from nspec_hf.silence import Takeover

Key = Hashable
KeyOf = Callable[[Pair], Key]


class Keys:
    """The key of every pair that the routing knows; grows with it.

    Args:
        routing: Tells each row's pair.
        key_of: Pair → key.
    """

    def __init__(self, routing: Routing, key_of: KeyOf) -> None:
        self._routing = routing
        self._key_of = key_of

    def by_key(self, x: Tensor, compute: Callable[[Tensor, Key], Tensor]) -> Tensor:
        """Return `compute(rows, key)` of the rows of each key, put together in the order of `x`.

        Args:
            x: What a layer gets, [R, L, D].
            compute: Gets the rows of one key, [some of R, L, D].

        Raises:
            RoutingError: If a row's pair is not known.
        """
        route, pairs = self._routing.current(), self._routing.pairs
        if route.pair is not None:
            return compute(x, self._key_of(pairs[route.pair]))
        rows: dict[Key, list[Tensor]] = {}
        for index, entries in route.groups(x).items():
            rows.setdefault(self._key_of(pairs[index]), []).append(entries)
        if len(rows) == 1:
            return compute(x, next(iter(rows)))
        order = [torch.cat(entries) for entries in rows.values()]
        parts = [compute(x[index], key) for key, index in zip(rows, order, strict=True)]
        return torch.cat(parts)[torch.cat(order).argsort()]


class RowwisePart:
    """One module whose rows are computed key by key.

    Args:
        module: What is taken over.
        keys: The pairs' keys.
        compute: Gets what the module's own forward makes of its input, as a function, the rows of one key and
            the key; returns the output for these rows.
    """

    def __init__(
        self,
        module: nn.Module,
        keys: Keys,
        compute: Callable[[Callable[[Tensor], Tensor], Tensor, Key], Tensor],
    ) -> None:
        self.module = module
        self._keys = keys
        self._compute = compute
        self._taken: list[Takeover] = []

    def forward(self, x: Tensor) -> Tensor:
        """Stand in for the module's forward: x [R, L, D] → [R, L, F]."""
        original = self._taken[0].original
        return self._keys.by_key(x, lambda rows, key: self._compute(original, rows, key))

    def attach(self) -> None:
        """Take the module over."""
        self._taken.append(Takeover(self.module, self.forward))

    def detach(self) -> None:
        """Give it back."""
        while self._taken:
            self._taken.pop().give_back()

    @property
    def in_place(self) -> list[bool]:
        """Whether the module is still taken over."""
        return [taken.in_place for taken in self._taken]


class RowwiseAttachment(Attachment):
    """An attachment with weights of its own, which the model holds while it is on it.

    So the optimizer, a checkpoint and the saved model have them, under the name `OWN_WEIGHTS`.

    Args:
        model: The model.
        routing: The same that the parts ask, with the pairs in the order that `pair_ids` index.
        parts: What is taken over.
        inside: Dotted names of the modules that are taken over.
        own: The weights; None where there are none.
        knows: Whether a pair outside of `pairs` can be run (zero-shot), because all that it needs is there.
        description: What tells this attachment from others; plain values.
    """

    one_pair_a_batch = True

    def __init__(
        self,
        model: nn.Module,
        routing: Routing,
        parts: Sequence[Part],
        inside: Iterable[str],
        own: nn.Module | None = None,
        knows: Callable[[Pair], bool] = lambda pair: False,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, routing, parts, inside)
        self.own = own
        self._runs_untrained = knows
        self._description = dict(description or {})

    @property
    def leaves_parameters_unused(self) -> bool:
        """Whether a batch may leave some of the weights without a gradient."""
        return self.own is not None

    def attach(self) -> "RowwiseAttachment":
        """Put it, and its weights, on the model."""
        if not self.attached:
            super().attach()
            if self.own is not None:
                self.model.add_module(OWN_WEIGHTS, self.own)
        return self

    def detach(self) -> None:
        """Take it, and its weights, off; the weights stay here."""
        super().detach()
        self.model._modules.pop(OWN_WEIGHTS, None)

    def pair_id(self, pair: str) -> int:
        """Return the index of a pair; one that was not trained gets one where all that it needs is there.

        Raises:
            UnknownPairError: If it is not.
        """
        try:
            return super().pair_id(pair)
        except UnknownPairError:
            if not self.knows(pair):
                raise
        self._routing.pairs = [*self._routing.pairs, Pair(pair)]
        return len(self._routing.pairs) - 1

    def knows(self, pair: str) -> bool:
        """Return whether rows of that pair can be run."""
        return super().knows(pair) or self._runs_untrained(Pair(pair))

    def facts(self) -> dict[str, Any]:
        """Return what it was made with; its weights are among the model's."""
        return self._description
