"""Clones: linears and norms of a model of which some pairs have copies of their own, more and more of them.

Shape letters: U = units, P = pairs, R = rows along the first axis, L = tokens, D, F = widths.

What parameter differentiation (`differentiation.py`) grows in training. A *unit* is what is copied as a
whole: a linear or a norm of a layer. Which copy each pair uses is a tensor among the weights, so a saved
model says how it has to be put together again.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nspec_hf.core import Pair, as_pairs
from nspec_hf.gating import Routing
from nspec_hf.recording import OWN_WEIGHTS, plain_model, site_from_name
from nspec_hf.systems.parts.rowwise import RowwiseAttachment, RowwisePart, own_weights
from nspec_hf.systems.parts.subnetworks import prunable
from nspec_hf.systems.parts.zero_shot import StandIns

_MAP = "number_UP"


def units_of(model: nn.Module) -> list[str]:
    """Return what can be copied, by name: all linears and norms of the layers, in the model's order.

    Not what belongs to no layer: embeddings, the output projection that may be tied to them, last norms.

    Raises:
        UnsupportedModelError: If the layers cannot be found.
    """
    linears = prunable(model)
    layers = {layer_path(name) for name in linears}
    return [
        name
        for name, module in plain_model(model).named_modules()
        if name in linears or (_is_norm(module) and layer_path(name) in layers)
    ]


class Clones(nn.Module):
    """The copies of units, numbered from 1 in the order in which they were made; 0 is the model's own."""

    def __init__(self, units: Sequence[str], pairs: int) -> None:
        super().__init__()
        self.units = list(units)
        self.register_buffer(_MAP, torch.zeros(len(units), pairs, dtype=torch.int32))
        self.numbers = [[0] * pairs for _ in units]
        """The same, [U][P], where it can be read without waiting for a device."""
        self.made: dict[int, nn.Module] = {}
        """Number → copy."""

    def users(self, unit: int) -> dict[int, list[int]]:
        """Return which pairs use each copy of a unit: number → indices of pairs."""
        users: dict[int, list[int]] = {}
        for pair, number in enumerate(self.numbers[unit]):
            users.setdefault(number, []).append(pair)
        return users

    def add(self, unit: int, module: nn.Module, pairs: Iterable[int]) -> int:
        """Take another copy of a unit, which these pairs use from now on; return its number."""
        number = len(self.made) + 1
        self.made[number] = module
        # The unit's name last: from it the Trainer knows what weight decay is for.
        self.add_module(f"{number}_{self.units[unit].replace('.', '_')}", module)
        for pair in pairs:
            self.numbers[unit][pair] = number
            getattr(self, _MAP)[unit, pair] = number
        return number

    def clear(self) -> None:
        """Drop all copies."""
        for name in list(self._modules):
            del self._modules[name]
        self.made.clear()
        self.numbers = [[0] * len(row) for row in self.numbers]
        getattr(self, _MAP).zero_()


class ClonedUnits(RowwiseAttachment):
    """Makes each row run with its pair's copy of every unit; at first there are none but the model's own.

    Args:
        model: The model.
        pairs: In the order that `pair_ids` index.
        pivot: A pair that was not trained uses the encoder's units as source → pivot does and the decoder's
            as pivot → target does.
    """

    def __init__(self, model: nn.Module, pairs: Iterable[str], pivot: str) -> None:
        plain, self.trained = plain_model(model), as_pairs(pairs)
        units, stand_ins = units_of(plain), StandIns(self.trained, pivot)
        self.clones, routing, parts = Clones(units, len(self.trained)), Routing(list(self.trained)), []
        for index, name in enumerate(units):
            number_of = partial(_number, self.clones, stand_ins, index, site_from_name(name, 0).side)
            parts.append(RowwisePart(plain.get_submodule(name), routing, number_of, self.clones.made))
        facts = {"zero_shot": f"composed through {pivot}"}
        super().__init__(plain, routing, parts, units, self.clones, stand_ins.knows, facts)

    def module(self, unit: int, number: int) -> nn.Module:
        """Return a unit's copy by number; 0 is the model's own."""
        return self.clones.made[number] if number else self.model.get_submodule(self.clones.units[unit])

    def split(self, unit: int, number: int, pairs: Iterable[int]) -> nn.Module:
        """Give some of the pairs that use a copy a copy of that copy; return the new one.

        Args:
            unit: Index of the unit.
            number: Which copy of it.
            pairs: Indices of those that leave.
        """
        clone = _copied(self.module(unit, number))
        self.clones.add(unit, clone, pairs)
        return clone

    @property
    def extra_parameters(self) -> int:
        """How many weights all copies have together."""
        return sum(weight.numel() for weight in self.clones.parameters())

    def shape_as(self, folder: Path) -> None:
        """Make the copies that the folder's weights were saved with; what they hold is loaded afterwards."""
        name = f"{OWN_WEIGHTS}.{_MAP}"
        saved = next((part[:] for own, part in own_weights(folder) if own == name), None)
        if saved is None or saved.tolist() == self.clones.numbers:
            return
        self.clones.clear()
        for number in range(1, int(saved.max()) + 1):
            unit = int((saved == number).any(dim=1).nonzero()[0])
            users = (saved[unit] == number).nonzero()[:, 0].tolist()
            self.clones.add(unit, _copied(self.module(unit, 0)), users)

    def facts(self) -> dict[str, Any]:
        """Return which pairs share which units, where not all share one."""
        apart = {
            name: [[str(self.trained[pair]) for pair in users] for users in self.clones.users(unit).values()]
            for unit, name in enumerate(self.clones.units)
        }
        return {**self._description, "apart": {name: sets for name, sets in apart.items() if len(sets) > 1}}

    def measures(self) -> dict[str, float]:
        """Return how many weights were added."""
        return {"extra_parameters": float(self.extra_parameters)}


def _number(clones: Clones, stand_ins: StandIns, unit: int, side: str, pair: Pair) -> int:
    return clones.numbers[unit][stand_ins.at(pair, side)]


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy of a module as it is when nothing has taken it over."""
    taken = vars(module).pop("forward", None)
    try:
        return copy.deepcopy(module)
    finally:
        if taken is not None:
            module.forward = taken


def layer_path(name: str) -> str:
    """Return the path of the layer in a module's name, up to its first number; empty where there is none."""
    match = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", name)
    return match[0] if match else ""


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False))
