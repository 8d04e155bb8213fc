"""NeuronMasks: which neurons each pair keeps at each site, the artefact that a gate applies.

Shape letters: P = pairs, F = neurons of a site, S = sites.

A site that masks do not hold (of a side that was not selected, say) stays dense. The order of the pairs is
part of the masks: a pair's position is its index in `pair_ids`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nspec_hf.core import ConfigError, Pair, SiteMismatchError, UnknownPairError, pair_index
from nspec_hf.masks.config import SelectConfig
from nspec_hf.masks.hub import SavedMasks
from nspec_hf.masks.select import Choice, Recipe, choose, choose_random, choose_random_like, fingerprint
from nspec_hf.recording import SIDES, ActivationStats, Site, site_from_name


class NeuronMasks(SavedMasks):
    """Boolean masks, True = keep, for every pair at every site.

    `masks[pair][site name]` is a boolean tensor [F]. Treat masks as read-only: every method returns new
    ones. Two are equal when pairs (with their order), sites and neurons are. Saving, loading and
    publishing: `folder.py`.

    Attributes:
        pairs: In the order of `pair_ids`.
        sites: The gated linears. Sites of the model that are not among them stay dense.
        keep: Site name → boolean [P, F].
        general: Masks by importance: site name → boolean [F], the neurons that all pairs keep. Else None.
        recipe: Where the masks come from.
    """

    def __init__(
        self,
        pairs: Iterable[str],
        keep: Mapping[str, Tensor],
        *,
        general: Mapping[str, Tensor] | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        """Make masks from tensors, which are copied.

        Args:
            pairs: At least one.
            keep: Site name → boolean [P, F], on any device.
            general: Site name → boolean [F] for the same sites, or None.
            recipe: Where the masks come from.

        Raises:
            ConfigError: If there is no pair or site, a tensor has another type or shape, or a general
                neuron is not kept by every pair.
        """
        choice = Choice(pairs=pairs, keep=keep, general=general, recipe=recipe or Recipe())
        self._choice = choice
        self.pairs: list[Pair] = choice.pairs
        self.keep: Mapping[str, Tensor] = choice.keep
        self.general: Mapping[str, Tensor] | None = choice.general
        self.recipe: Recipe = choice.recipe
        self.sites: list[Site] = [site_from_name(name, keep_PF.shape[1]) for name, keep_PF in keep.items()]

    @classmethod
    def from_choice(cls, choice: Choice) -> "NeuronMasks":
        """Return the masks that were chosen, or loaded."""
        return cls(choice.pairs, choice.keep, general=choice.general, recipe=choice.recipe)

    def choice(self) -> Choice:
        """Return what the masks are made of."""
        return self._choice

    @classmethod
    def from_config(cls, stats: ActivationStats, config: SelectConfig) -> "NeuronMasks":
        """Return the masks that the settings ask for, from what was recorded; for errors see the next two."""
        return cls.from_choice(choose(stats, config))

    @classmethod
    def from_coverage(
        cls,
        stats: ActivationStats,
        coverage: float = 0.95,
        sides: Sequence[str] = SIDES,
        coverage_decoder: float | None = None,
        by: str = "pair",
    ) -> "NeuronMasks":
        """Keep the most active neurons of each feed-forward site (Tan et al. 2024, Eq. 1).

        A pair that never fired at a site keeps nothing there, with a warning. Recorded sites of other kinds
        take no part: the sign of an attention output does not say whether it is active.

        Args:
            stats: What was recorded.
            coverage: k of Eq. 1: the share of a site's activations to cover, in (0, 1].
            sides: Which sides get masks; the other stays dense.
            coverage_decoder: The decoder's k, where it is not the encoder's.
            by: `pair` (the paper), or `source`, `target` or `separate`: see `from_importance`.

        Raises:
            ConfigError: If `coverage` is out of range, or a side is unknown or has no feed-forward site.
        """
        config = SelectConfig(
            method="coverage",
            coverage=coverage,
            coverage_decoder=coverage_decoder,
            by=by,
            sides=sides,
        )
        return cls.from_config(stats, config)

    @classmethod
    def from_importance(
        cls,
        stats: ActivationStats,
        score: str = "te",
        general: float = 0.9,
        threshold: float = 0.7,
        by: str = "pair",
        sides: Sequence[str] = SIDES,
    ) -> "NeuronMasks":
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
        if score not in ("te", "av"):
            raise ConfigError(f"score is 'te' or 'av', got {score!r}")
        config = SelectConfig(method=score, general=general, threshold=threshold, by=by, sides=sides)
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
    ) -> "NeuronMasks":
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
        if (like is None) == (sites is None) or (sites is None) != (pairs is None):
            raise ConfigError("random masks need sites and pairs, or `like` alone")
        if like is not None:
            if density is not None:
                raise ConfigError("`like` states the density; leave `density` out")
            settings = {"density_like": like.fingerprint()}
            return cls.from_choice(choose_random_like(like.choice(), seed, settings))
        widths = sites if isinstance(sites, Mapping) else {site.name: site.width for site in sites}
        return cls.from_choice(choose_random(widths, pairs, 0.7 if density is None else density, seed))

    def __getitem__(self, pair: str) -> dict[str, Tensor]:
        """Return site name → boolean [F] of a pair.

        Raises:
            UnknownPairError: If the pair has no masks.
        """
        row = self.index(pair)
        return {name: keep_PF[row] for name, keep_PF in self.keep.items()}

    def __contains__(self, pair: object) -> bool:
        """Return whether a pair has masks."""
        return pair in self.pairs

    def __iter__(self) -> Iterator[Pair]:
        """Go through the pairs."""
        return iter(self.pairs)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copy and pickle make the masks again, as they do with a model that has a gate on it."""
        general = None if self.general is None else dict(self.general)
        again = partial(NeuronMasks, general=general, recipe=self.recipe)
        return again, (list(self.pairs), dict(self.keep))

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

    def index(self, pair: str) -> int:
        """Return a pair's position, its number in `pair_ids`.

        Raises:
            UnknownPairError: If the pair has no masks; the message lists those that have.
        """
        return pair_index(self.pairs, _named(pair), "masks")

    def density(self, pair: str | None = None, site: str | None = None) -> float:
        """Return the share of neurons kept: over everything, or by one pair, at one site, or both.

        Raises:
            UnknownPairError: If the pair has no masks.
            SiteMismatchError: If the masks do not hold that site.
        """
        if site is not None and site not in self.keep:
            raise SiteMismatchError(f"masks hold no site {site!r}; they hold: {', '.join(self.keep)}")
        rows = slice(None) if pair is None else self.index(pair)
        chosen = [keep_PF[rows] for name, keep_PF in self.keep.items() if site in (None, name)]
        return sum(int(keep.sum()) for keep in chosen) / sum(keep.numel() for keep in chosen)

    def fingerprint(self) -> str:
        """Return 16 hex digits that stand for pairs, sites and neurons, whatever the order of the sites."""
        return fingerprint(self._choice)

    def check_model(self, sites: Iterable[Site]) -> None:
        """Check that these masks are for a model with these sites.

        Sites of a side or kind that the masks hold nothing of may be more: they stay dense.

        Raises:
            SiteMismatchError: If the model lacks a site, has another width, or has further sites of a side
                and kind that the masks do hold. The message lists each.
        """
        own, found = {site.name: site for site in self.sites}, {site.name: site for site in sites}
        covered = {(site.side, site.kind) for site in self.sites}
        wrong = [f"{name} is not in the model" for name in own if name not in found]
        for name, site in found.items():
            if name in own and own[name].width != site.width:
                wrong.append(f"{name} has {site.width} neurons in the model, {own[name].width} in the masks")
            if name not in own and (site.side, site.kind) in covered:
                wrong.append(f"{name} is not in the masks (rows that are all True would leave it dense)")
        if wrong:
            raise SiteMismatchError(
                f"the masks were made for another model ({self.recipe.base_model or 'not named'}): "
                f"{'; '.join(wrong)}"
            )

    def subset(self, pairs: Iterable[str]) -> "NeuronMasks":
        """Return the masks of some pairs, in the order asked for.

        Raises:
            UnknownPairError: If one of them has no masks.
            ConfigError: If there is none, or `pairs` is one string.
        """
        if isinstance(pairs, str):
            raise ConfigError(f"expected a list of pairs, got one string; write [{str(pairs)!r}]")
        pairs = [self.pairs[self.index(pair)] for pair in pairs]
        rows = [self.index(pair) for pair in pairs]
        keep = {name: keep_PF[rows] for name, keep_PF in self.keep.items()}
        recipe = self._recipe_then(f"subset of {len(self.pairs)} pairs")
        return NeuronMasks(pairs, keep, general=self.general, recipe=recipe)

    def compose(self, pair: str, pivot: str = "en") -> "NeuronMasks":
        """Return the same masks with a zero-shot pair appended, so that it has an index for `pair_ids`.

        As in the paper: the encoder's neurons of source → pivot, the decoder's of pivot → target.

        Raises:
            UnknownPairError: If one of those two has no masks.
            ConfigError: If the pair has masks of its own.
        """
        pair = Pair(pair)
        if pair in self.pairs:
            raise ConfigError(f"pair {str(pair)!r} has masks of its own; compose pairs that have none")
        parts = {"encoder": Pair(pair.source, pivot), "decoder": Pair(pivot, pair.target)}
        missing = [str(part) for part in parts.values() if part not in self.pairs]
        if missing:
            raise UnknownPairError(
                f"pair {str(pair)!r} cannot be composed through {pivot!r}: masks lack {', '.join(missing)}; "
                f"masks hold: {', '.join(sorted(self.pairs))}"
            )
        keep = {
            site.name: torch.cat([self.keep[site.name], self[parts[site.side]][site.name][None]])
            for site in self.sites
        }
        recipe = self._recipe_then(f"{pair} composed through {pivot}")
        return NeuronMasks([*self.pairs, pair], keep, general=self.general, recipe=recipe)

    def union(self, name: str) -> "NeuronMasks":
        """Return one mask for all pairs together: what any of them keeps, under the pair `name`.

        For a model that serves a group: `masks.subset(group).union("mul-en")`. A name without a second
        language stands for both sides: `"all"` is the pair `all-all`.
        """
        keep = {site: keep_PF.any(dim=0, keepdim=True) for site, keep_PF in self.keep.items()}
        recipe = self._recipe_then(f"union of {', '.join(self.pairs)}")
        return NeuronMasks([_named(name)], keep, general=self.general, recipe=recipe)

    def _recipe_then(self, note: str) -> Recipe:
        return replace(self.recipe, derived=(*self.recipe.derived, note))


def _named(name: str) -> Pair:
    """Return the pair of that name; a name without a second language stands for both sides."""
    whole = not isinstance(name, str) or isinstance(name, Pair) or "-" in name
    return Pair(name) if whole else Pair(name, name)
