"""Encoded text: the token ids of many pairs, flat in memory or in files that are mapped into it.

Text is encoded once, pair by pair, before training: batches by token budget need every length, and
tokenizers that keep a language in their state must not be shared by pairs.

Shape letters: N = sentence pairs.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from nspec_hf.core import CorpusError, EmptyPairError, as_pairs, digest, numbered, pair_index, warn
from nspec_hf.data.language_tags import LanguageTags, as_tags
from nspec_hf.data.stored import (
    PairText,
    Rows,
    StoredText,
    encoded_chunks,
    is_encoded,
    tokenizer_key,
    within_length,
)

_MOST_UNKNOWN = 0.4
_AT_ONCE = 10_000  # sentences encoded between two additions, so that few lists of Python integers exist


@dataclass(frozen=True)
class _Part:
    """Sentences that were added together: the index of their pair, and both sides."""

    pair: int
    sources: Rows
    targets: Rows


class EncodedCorpus(Dataset):
    """Token ids of many pairs: about eight bytes a pair of tokens, and no object a sentence.

    `corpus[i]` is a dict with `pair`, `input_ids` and `labels` (lists of int).

    Args:
        pairs: What `pair_ids` indexes; some may have no sentence.
    """

    def __init__(self, pairs: Iterable[str]) -> None:
        self.pairs = as_pairs(pairs)
        self._numbers = numbered(self.pairs)
        self._parts: list[_Part] = []
        self._ends: list[int] = []

    def add(
        self, pair: str, sources: Rows | Sequence[Sequence[int]], targets: Rows | Sequence[Sequence[int]]
    ) -> None:
        """Append encoded sentences of a pair, best many at once; `Rows` stay where they are, as in a file.

        Raises:
            UnknownPairError: If the corpus was made without this pair.
            CorpusError: If there are not as many targets as sources.
        """
        index = pair_index(self._numbers, pair, "corpus's pairs")
        if len(sources) != len(targets):
            raise CorpusError(f"{pair}: {len(sources)} sources but {len(targets)} targets")
        sides = (side if isinstance(side, Rows) else Rows.of(side) for side in (sources, targets))
        self._ends.append(len(self) + len(sources))
        self._parts.append(_Part(index, *sides))

    @property
    def pair_ids(self) -> np.ndarray:
        """Index of each sentence's pair, shape [N]."""
        numbers = np.array([part.pair for part in self._parts], dtype=np.int32)
        return np.repeat(numbers, [len(part.sources) for part in self._parts])

    @property
    def lengths(self) -> np.ndarray:
        """Source and target lengths in tokens, shape [N, 2]."""
        found, start = np.empty((len(self), 2), dtype=np.int32), 0
        for part, end in zip(self._parts, self._ends, strict=True):
            found[start:end, 0], found[start:end, 1] = part.sources.lengths, part.targets.lengths
            start = end
        return found

    def digest(self) -> str:
        """Return a digest of all sentences and their pairs, in their order, in memory or not."""
        pair_ids = (np.full(len(part.sources), part.pair, dtype=np.int32) for part in self._parts)
        sides = ([part.sources for part in self._parts], [part.targets for part in self._parts])
        return digest(self.pairs, pair_ids, *(one for side in sides for one in _bytes_of(side)))

    def subset(self, pair: str) -> "EncodedCorpus":
        """Return the sentences of one pair, with all pairs' numbers, so that `pair_ids` means the same."""
        index, subset = pair_index(self._numbers, pair, "corpus's pairs"), EncodedCorpus(self.pairs)
        for part in self._parts:
            if part.pair == index:
                subset.add(pair, part.sources, part.targets)
        return subset

    def __len__(self) -> int:
        """Return the number of sentence pairs."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sentence pair."""
        index = range(len(self))[index]  # an IndexError beyond the end; from the end where negative
        number = bisect_right(self._ends, index)
        part, row = self._parts[number], index - (self._ends[number - 1] if number else 0)
        return {"pair": self.pairs[part.pair], "input_ids": part.sources[row], "labels": part.targets[row]}


def _bytes_of(side: Sequence[Rows]) -> Iterator[Iterator[np.ndarray]]:
    """Yield what one `Rows` of a whole side would hold, array by array: its tokens, then its bounds."""

    def bounds() -> Iterator[np.ndarray]:
        yield np.zeros(1, dtype=np.int64)
        start = 0
        for rows in side:
            first, last = int(rows.bounds[0]), int(rows.bounds[-1])
            yield rows.bounds[1:].astype(np.int64) + (start - first)
            start += last - first

    yield (rows.tokens[int(rows.bounds[0]) : int(rows.bounds[-1])] for rows in side)
    yield bounds()


def encode_corpus(
    texts: Sequence[PairText],
    tokenizer: PreTrainedTokenizerBase | LanguageTags,
    max_length: int = 256,
    progress: bool = True,
) -> EncodedCorpus:
    """Encode text once, pair by pair.

    Args:
        texts: What `read_corpus` returned.
        tokenizer: The model's tokenizer, or its `LanguageTags` where your language codes differ from its own.
        max_length: Longest sentence in tokens, tags included. Where either side is longer, the sentence pair
            is left out and counted in a warning.
        progress: Show a bar where standard error is a terminal.

    Raises:
        CorpusError: If the tokenizer knows less than 60 % of a side's first 10,000 sentences (`<unk>`).
        EmptyPairError: If no sentence of a pair is left.
        UnknownLanguageError: If the tokenizer has no tag for a pair's language.
    """
    tags, corpus = as_tags(tokenizer), EncodedCorpus([text.pair for text in texts])
    for text in texts:
        tags.check(text.pair)
    key = tokenizer_key(tags) if any(isinstance(text, StoredText) for text in texts) else ""
    bar = tqdm(total=sum(map(len, texts)), desc="encode", unit="sentence", disable=None if progress else True)
    with bar:
        for text in texts:
            kept = len(corpus)
            if isinstance(text, StoredText):
                if not is_encoded(text, key, max_length):
                    _encode(text, tags, slice(0, _AT_ONCE))
                for chunk in encoded_chunks(text, tags, key, max_length, progress):
                    corpus.add(text.pair, *chunk)
                bar.update(len(text))
            else:
                for start in range(0, len(text), _AT_ONCE):
                    sides = _encode(text, tags, slice(start, start + _AT_ONCE))
                    corpus.add(text.pair, *within_length(*sides, max_length))
                    bar.update(len(sides[0]))
            left_out = len(text) - (len(corpus) - kept)
            if left_out == len(text):
                raise EmptyPairError(
                    f"{text.pair}: none of {len(text)} sentence pairs is within {max_length} tokens"
                )
            if left_out:
                warn(
                    f"{text.pair}: left out {left_out} of {len(text)} sentence pairs, since a side is longer "
                    f"than {max_length} tokens"
                )
    return corpus


def _encode(text: PairText, tags: LanguageTags, part: slice) -> tuple[list[list[int]], list[list[int]]]:
    """Return the ids of some sentences; of the first ones a share must be known to the tokenizer."""
    sources = tags.encode_source(text.sources[part], text.pair)
    targets = tags.encode_target(text.targets[part], text.pair)
    for side, ids in (("source", sources), ("target", targets)) if part.start == 0 else ():
        share = tags.unknown_share(ids)
        if share > _MOST_UNKNOWN:
            raise CorpusError(
                f"{share:.0%} of the {side} side of {text.pair} is unknown to the tokenizer (<unk>): it "
                "knows no such script, or its vocabulary is another model's"
            )
    return sources, targets
