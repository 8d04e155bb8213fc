"""Sub-networks: which weights of a model each pair uses, a bit a weight, and a model that runs by them.

Shape letters: P = pairs, O = outputs of a linear, I = its inputs, R = rows along the first axis, L = tokens.

What LaSS (`lass.py`) cuts out and trains. Neuron masks say which output units live; here each single weight
of a matrix is kept or not, so that the masks are as many bits as the matrices have weights, for each pair.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from nspec_hf.core import (
    Pair,
    SiteMismatchError,
    as_pairs,
    digest,
    pack,
    packed_width,
    read_artifact,
    require,
    unpack,
    write_artifact,
)
from nspec_hf.gating import Routing
from nspec_hf.recording import KINDS, find_sites, linear_at, plain_model, site_from_name
from nspec_hf.systems.parts.rowwise import KeyOf, RowwiseAttachment, RowwisePart
from nspec_hf.systems.parts.zero_shot import StandIns

_FILE_KIND = "nspec_subnetworks"


@dataclass(frozen=True)
class Subnetworks:
    """The weights that each pair uses."""

    pairs: list[Pair]
    """In the order of the first axis."""

    keep: dict[str, Tensor]
    """Dotted name of a linear → bool [P, O, I]; True = keep."""

    @classmethod
    def of(cls, model: nn.Module, pair: str, pruned: float) -> Self:
        """Return a pair's sub-network: `keep_largest` of each matrix of a model fine-tuned on the pair."""
        linears = prunable(model)
        keep = {name: keep_largest(linear.weight.detach(), pruned)[None] for name, linear in linears.items()}
        return cls([Pair(pair)], keep)

    @classmethod
    def joined(cls, parts: list["Subnetworks"]) -> Self:
        """Return the sub-networks of all pairs of several."""
        pairs = as_pairs(pair for part in parts for pair in part.pairs)
        return cls(pairs, {name: torch.cat([part.keep[name] for part in parts]) for name in parts[0].keep})

    def density(self) -> dict[str, float]:
        """Return the share of all weights that are kept, for each pair."""
        kept_P = torch.stack([keep_POI.sum(dim=(1, 2)) for keep_POI in self.keep.values()]).sum(dim=0)
        weights = sum(keep_POI[0].numel() for keep_POI in self.keep.values())
        return {str(pair): kept / weights for pair, kept in zip(self.pairs, kept_P.tolist(), strict=True)}

    @property
    def bytes(self) -> int:
        """How much they take on disk: a bit a weight and pair, whole bytes a row."""
        return sum(math.prod(keep.shape[:2]) * packed_width(keep.shape[2]) for keep in self.keep.values())

    def fingerprint(self) -> str:
        """Return the first 16 hex digits of the SHA-256 over pairs, names and bits."""
        bits = (part for name in sorted(self.keep) for part in (name, pack(self.keep[name]).numpy()))
        return digest(" ".join(self.pairs), bits)

    def save(self, path: str | os.PathLike, about: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file: uint8 bits [P, O, ceil(I / 8)] a linear.

        Args:
            path: The file.
            about: What else the file is to say; anything that JSON can hold.
        """
        inputs = {name: keep.shape[2] for name, keep in self.keep.items()}
        content = {"pairs": self.pairs, "inputs": inputs, "about": dict(about or {})}
        write_artifact(path, {name: pack(keep) for name, keep in self.keep.items()}, content, _FILE_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike) -> tuple[Self, dict[str, Any]]:
        """Return what `save` wrote: the sub-networks, and what else the file says.

        Raises:
            ArtifactError: If the file is cut off, altered, or of another kind.
        """
        tensors, content = read_artifact(path, _FILE_KIND)
        keep = {name: unpack(tensors[name], width) for name, width in content["inputs"].items()}
        return cls(as_pairs(content["pairs"]), keep), content["about"]


def keep_largest(weight_OI: Tensor, pruned: float) -> Tensor:
    """Return which weights of a matrix are kept: all but the `round(pruned · O · I)` smallest by magnitude.

    Of equal weights the first ones are pruned first, so that the count is exact.

    Args:
        weight_OI: The matrix.
        pruned: Share that is not kept, in (0, 1).

    Raises:
        ConfigError: If `pruned` lies outside.
    """
    require(0 < pruned < 1, f"pruned is a share between 0 and 1, got {pruned}")
    order = weight_OI.detach().abs().flatten().argsort(stable=True)
    keep = torch.ones(weight_OI.numel(), dtype=torch.bool, device=weight_OI.device)
    keep[order[: round(pruned * weight_OI.numel())]] = False
    return keep.view_as(weight_OI).cpu()


def prunable(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linears that are pruned by name: attention and feed-forward, all of every layer.

    Not the embeddings, the output projection and the norms, and of a linear not the bias.

    Raises:
        UnsupportedModelError: If they cannot be found.
    """
    model = plain_model(model)
    names = [name for site in find_sites(model, KINDS) for name in (site.name, site.up) if name]
    return {name: linear_at(model, name) for name in names}


class SubnetworkAttachment(RowwiseAttachment):
    """Makes each row run with the weights of its pair's sub-network; others are zero and get no gradient.

    Args:
        model: The model.
        subnetworks: Which weights each pair uses.
        pivot: A pair that was not trained has the encoder weights of source → pivot and the decoder weights
            of pivot → target.

    Raises:
        SiteMismatchError: If the sub-networks are of linears that the model has not.
    """

    def __init__(self, model: nn.Module, subnetworks: Subnetworks, pivot: str) -> None:
        linears = prunable(model)
        _check_linears(linears, subnetworks)
        routing, stand_ins = Routing(subnetworks.pairs), StandIns(subnetworks.pairs, pivot)
        parts = []
        for name, linear in linears.items():
            number_of = partial(stand_ins.at, side=site_from_name(name, 0).side)
            parts.append(_PrunedLinear(linear, routing, number_of, subnetworks.keep[name]))
        facts = {"subnetworks": subnetworks.fingerprint(), "zero_shot": f"composed through {pivot}"}
        super().__init__(model, routing, parts, linears, knows=stand_ins.knows, description=facts)


class _PrunedLinear(RowwisePart):
    """A linear whose weights are zero where the pair of a row does not use them; keys are pairs' numbers."""

    def __init__(self, linear: nn.Linear, routing: Routing, key_of: KeyOf, keep_POI: Tensor) -> None:
        super().__init__(linear, routing, key_of, {})
        self._linear, self._keep_POI = linear, keep_POI

    def forward(self, x: Tensor) -> Tensor:
        """Return x (W ⊙ M)ᵀ + b with each row's M: x [R, L, I] → [R, L, O]."""
        self._keep_POI = self._keep_POI.to(self._linear.weight.device)
        return self.by_key(x, self._pruned)

    def _pruned(self, rows: Tensor, key: int) -> Tensor:
        # By `where` and not by a product: a pruned weight's gradient is then exactly zero.
        weight_OI = torch.where(self._keep_POI[key], self._linear.weight, 0.0)
        return nn.functional.linear(rows, weight_OI, self._linear.bias)


def _check_linears(linears: Mapping[str, nn.Linear], subnetworks: Subnetworks) -> None:
    wanted = {name: tuple(keep.shape[1:]) for name, keep in subnetworks.keep.items()}
    shapes = {name: tuple(linear.weight.shape) for name, linear in linears.items()}
    wrong = sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        raise SiteMismatchError(
            f"{len(wrong)} linears differ between the sub-networks and the model, for instance {name!r}: "
            f"{wanted.get(name, 'none')} in the sub-networks, {shapes.get(name, 'none')} in the model; take "
            "the base that they were cut out of"
        )
