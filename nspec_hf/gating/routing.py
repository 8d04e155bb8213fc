"""Routing: which pair does each row of the batch belong to?

Shape letters: B = samples, N = beams, L = tokens, F = neurons of a site; R = B, or 1 where one pair holds for
all rows.

Three sources, in this order: `pair_ids` in the batch, `gate.use(pair)`, and language tokens where the
tokenizer's family shows both languages. The outermost call decides (`generate`, else the model's forward,
else its encoder's or decoder's) and everything inside it follows, so the encoder that `generate` runs by
itself has a route too.

A route outlives its forward pass, because gradient checkpointing runs layers again during the backward pass.
And two forward passes may come before one backward pass, so `last` is the route of the forward pass that the
backward pass has reached; the gate sets it by a hook on that forward pass's outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nspec_hf.core import ConfigError, Pair, RoutingError, UnknownPairError, pair_index
from nspec_hf.data import LanguageTags

GENERATION = "generate"
"""Stands for `model.generate` where a call is named as the one that decides."""

_BATCHED = ("input_ids", "inputs", "inputs_embeds", "input_features", "decoder_input_ids", "labels")


@dataclass(eq=False)
class Route:
    """The pair of every row."""

    rows: Tensor
    """Index of each row's pair, int64. Shape [R]."""
    pair: int | None
    """That index where all rows are known to share one; else None."""
    origin: str
    """Where the route came from, in words, for `status()` and errors."""
    _groups: dict[tuple[int, torch.device], dict[int, Tensor]] = field(default_factory=dict, repr=False)

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
        count, entries = self.rows.shape[0], output.shape[0]
        if count == 1 or count == entries:
            return self.rows
        if entries % count:
            raise RoutingError(
                f"a gated layer ran on {entries} rows, but the pairs of {count} samples are known "
                f"({self.origin}); rows that are packed or dropped inside the model cannot be told apart, so "
                "give such a batch one pair with gate.use(pair)"
            )
        return self.rows.repeat_interleave(entries // count)

    def groups(self, output: Tensor) -> dict[int, Tensor]:
        """Return each pair's entries along the first axis of a layer's output, as int64 indices.

        Raises:
            RoutingError: As `rows_for`.
        """
        # A model may lie on several devices.
        key = output.shape[0], output.device
        if key not in self._groups:
            rows = self.rows_for(output)
            # Looked for on the host: on a GPU each look at values waits for all that it has to do.
            numbers = rows.cpu()
            pairs = numbers.unique().tolist()
            found = {pair: (numbers == pair).nonzero()[:, 0].to(output.device) for pair in pairs}
            self._groups[key] = found
        return self._groups[key]


class TokenReader:
    """Reads each row's pair from its language tokens.

    Args:
        tags: How the tokenizer spells languages.
        pairs: Pairs whose languages are looked for.
        index_of: Returns a pair's index, or raises `UnknownPairError`.

    Raises:
        ConfigError: If the tokenizer's family does not show both languages (Marian, MADLAD, T5 …).
        UnknownLanguageError: If the tokenizer has no tag for a pair's language.
    """

    def __init__(self, tags: LanguageTags, pairs: Sequence[Pair], index_of: Callable[[Pair], int]) -> None:
        """Look the tags up once."""
        if not tags.shows_both:
            raise ConfigError(
                f"the {tags.family} tokenizer does not show both languages in its tokens; give pair_ids in "
                "the batch or call gate.use(pair)"
            )
        self._codes = sorted({code for pair in pairs for code in (pair.source, pair.target)})
        self._tag_ids = torch.tensor([tags.tag_id(code) for code in self._codes])
        self._index_of = index_of

    def read(self, inputs: Mapping[str, Any]) -> Route:
        """Return the route of a batch.

        Args:
            inputs: The call's arguments by name: `input_ids` [B, L], and for the target `decoder_input_ids`
            [B, L],
                `prompt` [1, L] (what `generate` starts every row from) or `labels` [B, L].

        Raises:
            RoutingError: If a side is missing, or a row shows no language or several.
            UnknownPairError: If a row's pair has no mask.
        """
        sources = self._languages(_first(inputs, "input_ids", "inputs"), "input_ids")
        target_ids = _first(inputs, "decoder_input_ids", "prompt", "labels")
        targets = self._languages(target_ids, "decoder_input_ids, forced_bos_token_id or labels")
        if len(targets) == 1:
            targets = targets * len(sources)
        pairs = [Pair(source, target) for source, target in zip(sources, targets, strict=True)]
        index = {pair: self._index_of(pair) for pair in dict.fromkeys(pairs)}
        rows = torch.tensor([index[pair] for pair in pairs])
        return Route(rows, rows[0].item() if len(index) == 1 else None, "language tokens")

    def _languages(self, ids_BL: Tensor | None, name: str) -> list[str]:
        if ids_BL is None:
            raise RoutingError(f"no language can be read: the call has no {name}. {HOW_TO_ROUTE}")
        shown = (ids_BL[..., None] == self._tag_ids.to(ids_BL.device)).any(dim=1)
        for row, count in enumerate(shown.sum(dim=1).tolist()):
            if count != 1:
                found = f"{count} languages" if count else "no language"
                raise RoutingError(
                    f"row {row} of {name} shows {found} of those that the masks hold "
                    f"({', '.join(self._codes)}). {HOW_TO_ROUTE}"
                )
        return [self._codes[column] for column in shown.int().argmax(dim=1).tolist()]


HOW_TO_ROUTE = (
    "Say which pair each row belongs to: model(**batch, pair_ids=...), model.generate(..., pair_ids=...), "
    "gate.use('en-de'), or gate.read_languages(tokenizer)"
)


class Routing:
    """The state of one gate, shared with its sites.

    Plain attributes of one object, not thread-locals: CUDA runs the backward pass in another thread.

    Args:
        pairs: Those that have masks, in the order of their index.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Start with no route: a gated layer that runs now is an error."""
        self.pairs = pairs
        self.chosen: Route | None = None
        """What `gate.use` chose."""
        self.reader: TokenReader | None = None
        self.last: Route | None = None
        """The latest route, or in a backward pass that of the forward pass it has reached."""
        self._running: Route | None = None
        self._decider: object = None

    def choose(self, route: Route | None) -> None:
        """Take a route for all calls that bring no `pair_ids`; None takes it back."""
        self.chosen = route
        # Nobody chooses inside a running call, so what is left of one was interrupted.
        self._running = self._decider = None

    def current(self) -> Route:
        """Return the route that a gated layer must follow now.

        Raises:
            RoutingError: If there is none; a layer is never silently dense.
        """
        if self._running is not None:
            return self._running
        if _in_backward():
            return self._replayed()
        if self.chosen is None:
            raise RoutingError(f"a gated layer runs, but no pair is known. {HOW_TO_ROUTE}")
        self.last = self.chosen
        return self.chosen

    def enter(
        self, caller: object, pair_ids: Any, inputs: Mapping[str, Any], outermost: bool = False
    ) -> None:
        """Decide the route where `caller` is the outermost call; inside another call, follow that one.

        Args:
            caller: Who calls; the same object must be given to `leave`.
            pair_ids: Index of each row's pair, [B], or names of pairs; None asks the other sources.
            inputs: The call's arguments by name.
            outermost: Whether only `generate` can be around this caller. Then a route that an interrupted
                call left behind is dropped.
        """
        inside = self._decider is not None and self._decider is not caller
        if inside and (self._decider is GENERATION or not outermost):
            if pair_ids is not None:
                raise RoutingError(
                    "pair_ids were given again inside a call that has a route; give them once, outside"
                )
            return
        self._decider = self._running = None
        self._running = self.last = self._decide(pair_ids, inputs)
        self._decider = caller

    def leave(self, caller: object) -> Route | None:
        """End the call and return its route, if it was the one that decided."""
        if self._decider is not caller:
            return None
        route, self._running, self._decider = self._running, None, None
        return route

    @contextmanager
    def generation(self, pair_ids: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Hold one route for all that `generate` calls."""
        nested = self._decider is GENERATION
        self.enter(GENERATION if not nested else object(), pair_ids, inputs, outermost=True)
        try:
            yield
        finally:
            if not nested:
                self.leave(GENERATION)

    def in_words(self) -> str:
        """Describe which pair the next rows belong to, and which the last ones belonged to."""
        tokens = "language tokens" if self.reader else "pair_ids, nothing else is set"
        coming = self.chosen.origin if self.chosen else tokens
        if self.last is None:
            return f"{coming}; no batch yet"
        names = [str(self.pairs[index]) for index in self.last.rows.unique().tolist()]
        return f"{coming}; last batch: {', '.join(names)} by {self.last.origin}"

    def _decide(self, pair_ids: Any, inputs: Mapping[str, Any]) -> Route:
        if pair_ids is not None:
            return self._from_ids(pair_ids, inputs)
        if _in_backward():
            return self._replayed()
        if self.chosen is not None:
            return self.chosen
        if self.reader is not None:
            return self.reader.read(inputs)
        raise RoutingError(f"no pair is known for this batch. {HOW_TO_ROUTE}")

    def _from_ids(self, pair_ids: Any, inputs: Mapping[str, Any]) -> Route:
        rows = pair_ids if isinstance(pair_ids, Tensor) else self._as_tensor(pair_ids)
        if rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise RoutingError(
                f"pair_ids is one integer a row, shape [B], got {rows.dtype} of shape {list(rows.shape)}"
            )
        if rows.dtype != torch.int64:  # as an index, uint8 would be taken for booleans
            rows = rows.long()
        sample = _first(inputs, *_BATCHED)
        if isinstance(sample, Tensor) and sample.shape[0] != rows.shape[0]:
            raise RoutingError(f"pair_ids has {rows.shape[0]} rows, the batch has {sample.shape[0]}")
        if torch.compiler.is_compiling():  # looking at values would break the graph
            return Route(rows, None, "pair_ids")
        # One look for both: on a GPU each waits for all that it has to do.
        low, high = torch.stack(torch.aminmax(rows)).tolist()
        if low < 0 or high >= len(self.pairs):
            known = ", ".join(f"{index} {pair}" for index, pair in enumerate(self.pairs))
            raise UnknownPairError(f"pair_ids holds {low if low < 0 else high}, but masks hold: {known}")
        return Route(rows, low if low == high else None, "pair_ids")

    def _as_tensor(self, pair_ids: Any) -> Tensor:
        if isinstance(pair_ids, str):
            raise RoutingError(
                f"pair_ids is one index a row, got {pair_ids!r}; gate.use takes one pair for all rows"
            )
        if isinstance(pair_ids, (list, tuple)) and all(isinstance(each, str) for each in pair_ids):
            pair_ids = [pair_index(self.pairs, each, "masks") for each in pair_ids]
        try:
            return torch.as_tensor(pair_ids)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RoutingError(f"pair_ids is one integer a row, shape [B], got {pair_ids!r}") from error

    def _replayed(self) -> Route:
        if self.last is None:
            raise RoutingError(
                "a gated layer runs again in the backward pass of a forward pass that was made before the "
                "gate was attached; attach the gate before the forward pass"
            )
        return self.last


def _in_backward() -> bool:
    # A compiled graph is never traced inside a backward pass, and Dynamo cannot trace the question.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _first(inputs: Mapping[str, Any], *names: str) -> Any:
    return next((inputs[name] for name in names if inputs.get(name) is not None), None)
