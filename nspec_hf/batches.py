"""Batches of pair-tagged sentences: encoded text, a plan by token budget, and the collator.

Shape letters: B = samples, S = source tokens, T = target tokens.

The plan is a list of batches, the same on every rank; a rank takes every `world_size`-th of them. So
nothing is lost and nothing comes twice, whatever the number of processes, and one process that accumulates
N micro-batches sees what N processes see. (accelerate's own sharding of a batch sampler lost examples; see
the tests.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from nspec_hf.corpus import PairText
from nspec_hf.errors import ConfigError, CorpusError
from nspec_hf.languages import LanguageTags, language_tags
from nspec_hf.pairs import Pair, as_pairs, pair_index

IGNORED = -100
"""The label of a padding position."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How sentences are put into batches."""

    max_tokens: int = 4096
    """Token budget of a batch on one process: its rows times the longest sentence of either side, in
    tokens."""

    mixed: bool = True
    """Whether a batch may hold several pairs; False gives batches of one pair each, as slicing wants them."""

    temperature: float = 1.0
    """T of temperature sampling: pairs are drawn in proportion to (their size)^(1/T). 1 keeps their sizes
    and sees every sentence once an epoch; larger values draw small pairs more often (5 is common)."""

    max_length: int = 256
    """Longest sentence in tokens, tags included; longer pairs of sentences are left out and counted in a
    warning."""

    seed: int = 1
    """Seed of the order."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.max_tokens < self.max_length:
            raise ConfigError(
                f"max_tokens {self.max_tokens} cannot hold a sentence of max_length {self.max_length}"
            )
        if self.temperature < 1:
            raise ConfigError(f"temperature is 1 or more, got {self.temperature}")


class EncodedCorpus(Dataset):
    """Token ids of many pairs, flat in memory: about eight bytes a token and no object a sentence.

    `corpus[i]` is a dict with `pair_id` (index into `pairs`), `input_ids` and `labels` (lists of int).
    """

    def __init__(self, pairs: Sequence[str]) -> None:
        self.pairs = as_pairs(pairs)
        self._pair_ids: list[np.ndarray] = []
        self._ids: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._lengths: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._packed: tuple[np.ndarray, ...] | None = None

    def add(self, pair: str, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        """Append encoded sentences of a pair."""
        index = pair_index(self.pairs, pair, "corpus's pairs")
        self._pair_ids.append(np.full(len(sources), index, dtype=np.int32))
        for side, rows in enumerate((sources, targets)):
            self._lengths[side].append(
                np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
            )
            self._ids[side].append(np.fromiter((token for row in rows for token in row), dtype=np.int32))
        self._packed = None

    @property
    def pair_ids(self) -> np.ndarray:
        """Index of each sentence's pair, shape [N]."""
        return self._pack()[0]

    @property
    def lengths(self) -> np.ndarray:
        """Source and target lengths in tokens, shape [N, 2]."""
        return self._pack()[1]

    def subset(self, pair: str) -> "EncodedCorpus":
        """Return the sentences of one pair, with all pairs' numbers, so that `pair_id` means the same."""
        numbers = np.flatnonzero(self.pair_ids == pair_index(self.pairs, pair, "corpus's pairs"))
        part = EncodedCorpus(self.pairs)
        rows = [self[number] for number in numbers.tolist()]
        part.add(pair, [row["input_ids"] for row in rows], [row["labels"] for row in rows])
        return part

    def __len__(self) -> int:
        """Return the number of sentence pairs."""
        return len(self.pair_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sentence pair."""
        pair_ids, _, *sides = self._pack()
        input_ids, labels = (
            ids[ends[index] : ends[index + 1]].tolist() for ids, ends in zip(sides[::2], sides[1::2])
        )
        return {"pair_id": int(pair_ids[index]), "input_ids": input_ids, "labels": labels}

    def _pack(self) -> tuple[np.ndarray, ...]:
        if self._packed is None:
            empty = np.zeros(0, dtype=np.int64)
            lengths = [np.concatenate([empty, *side]) for side in self._lengths]
            sides = [
                array
                for ids, side in zip(self._ids, lengths)
                for array in (
                    np.concatenate([empty.astype(np.int32), *ids]),
                    np.concatenate([[0], side.cumsum()]),
                )
            ]
            pair_ids = np.concatenate([empty.astype(np.int32), *self._pair_ids])
            self._packed = (pair_ids, np.stack(lengths, axis=1), *sides)
        return self._packed


def encode_corpus(
    texts: Sequence[PairText], tags: LanguageTags, max_length: int = 256, progress: bool = True
) -> EncodedCorpus:
    """Encode text once, pair by pair.

    Args:
        texts: What `read_corpus` returned.
        tags: How the tokenizer spells languages.
        max_length: Longer sentences (in tokens, tags included) are left out, with a counted warning.
        progress: Show a bar where standard error is a terminal.

    Raises:
        CorpusError: If no sentence of a pair is left.
    """
    corpus = EncodedCorpus([text.pair for text in texts])
    for text in tqdm(texts, desc="encode", unit="pair", disable=None if progress else True):
        sources = tags.encode_source(text.sources, text.pair)
        targets = tags.encode_target(text.targets, text.pair)
        keep = [row for row in zip(sources, targets, strict=True) if max(map(len, row)) <= max_length]
        if not keep:
            raise CorpusError(f"{text.pair}: no sentence pair of {len(text)} is within {max_length} tokens")
        if len(keep) < len(text):
            tqdm.write(
                f"{text.pair}: left out {len(text) - len(keep)} sentence pairs over {max_length} tokens"
            )
        corpus.add(text.pair, *zip(*keep, strict=True))
    return corpus


class PairBatchSampler:
    """Plan batches by token budget: sentences of like length together, batches in random order.

    An epoch has the same number of batches on every rank and in every epoch. The plan depends on nothing
    but the lengths, the settings and the epoch.

    Args:
        lengths: Source and target lengths in tokens, shape [N, 2] (or [N]).
        pair_ids: Index of each sentence's pair, shape [N].
        config: Budget, mixing, temperature, seed.
        rank: Which process this is.
        world_size: How many there are.
        shuffle: False keeps batches in order of length, for evaluation; temperature is then not applied.
    """

    # No attribute `batch_size`: with one, accelerate shards the sampler its own way.

    def __init__(
        self,
        lengths: Sequence[Sequence[int]] | np.ndarray,
        pair_ids: Sequence[int] | np.ndarray,
        config: BatchConfig | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.config = config or BatchConfig()
        lengths = np.asarray(lengths, dtype=np.int64)
        self.longest = lengths.reshape(len(lengths), -1).max(axis=1, initial=0)
        self.pair_ids = np.asarray(pair_ids, dtype=np.int64)
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle
        self.epoch = 0
        if len(self.longest) != len(self.pair_ids):
            raise ConfigError(f"{len(self.longest)} lengths but {len(self.pair_ids)} pair ids")
        if len(self.longest) < world_size:
            raise ConfigError(f"{len(self.longest)} sentences cannot be shared out to {world_size} processes")
        if self.longest.max() > self.config.max_tokens:
            raise ConfigError(
                f"a sentence of {self.longest.max()} tokens exceeds max_tokens {self.config.max_tokens}"
            )
        self._planned: tuple[int, list[np.ndarray]] | None = None
        self._batches = self._count()

    @property
    def batch_sampler(self) -> "PairBatchSampler":
        """The sampler itself: the Trainer looks for `set_epoch` one level below a loader's batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank, the same in each epoch."""
        return self._batches // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches: lists of sentence numbers."""
        for batch in self.plan(self.epoch)[self.rank :: self.world_size]:
            yield batch.tolist()

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Return all batches of an epoch, those of every rank, each an array of sentence numbers."""
        if self._planned is None or self._planned[0] != epoch:
            rng = np.random.default_rng([self.config.seed, epoch])
            batches = self._fit(self._cut(self._draw(rng), rng), self._batches)
            order = rng.permutation(len(batches)) if self.shuffle else range(len(batches))
            self._planned = (epoch, [batches[i] for i in order])
        return self._planned[1]

    def _count(self) -> int:
        rng = np.random.default_rng([self.config.seed, 0])
        count = len(self._cut(self._draw(rng), rng))
        if self._resamples:
            # The lengths drawn differ a little from epoch to epoch, and so would the number of batches.
            count += -(-count // 50) + 1
        count = min(count, len(self.longest))
        return -(-count // self.world_size) * self.world_size

    @property
    def _resamples(self) -> bool:
        return self.shuffle and self.config.temperature != 1

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """Choose the sentences of an epoch: all of them, or as many as temperature sampling gives each
        pair."""
        everything = np.arange(len(self.longest))
        if not self._resamples:
            return rng.permutation(everything) if self.shuffle else everything
        sizes = np.bincount(self.pair_ids)
        weights = np.where(sizes > 0, sizes, 0) ** (1 / self.config.temperature)
        shares = np.round(len(everything) * weights / weights.sum()).astype(int)
        drawn = [
            self._cycle(everything[self.pair_ids == i], n, rng) for i, n in enumerate(shares) if sizes[i]
        ]
        return rng.permutation(np.concatenate(drawn))

    @staticmethod
    def _cycle(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Take `count` members, all of them before any comes again."""
        rounds = -(-count // len(members))
        return np.concatenate([rng.permutation(members) for _ in range(max(rounds, 1))])[:count]

    def _cut(self, drawn: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Sort by length, ties in the random order drawn, and cut where the padded size would exceed the
        budget."""
        order = drawn[np.argsort(self.longest[drawn], kind="stable")]
        if self.config.mixed:
            return self._cut_sorted(order)
        return [
            batch
            for i in np.unique(self.pair_ids[order])
            for batch in self._cut_sorted(order[self.pair_ids[order] == i])
        ]

    def _cut_sorted(self, order: np.ndarray) -> list[np.ndarray]:
        batches, start = [], 0
        for end, longest in enumerate(self.longest[order], start=1):
            if (end - start) * longest > self.config.max_tokens:
                batches.append(order[start : end - 1])
                start = end - 1
        batches.append(order[start:])
        return batches

    def _fit(self, batches: list[np.ndarray], count: int) -> list[np.ndarray]:
        """Halve the batches with most rows until there are `count`, so that every rank and epoch has as
        many."""
        batches = sorted(batches, key=len, reverse=True)
        while len(batches) < count:
            largest = batches.pop(0)
            if len(largest) < 2:
                raise ConfigError(f"{len(self.longest)} sentences cannot be cut into {count} batches")
            batches += [largest[::2], largest[1::2]]
            batches.sort(key=len, reverse=True)
        return batches


class PairCollator:
    """Pad rows of any pairs into one batch, with decoder inputs and `pair_ids`.

    A row is a dict with either `input_ids` and `labels` (from an `EncodedCorpus`) and `pair_id`, or plain
    text:
    `source`, `target` and `pair`, or `translation` (`{"en": …, "de": …}`) and `pair`.

    Args:
        tokenizer: The model's tokenizer.
        pairs: What `pair_ids` indexes; the same as the masks' pairs, in their order.
        decoder_start_token_id: The model's (`model.config.decoder_start_token_id`); by default the end of
            sentence for families that start there (M2M-100, NLLB, mBART), else the padding token (Marian,
            T5).
        codes: Your language codes → the tokenizer's, where they differ.
        pad_to_multiple_of: Pad lengths up to a multiple of this.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[str],
        decoder_start_token_id: int | None = None,
        codes: Mapping[str, str] | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self.tokenizer, self.pairs = tokenizer, as_pairs(pairs)
        self.tags = language_tags(tokenizer, codes)
        if decoder_start_token_id is None:
            from_end = self.tags.family in ("m2m100", "nllb", "mbart", "mbart50", "target_on_source")
            decoder_start_token_id = tokenizer.eos_token_id if from_end else tokenizer.pad_token_id
        self.decoder_start_token_id = decoder_start_token_id
        self.pad_to_multiple_of = pad_to_multiple_of or 1
        for pair in self.pairs:
            self.tags.check(pair)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch.

        Returns:
            `input_ids` and `attention_mask` [B, S], `labels` (-100 = padding) and `decoder_input_ids` [B, T],
            `pair_ids` [B].

        Raises:
            CorpusError: If a row names no pair.
        """
        encoded = [self._encode(row) for row in rows]
        pad = self.tokenizer.pad_token_id
        sources = [row["input_ids"] for row in encoded]
        decoder_inputs = [
            self.tags.decoder_inputs(row["labels"], self.pairs[row["pair_id"]], self.decoder_start_token_id)
            for row in encoded
        ]
        return {
            "input_ids": self._pad(sources, pad),
            "attention_mask": self._pad([[1] * len(row) for row in sources], 0),
            "labels": self._pad([row["labels"] for row in encoded], IGNORED),
            "decoder_input_ids": self._pad(decoder_inputs, pad),
            "pair_ids": torch.tensor([row["pair_id"] for row in encoded]),
        }

    def _pad(self, rows: Sequence[Sequence[int]], filler: int) -> Tensor:
        width = -(-max(map(len, rows)) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padded = np.full((len(rows), width), filler, dtype=np.int64)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        return torch.from_numpy(padded)

    def _encode(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        pair_id = row.get("pair_id", row.get("pair_ids"))
        if pair_id is None and "pair" not in row:
            raise CorpusError(
                f"a row names no pair; it has: {', '.join(row)}. Give each row 'pair' (\"en-de\") or 'pair_id', and "
                "train with remove_unused_columns=False, since the Trainer strips columns that the model does not name"
            )
        if pair_id is None:
            pair_id = pair_index(self.pairs, row["pair"], "collator's pairs")
        if "input_ids" in row:
            return {"pair_id": pair_id, "input_ids": row["input_ids"], "labels": row["labels"]}
        pair = self.pairs[pair_id]
        source, target = self._texts(row, pair)
        return {
            "pair_id": pair_id,
            "input_ids": self.tags.encode_source([source], pair)[0],
            "labels": self.tags.encode_target([target], pair)[0],
        }

    @staticmethod
    def _texts(row: Mapping[str, Any], pair: Pair) -> tuple[str, str]:
        if "translation" in row:
            return row["translation"][pair.source], row["translation"][pair.target]
        return row["source"], row["target"]
