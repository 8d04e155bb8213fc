"""Choose the neurons that a pair keeps: four rules on tensors, which know nothing of models or files.

Shape letters: P = pairs, F = neurons of a site.

Coverage is Eq. 1 of Tan et al. (EMNLP 2024): sort the neurons of a layer by how often they fired and keep the
shortest prefix whose counts reach `coverage` of the layer's total. Allocation is Eq. 9 of Xie et al.
(ACL 2021): the neurons that matter most on average are general, each other one goes to the pairs that need it
most. Random selection is the control that both are compared with. Selection by chance lies between coverage
and that control.
"""

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import torch
from torch import Tensor

from nspec_hf.core import require, require_share, require_weight


def select_by_coverage(counts_F: Tensor, coverage: float) -> Tensor:
    """Return which neurons to keep: the most active ones that together cover a share of the activations.

    At coverage 1 the neurons that never fired are dropped (the paper calls k = 100 % dense).

    Args:
        counts_F: How often each neuron fired; zero or more. Shape [..., F], each row on its own.
        coverage: Share of the row's total count to reach, in (0, 1]: the number as it is written, so that 55
            of 100 reach 0.55, though the nearest float is a little more.

    Returns:
        Boolean tensor of the same shape; True = keep. A row that never fired keeps nothing.

    Raises:
        ConfigError: If `coverage` lies outside (0, 1] or a count is negative or not finite.
    """
    return select_by_coverages(counts_F, [coverage])[0]


def select_by_coverages(counts_F: Tensor, coverages: Sequence[float]) -> list[Tensor]:
    """Return what `select_by_coverage` does at each of several coverages; the counts are sorted once."""
    for coverage in coverages:
        require_share("coverage", coverage, above_zero=True)
    _require_not_negative("counts", counts_F)
    shares = [Fraction(repr(float(coverage))) for coverage in coverages]
    # Stable, so that neurons with equal counts are taken in index order on every machine.
    sorted_F, order_F = torch.sort(counts_F, dim=-1, descending=True, stable=True)
    rows = sorted_F.reshape(-1, sorted_F.shape[-1]).tolist()
    lengths = [_shortest_prefixes(row, shares) for row in rows]
    lengths_FK = torch.tensor(lengths, device=order_F.device).reshape(*order_F.shape[:-1], 1, len(shares))
    places_F = torch.arange(order_F.shape[-1], device=order_F.device).expand_as(order_F)
    place_F = torch.empty_like(order_F).scatter(-1, order_F, places_F)
    return [place_F < length_F for length_F in lengths_FK.unbind(-1)]


def _shortest_prefixes(counts: list[int] | list[float], shares: Sequence[Fraction]) -> list[int]:
    """Return how many of the counts, from the first, reach each share of their sum; nothing is rounded."""
    exact = counts if all(type(count) is int for count in counts) else map(Fraction, counts)
    sums = list(accumulate(exact))
    return [bisect_left(sums, share * sums[-1]) + 1 if sums[-1] else 0 for share in shares]


def select_by_chance(
    counts_F: Tensor, coverage: float, temperature: float, generator: torch.Generator
) -> Tensor:
    """Return as many neurons as `select_by_coverage`, drawn with chances that follow how often they fired.

    So a pair has most of its own neurons, and pairs share fewer. Drawn without replacement by Gumbel-top-k
    (Kool et al., ICML 2019): the largest of log share + temperature · Gumbel noise. At temperature 1 the
    first draw takes a neuron with the chance of its share; near 0 the most active ones are drawn, at a high
    temperature any.

    Args:
        counts_F: How often each neuron fired; zero or more. Shape [F].
        coverage: As in `select_by_coverage`.
        temperature: Weight of the noise, 0 or more.
        generator: A CPU generator; from the same state a smaller coverage draws a part of what a larger one
            does.

    Returns:
        Boolean tensor of shape [F]; True = keep.

    Raises:
        ConfigError: If the temperature is negative or not finite, and what `select_by_coverage` raises.
    """
    require_weight("temperature", temperature)
    kept = int(select_by_coverage(counts_F, coverage).sum())
    counts_F = counts_F.double()
    # A neuron that never fired has a chance too, the smallest, so that any number can be drawn.
    share_F = (counts_F / counts_F.sum().clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(1e-12)
    drawn_F = torch.rand(len(counts_F), generator=generator, dtype=torch.float64).clamp_min(1e-300)
    score_F = share_F.log() - temperature * (-drawn_F.log()).log()
    keep_F = torch.zeros_like(counts_F, dtype=torch.bool)
    keep_F[score_F.argsort(descending=True, stable=True)[:kept]] = True
    return keep_F


def allocate_by_importance(importance_PF: Tensor, general: float, threshold: float) -> tuple[Tensor, Tensor]:
    """Share out a site's neurons: some to every pair, each other one to the pairs that need it most.

    The `round(general · F)` neurons of highest mean importance are general (ties by index). Another neuron
    goes to each pair with Θ > k · max Θ over the pairs; at k = 1 to the pairs of highest importance (§5.3 of
    the paper); to no pair where max Θ = 0.

    Args:
        importance_PF: Importance Θ of each neuron for each pair; zero or more. Shape [P, F].
        general: ρ, the share of general neurons, in [0, 1].
        threshold: k of Eq. 9, in [0, 1].

    Returns:
        Boolean tensors `keep_PF` (general and specific neurons of each pair) and `general_F`; True = keep.

    Raises:
        ConfigError: If a share lies outside [0, 1], the tensor is not [P, F] with P > 0, or an importance is
            negative or not finite.
    """
    require_share("general", general)
    require_share("threshold", threshold)
    shape = list(importance_PF.shape)
    require(
        len(shape) == 2 and shape[0] > 0,
        f"importance must have shape [pairs, neurons], at least one pair, got {shape}",
    )
    _require_not_negative("importance", importance_PF)
    importance_PF = importance_PF.double()
    width = importance_PF.shape[1]
    order_F = torch.sort(importance_PF.mean(dim=0), descending=True, stable=True).indices
    general_F = torch.zeros(width, dtype=torch.bool, device=importance_PF.device)
    general_F[order_F[: round(general * width)]] = True
    highest_F = importance_PF.amax(dim=0)
    # Strictly above k · max would leave a neuron to no pair at k = 1.
    specific_PF = (
        importance_PF == highest_F if threshold == 1 else importance_PF > threshold * highest_F
    ) & (highest_F > 0)
    return general_F | specific_PF, general_F


def select_random(width: int, density: float, generator: torch.Generator) -> Tensor:
    """Return `round(density · width)` neurons drawn without replacement, each set equally likely.

    Args:
        width: Number of neurons, F.
        density: Share to keep, in [0, 1].
        generator: A CPU generator; the same state draws the same neurons, and of two densities drawn from it
            the smaller keeps a subset of the larger.

    Returns:
        Boolean tensor of shape [F]; True = keep.

    Raises:
        ConfigError: If `density` lies outside [0, 1] or `width` is negative.
    """
    require_share("density", density)
    require(width >= 0, f"width is a number of neurons, got {width}")
    keep_F = torch.zeros(width, dtype=torch.bool)
    keep_F[torch.randperm(width, generator=generator)[: round(density * width)]] = True
    return keep_F


def _require_not_negative(name: str, values: Tensor) -> None:
    require(
        bool(torch.isfinite(values).all() and (values >= 0).all()), f"{name} must be finite and not negative"
    )
