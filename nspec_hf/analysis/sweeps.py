"""What other settings would have given: masks over k, over ρ, over more text, without a new pass.

Shape letters: P = pairs, F = neurons of a site, S = sites, K = settings, R = recordings.

The counts were recorded once, so every coverage k (Tan et al., EMNLP 2024, Fig. 5) and every share ρ of
general neurons with threshold k (Xie et al., ACL 2021, Fig. 4 and Table 3) can be tried on them. Stability
asks how much of a mask depends on the text it was counted on: on how many sentences, and on which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nspec_hf.analysis.mask_overlap import couples, iou
from nspec_hf.analysis.result import Result, axes
from nspec_hf.core import Pair, SiteMismatchError, require
from nspec_hf.masks import allocate_by_importance, select_by_coverage, select_by_coverages
from nspec_hf.recording import ActivationStats, Site

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 1.0)
GENERALS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class CoverageSweep(Result):
    """Density and overlap of masks against the coverage k (Tan et al., Fig. 5)."""

    coverages: tuple[float, ...]
    sites: tuple[Site, ...]
    density: np.ndarray = field(metadata=axes(coverage="coverages", site="sites"))
    """Mean share of neurons kept, over pairs; float64 [K, S]."""
    overlap: np.ndarray = field(metadata=axes(coverage="coverages", site="sites"))
    """Mean IoU of two different pairs, float64 [K, S]."""


def coverage_sweep(stats: ActivationStats, coverages: Sequence[float] = COVERAGES) -> CoverageSweep:
    """Return density and overlap of the masks that each coverage would select.

    Raises:
        ConfigError: If a coverage lies outside (0, 1].
    """
    sites = _ffn_sites(stats)
    keep_SKPF = [select_by_coverages(stats.counts[site.name], coverages) for site in sites]
    density_SK = [[keep_PF.double().mean().item() for keep_PF in keep_KPF] for keep_KPF in keep_SKPF]
    overlap_SK = [[_mean(couples(iou(keep_PF))) for keep_PF in keep_KPF] for keep_KPF in keep_SKPF]
    return CoverageSweep(
        coverages=tuple(coverages),
        sites=sites,
        density=np.array(density_SK).T,
        overlap=np.array(overlap_SK).T,
    )


@dataclass(frozen=True, kw_only=True)
class AllocationSweep(Result):
    """Density and share of specific neurons against ρ and k (Xie et al., Fig. 4, Table 3)."""

    measure: str
    generals: tuple[float, ...]
    thresholds: tuple[float, ...]
    sites: tuple[Site, ...]
    density: np.ndarray = field(metadata=axes(general="generals", threshold="thresholds", site="sites"))
    """Mean share of neurons kept, over pairs; float64 [K, K, S]."""
    specific: np.ndarray = field(metadata=axes(general="generals", threshold="thresholds", site="sites"))
    """Mean share of neurons that are specific to a pair (MScore), float64 [K, K, S]."""


def allocation_sweep(
    stats: ActivationStats,
    measure: str = "te",
    generals: Sequence[float] = GENERALS,
    thresholds: Sequence[float] = THRESHOLDS,
) -> AllocationSweep:
    """Return density and specific share of the masks that each ρ and threshold would allocate."""
    theta = stats.importance(measure)
    shape = (len(generals), len(thresholds), len(stats.sites))
    density, specific = np.empty(shape), np.empty(shape)
    for cell in np.ndindex(shape):
        theta_PF = theta[stats.sites[cell[2]].name]
        keep_PF, general_F = allocate_by_importance(theta_PF, generals[cell[0]], thresholds[cell[1]])
        density[cell] = keep_PF.double().mean().item()
        specific[cell] = (keep_PF & ~general_F).double().mean().item()
    return AllocationSweep(
        measure=measure,
        generals=tuple(generals),
        thresholds=tuple(thresholds),
        sites=tuple(stats.sites),
        density=density,
        specific=specific,
    )


@dataclass(frozen=True, kw_only=True)
class Stability(Result):
    """How alike the masks from different recordings are."""

    recordings: tuple[str, ...]
    """Names of the recordings: sentence counts, seeds …"""
    sites: tuple[Site, ...]
    pairs: tuple[Pair, ...]
    iou: np.ndarray = field(
        metadata=axes(recording="recordings", other_recording="recordings", site="sites", pair="pairs")
    )
    """IoU of one pair's masks from two recordings, float64 [R, R, S, P]; NaN where both are empty."""
    coverage: float

    def against(self, recording: str) -> np.ndarray:
        """Return each recording's mean IoU with one of them, over sites and pairs; float64 [R]."""
        return np.nanmean(self.iou[self.recordings.index(recording)], axis=(1, 2))


def stability(recordings: Mapping[str, ActivationStats], coverage: float = 0.95) -> Stability:
    """Compare the masks that several recordings of the same pairs and sites lead to.

    Args:
        recordings: Name → statistics: the first 100, 200, … sentences, say, or other samples of the same
            size.
        coverage: k of Eq. 1 for all of them.

    Raises:
        ConfigError: If there are fewer than two.
        SiteMismatchError: If their pairs or sites differ.
    """
    require(len(recordings) > 1, f"stability compares at least two recordings, got {len(recordings)}")
    names, samples = tuple(map(str, recordings)), list(recordings.values())
    first = samples[0]
    for name, stats in zip(names, samples, strict=True):
        if stats.pairs != first.pairs or [s.name for s in stats.sites] != [s.name for s in first.sites]:
            raise SiteMismatchError(f"recording {name!r} holds other pairs or sites than {names[0]!r}")
    sites, pairs = _ffn_sites(first), tuple(first.pairs)
    iou_RRSP = np.empty((len(names), len(names), len(sites), len(pairs)))
    for column, site in enumerate(sites):
        keep_RPF = torch.stack([select_by_coverage(s.counts[site.name], coverage) for s in samples])
        for row in range(len(pairs)):
            iou_RRSP[:, :, column, row] = iou(keep_RPF[:, row])
    return Stability(recordings=names, sites=sites, pairs=pairs, iou=iou_RRSP, coverage=coverage)


def _ffn_sites(stats: ActivationStats) -> tuple[Site, ...]:
    sites = tuple(site for site in stats.sites if site.kind == "ffn")
    require(bool(sites), "the statistics hold no feed-forward site; record with kinds=('ffn',)")
    return sites


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
