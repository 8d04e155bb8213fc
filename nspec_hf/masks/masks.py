"""NeuronMasks: which neurons each pair keeps at each site, the artifact that a gate applies.

Shape letters: P = pairs, F = neurons of a site, S = sites.

A site that masks do not hold (of a side that was not selected, say) stays dense. The order of the pairs is
part of the masks: a pair's position is its index in `pair_ids`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal, Self

from torch import Tensor

from nspec_hf.core import (
    ConfigError,
    Pair,
    SiteMismatchError,
    UnknownPairError,
    as_names,
    as_pairs,
    in_short,
    languages_of,
    numbered,
    pair_index,
    pair_or_both,
    pivot_of,
    require,
    require_count,
)
from nspec_hf.masks.bits import PackedMasks
from nspec_hf.masks.config import Coverage, Grouping, SelectConfig
from nspec_hf.masks.hub import SavedMasks
from nspec_hf.masks.select import Recipe, choose, draw
from nspec_hf.recording import SIDES, ActivationStats, Site, as_sites

_NOTED = 10  # so many composed pairs are named in the recipe


class NeuronMasks(SavedMasks):
    """Boolean masks, True = keep, for every pair at every site.

    `masks[pair][site name]` is a boolean tensor [F], made when it is asked for: in memory and in the file a
    neuron is one bit, and composed pairs share the rows of their parts (`bits.py`). Treat masks as read-only:
    every method returns new ones. Two are equal when pairs (with their order), sites and neurons are.
    Attributes, saving, loading and publishing: `SavedMasks`.
    """

    @classmethod
    def from_config(cls, stats: ActivationStats, config: SelectConfig, levels: Sequence[float] = ()) -> Self:
        """Return the masks that the settings ask for, from what was recorded; for errors see the next two.

        The levels are further coverages, on both sides, whose masks go along; see `at`.
        """
        require(not levels or config.method == "coverage", "levels are coverages; the method has none")
        keep, general, recipe = choose(stats, config)
        others = {
            level: choose(stats, replace(config, coverage=level, coverage_decoder=None))[0]
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
        take no part: the sign of an attention output does not say whether it is active. The settings are
        those of `SelectConfig`, the paper's `by="pair"`; for `levels` see `from_config`.

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
        one pair; with `"separate"` they go by source in the encoder and by target in the decoder. The
        settings are those of `SelectConfig`; the score, its method `te` or `av`, must have been recorded.

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
        row = self.index(pair)
        return {name: self.keep.at(name).booleans(row) for name in self.keep}

    def __iter__(self) -> Iterator[Pair]:
        """Go through the pairs."""
        return iter(self.pairs)

    def __contains__(self, pair: object) -> bool:
        """Return whether a pair has masks, by any of the names that `masks[pair]` takes."""
        try:
            return isinstance(pair, str) and pair_or_both(pair) in self._numbers
        except ConfigError:  # no name of a pair
            return False

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __repr__(self) -> str:
        """Say in a line what the masks are."""
        return (
            f"NeuronMasks({len(self.pairs)} pairs, {len(self.sites)} sites, density {self.density():.3f}, "
            f"method {self.recipe.method!r}, fingerprint {self.fingerprint()})"
        )

    def index(self, pair: str) -> int:
        """Return a pair's position, its number in `pair_ids`.

        Raises:
            UnknownPairError: If the pair has no masks; the message lists those that have.
        """
        return pair_index(self._numbers, pair_or_both(pair), "masks")

    def at(self, coverage: float) -> Self:
        """Return the masks of one of the levels, with the others beside it; these where it is their coverage.

        Raises:
            ConfigError: If there is no such level; the message lists those that there are.
        """
        own, decoder = (self.recipe.settings.get(name) for name in ("coverage", "coverage_decoder"))
        if coverage == own and decoder in (None, own):
            return self
        if coverage not in self.levels:
            held = ", ".join(f"{level:g}" for level in self.levels)
            raise ConfigError(
                f"no masks of coverage {coverage:g} are here; there are: {held or 'no levels'} (coverage of "
                f"the masks themselves: {own}); select them together: levels=(1.0, 0.8), or --levels"
            )
        settings = {**self.recipe.settings, "coverage": coverage, "coverage_decoder": None}
        recipe = replace(self.recipe, settings=settings)
        others = {level: keep for level, keep in self.levels.items() if level != coverage}
        if isinstance(own, float | int) and decoder in (None, own):
            others[float(own)] = self.keep
        return type(self)(self.pairs, self.levels[coverage], recipe=recipe, levels=others)

    def subset(self, pairs: Iterable[str]) -> Self:
        """Return the masks of some pairs, in the order asked for.

        Raises:
            UnknownPairError: If one of them has no masks.
            ConfigError: If there is none, or `pairs` is one string.
        """
        if isinstance(pairs, str):
            raise ConfigError(f"expected a list of pairs, got one string; write [{str(pairs)!r}]")
        rows = [self.index(pair) for pair in pairs]
        chosen = [self.pairs[row] for row in rows]
        note = f"subset of {len(self.pairs)} pairs"
        return self._derived(chosen, lambda keep: keep.subset(rows), note)

    def compose(self, pairs: str | Iterable[str], pivot: str = "en") -> Self:
        """Return the same masks with zero-shot pairs appended, so that they have an index for `pair_ids`.

        As in the paper: the encoder's neurons of source → pivot, the decoder's of pivot → target.

        Args:
            pairs: One pair or several. They take no memory of their own: see `PackedMasks.compose`.
            pivot: The language that both sides were trained with.

        Raises:
            UnknownPairError: If masks of source → pivot or pivot → target are missing.
            ConfigError: If a pair has masks of its own.
        """
        new = as_pairs(as_names(pairs))
        encoders, decoders, pivot = [], [], pivot_of(languages_of(self.pairs), pivot)
        for pair in new:
            require(pair not in self, f"pair '{pair}' has masks of its own; compose pairs that have none")
            parts = Pair(pair.source, pivot), Pair(pivot, pair.target)
            missing = [str(part) for part in parts if part not in self]
            if missing:
                raise UnknownPairError(
                    f"pair {str(pair)!r} cannot be composed through {pivot!r}: masks lack "
                    f"{', '.join(missing)}; masks hold: {in_short(sorted(self.pairs))}"
                )
            encoders.append(self._numbers[parts[0]])
            decoders.append(self._numbers[parts[1]])
        named = list(new) if len(new) <= _NOTED else [f"{len(new):,} pairs"]
        notes = (f"{each} composed through {pivot}" for each in named)
        return self._composed([*self.pairs, *new], encoders, decoders, notes)

    def compose_like(self, other: "NeuronMasks") -> Self:
        """Return the same masks with the pairs appended that other masks have in addition and had composed.

        Raises:
            ConfigError: If those begin with other pairs than these, or have further masks of their own.
        """
        count = len(self.pairs)
        missing = other.pairs[count:]
        encoders, decoders = (other.keep.sharers(side)[count:] for side in ("encoder", "decoder"))
        if self.pairs != other.pairs[:count] or max((*encoders, *decoders), default=0) >= count:
            raise ConfigError("other masks must be for the same pairs, and such as are composed of them")
        note = f"{in_short(missing)} composed as before"
        return self._composed(list(other.pairs), encoders, decoders, [note])

    def union(self, name: str) -> Self:
        """Return one mask for all pairs together: what any of them keeps, under the pair `name`.

        For a model that serves a group: `masks.subset(group).union("mul-en")`. A name without a second
        language stands for both sides: `"all"` is the pair `all-all`.
        """
        return self._derived([pair_or_both(name)], PackedMasks.union, f"union of {', '.join(self.pairs)}")

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

    def _derived(
        self, pairs: Sequence[Pair], derive: Callable[[PackedMasks], PackedMasks], note: str
    ) -> Self:
        recipe = replace(self.recipe, derived=(*self.recipe.derived, note))
        levels = {level: derive(keep) for level, keep in self.levels.items()}
        return type(self)(pairs, derive(self.keep), general=self.general, recipe=recipe, levels=levels)

    def _composed(
        self, pairs: list[Pair], encoders: Sequence[int], decoders: Sequence[int], notes: Iterable[str]
    ) -> Self:
        # Past the constructor: a pair more must not cost a look at all that are there.
        masks = type(self).__new__(type(self))
        recipe = replace(self.recipe, derived=(*self.recipe.derived, *notes))
        new = {pair: number for number, pair in enumerate(pairs[len(self) :], len(self))}
        changed = {
            "pairs": pairs,
            "keep": self.keep.compose(encoders, decoders),
            "levels": {level: keep.compose(encoders, decoders) for level, keep in self.levels.items()},
            "recipe": recipe,
            "_numbers": self._numbers | new,
        }
        vars(masks).update(vars(self), **changed, _fingerprint="")
        return masks

    @cached_property
    def _numbers(self) -> dict[Pair, int]:
        return numbered(self.pairs)
