"""Masks made of masks: of one level, of some pairs, of all together, of pairs that are composed.

All but the first keep the levels beside the masks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Self

from nspec_hf.core import (
    ConfigError,
    Pair,
    UnknownPairError,
    as_names,
    as_pairs,
    in_short,
    numbered,
    pair_index,
)
from nspec_hf.masks.bits import PackedMasks
from nspec_hf.masks.hub import SavedMasks

_NOTED = 10  # so many composed pairs are named in the recipe


class DerivedMasks(SavedMasks):
    """What masks give further masks by; `NeuronMasks` says how the first ones are made."""

    def __contains__(self, pair: object) -> bool:
        """Return whether a pair has masks."""
        return pair in self._numbers

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def index(self, pair: str) -> int:
        """Return a pair's position, its number in `pair_ids`.

        Raises:
            UnknownPairError: If the pair has no masks; the message lists those that have.
        """
        return pair_index(self._numbers, _named(pair), "masks")

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
        encoders, decoders = [], []
        for pair in new:
            if pair in self:
                raise ConfigError(f"pair {str(pair)!r} has masks of its own; compose pairs that have none")
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

    def compose_like(self, other: "DerivedMasks") -> Self:
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
        return self._derived([_named(name)], _union, f"union of {', '.join(self.pairs)}")

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


def _union(keep: PackedMasks) -> PackedMasks:
    return PackedMasks.of(((site, keep_PF.any(dim=0, keepdim=True)) for site, keep_PF in keep.items()), 1)


def _named(name: str) -> Pair:
    """Return the pair of that name; a name without a second language stands for both sides."""
    whole = not isinstance(name, str) or isinstance(name, Pair) or "-" in name
    return Pair(name) if whole else Pair(name, name)
