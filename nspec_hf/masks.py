"""NeuronMasks: which neurons each pair keeps at each site. The artefact that is saved, published and gated with.

Shape letters: P = pairs, F = neurons of a site.

A site that masks do not hold (of a side that was not selected, say) stays dense. The order of the pairs is part
of the masks: a pair's position is its index in `pair_ids`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from nspec_hf.pairs import as_pairs, pair_index
from nspec_hf.selection import select_random
from nspec_hf.sites import Site, site_from_name


class NeuronMasks:
    """Boolean masks, True = keep, for every pair at every site. Treat it as immutable."""

    def __init__(
        self,
        pairs: Iterable[str],
        keep: Mapping[str, Tensor],
        *,
        sites: Iterable[Site] | None = None,
        general: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Make masks from tensors `keep[site name]` of shape [P, F]."""
        self.pairs = as_pairs(pairs)
        given = [site_from_name(name, keep_PF.shape[-1]) for name, keep_PF in keep.items()]
        self.sites = given if sites is None else list(sites)
        self.keep = MappingProxyType({site.name: keep[site.name].cpu().clone() for site in self.sites})
        self.general = None if general is None else MappingProxyType(dict(general))

    def __getitem__(self, pair: str) -> dict[str, Tensor]:
        """Return site name → boolean tensor [F] of a pair."""
        row = pair_index(self.pairs, pair, "masks")
        return {name: keep_PF[row] for name, keep_PF in self.keep.items()}

    @classmethod
    def random(
        cls,
        sites: Mapping[str, int] | Iterable[Site],
        pairs: Iterable[str],
        density: float = 0.7,
        seed: int = 1,
    ) -> "NeuronMasks":
        """Draw random masks."""
        if isinstance(sites, Mapping):
            sites = [site_from_name(name, width) for name, width in sites.items()]
        sites, pairs = list(sites), as_pairs(pairs)
        keep = {
            site.name: torch.stack(
                [select_random(site.width, density, _generator(seed, site.name, pair)) for pair in pairs]
            )
            for site in sites
        }
        return cls(pairs, keep, sites=sites)


def _generator(seed: int, site: str, pair: str) -> torch.Generator:
    """Return a generator for one site and pair, so that a mask does not depend on which others are drawn."""
    digest = hashlib.sha256(json.dumps([seed, site, str(pair)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
