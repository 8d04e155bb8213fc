"""Routing: which pair does each row of the batch belong to?

Three sources, in this order: `pair_ids` in the batch, `gate.use(pair)`, and language tokens where the
tokenizer's family shows both languages. The outermost call decides (`generate`, else the model's forward,
else its encoder's or decoder's) and everything inside it follows, so the encoder that `generate` runs by
itself has a route too.

Threads: a model may be called by several at once, so each has a route, and a choice, of its own.

A route outlives its forward pass, because gradient checkpointing runs layers again during the backward pass,
which on a GPU is done by a thread of PyTorch's. And several forward passes may share one backward pass, which
goes through them output by output: so every output of encoder, decoder and model carries the route that it
was made by, and the backward pass takes the route over when it gets there.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from nspec_hf.core import Pair, RoutingError, UnknownPairError, in_short, numbered, pair_index
from nspec_hf.gating.internals import WeakTensorKeyDictionary, backward_pass, is_running, when_backward_ends
from nspec_hf.gating.route import HOW_TO_ROUTE, Route, TokenReader, first_of

GENERATION = "generate"
"""Stands for `model.generate` where a call is named as the one that decides."""

_BATCHED = ("input_ids", "inputs", "inputs_embeds", "input_features", "decoder_input_ids", "labels")


@dataclass(eq=False)
class Thread:
    """What one thread is doing; in a thread that is new, nothing."""

    running: Route | None = None
    """The route of the call that it is in."""
    decider: object = None
    """Who decided it."""
    frame: FrameType | None = None
    """What called who decided; None where that ends its call come what may."""
    last: Route | None = None
    """Its latest route."""
    chosen: Route | None = None
    """What it has chosen by `gate.use`."""
    kept: dict[Any, Any] | None = None
    """A place for what may be kept until the `generate` that it is in ends; None outside of `generate`."""


class _Local(threading.local):
    """Python calls this anew in each thread. Dynamo would lose what is set on it, so it holds an object."""

    def __init__(self) -> None:
        self.thread = Thread()


class Routing:
    """The state of one gate, shared with its parts.

    Args:
        pairs: Those that have masks, in the order of their index.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Start with no route: a gated layer that runs now is an error."""
        self.pairs = pairs
        self.reader: TokenReader | None = None
        self.index_of: Callable[[list[str]], list[int]] = self._own_index_of
        """Returns the indices of pairs by name; an attachment's own also adds those that it can run."""
        self.lock = threading.RLock()
        """Held while pairs are added."""
        self._local = _Local()
        self._common: Route | None = None
        """What a thread that has chosen nothing follows: the others' choice, where that is one pair."""
        self._choices: WeakKeyDictionary[threading.Thread, Route] = WeakKeyDictionary()
        self._callers: WeakSet[threading.Thread] = WeakSet()
        self._latest: Route | None = None
        """Of all threads."""
        self._reached: dict[int, Route | None] = {}
        """Backward pass → route of the output that it has reached; None where that was made outside."""
        self._made = WeakTensorKeyDictionary()
        """The tensors whose backward pass sets the route."""
        self._filled = WeakTensorKeyDictionary()
        """Cache of keys and values → the route that it was filled by."""

    def choose(self, route: Route | None) -> None:
        """Take a route for all calls of this thread that bring no `pair_ids`; None takes it back.

        Threads that have chosen nothing follow the others, as long as these agree.
        """
        self.here.chosen = route
        # Nobody chooses inside a running call, so what is left of one was interrupted.
        self.here.running = self.here.decider = self.here.frame = None
        with self.lock:
            self._choices.pop(threading.current_thread(), None)
            if route is not None:
                self._choices[threading.current_thread()] = route
            choices = list(self._choices.values())
            self._common = choices[0] if len({choice.pair for choice in choices}) == 1 else None

    @property
    def here(self) -> Thread:
        """What the thread that asks is doing."""
        return self._local.thread

    @property
    def chosen(self) -> Route | None:
        """What holds for this thread's calls that bring no `pair_ids`."""
        return self.here.chosen or self._common

    @property
    def last(self) -> Route | None:
        """This thread's latest route; in a backward pass that of the forward pass which it has reached."""
        number = backward_pass()
        if number in self._reached:
            return self._reached[number]
        # A backward pass on a GPU runs in a thread that has called nothing.
        return self.here.last or (self._latest if len(self._callers) < 2 else None)

    def current(self) -> Route:
        """Return the route that a gated layer must follow now.

        Raises:
            RoutingError: If there is none; a layer is never silently dense.
        """
        if self.here.running is not None:
            return self.here.running
        if backward_pass() != -1:
            return self._replayed()
        route = self.chosen
        if route is None:
            raise RoutingError(f"a gated layer runs, but no pair is known. {self._how()}")
        self.here.last = self._latest = route
        return route

    def enter(
        self,
        caller: object,
        pair_ids: Any,
        inputs: Mapping[str, Any],
        outermost: bool = False,
        frame: FrameType | None = None,
    ) -> bool:
        """Decide the route where `caller` is the outermost call; inside another call, follow that one.

        Returns whether it has decided.

        Args:
            caller: Who calls; the same object must be given to `leave`.
            pair_ids: Index of each row's pair, [B], or names of pairs; None asks the other sources.
            inputs: The call's arguments by name.
            outermost: Whether only `generate` can be around this caller. Then a route that an interrupted
                call left behind is dropped.
            frame: Of what calls the caller. Off the stack, the call is over, though KeyboardInterrupt runs no
                hook that could tell.
        """
        here = self.here
        inside = here.decider is not None and here.decider is not caller and is_running(here.frame)
        if inside and (here.decider is GENERATION or not outermost):
            if pair_ids is not None:
                raise RoutingError(
                    "pair_ids were given again inside a call that has a route; give them once, outside"
                )
            return False
        here.decider = here.running = here.frame = None
        route = self._decide(pair_ids, inputs)
        if not torch.compiler.is_compiling():
            self._callers.add(threading.current_thread())
            if inputs.get("past_key_values") is not None:
                self._check_cache(inputs["past_key_values"], route)
        here.running = here.last = self._latest = route
        here.decider, here.frame = caller, frame
        return True

    def leave(self, caller: object) -> Route | None:
        """End the call and return its route, if it was the one that decided."""
        here = self.here
        if here.decider is not caller:
            return None
        route, here.running, here.decider, here.frame = here.running, None, None, None
        return route

    @contextmanager
    def generation(self, pair_ids: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Hold one route for all that `generate` calls."""
        here = self.here
        nested = here.decider is GENERATION
        self.enter(object() if nested else GENERATION, pair_ids, inputs, outermost=True)
        if nested:
            # As in speculative decoding. Other samples must not be taken for beams of these.
            rows, given = self.current().rows.shape[0], _rows_in(inputs)
            if rows > 1 and given not in (None, rows):
                raise RoutingError(f"generate inside generate has {given} rows, but {rows} pairs are known")
            yield
            return
        here.kept = {}
        try:
            yield
        finally:
            here.kept = None
            self.leave(GENERATION)

    def fill(self, cache: Any, route: Route) -> None:
        """Remember that a call of this route has filled a cache of keys and values, if it made one."""
        if hasattr(cache, "get_seq_length"):
            self._filled.setdefault(cache, route)

    def unseen(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return those whose backward pass is yet to set a route, each once and for all: the first holds.

        What a call gets is older than what it makes: an encoder's outputs that are used again keep the route
        of the call that made them.
        """
        unseen = [one for one in tensors if one.grad_fn is not None and one not in self._made]
        self._made.update((tensor, True) for tensor in unseen)
        return unseen

    def reach(self, route: Route | None) -> None:
        """Follow this route in the running backward pass from now on; None: what comes was made outside."""
        number = backward_pass()
        if number not in self._reached:
            when_backward_ends(lambda: self._reached.pop(number, None))
        self._reached[number] = route

    def in_words(self) -> str:
        """Describe which pair the next rows belong to, and which the last ones belonged to."""
        tokens = "language tokens" if self.reader else "pair_ids, nothing else is set"
        coming = self.chosen.origin if self.chosen else tokens
        last = self.last or self._latest
        if last is None:
            return f"{coming}; no batch yet"
        names = [str(self.pairs[index]) for index in last.rows.unique().tolist()]
        return f"{coming}; last batch: {', '.join(names)} by {last.origin}"

    def _decide(self, pair_ids: Any, inputs: Mapping[str, Any]) -> Route:
        if pair_ids is not None:
            return self._from_ids(pair_ids, inputs)
        if backward_pass() != -1:
            return self._replayed()
        if self.chosen is not None:
            return self.chosen
        if self.reader is not None:
            return self.reader.read(inputs)
        raise RoutingError(f"no pair is known for this batch. {self._how()}")

    def _check_cache(self, cache: Any, route: Route) -> None:
        """Refuse keys and values of other pairs; the first call that fills a cache says whose they are."""
        before = self._filled.get(cache)
        if before is None or route.pair == before.pair is not None:
            return self.fill(cache, route)
        rows, were = route.rows.tolist(), before.rows.tolist()
        same = rows == were if len(rows) == len(were) else set(rows) <= set(were)
        if not same and int(cache.get_seq_length()):
            names = ["/".join(self.pairs[index] for index in sorted(set(each))) for each in (were, rows)]
            raise RoutingError(
                f"past_key_values were computed as {names[0]}, but these rows are {names[1]}: start without "
                "them, or reset() them"
            )
        self._filled[cache] = route

    def _from_ids(self, pair_ids: Any, inputs: Mapping[str, Any]) -> Route:
        rows = pair_ids if isinstance(pair_ids, Tensor) else self._as_tensor(pair_ids)
        if rows.dim() != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise RoutingError(
                f"pair_ids is one integer a row, shape [B], got {rows.dtype} of shape {list(rows.shape)}"
            )
        if rows.dtype != torch.int64:  # as an index, uint8 would be taken for booleans
            rows = rows.long()
        given, count = _rows_in(inputs), len(self.pairs)
        if given not in (None, rows.shape[0]):
            raise RoutingError(f"pair_ids has {rows.shape[0]} rows, the batch has {given}")
        if torch.compiler.is_compiling():
            # Looking at values would break the graph; `Route.rows_for` sees to it.
            return Route(rows, None, "pair_ids")
        if not rows.numel():
            raise RoutingError("the batch has no rows")
        # One look for both: on a GPU each waits for all that it has to do.
        low, high = torch.stack(torch.aminmax(rows)).tolist()
        if low < 0 or high >= count:
            known = in_short([f"{index} {pair}" for index, pair in enumerate(self.pairs)])
            raise UnknownPairError(f"pair_ids holds {low if low < 0 else high}, but masks hold: {known}")
        return Route(rows, low if low == high else None, "pair_ids")

    def _as_tensor(self, pair_ids: Any) -> Tensor:
        if isinstance(pair_ids, str):
            raise RoutingError(
                f"pair_ids is one index a row, got {pair_ids!r}; gate.use takes one pair for all rows"
            )
        if isinstance(pair_ids, (list, tuple)) and all(isinstance(pair, str) for pair in pair_ids):
            pair_ids = self.index_of(list(pair_ids))
        try:
            return torch.as_tensor(pair_ids)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RoutingError(f"pair_ids is one integer a row, shape [B], got {pair_ids!r}") from error

    def _own_index_of(self, pairs: list[str]) -> list[int]:
        numbers = numbered(self.pairs)
        return [pair_index(numbers, pair, "masks") for pair in pairs]

    def _replayed(self) -> Route:
        route = self.last
        if route is None:
            raise RoutingError(
                "a gated layer runs again in the backward pass of a forward pass that was made before the "
                "gate was attached, or outside of it; attach the gate before the forward pass"
            )
        return route

    def _how(self) -> str:
        others = "Other threads have chosen pairs that differ, so this one follows none. "
        return (others if self._choices else "") + HOW_TO_ROUTE

    def __getstate__(self) -> dict[str, Any]:
        """Keep what was chosen; what runs now, runs on the model that is copied or pickled."""
        kept = ("pairs", "reader", "index_of", "chosen")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with that."""
        self.__init__(state["pairs"])
        self.reader, self.index_of = state["reader"], state["index_of"]
        if state["chosen"] is not None:
            self.choose(state["chosen"])


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a call gets or returns, those in lists and mappings too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def _rows_in(inputs: Mapping[str, Any]) -> int | None:
    """Return how many rows a call's arguments have, where they tell."""
    encoded = inputs.get("encoder_outputs")
    tensor = first_of(inputs, *_BATCHED) if encoded is None else next(tensors_in(encoded), None)
    return tensor.shape[0] if isinstance(tensor, Tensor) else None
