"""General and specific neurons: how many there are, where they sit, and their importance curves.

Shape letters: P = pairs, F = neurons of a site, S = sites, L = layers (of both sides), N = neurons in order.

A neuron is general if all pairs keep it, else specific to the pairs that keep it. Importance masks say
which are general (the share ρ of Xie et al., ACL 2021); for other masks these are the neurons that every
pair keeps. LScore (Eq. 10) and MScore (Eq. 11) of that paper then say how the specific neurons spread over
the layers and modules (Fig. 3), and importance curves show why they are worth allocating (Fig. 2).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nspec_hf.analysis.result import Result, axes
from nspec_hf.core import Pair
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats, Site


def general_neurons(masks: NeuronMasks) -> dict[str, Tensor]:
    """Return site name → booleans [F]: neurons that belong to all pairs.

    Importance masks know them; for other masks they are those that every pair keeps.
    """
    given, keep = masks.general, masks.keep
    return {s.name: keep[s.name].all(dim=0) if given is None else given[s.name] for s in masks.sites}


def specific_neurons(masks: NeuronMasks) -> dict[str, Tensor]:
    """Return site name → booleans [P, F]: neurons that a pair keeps and that are not general."""
    general = general_neurons(masks)
    return {site.name: masks.keep[site.name] & ~general[site.name] for site in masks.sites}


def general_share(masks: NeuronMasks) -> float:
    """Return the share of neurons that are general, in [0, 1]."""
    general = general_neurons(masks)
    return sum(int(general[s.name].sum()) for s in masks.sites) / sum(s.width for s in masks.sites)


@dataclass(frozen=True, kw_only=True)
class Ownership(Result):
    """How many neurons of each site are kept by how many pairs."""

    sites: tuple[Site, ...]
    owners: tuple[int, ...]
    """0 (no pair) to P (all pairs)."""
    neurons: np.ndarray = field(metadata=axes(site="sites", owners="owners"))
    """Count of neurons, int64 [S, P + 1]; a row sums to the site's width."""


def ownership(masks: NeuronMasks) -> Ownership:
    """Count the neurons of each site by the number of pairs that keep them."""
    most = len(masks.pairs)
    rows = [
        torch.bincount(masks.keep[site.name].sum(dim=0), minlength=most + 1).numpy() for site in masks.sites
    ]
    return Ownership(sites=tuple(masks.sites), owners=tuple(range(most + 1)), neurons=np.stack(rows))


@dataclass(frozen=True, kw_only=True)
class LScore(Result):
    """Share of a layer's neurons that are specific to a pair (Xie et al., Eq. 10, Fig. 3)."""

    layers: tuple[str, ...]
    """`encoder 0`, …, `decoder 0`, …"""
    pairs: tuple[Pair, ...]
    score: np.ndarray = field(metadata=axes(layer="layers", pair="pairs"))
    """float64 [L, P], in [0, 1]."""


def layer_score(masks: NeuronMasks) -> LScore:
    """Return LScore(l, m) = I(l, m) / I(l) of every layer l and pair m (Xie et al., Eq. 10).

    I(l, m) counts the neurons specific to pair m in layer l, I(l) all neurons there; both sum over the
    sites of the layer (fc1 alone, or the attention's outputs too). Encoder and decoder layers are different
    layers.
    """
    specific = specific_neurons(masks)
    layers: dict[str, list[Tensor]] = {}
    for site in masks.sites:
        layers.setdefault(f"{site.side} {site.layer}", []).append(specific[site.name])
    # The mean over a layer's neurons is their count divided by I(l).
    score_LP = [torch.cat(inside, dim=1).double().mean(dim=1) for inside in layers.values()]
    return LScore(layers=tuple(layers), pairs=tuple(masks.pairs), score=torch.stack(score_LP).numpy())


@dataclass(frozen=True, kw_only=True)
class MScore(Result):
    """Share of a module's neurons that are specific, mean over the pairs (Xie et al., Eq. 11, Fig. 3)."""

    sites: tuple[Site, ...]
    score: np.ndarray = field(metadata=axes(site="sites"))
    """float64 [S], in [0, 1]."""


def module_score(masks: NeuronMasks) -> MScore:
    """Return MScore(l, f) = 1/M · Σ over m = 1..M of I(l, f, m) / I(l, f) (Xie et al., Eq. 11).

    I(l, f, m) counts the neurons of module f (a site) in layer l that are specific to pair m, I(l, f) all
    of them. The paper prints the sum from m = 0; there are M pairs, so it starts at 1 here.
    """
    specific = specific_neurons(masks)
    scores = [specific[site.name].double().mean().item() for site in masks.sites]
    return MScore(sites=tuple(masks.sites), score=np.array(scores))


@dataclass(frozen=True, kw_only=True)
class ImportanceCurves(Result):
    """Importance of one site's neurons for each pair (Xie et al., Fig. 2)."""

    site: Site
    measure: str
    """`te` (Taylor expansion) or `av` (absolute value)."""
    pairs: tuple[Pair, ...]
    neurons: tuple[int, ...]
    """Neuron numbers in falling order of their mean importance over the pairs (ties by number)."""
    importance: np.ndarray = field(metadata=axes(pair="pairs", neuron="neurons"))
    """Θ in that order, float64 [P, N]."""

    @property
    def mean(self) -> np.ndarray:
        """Mean over the pairs, float64 [N], never rising: general neurons are a prefix of it."""
        return self.importance.mean(axis=0)


def recorded_importance(stats: ActivationStats) -> Literal["te", "av"] | None:
    """Return which importance the statistics hold, Taylor expansion first; None if they hold none."""
    return "te" if "te" in stats.sums else "av" if "av" in stats.sums else None


def importance_curves(stats: ActivationStats, measure: str, site: str) -> ImportanceCurves:
    """Return the importance of a site's neurons by `te` or `av`, most important on average first."""
    theta_PF = stats.importance(measure)[site].double()
    order_F = torch.sort(theta_PF.mean(dim=0), descending=True, stable=True).indices
    return ImportanceCurves(
        site=next(known for known in stats.sites if known.name == site),
        measure=measure,
        pairs=tuple(stats.pairs),
        neurons=tuple(order_F.tolist()),
        importance=theta_PF[:, order_F].numpy(),
    )
