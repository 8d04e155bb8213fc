"""Which trained pairs stand in for a pair that was not trained, in systems whose weights belong to pairs.

As with masks (`NeuronMasks.compose`): the encoder works as for source → pivot, the decoder, its attention to
the encoder included, as for pivot → target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nspec_hf.core import Pair, UnknownPairError, languages_of, pivot_of


@dataclass(frozen=True)
class StandIns:
    """The trained pairs, and the language through which they stand in for others."""

    trained: Sequence[Pair]
    """The pairs that have weights of their own."""

    pivot: str = "en"
    """The language that they share."""

    def __post_init__(self) -> None:
        """Spell the pivot as the pairs do."""
        object.__setattr__(self, "pivot", pivot_of(languages_of(self.trained), self.pivot))

    def at(self, pair: str, side: str) -> int:
        """Return the number of the trained pair whose weights a pair uses as `encoder` or `decoder`.

        Raises:
            UnknownPairError: If the pair was not trained, and the one that would stand in for it neither.
        """
        pair = Pair(pair)
        halves = {"encoder": Pair(pair.source, self.pivot), "decoder": Pair(self.pivot, pair.target)}
        used = pair if pair in self.trained else halves[side]
        if used not in self.trained:
            raise UnknownPairError(
                f"pair {str(pair)!r} was not trained, and {str(used)!r}, whose {side} would stand in for it, "
                f"neither; trained are: {', '.join(self.trained)}"
            )
        return self.trained.index(used)

    def knows(self, pair: str) -> bool:
        """Return whether a pair was trained, or both its halves were."""
        pair = Pair(pair)
        halves = Pair(pair.source, self.pivot), Pair(self.pivot, pair.target)
        return pair in self.trained or all(half in self.trained for half in halves)
