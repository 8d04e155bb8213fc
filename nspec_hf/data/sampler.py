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

from nspec_hf.core import ConfigError, is_number, require_count


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
    """Longest sentence in tokens, tags included; longer ones are left out and counted in a warning. None
    takes 256, or `max_tokens` where that is less."""

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
        self._check(lengths, pair_ids, rank, world_size)
        longest_N = lengths.reshape(len(lengths), -1).max(axis=1)
        if longest_N.max() > self.config.max_tokens:
            raise ConfigError(
                f"a sentence of {longest_N.max()} tokens exceeds max_tokens {self.config.max_tokens}"
            )
        self._slots = self._make_slots(_small(longest_N), _small(pair_ids))
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
                drawn_S = drawn_S[self._trade_places(rng)]
            batches = np.split(drawn_S, self._bounds[1:-1])
            order = rng.permutation(len(batches)) if self.shuffle else range(len(batches))
            self._planned = (epoch, [batches[i] for i in order])
        return self._planned[1]

    def _trade_places(self, rng: np.random.Generator) -> np.ndarray:
        """Return slots in an order in which equals have traded places, so that they seldom meet again."""
        order_S = _numbers(len(self._slots.limit_S))
        for start, stop in pairwise(self._slots.groups):
            rng.shuffle(order_S[start:stop])
        return order_S

    def _check(self, lengths: np.ndarray, pair_ids: np.ndarray, rank: int, world_size: int) -> None:
        if len(lengths) != len(pair_ids):
            raise ConfigError(f"{len(lengths)} lengths but {len(pair_ids)} pair ids")
        if not len(lengths):
            raise ConfigError("there is no sentence to put into batches")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is none of {world_size} processes, which are numbered from 0")

    def _make_slots(self, longest_N: np.ndarray, pair_ids_N: np.ndarray) -> "_Slots":
        sizes = np.bincount(pair_ids_N)
        temperature = self.config.temperature if self.shuffle else 1
        shares = sizes if temperature == 1 else _shares(sizes, temperature)
        rng = np.random.default_rng(self.config.seed)
        order_N = _sorted_by(_sorted_by(_numbers(len(longest_N)), longest_N), pair_ids_N)
        ends = np.cumsum(sizes)
        parts = []
        for size, share, end in zip(sizes.tolist(), shares.tolist(), ends.tolist(), strict=True):
            members = order_N[end - size : end]
            rounds, rest = divmod(share, size) if size else (0, 0)
            parts += [_Slots.one_each(members, longest_N)] * rounds
            if rest:
                parts.append(_Slots.in_turn(members, rest, longest_N, rng))
        return _Slots.joined(parts, None if self.config.mixed else pair_ids_N)

    def _cut(self) -> np.ndarray:
        """Return where batches begin and end among the slots: full ones, then some halved for the ranks."""
        part_S = self._slots.part_S
        edges = [0, *(np.flatnonzero(part_S[1:] != part_S[:-1]) + 1).tolist(), len(part_S)]
        bounds = [0]
        for start, stop in pairwise(edges):
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
    groups: list[int]
    """Where slots begin that may trade places, those of the same part and limit, and where the last ends."""

    @classmethod
    def one_each(cls, members: np.ndarray, longest_N: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return a slot for each member: members, first, count, limit."""
        return members, _numbers(len(members)), np.ones(len(members), np.uint8), longest_N[members]

    @classmethod
    def in_turn(
        cls, members: np.ndarray, slots: int, longest_N: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return fewer slots than members: neighbours in length take turns, in random order."""
        bounds = np.arange(slots + 1) * len(members) // slots
        count = np.diff(bounds)
        slot_of_member = np.repeat(np.arange(slots), count)
        turns = members[np.lexsort((rng.random(len(members)), slot_of_member))]
        first = bounds[:-1].astype(members.dtype)
        return turns, first, _small(count), longest_N[members[bounds[1:] - 1]]

    @classmethod
    def joined(cls, parts: Sequence[tuple[np.ndarray, ...]], pair_ids_N: np.ndarray | None) -> "_Slots":
        """Join the slots of all pairs and sort them; `pair_ids_N` keeps pairs apart."""
        # Python's integers, which leave an array its type.
        offsets = np.cumsum([0, *(len(part[0]) for part in parts)]).tolist()
        members = np.concatenate([part[0] for part in parts])
        first = np.concatenate([part[1] + start for part, start in zip(parts, offsets[:-1], strict=True)])
        count, limit = (np.concatenate([part[i] for part in parts]) for i in (2, 3))
        part = np.zeros(len(first), np.uint8) if pair_ids_N is None else pair_ids_N[members[first]]
        order = _sorted_by(_sorted_by(_numbers(len(first)), limit), part)
        part, limit = part[order], limit[order]
        changes = (part[1:] != part[:-1]) | (limit[1:] != limit[:-1])
        groups = [0, *(np.flatnonzero(changes) + 1).tolist(), len(part)]
        return cls(members, first[order], count[order], limit, part, groups)

    def fill(self, epoch: int) -> np.ndarray:
        """Return the sentence number in each slot, shape [S]."""
        turn_S = (epoch % self.count_S.astype(self.first_S.dtype)).astype(self.first_S.dtype, copy=False)
        return self.members[self.first_S + turn_S]


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
        padded = np.arange(1, min(most, len(limits) - start) + 1) * limits[start : start + most].astype(int)
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
