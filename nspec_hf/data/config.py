"""The settings of a vocabulary. Importing them loads no tokenizers, so a command's help comes at once."""

from dataclasses import dataclass
from typing import Literal

from nspec_hf.core import require, require_count, require_share


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """A joint subword vocabulary of all languages."""

    size: int = 32000
    """Number of subwords, the four special tokens included and language tags not; fewer where the text does
    not give so many."""

    kind: Literal["unigram", "bpe"] = "unigram"
    """`unigram` (Tan et al.) or `bpe` (Xie et al.)."""

    target_on_source: bool = False
    """Put the target's tag on the source and none on the target (Xie et al.); else both sides have one."""

    moses: Literal["tokenize", "truecase"] | None = None
    """Moses' tokenization before subwords, also with truecasing (Xie et al.); see `moses.py`."""

    coverage: float = 0.9999
    """Share of characters that get a piece, in (0, 1]."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.kind in ("unigram", "bpe"), f"kind is 'unigram' or 'bpe', got {self.kind!r}")
        known = (None, "tokenize", "truecase")
        require(self.moses in known, f"moses is 'tokenize', 'truecase' or None, got {self.moses!r}")
        require_count("size", self.size, least=8)
        require_share("coverage", self.coverage, above_zero=True)
