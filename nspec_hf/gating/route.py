"""A route: the pair of every row of a batch, known or read from its language tokens.

Shape letters: B = samples, N = beams, L = tokens, F = neurons of a site; R = B, or 1 where one pair holds for
all rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nspec_hf.core import ConfigError, Pair, RoutingError, in_short, languages_of
from nspec_hf.data import LanguageTags

HOW_TO_ROUTE = (
    "Say which pair each row belongs to: model(**batch, pair_ids=...), model.generate(..., pair_ids=...), "
    "gate.use('en-de'), or gate.read_languages(tokenizer)"
)


@dataclass(eq=False)
class Route:
    """The pair of every row."""

    rows: Tensor
    """Index of each row's pair, int64. Shape [R]."""
    pair: int | None
    """That index where all rows are known to share one; else None."""
    origin: str
    """Where the route came from, in words, for `status()` and errors."""
    _entries: dict[tuple[int, torch.device], dict[int, Tensor]] = field(default_factory=dict, repr=False)

    def rows_for(self, output: Tensor) -> Tensor:
        """Return the pair index of each entry along the first axis of a layer's output.

        The beams of a sample are adjacent, and so are its tokens where an architecture flattens [B, L, F] to
        [B·L, F]: either way a sample's index is repeated in place, never tiled.

        Returns:
            int64 of shape [1] or [output.shape[0]].

        Raises:
            RoutingError: If the first axis is not B times something.
        """
        if self.rows.device != output.device:
            self.rows = self.rows.to(output.device)
        rows, count, entries = self.rows, self.rows.shape[0], output.shape[0]
        if torch.compiler.is_compiling():
            # No value was looked at, and a negative one would count from the end: to no table's index.
            rows = torch.where(rows < 0, torch.iinfo(torch.int32).max, rows)
        if count == 1 or count == entries:
            return rows
        if entries % count:
            raise RoutingError(
                f"a gated layer ran on {entries} rows, but the pairs of {count} samples are known "
                f"({self.origin}); rows that are packed or dropped inside the model cannot be told apart, so "
                "give such a batch one pair with gate.use(pair)"
            )
        return rows.repeat_interleave(entries // count)

    def entries_of_pairs(self, output: Tensor) -> dict[int, Tensor]:
        """Return each pair's entries along the first axis of a layer's output, as int64 indices.

        Raises:
            RoutingError: As `rows_for`.
        """
        # A model may lie on several devices.
        key = output.shape[0], output.device
        if key not in self._entries:
            # Looked for on the host: on a GPU each look at values waits for all that it has to do.
            rows = self.rows_for(output).cpu()
            by_pair = {pair: (rows == pair).nonzero()[:, 0] for pair in rows.unique().tolist()}
            self._entries[key] = {pair: entries.to(output.device) for pair, entries in by_pair.items()}
        return self._entries[key]


class TokenReader:
    """Reads each row's pair from its language tokens.

    Args:
        tags: How the tokenizer spells languages.
        pairs: Pairs whose languages are looked for.
        index_of: Returns the indices of pairs, or raises `UnknownPairError`.

    Raises:
        ConfigError: If the tokenizer's family does not show both languages (Marian, MADLAD, T5 …).
        UnknownLanguageError: If the tokenizer has no tag for a pair's language.
    """

    def __init__(
        self, tags: LanguageTags, pairs: Sequence[Pair], index_of: Callable[[list[Pair]], list[int]]
    ) -> None:
        """Look the tags up once."""
        if not tags.shows_both:
            raise ConfigError(
                f"the {tags.family} tokenizer does not show both languages in its tokens; give pair_ids in "
                "the batch or call gate.use(pair)"
            )
        self._codes = sorted(languages_of(pairs))
        self._tag_ids = torch.tensor([tags.tag_id(code) for code in self._codes])
        self._index_of = index_of

    def read(self, inputs: Mapping[str, Any]) -> Route:
        """Return the route of a batch.

        Args:
            inputs: The call's arguments by name: `input_ids` [B, L], and for the target `decoder_input_ids`
                [B, L], `prompt` [1, L] (what `generate` starts every row from) or `labels` [B, L].

        Raises:
            RoutingError: If a side is missing, or a row shows no language or several.
            UnknownPairError: If a row's pair has no mask.
        """
        sources = self._languages(first_of(inputs, "input_ids", "inputs"), "input_ids")
        target_ids = first_of(inputs, "decoder_input_ids", "prompt", "labels")
        targets = self._languages(target_ids, "decoder_input_ids, forced_bos_token_id or labels")
        if len(targets) == 1:
            targets = targets * len(sources)
        if len(targets) != len(sources):
            raise RoutingError(f"{len(sources)} sources but {len(targets)} targets show their languages")
        pairs = [Pair(source, target) for source, target in zip(sources, targets, strict=True)]
        different = list(dict.fromkeys(pairs))
        index = dict(zip(different, self._index_of(different), strict=True))
        rows = torch.tensor([index[pair] for pair in pairs])
        return Route(rows, int(rows[0]) if len(index) == 1 else None, "language tokens")

    def _languages(self, ids_BL: Tensor | None, name: str) -> list[str]:
        if ids_BL is None:
            raise RoutingError(f"no language can be read: the call has no {name}. {HOW_TO_ROUTE}")
        shown = (ids_BL[..., None] == self._tag_ids.to(ids_BL.device)).any(dim=1)
        for row, count in enumerate(shown.sum(dim=1).tolist()):
            if count != 1:
                seen = f"{count} languages" if count else "no language"
                raise RoutingError(
                    f"row {row} of {name} shows {seen} of those that the masks hold "
                    f"({in_short(self._codes)}). {HOW_TO_ROUTE}"
                )
        return [self._codes[column] for column in shown.int().argmax(dim=1).tolist()]


def first_of(inputs: Mapping[str, Any], *names: str) -> Any:
    """Return the first of these arguments that is given, or None."""
    return next((inputs[name] for name in names if inputs.get(name) is not None), None)
