"""What is added to a model for new pairs. Importing it loads no torch, so that help comes at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nspec_hf.core import is_number, require, require_count

Copied = Literal["norms", "attention", "ffn"]
"""What may be copied whole: layer norms; the projections of attention; those of the feed-forward blocks."""


@dataclass(frozen=True, kw_only=True)
class AddConfig:
    """What new pairs get beside the weights that all pairs share; the rest of the model stays as it is."""

    width: float | Literal["auto"] = "auto"
    """New neurons of each feed-forward site, as a share of its own; 0: none. `auto` takes more for more text:
    see `auto_width`."""

    lora: int = 0
    """Rank of low-rank changes (Hu et al. 2022) of all projections of attention and feed-forward blocks; 0:
    none."""

    copies: Sequence[Copied] = ()
    """What the new pairs get a copy of, to train as a whole: `norms`, `attention`, `ffn`. All three, with
    width 0, are fine-tuning that forgets nothing, for as many parameters again."""

    pieces: Literal["all", "new", "none"] = "all"
    """Which subwords of the new languages' text get an embedding for the new pairs: all, those that no other
    language of the text uses, or none. It begins as the old one."""

    kin: str | None = None
    """The language whose tag a new tag begins as; None: the mean of all tags. A tag that the tokenizer has
    begins as it is."""

    languages: Sequence[str] = ()
    """Which languages are new; none: those that are in every new pair, else all, English left out."""

    seed: int = 1
    """Of the new neurons, not negative."""

    def __post_init__(self) -> None:
        """Check the values."""
        right = self.width == "auto" or (is_number(self.width) and float(self.width) >= 0)
        require(right, f"width is 'auto' or a share of the old neurons, not negative, got {self.width!r}")
        require_count("lora", self.lora, least=0)
        require_count("seed", self.seed, least=0)
        wrong = [name for name in self.copies if name not in get_args(Copied)]
        known = ", ".join(get_args(Copied))
        require(not wrong, f"copies are some of {known}, got {', '.join(wrong)}")
        require(self.pieces in ("all", "new", "none"), f"pieces is all, new or none, got {self.pieces!r}")


def auto_width(lines: int) -> float:
    """Return the share of new neurons for so many sentences: what is trained grows with text.

    A quarter up to 500 sentences, then in proportion to them, at most four times the old neurons. Measured on
    Multi30k, `recipes/RESULTS.md`.
    """
    return min(4.0, max(0.25, lines / 2000))
