"""What is checked, and what a check says: a set-up of model, masks, text and settings, and findings about it.

A part of the set-up is loaded when a check first asks for it, once. What cannot be loaded is a finding of the
check that the part belongs to; the other checks that need it say that they were not done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.core import NspecError, Pair, translation_pairs
from nspec_hf.data import CorpusConfig, LanguageTags, PairText, load_tokenizer, read_corpus
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import load_model
from nspec_hf.training import TrainConfig

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a check has to say, and what to do about it."""

    what: str
    """What is the case, with its numbers and names."""
    why: str
    """What goes wrong by it."""
    mend: str
    """What to do."""
    level: Literal["wrong", "note"] = "wrong"
    """`wrong`: a result will be wrong, or a run will stop. `note`: worth knowing; nothing may be amiss."""


note = partial(Finding, level="note")
"""A finding that is worth knowing."""


class NotCheckedError(NspecError, RuntimeError):
    """A check cannot be done: what it looks at is not there, or cannot be loaded."""


class NotGivenError(NotCheckedError):
    """A check has nothing to look at, since that part of the set-up was not given."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A set-up to look at: a model, and as much as there is of masks, text and settings."""

    model: str
    """Hub id or folder of a translation model."""
    masks: str | None = None
    """Folder or Hub repository of masks."""
    corpus: CorpusConfig | None = None
    """Where the text lies."""
    pairs: Sequence[str] = ()
    """The directions; empty: those of the masks."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Use (`train`, `valid`, `test`) → which split; one that is not named is not looked at."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training run."""
    pretrain: TrainConfig | None = None
    """The training of the model itself, where that is made from the text first."""
    plain_trainer: bool = False
    """Whether the arguments are for a plain `Seq2SeqTrainer` with our callback, or with neither."""
    codes: Mapping[str, str] = field(default_factory=dict)
    """Your language codes → the tokenizer's, where they differ."""
    trust_remote_code: bool = False
    """Whether code in the model's repository may run."""

    @cached_property
    def network(self) -> PreTrainedModel:
        """The model, as it was saved."""
        return load_model(self.model, trust_remote_code=self.trust_remote_code)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.model, trust_remote_code=self.trust_remote_code)

    @cached_property
    def tags(self) -> LanguageTags:
        """The tokenizer's tags under the user's codes."""
        return LanguageTags(self.tokenizer, self.codes)

    @cached_property
    def held(self) -> NeuronMasks:
        """The masks."""
        if self.masks is None:
            raise NotGivenError("no masks")
        return NeuronMasks.from_pretrained(self.masks)

    @cached_property
    def directions(self) -> Sequence[Pair]:
        """The pairs that were named, else those of the masks."""
        if self.pairs or not self.masks:
            return translation_pairs(self.pairs)
        return self.given("masks", lambda: self.held).pairs

    @cached_property
    def texts(self) -> dict[str, list[PairText]]:
        """Use (`train`, `valid`, `test`) → the text of every pair."""
        if self.corpus is None:
            raise NotGivenError("no text")
        if not self.directions:
            raise NotCheckedError("no pairs are known; give --pairs, or --masks, whose pairs are then taken")
        return {use: read_corpus(self.corpus, self.directions, split) for use, split in self.splits.items()}

    def given(self, name: str, part: Callable[[], _T]) -> _T:
        """Return a part of the set-up that a check needs beside its subject.

        Raises:
            NotCheckedError: If it cannot be loaded; the check that it belongs to says why.
        """
        try:
            return part()
        except (NspecError, OSError) as error:
            raise NotCheckedError(f"needs the {name}, which cannot be loaded") from error


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())


Check = Callable[[Setup], Iterator[Finding]]
"""Looks at one part of a set-up.

Raises:
    NotCheckedError: If it cannot look.
"""
