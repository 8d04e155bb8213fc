"""NeuronMasks: which neurons each pair keeps at each site, the artifact that a gate applies.

Shape letters: P = pairs, F = neurons of a site, S = sites.

A site that masks do not hold (of a side that was not selected, say) stays dense. The order of the pairs is
part of the masks: a pair's position is its index in `pair_ids`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

from torch import Tensor

from nspec_hf.core import ConfigError, Pair, SiteMismatchError, as_names, as_pairs, require, require_count
from nspec_hf.masks.config import Coverage, Grouping, SelectConfig
from nspec_hf.masks.derived import DerivedMasks
from nspec_hf.masks.select import Recipe, choose, draw
from nspec_hf.recording import SIDES, ActivationStats, Site, as_sites


class NeuronMasks(DerivedMasks):
    """Boolean masks, True = keep, for every pair at every site.

    `masks[pair][site name]` is a boolean tensor [F], made when it is asked for: in memory and in the file a
    neuron is one bit, and composed pairs share the rows of their parts (`bits.py`). Treat masks as read-only:
    every method returns new ones. Two are equal when pairs (with their order), sites and neurons are.
    Attributes, saving, loading and publishing: `SavedMasks`.
    """

    @classmethod
    def from_config(cls, stats: ActivationStats, config: SelectConfig, levels: Sequence[float] = ()) -> Self:
        """Return the masks that the settings ask for, from what was recorded; for errors see the next two.

        Args:
            stats: What was recorded.
            config: The settings.
            levels: Further coverages, on both sides, whose masks go along; see `at`.
        """
        require(not levels or config.method == "coverage", "levels are coverages; the method has none")
        keep, general, recipe = choose(stats, config)
        others = {
            level: choose(stats, replace(config, coverage=level, coverage_decoder=None)).keep
            for level in levels
        }
        return cls(stats.pairs, keep, general=general, recipe=recipe, levels=others)

    @classmethod
    def from_coverage(
        cls,
        stats: ActivationStats,
        coverage: Coverage = 0.95,
        sides: Sequence[str] = SIDES,
        coverage_decoder: float | None = None,
        by: Grouping = "pair",
        levels: Sequence[float] = (),
    ) -> Self:
        """Keep the most active neurons of each feed-forward site (Tan et al. 2024, Eq. 1).

        A pair that never fired at a site keeps nothing there, with a warning. Recorded sites of other kinds
        take no part: the sign of an attention output does not say whether it is active.

        Args:
            stats: What was recorded.
            coverage: k of Eq. 1: the share of a site's activations to cover, in (0, 1]; or `paper` (0.95) or
                `sparse` (0.6).
            sides: Which sides get masks; the other stays dense.
            coverage_decoder: The decoder's k, where it is not the encoder's.
            by: `pair` (the paper), or `source`, `target` or `separate`: see `from_importance`.
            levels: Further coverages whose masks go along, for one model that runs at several: see `at`.

        Raises:
            ConfigError: If `coverage` or a level is out of range, or a side is unknown or has no
                feed-forward site.
        """
        config = SelectConfig(
            coverage=coverage, coverage_decoder=coverage_decoder, by=by, sides=as_names(sides)
        )
        return cls.from_config(stats, config, levels)

    @classmethod
    def from_importance(
        cls,
        stats: ActivationStats,
        score: Literal["te", "av"] = "te",
        general: float = 0.9,
        threshold: float = 0.7,
        by: Grouping = "pair",
        sides: Sequence[str] = SIDES,
    ) -> Self:
        """Allocate neurons by importance: some to all pairs, each other one to those that need it most.

        Xie et al. (2021), Eq. 9 and the varieties of Fig. 6: with `by="source"` or `"target"` the pairs
        that share that language share one mask, the one that they would get if they had been recorded as
        one pair; with `"separate"` they go by source in the encoder and by target in the decoder.

        Args:
            stats: What was recorded, with `te=True` or `av=True`.
            score: `te` or `av`.
            general: ρ, the share of neurons that all pairs keep, in [0, 1].
            threshold: k of Eq. 9, in [0, 1].
            by: `pair`, `source`, `target` or `separate`.
            sides: Which sides get masks; the other stays dense.

        Raises:
            ConfigError: If a setting is out of range, the score was not recorded or the sides have no site.
            EmptyPairError: If a pair has no tokens.
        """
        require(score in ("te", "av"), f"score is 'te' or 'av', got {score!r}")
        config = SelectConfig(
            method=score, general=general, threshold=threshold, by=by, sides=as_names(sides)
        )
        return cls.from_config(stats, config)

    @classmethod
    def random(
        cls,
        sites: Mapping[str, int] | Iterable[Site] | None = None,
        pairs: Iterable[str] | None = None,
        density: float | None = None,
        seed: int = 1,
        *,
        like: "NeuronMasks | None" = None,
    ) -> Self:
        """Draw masks at random, the control. Each depends on the seed, its site's name and its pair alone.

        Args:
            sites: Site name → width, or sites.
            pairs: Which pairs get masks.
            density: Share of neurons kept, 0.7 if not given: `round(density · F)` for every pair and site.
            seed: Any integer.
            like: Instead of these three: masks whose number of kept neurons is met at every pair and site.

        Raises:
            ConfigError: If `like` is given beside the others, neither is, or `density` is out of range.
        """
        if like is not None:
            if (sites, pairs, density) != (None, None, None):
                raise ConfigError("`like` states sites, pairs and density; leave those out")
            kept = {name: like.keep.at(name).kept_P.tolist() for name in like.keep}
            settings = {"density_like": like.fingerprint(), "seed": seed}
            recipe = replace(like.recipe, method="random", settings=settings, derived=())
            widths = {site.name: site.width for site in like.sites}
            return cls(like.pairs, draw(widths, like.pairs, kept, seed), recipe=recipe)
        if sites is None or pairs is None:
            raise ConfigError("random masks need sites and pairs, or `like` alone")
        widths = {site.name: site.width for site in as_sites(sites)}
        for name, width in widths.items():
            require_count(f"the width of {name}", width)
        config = SelectConfig(method="random", density=0.7 if density is None else density, seed=seed)
        pairs = as_pairs(pairs)
        kept = {name: [round(config.density * width)] * len(pairs) for name, width in widths.items()}
        recipe = Recipe(method="random", settings={"density": config.density, "seed": seed})
        return cls(pairs, draw(widths, pairs, kept, seed) if pairs else {}, recipe=recipe)

    def __getitem__(self, pair: str) -> dict[str, Tensor]:
        """Return site name → boolean [F] of a pair.

        Raises:
            UnknownPairError: If the pair has no masks.
        """
        return self.keep.of_pair(self.index(pair))

    def __iter__(self) -> Iterator[Pair]:
        """Go through the pairs."""
        return iter(self.pairs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Share them, as a copied model's gate does: what is read-only may be."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickle make the masks again, as it does with a model that has a gate on it."""
        general = None if self.general is None else dict(self.general)
        again = partial(NeuronMasks, general=general, recipe=self.recipe, levels=self.levels)
        return again, (list(self.pairs), self.keep)

    def __repr__(self) -> str:
        """Say in a line what the masks are."""
        return (
            f"NeuronMasks({len(self.pairs)} pairs, {len(self.sites)} sites, density {self.density():.3f}, "
            f"method {self.recipe.method!r}, fingerprint {self.fingerprint()})"
        )

    def __eq__(self, other: object) -> bool:
        """Return whether pairs with their order, sites and neurons are the same; recipes may differ."""
        return isinstance(other, NeuronMasks) and self.fingerprint() == other.fingerprint()

    def __hash__(self) -> int:
        """Return the hash of what is compared."""
        return hash(self.fingerprint())

    def density(self, pair: str | None = None, site: str | None = None) -> float:
        """Return the share of neurons kept: over everything, or by one pair, at one site, or both.

        Raises:
            UnknownPairError: If the pair has no masks.
            SiteMismatchError: If the masks do not hold that site.
        """
        if site is not None and site not in self.keep:
            raise SiteMismatchError(f"masks hold no site {site!r}; they hold: {', '.join(self.keep)}")
        rows = slice(None) if pair is None else slice(self.index(pair), self.index(pair) + 1)
        sites = [self.keep.at(name) for name in self.keep if site in (None, name)]
        kept = sum(int(each.kept_P[rows].sum()) for each in sites)
        return kept / sum(each.width * len(self.pairs[rows]) for each in sites)

    def check_model(self, sites: Iterable[Site]) -> None:
        """Check that these masks are for a model with these sites.

        Sites of a side or kind that the masks hold nothing of may be more: they stay dense.

        Raises:
            SiteMismatchError: If the model lacks a site, has another width, or has further sites of a side
                and kind that the masks do hold. The message lists each.
        """
        own, there = {site.name: site for site in self.sites}, {site.name: site for site in sites}
        covered = {(site.side, site.kind) for site in self.sites}
        wrong = [f"{name} is not in the model" for name in own if name not in there]
        for name, site in there.items():
            if name in own and own[name].width != site.width:
                wrong.append(f"{name} has {site.width} neurons in the model, {own[name].width} in the masks")
            if name not in own and (site.side, site.kind) in covered:
                wrong.append(f"{name} is not in the masks (rows that are all True would leave it dense)")
        if wrong:
            raise SiteMismatchError(
                f"the masks were made for another model ({self.recipe.base_model or 'not named'}): "
                f"{'; '.join(wrong)}"
            )
