"""Weights of their own for some rows of a batch: what adapters, own attention and split parameters share.

Shape letters: R = rows along a layer's first axis, L = tokens, D = width of the input, F = of the output.

Each pair has a *key* (the pair itself, its target language, its family …), and rows with the same key share
weights. A layer is taken over as the gate takes it over, so mixed batches, beams, gradient checkpointing and
exact removal work as they do there. Weights of a key that no row of a batch has get no gradient at all, not a
gradient of zero, so that no optimizer moves them.

The trap: a deep copy of a model copies what the parts hold, but never what a closure remembers. So whatever
a part holds is an object, a bound method or a `partial`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from nspec_hf.core import Pair, TrainingSetupError
from nspec_hf.gating import Attachment, Routing, TakenOver
from nspec_hf.recording import OWN_WEIGHTS

Key = Any
"""Anything hashable."""
KeyOf = Callable[[Pair], Key]


class RowwisePart(TakenOver):
    """One module that is computed key by key.

    Args:
        module: What is taken over; its forward has one argument.
        routing: Tells each row's pair.
        key_of: Pair → key.
        own: Key → the module that its rows run through; rows of other keys run through the model's.
    """

    def __init__(
        self, module: nn.Module, routing: Routing, key_of: KeyOf, own: Mapping[Key, nn.Module]
    ) -> None:
        super().__init__()
        self.module, self._routing, self._key_of, self._own = module, routing, key_of, own

    def forward(self, x: Tensor) -> Any:
        """Stand in for the module's forward: x [R, L, D] → [R, L, F]."""
        original = self._taken[0].original
        return self.by_key(x, lambda rows, key: self._own.get(key, original)(rows))

    def by_key(self, x: Tensor, compute: Callable[[Tensor, Key], Tensor]) -> Tensor:
        """Return `compute(rows, key)` of the rows of each key, put together in the order of `x`.

        Args:
            x: What a layer gets or makes, [R, L, D].
            compute: Gets the rows of one key, [some of R, L, D].

        Raises:
            RoutingError: If a row's pair is not known.
        """
        route, pairs = self._routing.current(), self._routing.pairs
        if route.pair is not None:
            return compute(x, self._key_of(pairs[route.pair]))
        rows: dict[Key, list[Tensor]] = {}
        for index, entries in route.entries_of_pairs(x).items():
            rows.setdefault(self._key_of(pairs[index]), []).append(entries)
        if len(rows) == 1:
            return compute(x, next(iter(rows)))
        order = [torch.cat(entries) for entries in rows.values()]
        parts = [compute(x[index], key) for key, index in zip(rows, order, strict=True)]
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _forwards(self) -> list[tuple[nn.Module, Callable[..., Any]]]:
        return [(self.module, self.forward)]


class RowwiseOutput(RowwisePart):
    """One module that runs as it is, and whose output [R, L, F] then runs through what is its rows' key's.

    Rows of the key None stay as they are. It may be a linear, or a whole layer with any arguments, which
    returns a tensor or a tuple that begins with one.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the module's forward."""
        output = self._taken[0].original(*args, **kwargs)
        if isinstance(output, Tensor):
            return self.by_key(output, self._through)
        return (self.by_key(output[0], self._through), *output[1:])

    def _through(self, rows: Tensor, key: Key) -> Tensor:
        return rows if key is None else self._own[key](rows)


class OwnModules(nn.Module):
    """Modules that belong to keys, at some places of a model; initialized alike by every run of one seed.

    A checkpoint names their weights `for_KEY.PLACE.…`, with `_` for each dot of key and place.

    Args:
        places: Dotted names of the places that each key has modules at.
        make: Place → a new module for it.
        seed: Of the new weights; the program's random numbers stay as they were.
    """

    def __init__(
        self, places: Mapping[str, Iterable[str]], make: Callable[[str], nn.Module], seed: int
    ) -> None:
        super().__init__()
        self._places = {key: list(names) for key, names in places.items()}
        with torch.random.fork_rng(devices=[]):
            # The modules are made on the CPU, so other devices' random numbers are left alone.
            torch.default_generator.manual_seed(seed)
            for key, names in self._places.items():
                own = nn.ModuleDict({_undotted(name): make(name) for name in names})
                self.add_module(f"for_{_undotted(key)}", own)

    def at(self, place: str) -> dict[Key, nn.Module]:
        """Return the modules at one place: key → module."""
        return {
            key: self.get_submodule(f"for_{_undotted(key)}.{_undotted(place)}")
            for key, names in self._places.items()
            if place in names
        }


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
        parts: Sequence[TakenOver],
        inside: Iterable[str],
        own: nn.Module | None = None,
        knows: Callable[[Pair], bool] = lambda pair: False,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, routing, parts, inside, own)
        self._runs_untrained = knows
        self._description = dict(description or {})

    def knows(self, pair: str) -> bool:
        """Return whether rows of that pair can be run."""
        return super().knows(pair) or self._runs_untrained(Pair(pair))

    def facts(self) -> dict[str, Any]:
        """Return what it was made with; its weights are among the model's."""
        return self._description

    def check_beside(self, checkpoint: Path) -> None:
        """Check that a checkpoint holds weights for the same keys, places and sizes.

        Raises:
            TrainingSetupError: If it does not; going on would train fresh weights without a word.
        """
        state = {} if self.own is None else self.own.state_dict()
        wanted = {f"{OWN_WEIGHTS}.{name}": list(tensor.shape) for name, tensor in state.items()}
        saved = {name: part.get_shape() for name, part in own_weights(checkpoint)}
        differing = sorted(
            name for name in wanted.keys() | saved.keys() if wanted.get(name) != saved.get(name)
        )
        if differing and any(checkpoint.glob("*.safetensors")):
            raise TrainingSetupError(
                f"{checkpoint} was trained with other weights of single pairs or languages: {len(differing)} "
                f"differ, such as {differing[0]} ({saved.get(differing[0], 'none')} there, "
                f"{wanted.get(differing[0], 'none')} here); go on with the settings that it was begun with"
            )


def own_weights(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield name and slice, to be read at once, of all weights `OWN_WEIGHTS.…` in a folder's files."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(f"{OWN_WEIGHTS}.")]
            yield from ((name, file.get_slice(name)) for name in names)


def _undotted(name: str) -> str:
    # PyTorch takes dots in names for levels.
    return name.replace(".", "_")
