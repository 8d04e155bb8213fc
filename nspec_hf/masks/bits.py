"""Masks in memory: one bit a neuron, and pairs that share what they have in common.

Shape letters: P = pairs, F = neurons of a site, U = rows that are stored, R = rows of a batch.

A pair is two numbers: the stored row that it has at the encoder's sites, and that at the decoder's. A pair
with masks of its own has one row on both sides. A composed pair has its source's in the encoder and its
target's in the decoder, so it takes sixteen bytes, however large the model is. Booleans are made when they
are asked for, and only those.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nspec_hf.core import ArtifactError, ConfigError, check_packed, pack, require, unpack
from nspec_hf.recording import site_from_name

_AT_ONCE = 4096  # pairs whose bits are laid out at a time


class Held:
    """A tensor that never changes, with its copies on the devices that have asked for it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._copies: dict[torch.device, Tensor] = {tensor.device: tensor}

    def on(self, device: torch.device) -> Tensor:
        """Return it on a device; the same copy for all who ask."""
        if device not in self._copies:
            self._copies[device] = self.tensor.to(device)
        return self._copies[device]

    @cached_property
    def ones(self) -> np.ndarray:
        """How many bits of each row are set, int64 [U]."""
        return np.bitwise_count(self.tensor.numpy()).sum(axis=1, dtype=np.int64)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        """Share it, as what does not change may be."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickle take the tensor alone."""
        return Held, (self.tensor,)


@dataclass(frozen=True, eq=False)
class SiteBits:
    """One site's masks."""

    side: str
    """`encoder` or `decoder`."""
    width: int
    """F."""
    bits: Held
    """uint8 [U, ceil(F / 8)], packed as `core.pack` does."""
    rows: Held
    """Which stored row each pair has, int64 [P]; all sites of a side share it."""

    @property
    def kept_P(self) -> np.ndarray:
        """How many neurons each pair keeps, int64 [P]."""
        return self.bits.ones[self.rows.tensor.numpy()]

    def booleans(self, pairs: Any = slice(None)) -> Tensor:
        """Return the masks of all pairs, or of those numbers: bool [P, F], or [F] of a single one."""
        return unpack(self.bits.tensor[self.rows.tensor[pairs]], self.width)

    def in_order(self) -> Iterator[np.ndarray]:
        """Yield the packed bits of all pairs in their order, some pairs at a time."""
        bits, rows = self.bits.tensor.numpy(), self.rows.tensor.numpy()
        for start in range(0, len(rows), _AT_ONCE):
            yield bits[rows[start : start + _AT_ONCE]]


class PackedMasks(Mapping[str, Tensor]):
    """Site name → bool [P, F], made anew each time from the bits that are kept; `at` gives the bits."""

    def __init__(self, sites: Mapping[str, SiteBits]) -> None:
        self._sites = dict(sites)

    @classmethod
    def of(cls, keep: Iterable[tuple[str, Tensor]], pairs: int) -> "PackedMasks":
        """Pack booleans, site by site.

        Args:
            keep: Site names with bool [P, F], on any device. An iterator needs one site's at a time.
            pairs: P.

        Raises:
            ConfigError: If a tensor has another type or shape.
        """
        rows, sites = Held(torch.arange(pairs)), {}
        for name, keep_PF in keep:
            check_booleans(name, keep_PF)
            if keep_PF.dim() != 2 or len(keep_PF) != pairs or keep_PF.shape[1] == 0:
                shape = list(keep_PF.shape)
                raise ConfigError(f"keep[{name!r}] must have shape [{pairs} pairs, F], got {shape}")
            sites[name] = SiteBits(_side(name), keep_PF.shape[1], Held(pack(keep_PF.detach())), rows)
        return cls(sites)

    @classmethod
    def read(
        cls, tensors: dict[str, Tensor], widths: Mapping[str, int], pairs: int, within: str = ""
    ) -> "PackedMasks":
        """Take out of a file's tensors those that `tensors` has put there.

        Raises:
            ArtifactError: If they are not as they must be.
            KeyError: If one is missing.
        """
        sides = {_side(name) for name in widths}
        rows = {side: Held(_rows_read(tensors.pop(f"{within}rows/{side}", None), pairs)) for side in sides}
        sites = {}
        for name, width in widths.items():
            bits, side = tensors.pop(f"{within}keep/{name}"), _side(name)
            check_packed(bits, width)
            stored = int(rows[side].tensor.max()) + 1
            if bits.dim() != 2 or width < 1 or len(bits) != stored:
                shape = list(bits.shape)
                raise ArtifactError(f"{within}keep/{name} has shape {shape}, but {stored} rows are in use")
            sites[name] = SiteBits(side, width, Held(bits), rows[side])
        return cls(sites)

    def tensors(self, within: str = "") -> dict[str, Tensor]:
        """Return what a file holds: `keep/<site>`, the stored rows; `rows/<side>` where pairs share some.

        Args:
            within: What all these names begin with, where a file holds masks several times.
        """
        stored = {f"{within}keep/{name}": site.bits.tensor for name, site in self._sites.items()}
        sides = self._rows_of_sides()
        if any(not torch.equal(rows_P, torch.arange(len(rows_P))) for rows_P in sides.values()):
            stored |= {f"{within}rows/{side}": rows_P.int() for side, rows_P in sides.items()}
        return stored

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return site name → (P, F)."""
        return {name: (len(site.rows.tensor), site.width) for name, site in self._sites.items()}

    def at(self, site: str) -> SiteBits:
        """Return a site's masks as they are kept."""
        return self._sites[site]

    def subset(self, numbers: Sequence[int]) -> "PackedMasks":
        """Return the masks of some pairs, in that order; rows that none of them has are left behind."""
        stored, rows = {}, {}
        for side, rows_P in self._rows_of_sides().items():
            chosen = rows_P[list(numbers)].numpy()
            used, first, inverse = np.unique(chosen, return_index=True, return_inverse=True)
            order = np.argsort(first)  # as they come, so that equal masks are equal bytes
            stored[side] = torch.from_numpy(used[order])
            rows[side] = Held(torch.from_numpy(np.argsort(order)[inverse]))
        return self._with(rows, stored)

    def compose(self, encoders: Sequence[int], decoders: Sequence[int]) -> "PackedMasks":
        """Append pairs that have one pair's masks in the encoder and another's in the decoder, by number."""
        parts, rows = {"encoder": list(encoders), "decoder": list(decoders)}, self._rows_of_sides()
        return self._with({side: Held(torch.cat([rows[side], rows[side][parts[side]]])) for side in rows})

    def union(self) -> "PackedMasks":
        """Return one mask a site: what any pair keeps."""
        return PackedMasks.of(((site, keep_PF.any(dim=0, keepdim=True)) for site, keep_PF in self.items()), 1)

    def sharers(self, side: str) -> list[int]:
        """Return for each pair the number of the first that has the same row at a side's sites.

        Where there are none, it is the first pair for all.
        """
        sides = self._rows_of_sides()
        rows = sides.get(side, torch.zeros_like(next(iter(sides.values()))))
        _, first, inverse = np.unique(rows.numpy(), return_index=True, return_inverse=True)
        return first[inverse].tolist()

    def is_alike(self) -> bool:
        """Return whether all pairs have the same masks."""
        return all(
            not (bits[1:] != bits[:1]).any()
            for site in self._sites.values()
            for bits in [site.bits.tensor.numpy()[np.unique(site.rows.tensor.numpy())]]
        )

    def __getitem__(self, site: str) -> Tensor:
        """Return all masks of a site, bool [P, F]."""
        return self._sites[site].booleans()

    def __contains__(self, site: object) -> bool:
        """Return whether there are masks of that site."""
        return site in self._sites

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the sites."""
        return iter(self._sites)

    def __reversed__(self) -> Iterator[str]:
        """Go through them from the last."""
        return reversed(self._sites)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self._sites)

    def _rows_of_sides(self) -> dict[str, Tensor]:
        return {site.side: site.rows.tensor for site in self._sites.values()}

    def _with(self, rows: Mapping[str, Held], stored: Mapping[str, Tensor] | None = None) -> "PackedMasks":
        """Return the same bits for other pairs; `stored` says which of them, where it is not all."""
        sites = {}
        for name, site in self._sites.items():
            bits, chosen = site.bits, None if stored is None else stored[site.side]
            if chosen is not None and not torch.equal(chosen, torch.arange(len(bits.tensor))):
                bits = Held(bits.tensor[chosen])
            sites[name] = SiteBits(site.side, site.width, bits, rows[site.side])
        return PackedMasks(sites)


def check_booleans(name: str, tensor: Tensor) -> None:
    """Check the type of a mask.

    Raises:
        ConfigError: If it is no boolean tensor.
    """
    require(
        tensor.dtype == torch.bool, f"masks are booleans, True = keep; those of {name!r} are {tensor.dtype}"
    )


def _side(site: str) -> str:
    return site_from_name(site, 0).side


def _rows_read(rows_P: Tensor | None, pairs: int) -> Tensor:
    if rows_P is None:
        return torch.arange(pairs)
    if rows_P.dtype != torch.int32 or list(rows_P.shape) != [pairs] or int(rows_P.min()) < 0:
        raise ArtifactError(f"the rows of {pairs} pairs are as many integers from 0, got {rows_P.dtype}")
    return rows_P.long()
