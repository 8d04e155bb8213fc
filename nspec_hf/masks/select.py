"""Apply the selection rules to recorded statistics, and write down how it was done.

Shape letters: P = pairs, F = neurons of a site, G = groups of pairs.

`selection.py` knows tensors only; here the rules meet pairs, sites and sides. What comes out, a `Choice`,
is all that masks are made of: `masks.py` gives it its methods, `folder.py` saves it.
"""

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from nspec_hf import __version__
from nspec_hf.core import ConfigError, Pair, as_pairs, pack
from nspec_hf.masks.config import SelectConfig
from nspec_hf.masks.rules import allocate_by_importance, select_by_coverage, select_random
from nspec_hf.recording import ActivationStats, Site

LIBRARY = "nspec_hf"

_LISTED = 10  # so many silent rows are named in a warning


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
    """`sites.weight_fingerprint` of that model when it was counted."""

    corpus: Mapping[str, Any] = field(default_factory=dict)
    """The text that was counted, as the statistics describe it."""

    tokens: Mapping[str, int] = field(default_factory=dict)
    """Pair → tokens counted, padding left out, both sides together."""

    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    """Package → version that made the masks."""

    derived: tuple[str, ...] = ()
    """What was done with the masks since, in order: composition, union, subset …"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Which neurons each pair keeps, and the recipe: all that masks are made of; checked, tensors copied.

    Raises:
        ConfigError: If there is no pair or site, a tensor has another type or shape, or a general neuron is
            not kept by every pair.
    """

    pairs: Sequence[Pair]
    """At least one; the position is the index in `pair_ids`."""

    keep: Mapping[str, Tensor]
    """Site name → boolean [P, F]."""

    general: Mapping[str, Tensor] | None = None
    """Site name → boolean [F] of the neurons that all pairs keep; None where the method knows none."""

    recipe: Recipe = field(default_factory=Recipe)
    """Where it comes from."""

    def __post_init__(self) -> None:
        """Copy and check."""
        object.__setattr__(self, "pairs", as_pairs(self.pairs))
        if not self.pairs or not self.keep:
            raise ConfigError(
                f"masks need a pair and a site, got {len(self.pairs)} pairs, {len(self.keep)} sites"
            )
        object.__setattr__(self, "keep", _copies(self.keep))
        for name, keep_PF in self.keep.items():
            if keep_PF.dim() != 2 or len(keep_PF) != len(self.pairs) or keep_PF.shape[1] == 0:
                shape = list(keep_PF.shape)
                raise ConfigError(f"keep[{name!r}] must have shape [{len(self.pairs)} pairs, F], got {shape}")
        if self.general is not None:
            object.__setattr__(self, "general", _copies(self.general))
            self._check_general(self.general)

    def _check_general(self, general: Mapping[str, Tensor]) -> None:
        if set(general) != set(self.keep):
            other = sorted(set(general) ^ set(self.keep))
            raise ConfigError(f"general neurons must be of the same sites; not in both: {', '.join(other)}")
        for name, general_F in general.items():
            width = self.keep[name].shape[1]
            if list(general_F.shape) != [width]:
                raise ConfigError(f"general[{name!r}] must have shape [{width}], got {list(general_F.shape)}")
            if (general_F & ~self.keep[name]).any():
                raise ConfigError(f"a general neuron of {name!r} is silenced for a pair; all pairs keep it")


def payload(choice: Choice) -> dict[str, Tensor]:
    """Return the packed bits: `keep/<site>` uint8 [P, ceil(F / 8)], `general/<site>` [ceil(F / 8)]."""
    named = {f"keep/{name}": pack(keep_PF) for name, keep_PF in choice.keep.items()}
    return named | {f"general/{name}": pack(general_F) for name, general_F in (choice.general or {}).items()}


def fingerprint(choice: Choice) -> str:
    """Return 16 hex digits that stand for pairs, sites and neurons, whatever the order of the sites."""
    digest = hashlib.sha256(json.dumps([str(pair) for pair in choice.pairs]).encode())
    widths = {name: keep_PF.shape[1] for name, keep_PF in choice.keep.items()}
    digest.update(json.dumps(sorted(widths.items())).encode())
    for name, packed in sorted(payload(choice).items()):
        digest.update(json.dumps(name).encode())
        digest.update(packed.numpy().tobytes())
    return digest.hexdigest()[:16]


def choose(stats: ActivationStats, config: SelectConfig) -> Choice:
    """Choose neurons by the method of the settings.

    Raises:
        ConfigError: If a selected side has no site in the statistics, or the score was not recorded.
        EmptyPairError: If importance is asked for and a pair has no tokens.
    """
    if config.method == "coverage":
        return _by_coverage(stats, config)
    if config.method == "random":
        widths = {site.name: site.width for site in _sites_of(stats, config.sides)}
        drawn = choose_random(widths, stats.pairs, config.density, config.seed)
        return replace(drawn, recipe=_recipe(stats, config, "density", "seed"))
    return _by_importance(stats, config)


def choose_random(
    widths: Mapping[str, int], pairs: Iterable[str], density: float = 0.7, seed: int = 1
) -> Choice:
    """Draw `round(density · F)` neurons for every pair and site, without statistics.

    Raises:
        ConfigError: If `density` lies outside (0, 1].
    """
    config, pairs = SelectConfig(method="random", density=density, seed=seed), as_pairs(pairs)
    keep = {
        name: torch.stack([_drawn(name, width, pair, round(config.density * width), seed) for pair in pairs])
        for name, width in widths.items()
        if pairs
    }
    recipe = Recipe(method="random", settings={"density": config.density, "seed": seed})
    return Choice(pairs=pairs, keep=keep, recipe=recipe)


def choose_random_like(choice: Choice, seed: int = 1, settings: Mapping[str, Any] | None = None) -> Choice:
    """Draw as many neurons as a choice keeps, at every pair and site; `settings` go into the recipe."""
    keep = {}
    for name, keep_PF in choice.keep.items():
        counts = zip(choice.pairs, keep_PF.sum(dim=1).tolist(), strict=True)
        keep[name] = torch.stack(
            [_drawn(name, keep_PF.shape[1], pair, count, seed) for pair, count in counts]
        )
    recipe = replace(choice.recipe, method="random", settings={**(settings or {}), "seed": seed}, derived=())
    return Choice(pairs=choice.pairs, keep=keep, recipe=recipe)


def group_numbers(pairs: Sequence[Pair], by: str, side: str) -> Tensor:
    """Return the group number of each pair, int64 [P]: equal where pairs share the language that counts."""
    if by == "separate":
        by = "source" if side == "encoder" else "target"
    keys = [pair if by == "pair" else getattr(pair, by) for pair in pairs]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


def _by_coverage(stats: ActivationStats, config: SelectConfig) -> Choice:
    sites = [site for site in _sites_of(stats, config.sides) if site.kind == "ffn"]
    if not sites:
        raise ConfigError(
            "the statistics hold no feed-forward site of these sides; record with kinds=('ffn',)"
        )
    counts = {site.name: stats.counts[site.name].cpu() for site in sites}
    _warn_silent(stats.pairs, counts, "nothing")
    keep = {}
    for site in sites:
        group_P = group_numbers(stats.pairs, config.by, site.side)
        counts_GF = torch.zeros(int(group_P.max()) + 1, site.width, dtype=counts[site.name].dtype)
        counts_GF.index_add_(0, group_P, counts[site.name])
        own = config.coverage_decoder if site.side == "decoder" else None
        keep[site.name] = select_by_coverage(counts_GF, config.coverage if own is None else own)[group_P]
    recipe = _recipe(stats, config, "coverage", "coverage_decoder", "by")
    return Choice(pairs=stats.pairs, keep=keep, recipe=recipe)


def _by_importance(stats: ActivationStats, config: SelectConfig) -> Choice:
    sites, recorded = _sites_of(stats, config.sides), stats.importance(config.method)
    importance = {site.name: recorded[site.name].cpu() for site in sites}
    _warn_silent(stats.pairs, importance, "the general neurons only")
    keep, general = {}, {}
    for site in sites:
        group_P = group_numbers(stats.pairs, config.by, site.side)
        tokens_P = torch.tensor([stats.tokens(pair, site.positions) for pair in stats.pairs])
        importance_GF = _pooled(importance[site.name], tokens_P, group_P)
        keep_GF, general[site.name] = allocate_by_importance(importance_GF, config.general, config.threshold)
        keep[site.name] = keep_GF[group_P]
    recipe = _recipe(stats, config, "general", "threshold", "by")
    return Choice(pairs=stats.pairs, keep=keep, general=general, recipe=recipe)


def _sites_of(stats: ActivationStats, sides: Sequence[str]) -> list[Site]:
    sites = [site for site in stats.sites if site.side in sides]
    missing = sorted(set(sides) - {site.side for site in sites})
    # A decoder-only model has no encoder to select from; only a choice that selects nothing is a mistake.
    if not sites:
        raise ConfigError(f"the statistics hold no site of the side {' or '.join(missing)}")
    return sites


def _pooled(importance_PF: Tensor, tokens_P: Tensor, group_P: Tensor) -> Tensor:
    """Return the importance [G, F] that recording each group as one pair would have given."""
    groups = int(group_P.max()) + 1
    if groups == len(group_P):
        return importance_PF
    sums_GF = torch.zeros(groups, importance_PF.shape[1], dtype=torch.float64)
    sums_GF.index_add_(0, group_P, importance_PF * tokens_P[:, None])
    tokens_G = torch.zeros(groups, dtype=torch.float64).index_add_(0, group_P, tokens_P.double())
    return sums_GF / tokens_G[:, None]


def _warn_silent(pairs: Sequence[Pair], values: Mapping[str, Tensor], keeps: str) -> None:
    silent = [
        f"{pairs[row]} at {name}"
        for name, values_PF in values.items()
        for row in (values_PF.sum(dim=1) == 0).nonzero()[:, 0].tolist()
    ]
    if silent:
        more = f" and {len(silent) - _LISTED} more" if len(silent) > _LISTED else ""
        warnings.warn(
            f"no neuron ever fired, so {keeps} is kept, for: {', '.join(silent[:_LISTED])}{more}",
            stacklevel=5,
        )


def _recipe(stats: ActivationStats, config: SelectConfig, *names: str) -> Recipe:
    settings = {name: getattr(config, name) for name in names}
    settings |= {
        "sides": list(config.sides),
        "count": stats.config.count,
        "active_on": stats.config.active_on,
    }
    return Recipe(
        method=config.method,
        settings=settings,
        base_model=str(stats.base.get("id") or ""),
        revision=str(stats.base.get("revision") or ""),
        weight_fingerprint=str(stats.base.get("fingerprint") or ""),
        corpus=stats.corpus,
        tokens={str(pair): stats.tokens(pair) for pair in stats.pairs},
    )


def _drawn(site: str, width: int, pair: str, count: int, seed: int) -> Tensor:
    # A generator for each site and pair, so that a mask does not depend on which others are drawn.
    digest = hashlib.sha256(json.dumps([int(seed), site, str(pair)]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return select_random(width, count / width, generator)


def _copies(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bool:
            raise ConfigError(f"masks are booleans, True = keep; those of {name!r} are {tensor.dtype}")
    return MappingProxyType({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})


def _versions() -> dict[str, str]:
    others = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {LIBRARY: __version__, **others}
