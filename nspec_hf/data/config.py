"""The settings of text and of a vocabulary.

Importing them loads no tokenizers, so a command's help comes at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nspec_hf.core import ConfigError, Pair, require, require_count, require_share, warn_unused

TARGET_ON_SOURCE = "target_on_source"
"""Value of a tokenizer's `language_style` that puts the target's tag on the source and none on the target."""


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


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where parallel text lies and what to do with bad lines."""

    path: str = ""
    """Folder of text files, or empty where `dataset` is given."""

    dataset: str = ""
    """A dataset on the Hub, or a folder that `datasets` can load, with a `translation` column or with one
    column a language."""

    dataset_name: str | None = None
    """Configuration of that dataset. `{source}` and `{target}` stand for the codes of a pair, `{a}` and `{b}`
    for the same in alphabetical order: OPUS-100 names its configurations `{a}-{b}`."""

    streaming: bool = False
    """Read the dataset without downloading all of it first; needs `max_lines`."""

    bad_lines: Literal["error", "skip"] = "error"
    """What to do with a line that is empty or not UTF-8 on a side."""

    max_lines: int | None = None
    """Take at most the first so many lines of each pair, and read no further; None takes all."""

    lines_by_language: Mapping[str, int] = field(default_factory=dict)
    """Lines that pairs of a language take, which makes it a low-resource one: `{"da": 1250}`. A pair takes
    the smaller number of its two languages."""

    store: str = ""
    """Folder to keep text and its token ids in, for text that memory does not hold: Arrow files, made once
    for each content and tokenizer, and read from disk from then on. Empty: in memory."""

    num_proc: int = 1
    """With `store`: processes that encode text."""

    def __post_init__(self) -> None:
        """Check the values."""
        require_count("num_proc", self.num_proc)
        if bool(self.path) == bool(self.dataset):
            raise ConfigError("give either path (a folder of text files) or dataset (a Hub id), and not both")
        if self.bad_lines not in ("error", "skip"):
            raise ConfigError(f"bad_lines is 'error' or 'skip', got {self.bad_lines!r}")
        if self.streaming and not (self.dataset and self.max_lines):
            raise ConfigError("streaming is for a dataset, and needs max_lines to know when to stop")
        for name, limit in {"max_lines": self.max_lines, **self.lines_by_language}.items():
            if limit is not None:
                require_count(f"the number of lines ({name})", limit)
        warn_unused(self, {"dataset_name": "dataset", "num_proc": "store"}, "corpus.")

    def limit(self, pair: Pair) -> int | None:
        """Return the most lines that a pair takes."""
        by_language = (self.lines_by_language.get(code) for code in (pair.source, pair.target))
        return min((limit for limit in (*by_language, self.max_lines) if limit is not None), default=None)

    def most(self, pairs: Iterable[Pair]) -> int | None:
        """Return the most lines that one of several pairs takes; None where one takes all."""
        limits = [self.limit(pair) for pair in pairs]
        return None if None in limits else max(limit or 0 for limit in limits)
