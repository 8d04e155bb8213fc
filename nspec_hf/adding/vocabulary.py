"""Embeddings that only some pairs have: of pieces that are new to the model's old languages, and of new tags.

Shape letters: R = rows of a batch, r = those of the new pairs, L = tokens, D = model width, V = old
vocabulary, N = embeddings of the new pairs, some of which may be of ids from V on.

For rows of the new pairs, an id among the N has its own embedding, as input and in the output layer; every
other id, and every other row, has the old one. Ids that the model has no row for get columns behind the old
logits: minus infinity for rows of other pairs, and no column at all in a batch that holds none of the new
pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, pad

from nspec_hf.adding.branches import Branch, Whose, of_rows, put_into

Which = Literal["embeddings", "targets", "outputs"]
"""What has a row a token: the encoder's embedding; the decoder's and the output layer, where they are not the
same weights."""


class OwnRows(nn.Module):
    """The weights: one embedding for each of N ids, and one for the decoder and the output layer if not tied.

    Args:
        ids: The ids, in ascending order.
        size: Vocabulary of the model that they are added to, V.
        like: The old weights, each once.
    """

    slots: Tensor

    def __init__(self, ids: Sequence[int], size: int, like: Mapping[Which, Tensor]) -> None:
        super().__init__()
        self.ids, self.size = list(ids), size
        self.embeddings: nn.Parameter
        for which in get_args(Which):
            old = like.get(which)
            rows = None if old is None else nn.Parameter(old.new_zeros(len(self.ids), old.shape[1]))
            self.register_parameter(which, rows)
        slots = torch.full((max(size, *(number + 1 for number in self.ids)),), -1)
        slots[self.ids] = torch.arange(len(self.ids))
        slots = slots.to(self.embeddings.device)
        # Which of the N an id is; -1: none.
        self.register_buffer("slots", slots, persistent=False)

    @property
    def whole(self) -> int:
        """Vocabulary with the new ids."""
        return len(self.slots)

    def of(self, which: Which) -> Tensor:
        """Return the weights that act there, [N, D]: the embeddings where it has none of its own."""
        own = self._parameters[which]
        return self.embeddings if own is None else own


class InputRows(Branch):
    """An embedding module whose rows of new pairs have their own."""

    def __init__(self, module: nn.Module, own: OwnRows, which: Which, whose: Whose) -> None:
        super().__init__(module, whose)
        self._own = own
        self._which: Which = which
        self._scale = float(getattr(module, "embed_scale", 1.0))

    def forward(self, ids_RL: Tensor) -> Tensor:
        """Stand in for the embedding: ids [R, L] → [R, L, D]."""
        rows, own = self._whose.rows(ids_RL), self._own
        if rows is False:
            return self._taken[0].original(ids_RL)
        ids_rL = of_rows(ids_RL, rows)
        slots_rL = own.slots[ids_rL]
        # What is replaced below stands for any id there: what is beneath may have no row for it.
        old = self._taken[0].original(put_into(ids_RL, rows, ids_rL.where(slots_rL < 0, 0)))
        new = embedding(slots_rL.clamp(min=0), own.of(self._which)) * self._scale
        return put_into(
            old, rows, torch.where(slots_rL[..., None] >= 0, new.to(old.dtype), of_rows(old, rows))
        )


class OutputRows(Branch):
    """An output layer whose logits of the N ids are, for rows of new pairs, those of their own embeddings."""

    def __init__(self, module: nn.Module, own: OwnRows, whose: Whose) -> None:
        super().__init__(module, whose)
        self._own, self._ids = own, torch.tensor(own.ids)

    def forward(self, h_RLD: Tensor) -> Tensor:
        """Stand in for the output layer: h [R, L, D] → [R, L, V], or wider."""
        old, own = self._taken[0].original(h_RLD), self._own
        rows = self._whose.rows(h_RLD)
        if rows is False:
            return old
        old = pad(old, (0, own.whole - old.shape[-1]), value=-torch.inf)
        self._ids = self._ids.to(h_RLD.device)
        new_rLN = linear(of_rows(h_RLD, rows), own.of("outputs")).to(old.dtype)
        return put_into(old, rows, of_rows(old, rows).index_copy(-1, self._ids, new_rLN))
