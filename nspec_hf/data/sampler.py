"""Batches by token budget: one plan an epoch, the same on every rank.

Shape letters: N = sentence pairs, S = slots of an epoch (as many as sentence pairs).

The plan is a list of batches; a rank takes every `world_size`-th of them. So nothing is lost and nothing
comes twice, whatever the number of processes, and one process that accumulates micro-batches sees what
several processes see, if the number of batches divides by the number of processes. Where it does not, the
largest batches are halved until it does: then the cuts differ, the sentences of an epoch do not.
(accelerate's own sharding of a batch sampler lost examples.)

An epoch is a row of slots, sorted by the longest sentence that each may hold. Which sentence fills a slot
changes from epoch to epoch, the slots do not. Batches are cut from the slots, so every epoch has the same
number of them, and no draw can exceed the budget.

Planning needs the lengths alone. Numbers are kept in as few bytes as hold them, and sorted in linear time
where these are two: for 50 million sentence pairs see `recipes/SPEED.md`.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nspec_hf.core import ConfigError, is_number, require_count, warn


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How sentences are put into batches."""

    max_tokens: int = 4096
    """Token budget of a batch on one process: its rows times its longest sentence, source or target."""

    mixed: bool = True
    """Whether a batch may hold several pairs; False gives batches of one pair each, as slicing wants them."""

    temperature: float = 1.0
    """T of temperature sampling, 1 or more: an epoch draws pairs in proportion to (their size)^(1/T). 1 keeps
    their sizes and sees every sentence once an epoch; larger values draw small pairs more often."""

    max_length: int | None = None
    """Longest sentence in tokens, tags included; longer ones are left out, and counted in a warning, where
    text is encoded; of a corpus that was encoded with longer ones a warning tells. None takes 256, or
    `max_tokens` where that is less."""

    seed: int = 1
    """Seed of the order, not negative."""

    def __post_init__(self) -> None:
        """Check the values."""
        require_count("max_tokens", self.max_tokens)
        require_count("seed", self.seed, least=0)
        longest = min(256, self.max_tokens) if self.max_length is None else self.max_length
        require_count("max_length", longest)
        if longest > self.max_tokens:
            raise ConfigError(f"max_tokens {self.max_tokens} cannot hold a sentence of max_length {longest}")
        if not (is_number(self.temperature) and self.temperature >= 1):
            raise ConfigError(f"temperature is 1 or more, got {self.temperature!r}")
        object.__setattr__(self, "max_length", longest)


class PairBatchSampler:
    """Plan batches by token budget: sentences of like length together, batches in random order.

    An epoch has the same number of batches on every rank and in every epoch. The plan depends on nothing
    but the lengths, the settings, the epoch and, where batches have to be halved to be shared out evenly, the
    number of processes: go on from a checkpoint in the middle of an epoch with as many as before.

    With a temperature above 1 an epoch still has N sentences. A pair that gets more than it has comes round
    several times, all of its sentences before any comes again; of a pair that gets fewer, neighbours in
    length take turns, so each epoch has short and long sentences alike and none waits longer than needed.

    Give it to a `DataLoader` as `batch_sampler`, with this process's `rank`. (Or leave `rank` and
    `world_size` at one process and let `accelerate` share the batches out; not both.)

    Args:
        lengths: Source and target lengths in tokens, shape [N, 2] (or [N]).
        pair_ids: Index of each sentence's pair, shape [N].
        config: Budget, mixing, temperature, seed.
        rank: Which process this is.
        world_size: How many there are.
        shuffle: False keeps batches in order of length, for evaluation; temperature is then not applied.

    Raises:
        ConfigError: If there is no sentence, a sentence exceeds the budget, or there are too few sentences
            for every process to get as many batches.
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
        self.rank, self.world_size, self.shuffle = rank, world_size, shuffle
        self.epoch = 0
        lengths, pair_ids = np.asarray(lengths), np.asarray(pair_ids)
        if len(lengths) != len(pair_ids):
            raise ConfigError(f"{len(lengths)} lengths but {len(pair_ids)} pair ids")
        if not len(lengths):
            raise ConfigError("there is no sentence to put into batches")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is none of {world_size} processes, which are numbered from 0")
        longest_N = lengths.reshape(len(lengths), -1).max(axis=1)
        if longest_N.max() > self.config.max_tokens:
            raise ConfigError(
                f"a sentence of {longest_N.max()} tokens exceeds max_tokens {self.config.max_tokens}"
            )
        if longest_N.max() > (self.config.max_length or self.config.max_tokens):
            warn(
                f"max_length={self.config.max_length} is not followed: there are sentences of up to "
                f"{longest_N.max()} tokens; leave them out with encode_corpus(…, max_length="
                f"{self.config.max_length}), or raise BatchConfig(max_length=…)"
            )
        temperature = self.config.temperature if shuffle else 1
        self._slots = _make_slots(_small(longest_N), _small(pair_ids), self.config, temperature)
        self._bounds = self._cut()
        self._planned: tuple[int, list[np.ndarray]] | None = None

    @property
    def batch_sampler(self) -> "PairBatchSampler":
        """The sampler itself: the Trainer looks for `set_epoch` one level below a loader's batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this rank, the same in each epoch."""
        return (len(self._bounds) - 1) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches: lists of sentence numbers."""
        for batch in self.plan(self.epoch)[self.rank :: self.world_size]:
            yield batch.tolist()

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Return all batches of an epoch, those of every rank, each an array of sentence numbers."""
        if self._planned is None or self._planned[0] != epoch:
            rng = np.random.default_rng([self.config.seed, epoch])
            drawn_S = self._slots.fill(epoch)
            if self.shuffle:
                # Slots of one kind trade places, so that the same sentences seldom meet again.
                order_S = _numbers(len(drawn_S))
                for start, stop in pairwise(_runs(self._slots.part_S, self._slots.limit_S)):
                    rng.shuffle(order_S[start:stop])
                drawn_S = drawn_S[order_S]
            batches = np.split(drawn_S, self._bounds[1:-1])
            order = rng.permutation(len(batches)) if self.shuffle else range(len(batches))
            self._planned = (epoch, [batches[i] for i in order])
        return self._planned[1]

    def _cut(self) -> np.ndarray:
        """Return where batches begin and end among the slots: full ones, then some halved for the ranks."""
        bounds = [0]
        for start, stop in pairwise(_runs(self._slots.part_S)):
            bounds += _cut_sorted(self._slots.limit_S[start:stop], self.config.max_tokens, start)
        wanted = -(-(len(bounds) - 1) // self.world_size) * self.world_size
        return np.array(_halve_largest(bounds, wanted) if wanted >= len(bounds) else bounds)


@dataclass(frozen=True)
class _Slots:
    """Slots of an epoch in order of length; slot s holds one of `members[first[s] : first[s] + count[s]]`."""

    members: np.ndarray
    """Sentence numbers; those that take turns in a slot lie side by side."""
    first_S: np.ndarray
    count_S: np.ndarray
    limit_S: np.ndarray
    """Longest sentence that may come, in tokens."""
    part_S: np.ndarray
    """Slots of different parts may not share a batch."""

    def fill(self, epoch: int) -> np.ndarray:
        """Return the sentence number in each slot, shape [S]."""
        turn_S = (epoch % self.count_S.astype(self.first_S.dtype)).astype(self.first_S.dtype, copy=False)
        return self.members[self.first_S + turn_S]


def _make_slots(
    longest_N: np.ndarray, pair_ids_N: np.ndarray, config: BatchConfig, temperature: float
) -> _Slots:
    """Return the slots of all pairs: one for each sentence, some times over, then of fewer than sentences."""
    sizes = np.bincount(pair_ids_N)
    shares = sizes if temperature == 1 else _shares(sizes, temperature)
    rng = np.random.default_rng(config.seed)
    order_N = _sorted_by(_sorted_by(_numbers(len(longest_N)), longest_N), pair_ids_N)
    held, first, count = [order_N], [_numbers(0)], [np.zeros(0, np.uint8)]
    limit, taken = [longest_N[:0]], len(order_N)
    for size, share, end in zip(sizes.tolist(), shares.tolist(), np.cumsum(sizes).tolist(), strict=True):
        own = order_N[end - size : end]
        rounds, rest = divmod(share, size) if size else (0, 0)
        first += [np.arange(end - size, end, dtype=order_N.dtype)] * rounds
        count += [np.ones(size, np.uint8)] * rounds
        limit += [longest_N[own]] * rounds
        if rest:
            # Neighbours in length take turns, in random order.
            bounds = np.arange(rest + 1) * size // rest
            slot_of_member = np.repeat(np.arange(rest), np.diff(bounds))
            held.append(own[np.lexsort((rng.random(size), slot_of_member))])
            first.append((bounds[:-1] + taken).astype(order_N.dtype))
            count.append(_small(np.diff(bounds)))
            limit.append(longest_N[own[bounds[1:] - 1]])
            taken += size
    members, first_S, count_S, limit_S = map(np.concatenate, (held, first, count, limit))
    part_S = np.zeros(len(first_S), np.uint8) if config.mixed else pair_ids_N[members[first_S]]
    order_S = _sorted_by(_sorted_by(_numbers(len(first_S)), limit_S), part_S)
    return _Slots(members, *(each[order_S] for each in (first_S, count_S, limit_S, part_S)))


def _runs(*keys_S: np.ndarray) -> list[int]:
    """Return where the runs of slots begin that are alike in all keys, and where the last one ends."""
    changes = np.logical_or.reduce([each[1:] != each[:-1] for each in keys_S])
    return [0, *(np.flatnonzero(changes) + 1).tolist(), len(keys_S[0])]


def _numbers(count: int) -> np.ndarray:
    """Return the numbers from 0, of the type that sentences are numbered in."""
    return np.arange(count, dtype=np.int32)


def _small(numbers: np.ndarray) -> np.ndarray:
    """Return numbers that are not negative in as few bytes as hold them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))), copy=False)


def _sorted_by(order: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return an order sorted by each number's key; equal ones stay as they are."""
    return order[np.argsort(keys[order], kind="stable")]


def _shares(sizes: np.ndarray, temperature: float) -> np.ndarray:
    """Return how many sentences of each pair an epoch draws: ∝ size^(1/T), summing to all sentences.

    Whole numbers by largest remainder. A pair that has a sentence gets one at least, since the smallest
    pair's part only grows with T.
    """
    weights = np.where(sizes > 0, sizes.astype(float) ** (1 / temperature), 0)
    exact = sizes.sum() * weights / weights.sum()
    shares = np.floor(exact).astype(int)
    missing = sizes.sum() - shares.sum()
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    return shares


def _cut_sorted(limits: np.ndarray, max_tokens: int, offset: int) -> list[int]:
    """Return where batches end: each takes all slots that its budget holds, `limits` rising."""
    ends, start = [], 0
    while start < len(limits):
        most = max_tokens // max(int(limits[start]), 1)
        padded = np.arange(1, min(most, len(limits) - start) + 1) * limits[start : start + most]
        start += int(np.searchsorted(padded, max_tokens, side="right"))
        ends.append(offset + start)
    return ends


def _halve_largest(bounds: list[int], wanted: int) -> list[int]:
    """Halve the batches of most sentences until there are as many as wanted."""
    heap = [(start - end, start, end) for start, end in pairwise(bounds)]
    heapq.heapify(heap)
    while len(heap) < wanted:
        _, start, end = heapq.heappop(heap)
        if end - start < 2:
            raise ConfigError(
                f"{bounds[-1]} sentences give {len(bounds) - 1} batches, which cannot be shared out evenly: "
                f"{wanted} are needed. Raise max_tokens, or use fewer processes"
            )
        middle = (start + end) // 2
        heapq.heappush(heap, (start - middle, start, middle))
        heapq.heappush(heap, (middle - end, middle, end))
    return sorted({0, *(end for _, _, end in heap)})
