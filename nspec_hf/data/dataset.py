"""Encoded text: the token ids of many pairs, flat in memory.

Text is encoded once, pair by pair, before training: batches by token budget need every length, and
tokenizers that keep a language in their state must not be shared by pairs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from nspec_hf.core import CorpusError, EmptyPairError, as_pairs, digest, pair_index, warn
from nspec_hf.data.corpus import PairText
from nspec_hf.data.language_tags import LanguageTags, as_tags

_MOST_UNKNOWN = 0.4
_AT_ONCE = 10_000  # sentences encoded between two additions, so that few lists of Python integers exist


@dataclass(frozen=True)
class _Rows:
    """Rows of token ids, one after the other: int32 [tokens], and where each begins, int64 [N + 1]."""

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
        kept = self.tokens[np.repeat(keep_N, lengths)]
        return _Rows(kept, np.concatenate([[0], np.cumsum(lengths[keep_N])]))

    def __getitem__(self, index: int) -> list[int]:
        return self.tokens[self.bounds[index] : self.bounds[index + 1]].tolist()


class EncodedCorpus(Dataset):
    """Token ids of many pairs: about eight bytes a pair of tokens, and no object a sentence.

    `corpus[i]` is a dict with `pair`, `input_ids` and `labels` (lists of int).

    Args:
        pairs: What `pair_ids` indexes; some may have no sentence.
    """

    def __init__(self, pairs: Iterable[str]) -> None:
        self.pairs = as_pairs(pairs)
        self._added: list[tuple[np.ndarray, _Rows, _Rows]] = []

    def add(self, pair: str, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        """Append encoded sentences of a pair.

        Raises:
            UnknownPairError: If the corpus was made without this pair.
            CorpusError: If there are not as many targets as sources.
        """
        index = pair_index(self.pairs, pair, "corpus's pairs")
        if len(sources) != len(targets):
            raise CorpusError(f"{pair}: {len(sources)} sources but {len(targets)} targets")
        pair_ids = np.full(len(sources), index, dtype=np.int32)
        self._added.append((pair_ids, _Rows.of(sources), _Rows.of(targets)))

    @property
    def pair_ids(self) -> np.ndarray:
        """Index of each sentence's pair, shape [N]."""
        return self._joined()[0]

    @property
    def lengths(self) -> np.ndarray:
        """Source and target lengths in tokens, shape [N, 2]."""
        _, sources, targets = self._joined()
        return np.stack([sources.lengths, targets.lengths], axis=1)

    def digest(self) -> str:
        """Return a digest of all sentences and their pairs, in their order."""
        pair_ids, *sides = self._joined()
        return digest(self.pairs, pair_ids, *(part for side in sides for part in (side.tokens, side.bounds)))

    def subset(self, pair: str) -> "EncodedCorpus":
        """Return the sentences of one pair, with all pairs' numbers, so that `pair_ids` means the same."""
        pair_ids, sources, targets = self._joined()
        keep_N = pair_ids == pair_index(self.pairs, pair, "corpus's pairs")
        part = EncodedCorpus(self.pairs)
        part._added = [(pair_ids[keep_N], sources.where(keep_N), targets.where(keep_N))]
        return part

    def __len__(self) -> int:
        """Return the number of sentence pairs."""
        return len(self.pair_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sentence pair."""
        pair_ids, sources, targets = self._joined()
        index = range(len(pair_ids))[index]  # an IndexError beyond the end; from the end where negative
        return {"pair": self.pairs[pair_ids[index]], "input_ids": sources[index], "labels": targets[index]}

    def _joined(self) -> tuple[np.ndarray, _Rows, _Rows]:
        if len(self._added) != 1:
            pair_ids = np.concatenate([np.zeros(0, np.int32), *(added[0] for added in self._added)])
            sources = _Rows.joined([added[1] for added in self._added])
            targets = _Rows.joined([added[2] for added in self._added])
            self._added = [(pair_ids, sources, targets)]
        return self._added[0]


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
    bar = tqdm(total=sum(map(len, texts)), desc="encode", unit="sentence", disable=None if progress else True)
    with bar:
        for text in texts:
            left_out = 0
            for start in range(0, len(text), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                sources = tags.encode_source(text.sources[part], text.pair)
                targets = tags.encode_target(text.targets[part], text.pair)
                for side, ids in (("source", sources), ("target", targets)) if start == 0 else ():
                    _require_known(tags.unknown_share(ids), f"the {side} side of {text.pair}")
                rows = list(zip(sources, targets, strict=True))
                kept = [row for row in rows if max(map(len, row)) <= max_length]
                corpus.add(text.pair, [row[0] for row in kept], [row[1] for row in kept])
                left_out += len(rows) - len(kept)
                bar.update(len(rows))
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


def _require_known(share: float, what: str) -> None:
    if share > _MOST_UNKNOWN:
        raise CorpusError(
            f"{share:.0%} of {what} is unknown to the tokenizer (<unk>): it knows no such script, or "
            "its vocabulary is another model's"
        )
