"""Encoded text: the token ids of many pairs, flat in memory or in files that are mapped into it.

Text is encoded once, pair by pair, before training: batches by token budget need every length, and
tokenizers that keep a language in their state must not be shared by pairs.

Shape letters: N = sentence pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from nspec_hf.core import CorpusError, EmptyPairError, as_pairs, digest, numbered, pair_index, warn
from nspec_hf.data.language_tags import LanguageTags, as_tags
from nspec_hf.data.stored import Chunk, PairText, StoredText, encoded_chunks, is_encoded, tokenizer_key

_MOST_UNKNOWN = 0.4
_AT_ONCE = 10_000  # sentences encoded between two additions, so that few lists of Python integers exist


@dataclass(frozen=True)
class _Rows:
    """Rows of token ids, one after the other: int32 [tokens], and where each begins, integers [N + 1]."""

    tokens: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "_Rows":
        bounds = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)), out=bounds[1:])
        return cls(np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=bounds[-1]), bounds)

    @classmethod
    def joined(cls, parts: Sequence["_Rows"]) -> "_Rows":
        offsets = np.cumsum([0, *(part.bounds[-1] for part in parts)])
        bounds = [part.bounds[1:] + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
        tokens = [part.tokens for part in parts]
        return cls(np.concatenate([np.zeros(0, np.int32), *tokens]), np.concatenate([[0], *bounds]))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.bounds)

    def where(self, keep_N: np.ndarray) -> "_Rows":
        lengths = self.lengths
        kept = self.tokens[self.bounds[0] : self.bounds[-1]][np.repeat(keep_N, lengths)]
        return _Rows(kept, np.concatenate([[0], np.cumsum(lengths[keep_N])]))

    def __getitem__(self, index: int) -> list[int]:
        return self.tokens[self.bounds[index] : self.bounds[index + 1]].tolist()


@dataclass(frozen=True)
class _Part:
    """Some sentences: the index of each one's pair, int32 [N], and both sides."""

    pair_ids: np.ndarray
    sources: _Rows
    targets: _Rows
    mapped: bool = False
    """Whether they lie in a file; these are of one pair."""


class EncodedCorpus(Dataset):
    """Token ids of many pairs: about eight bytes a pair of tokens, and no object a sentence.

    `corpus[i]` is a dict with `pair`, `input_ids` and `labels` (lists of int).

    Args:
        pairs: What `pair_ids` indexes; some may have no sentence.
    """

    def __init__(self, pairs: Iterable[str]) -> None:
        self.pairs = as_pairs(pairs)
        self._numbers = numbered(self.pairs)
        self._added: list[_Part] = []
        self._ends: np.ndarray | None = None

    def add(self, pair: str, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        """Append encoded sentences of a pair.

        Raises:
            UnknownPairError: If the corpus was made without this pair.
            CorpusError: If there are not as many targets as sources.
        """
        index = pair_index(self._numbers, pair, "corpus's pairs")
        if len(sources) != len(targets):
            raise CorpusError(f"{pair}: {len(sources)} sources but {len(targets)} targets")
        pair_ids = np.full(len(sources), index, dtype=np.int32)
        self._append(_Part(pair_ids, _Rows.of(sources), _Rows.of(targets)))

    def add_mapped(self, pair: str, source: Chunk, target: Chunk) -> None:
        """Append encoded sentences of a pair that lie in a file; they stay there."""
        index = np.int32(pair_index(self._numbers, pair, "corpus's pairs"))
        pair_ids = np.broadcast_to(index, len(source[1]) - 1)
        self._append(_Part(pair_ids, _Rows(*source), _Rows(*target), mapped=True))

    @property
    def pair_ids(self) -> np.ndarray:
        """Index of each sentence's pair, shape [N]."""
        return np.concatenate([np.zeros(0, np.int32), *(part.pair_ids for part in self._parts())])

    @property
    def lengths(self) -> np.ndarray:
        """Source and target lengths in tokens, shape [N, 2]."""
        found, start = np.empty((len(self), 2), dtype=np.int32), 0
        for part in self._parts():
            place = found[start : start + len(part.pair_ids)]
            place[:, 0], place[:, 1] = part.sources.lengths, part.targets.lengths
            start += len(place)
        return found

    def digest(self) -> str:
        """Return a digest of all sentences and their pairs, in their order, in memory or not."""
        parts = self._parts()
        pair_ids = (np.ascontiguousarray(part.pair_ids) for part in parts)
        sides = ([part.sources for part in parts], [part.targets for part in parts])
        return digest(self.pairs, pair_ids, *(one for side in sides for one in _bytes_of(side)))

    def subset(self, pair: str) -> "EncodedCorpus":
        """Return the sentences of one pair, with all pairs' numbers, so that `pair_ids` means the same."""
        index, subset = pair_index(self._numbers, pair, "corpus's pairs"), EncodedCorpus(self.pairs)
        for part in self._parts():
            keep_N = part.pair_ids == index
            if keep_N.all():
                subset._append(part)
            elif keep_N.any():
                sources, targets = part.sources.where(keep_N), part.targets.where(keep_N)
                subset._append(_Part(part.pair_ids[keep_N], sources, targets))
        return subset

    def __len__(self) -> int:
        """Return the number of sentence pairs."""
        self._parts()
        return int(self._ends[-1]) if self._ends is not None else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sentence pair."""
        index = range(len(self))[index]  # an IndexError beyond the end; from the end where negative
        parts, ends = self._parts(), cast(np.ndarray, self._ends)
        number = int(np.searchsorted(ends, index, side="right"))
        part, row = parts[number], index - int(ends[number - 1] if number else 0)
        pair = self.pairs[part.pair_ids[row]]
        return {"pair": pair, "input_ids": part.sources[row], "labels": part.targets[row]}

    def _append(self, part: _Part) -> None:
        self._added.append(part)
        self._ends = None

    def _parts(self) -> list[_Part]:
        """Return the parts; those in memory that follow each other are joined."""
        if self._ends is None and self._added:
            joined: list[_Part] = []
            for mapped, group in groupby(self._added, key=lambda part: part.mapped):
                parts = list(group)
                joined += parts if mapped or len(parts) == 1 else [_joined(parts)]
            self._added = joined
            self._ends = np.cumsum([len(part.pair_ids) for part in joined])
        return self._added


def _joined(parts: Sequence[_Part]) -> _Part:
    pair_ids = np.concatenate([part.pair_ids for part in parts])
    sources = _Rows.joined([part.sources for part in parts])
    return _Part(pair_ids, sources, _Rows.joined([part.targets for part in parts]))


def _bytes_of(side: Sequence[_Rows]) -> Iterator[Iterator[np.ndarray]]:
    """Yield what one `_Rows` of a whole side would hold, array by array: its tokens, then its bounds."""

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
    stored = any(isinstance(text, StoredText) for text in texts)
    key = tokenizer_key(tags) if stored else ""
    bar = tqdm(total=sum(map(len, texts)), desc="encode", unit="sentence", disable=None if progress else True)
    with bar:
        for text in texts:
            if isinstance(text, StoredText):
                kept = _add_stored(corpus, text, tags, key, max_length, progress)
                bar.update(len(text))
            else:
                kept = _add_encoded(corpus, text, tags, max_length, bar)
            _tell_left_out(text, len(text) - kept, max_length)
    return corpus


def _add_encoded(
    corpus: EncodedCorpus, text: PairText, tags: LanguageTags, max_length: int, bar: tqdm
) -> int:
    """Encode text into memory; return how many sentence pairs are within the length."""
    count = 0
    for start in range(0, len(text), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        sources = tags.encode_source(text.sources[part], text.pair)
        targets = tags.encode_target(text.targets[part], text.pair)
        if start == 0:
            _require_known(tags, text, sources, targets)
        rows = list(zip(sources, targets, strict=True))
        kept = [row for row in rows if max(map(len, row)) <= max_length]
        corpus.add(text.pair, [row[0] for row in kept], [row[1] for row in kept])
        count += len(kept)
        bar.update(len(rows))
    return count


def _add_stored(
    corpus: EncodedCorpus, text: StoredText, tags: LanguageTags, key: str, max_length: int, progress: bool
) -> int:
    """Encode text on disk, or find its ids there; return how many sentence pairs are within the length."""
    if not is_encoded(text, key, max_length):
        first = slice(0, _AT_ONCE)
        sources = tags.encode_source(text.sources[first], text.pair)
        _require_known(tags, text, sources, tags.encode_target(text.targets[first], text.pair))
    count = 0
    for source, target in encoded_chunks(text, tags, key, max_length, progress):
        corpus.add_mapped(text.pair, source, target)
        count += len(source[1]) - 1
    return count


def _tell_left_out(text: PairText, left_out: int, max_length: int) -> None:
    if left_out == len(text):
        raise EmptyPairError(f"{text.pair}: none of {len(text)} sentence pairs is within {max_length} tokens")
    if left_out:
        warn(
            f"{text.pair}: left out {left_out} of {len(text)} sentence pairs, since a side is longer "
            f"than {max_length} tokens"
        )


def _require_known(
    tags: LanguageTags, text: PairText, sources: list[list[int]], targets: list[list[int]]
) -> None:
    for side, ids in (("source", sources), ("target", targets)):
        share = tags.unknown_share(ids)
        if share > _MOST_UNKNOWN:
            raise CorpusError(
                f"{share:.0%} of the {side} side of {text.pair} is unknown to the tokenizer (<unk>): it "
                "knows no such script, or its vocabulary is another model's"
            )
