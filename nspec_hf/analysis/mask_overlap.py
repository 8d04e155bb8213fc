"""How far two pairs use the same neurons: intersection over union, its course over the layers, and density.

Shape letters: P = pairs, F = neurons of a site, S = sites, L = languages.

Tan et al. (EMNLP 2024), §3.2: the overlap of two pairs at a layer is |A ∩ B| / |A ∪ B| of their kept
neurons. Related languages overlap more; over the layers the encoder's neurons become shared and the
decoder's become separate. The paper draws the first as heat maps (Fig. 1, 8 to 10), the second as a
progression (Fig. 2), and the share of neurons kept as sparsity over layers (Fig. 6).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nspec_hf.analysis.result import Result, axes
from nspec_hf.core import Pair, languages_of
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import Site


def iou(keep_PF: Tensor) -> np.ndarray:
    """Return the intersection over union of every two rows.

    Args:
        keep_PF: Booleans, True = keep. Shape [P, F].

    Returns:
        float64 [P, P], symmetric. NaN where both rows keep nothing: the overlap of two empty sets is
        undefined.
    """
    # Sums of booleans in float32 are exact up to 2^24 neurons.
    kept_PF = torch.as_tensor(keep_PF).float()
    both_PP = (kept_PF @ kept_PF.T).double().numpy()
    size_P = np.diagonal(both_PP)
    either_PP = size_P[:, None] + size_P[None, :] - both_PP
    return np.divide(both_PP, either_PP, out=np.full_like(both_PP, np.nan), where=either_PP > 0)


def couples(matrix: np.ndarray) -> np.ndarray:
    """Return the defined values of a symmetric matrix between two different rows, each couple once."""
    values = matrix[np.triu_indices(len(matrix), k=1)]
    return values[~np.isnan(values)]


@dataclass(frozen=True, kw_only=True)
class Overlap(Result):
    """IoU of every two pairs at every site (Tan et al., Fig. 1 and 8 to 10)."""

    sites: tuple[Site, ...]
    pairs: tuple[Pair, ...]
    iou: np.ndarray = field(metadata=axes(site="sites", pair="pairs", other_pair="pairs"))
    """float64 [S, P, P]; NaN where neither pair keeps a neuron."""


def overlap(masks: NeuronMasks) -> Overlap:
    """Return the IoU of every two pairs at every site of the masks."""
    iou_SPP = np.stack([iou(masks.keep[site.name]) for site in masks.sites])
    return Overlap(sites=tuple(masks.sites), pairs=tuple(masks.pairs), iou=iou_SPP)


@dataclass(frozen=True, kw_only=True)
class Progression(Result):
    """IoU of every two languages over the layers (Tan et al., Fig. 2).

    In the encoder a language stands for the pairs that translate from it, in the decoder for those that
    translate into it. A cell is the mean over all couples of two different pairs; the diagonal says how
    alike the pairs of one language are. NaN where there is no such couple.
    """

    sites: tuple[Site, ...]
    languages: tuple[str, ...]
    iou: np.ndarray = field(metadata=axes(site="sites", language="languages", other_language="languages"))
    """float64 [S, L, L]."""

    def without(self, languages: Sequence[str]) -> "Progression":
        """Return the same result without some languages (the pivot, say)."""
        rows = [i for i, code in enumerate(self.languages) if code not in languages]
        left = tuple(self.languages[row] for row in rows)
        return Progression(sites=self.sites, languages=left, iou=self.iou[:, rows][:, :, rows])


def progression(result: Overlap) -> Progression:
    """Return the overlap of languages at each site: by source in the encoder, by target in the decoder."""
    languages = tuple(sorted(languages_of(result.pairs)))
    spoken = {"encoder": [p.source for p in result.pairs], "decoder": [p.target for p in result.pairs]}
    member_LP = {side: np.equal.outer(languages, codes).astype(float) for side, codes in spoken.items()}
    means = [
        _mean_over_couples(iou_PP, member_LP[site.side])
        for site, iou_PP in zip(result.sites, result.iou, strict=True)
    ]
    return Progression(sites=result.sites, languages=languages, iou=np.stack(means))


def _mean_over_couples(iou_PP: np.ndarray, member_LP: np.ndarray) -> np.ndarray:
    counted_PP = ~np.isnan(iou_PP)
    # A pair overlaps with itself completely, which says nothing about its language.
    np.fill_diagonal(counted_PP, False)
    sum_LL = member_LP @ np.where(counted_PP, iou_PP, 0.0) @ member_LP.T
    count_LL = member_LP @ counted_PP.astype(float) @ member_LP.T
    return np.divide(sum_LL, count_LL, out=np.full_like(sum_LL, np.nan), where=count_LL > 0)


@dataclass(frozen=True, kw_only=True)
class Density(Result):
    """Share of neurons that each pair keeps at each site (Tan et al., Fig. 6 draws 1 − density)."""

    sites: tuple[Site, ...]
    pairs: tuple[Pair, ...]
    density: np.ndarray = field(metadata=axes(site="sites", pair="pairs"))
    """float64 [S, P], in [0, 1]."""

    @property
    def sparsity(self) -> np.ndarray:
        """Share of neurons silenced, float64 [S, P]."""
        return 1.0 - self.density


def density(masks: NeuronMasks) -> Density:
    """Return the share of neurons kept at every site by every pair."""
    shares = [masks.keep[site.name].double().mean(dim=1).numpy() for site in masks.sites]
    return Density(sites=tuple(masks.sites), pairs=tuple(masks.pairs), density=np.stack(shares))


def find_pivot(pairs: Sequence[Pair]) -> str | None:
    """Return the language in at least twice as many pairs as any other, or None."""
    counts = Counter(code for pair in pairs for code in {pair.source, pair.target})
    (first, most), *rest = [*counts.most_common(2), ("", 0)]
    return first if len(pairs) > 1 and most >= 2 * rest[0][1] else None


def order_by_family(languages: Sequence[str], families: Mapping[str, str]) -> list[int]:
    """Return positions that bring each family's languages together; those without a family come last."""
    return sorted(range(len(languages)), key=lambda i: (families.get(languages[i], "~"), languages[i]))
