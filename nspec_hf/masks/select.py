"""Apply the selection rules to recorded statistics, and write down how it was done.

Shape letters: P = pairs, F = neurons of a site, G = groups of pairs.

`rules.py` knows tensors only; here the rules meet pairs, sites and sides.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, cast, get_origin

import torch
from torch import Tensor

from nspec_hf import __version__
from nspec_hf.core import ConfigError, Pair, digest, holds, in_short, require, warn
from nspec_hf.masks.bits import PackedMasks
from nspec_hf.masks.config import BY_METHOD, SelectConfig
from nspec_hf.masks.rules import (
    allocate_by_importance,
    select_by_chance,
    select_by_coverage,
    select_random,
)
from nspec_hf.recording import ActivationStats, Site

LIBRARY = "nspec_hf"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Where masks come from: what it takes to make them again. How a gate applies them is not part of it."""

    method: str = "given"
    """`coverage`, `te`, `av`, `random`, or `given` for masks that were made from tensors."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the method and of the pass that counted: JSON values."""

    base_model: str = ""
    """Hub id or path of the model whose neurons were counted; empty where none was."""

    revision: str = ""
    """Its revision; empty where it is not known."""

    weight_fingerprint: str = ""
    """`weight_fingerprint` of that model when it was counted."""

    corpus: Mapping[str, Any] = field(default_factory=dict)
    """The text that was counted, as the statistics describe it."""

    tokens: Mapping[str, int] = field(default_factory=dict)
    """Pair → tokens counted, padding left out, both sides together."""

    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    """Package → version that made the masks."""

    derived: tuple[str, ...] = ()
    """What was done with the masks since, in order: composition, union, subset …"""

    def __post_init__(self) -> None:
        """Check the types, which a file may have wrong."""
        for each in fields(self):
            value, kind = getattr(self, each.name), cast(type, get_origin(each.type) or each.type)
            require(isinstance(value, kind), f"{each.name} of a recipe is a {kind.__name__}, got {value!r}")

    @property
    def rule(self) -> str:
        """The method, or `chance` where coverage says only how many neurons are drawn."""
        return "chance" if self.method == "coverage" and self.settings.get("temperature") else self.method


def choose(
    stats: ActivationStats, config: SelectConfig
) -> tuple[PackedMasks, dict[str, Tensor] | None, Recipe]:
    """Choose neurons by the method of the settings.

    Returns:
        Which ones, [P, F] a site; of those the neurons that all pairs keep, site name → boolean [F], or None
        where the method knows none; and how they were chosen.

    Raises:
        ConfigError: If a selected side has no site in the statistics, or the score was not recorded.
        EmptyPairError: If nothing was counted for a pair.
    """
    sites = _sites_of(stats, config)
    if config.method == "random":
        kept = {site.name: [round(config.density * site.width)] * len(stats.pairs) for site in sites}
        keep = draw({site.name: site.width for site in sites}, stats.pairs, kept, config.seed)
        return keep, None, _recipe(stats, config)
    covers = config.method == "coverage"
    if covers:
        stats.refuse_empty()
    values = stats.counts if covers else stats.importance(config.method)
    silent_keeps = "nothing" if covers else "the general neurons only"
    _warn_silent(stats.pairs, {site.name: values[site.name] for site in sites}, silent_keeps)
    general: dict[str, Tensor] = {}

    def chosen(site: Site) -> Tensor:
        groups, group_P = _groups(stats.pairs, config.by, site.side)
        if covers:
            decoders = config.coverage_decoder if site.side == "decoder" else None
            coverage = float(config.coverage if decoders is None else decoders)
            counts_GF = _pooled(stats.counts[site.name], group_P)
            if not config.temperature:
                return select_by_coverage(counts_GF, coverage)[group_P]
            drawn = [
                select_by_chance(
                    counts_F, coverage, config.temperature, _generator(config.seed, site.name, who)
                )
                for who, counts_F in zip(groups, counts_GF, strict=True)
            ]
            return torch.stack(drawn)[group_P]
        sums_GF = _pooled(stats.sums[config.method][site.name], group_P)
        tokens_G = _pooled(stats.token_counts[site.positions], group_P)
        importance_GF = sums_GF / tokens_G[:, None]
        keep_GF, general[site.name] = allocate_by_importance(importance_GF, config.general, config.threshold)
        return keep_GF[group_P]

    keep = PackedMasks.of(((site.name, chosen(site)) for site in sites), len(stats.pairs))
    return keep, None if covers else general, _recipe(stats, config)


def draw(
    widths: Mapping[str, int], pairs: Sequence[Pair], kept: Mapping[str, Sequence[int]], seed: int
) -> PackedMasks:
    """Draw neurons for every site and pair; each draw depends on the seed, its site and its pair alone.

    By site name, the widths say F, and `kept` how many neurons each pair keeps.
    """

    def drawn(site: str, pair: Pair, count: int) -> Tensor:
        return select_random(widths[site], count / widths[site], _generator(seed, site, pair))

    stacked = (
        (site, torch.stack([drawn(site, *of_pair) for of_pair in zip(pairs, kept[site], strict=True)]))
        for site in widths
    )
    return PackedMasks.of(stacked, len(pairs))


def _generator(seed: int, site: str, who: str) -> torch.Generator:
    """Return one for each site and pair, so that a mask does not depend on which others are drawn."""
    return torch.Generator().manual_seed(int(digest([int(seed), site, who]), 16) >> 1)


def _groups(pairs: Sequence[Pair], by: str, side: str) -> tuple[list[str], Tensor]:
    """Return the groups, and the number of each pair's, int64 [P]: one where they share what counts."""
    if by == "separate":
        by = "source" if side == "encoder" else "target"
    keys = [pair if by == "pair" else getattr(pair, by) for pair in pairs]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return list(numbers), torch.tensor([numbers[key] for key in keys])


def _sites_of(stats: ActivationStats, config: SelectConfig) -> list[Site]:
    sites = [site for site in stats.sites if site.side in config.sides]
    # A decoder-only model has no encoder to select from; only a choice that selects nothing is a mistake.
    if not sites:
        raise ConfigError(f"the statistics hold no site of the side {' or '.join(sorted(config.sides))}")
    if config.method == "coverage":
        sites = [site for site in sites if site.kind == "ffn"]
        if not sites:
            raise ConfigError(
                "the statistics hold no feed-forward site of these sides; record with kinds=('ffn',)"
            )
    return sites


def _pooled(values_PF: Tensor, group_P: Tensor) -> Tensor:
    """Return the sums [G, …] over the pairs of each group: what recording it as one pair would have given."""
    values_PF = values_PF.cpu()
    groups = int(group_P.max()) + 1
    return values_PF.new_zeros(groups, *values_PF.shape[1:]).index_add_(0, group_P, values_PF)


def _warn_silent(pairs: Sequence[Pair], values: Mapping[str, Tensor], keeps: str) -> None:
    silent = [
        f"{pairs[row]} at {name}"
        for name, values_PF in values.items()
        for row in (values_PF.sum(dim=1) == 0).nonzero()[:, 0].tolist()
    ]
    if silent:
        warn(f"no neuron ever fired, so {keeps} is kept, for: {in_short(silent, 10)}")


def _recipe(stats: ActivationStats, config: SelectConfig) -> Recipe:
    value = partial(getattr, config)
    settings = {name: value(name) for name, rule in BY_METHOD.items() if holds(rule, value)}
    if not config.temperature:
        settings.pop("temperature", None)  # as of masks that were made before there was any
    counted: dict[str, Any] = {"count": stats.config.count, "active_on": stats.config.active_on}
    if config.method == "te" and stats.config.label_smoothing:
        counted["label_smoothing"] = stats.config.label_smoothing
    return Recipe(
        method=config.method,
        settings={**settings, "sides": list(config.sides), **counted},
        base_model=str(stats.base.get("id") or ""),
        revision=str(stats.base.get("revision") or ""),
        weight_fingerprint=str(stats.base.get("fingerprint") or ""),
        corpus=stats.corpus,
        tokens={str(pair): stats.tokens(pair) for pair in stats.pairs},
    )


def _versions() -> dict[str, str]:
    others = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {LIBRARY: __version__, **others}
