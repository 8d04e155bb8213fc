"""The plan of batches: nothing lost, nothing twice, nothing over budget, as many on every rank and epoch."""

import warnings

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, skip_first_batches
from hypothesis import given, settings, strategies as st
from torch.utils.data import DataLoader

from nspec_hf.core import ConfigError
from nspec_hf.data import BatchConfig, PairBatchSampler

BUDGET = 60


@st.composite
def corpora(draw, most=80):
    """Lengths [N, 2] up to 30 tokens and pair ids [N] of up to four pairs, some of which may be empty."""
    sides = st.tuples(st.integers(1, 30), st.integers(1, 30))
    rows = draw(st.lists(st.tuples(sides, st.integers(0, 3)), min_size=12, max_size=most))
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


temperatures = st.sampled_from([1.0, 1.3, 2.0, 5.0, 100.0])


def ranks(lengths, pair_ids, config, world_size, epoch=0, shuffle=True):
    """Each rank's batches of an epoch, as each process would make them."""
    found = []
    for rank in range(world_size):
        sampler = PairBatchSampler(lengths, pair_ids, config, rank, world_size, shuffle)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        found.append(batches)
    return found


def plain_greedy(longest, budget):
    """Number of batches that a plain loop over sentences sorted by length needs."""
    batches, rows = 0, 0
    for length in sorted(longest):
        if rows and (rows + 1) * length <= budget:
            rows += 1
        else:
            batches, rows = batches + 1, 1
    return batches


@given(corpora(), st.sampled_from([1, 2, 3]), st.booleans(), st.booleans(), st.integers(0, 5))
def test_the_ranks_together_see_every_sentence_exactly_once(corpus, world_size, mixed, shuffle, epoch):
    lengths, pair_ids = corpus
    config = BatchConfig(max_tokens=BUDGET, mixed=mixed)
    each = ranks(lengths, pair_ids, config, world_size, epoch, shuffle)
    assert len({len(batches) for batches in each}) == 1
    assert sorted(i for batches in each for batch in batches for i in batch) == list(range(len(lengths)))


@given(corpora(), st.sampled_from([1, 2, 3]), st.booleans(), temperatures, st.integers(0, 9))
def test_no_batch_is_over_budget_and_unmixed_ones_hold_one_pair(
    corpus, world_size, mixed, temperature, epoch
):
    lengths, pair_ids = corpus
    config = BatchConfig(max_tokens=BUDGET, mixed=mixed, temperature=temperature)
    for batch in PairBatchSampler(lengths, pair_ids, config, world_size=world_size).plan(epoch):
        assert len(batch) > 0
        assert len(batch) * lengths[batch].max() <= BUDGET
        assert mixed or len(set(pair_ids[batch])) == 1


@given(corpora(), st.sampled_from([1, 2, 3]), st.booleans(), temperatures)
def test_every_epoch_has_as_many_batches(corpus, world_size, mixed, temperature):
    lengths, pair_ids = corpus
    config = BatchConfig(max_tokens=BUDGET, mixed=mixed, temperature=temperature)
    sampler = PairBatchSampler(lengths, pair_ids, config, world_size=world_size)
    counts = {len(sampler.plan(epoch)) for epoch in range(8)}
    assert counts == {len(sampler) * world_size}


@given(corpora(), st.booleans())
def test_a_plain_loop_needs_no_fewer_batches(corpus, mixed):
    lengths, pair_ids = corpus
    longest = lengths.max(axis=1)
    groups = [longest] if mixed else [longest[pair_ids == i] for i in set(pair_ids)]
    sampler = PairBatchSampler(lengths, pair_ids, BatchConfig(max_tokens=BUDGET, mixed=mixed))
    assert len(sampler) == sum(plain_greedy(group.tolist(), BUDGET) for group in groups)


@given(corpora(), st.floats(1.1, 20))
def test_temperature_draws_pairs_by_their_size_to_the_power_of_one_over_t(corpus, temperature):
    lengths, pair_ids = corpus
    config = BatchConfig(max_tokens=BUDGET, temperature=temperature)
    drawn = np.concatenate(PairBatchSampler(lengths, pair_ids, config).plan(3))
    sizes = {i: list(pair_ids).count(i) for i in set(pair_ids.tolist())}
    total = sum(size ** (1 / temperature) for size in sizes.values())
    assert len(drawn) == len(lengths)
    for i, size in sizes.items():
        wanted = len(lengths) * size ** (1 / temperature) / total
        assert abs((pair_ids[drawn] == i).sum() - wanted) <= 1


def test_shares_are_rounded_where_least_is_lost():
    # √7 : √2 : √1 of ten sentences are 5.23, 2.79 and 1.98.
    pair_ids = np.repeat([0, 1, 2], [7, 2, 1])
    drawn = np.concatenate(PairBatchSampler(np.ones(10), pair_ids, BatchConfig(temperature=2.0)).plan(0))
    assert np.bincount(pair_ids[drawn]).tolist() == [5, 3, 2]


def test_batches_are_halved_for_ranks_that_would_have_none():
    sampler = PairBatchSampler(np.full(8, 5), np.zeros(8, int), BatchConfig(max_tokens=BUDGET), world_size=4)
    assert [len(batch) for batch in sampler.plan(0)] == [2, 2, 2, 2]


@given(corpora(), st.sampled_from([2.0, 5.0]))
@settings(max_examples=40)
def test_all_sentences_of_a_pair_come_before_any_comes_again(corpus, temperature):
    lengths, pair_ids = corpus
    sampler = PairBatchSampler(lengths, pair_ids, BatchConfig(max_tokens=BUDGET, temperature=temperature))
    for i in set(pair_ids.tolist()):
        members = np.flatnonzero(pair_ids == i)
        share = int((pair_ids[np.concatenate(sampler.plan(0))] == i).sum())
        times = [
            np.bincount(np.concatenate(sampler.plan(epoch)), minlength=len(lengths)) for epoch in range(40)
        ]
        assert all(np.ptp(each[members]) <= 1 for each in times)
        waits = -(-len(members) // share)  # epochs until everybody had a turn
        for start in range(40 - waits + 1):
            assert sum(times[start : start + waits])[members].min() >= 1


def test_each_epoch_of_a_large_pair_has_short_and_long_sentences_alike():
    rng = np.random.default_rng(0)
    lengths, pair_ids = rng.integers(1, 31, 2100), np.repeat([0, 1], [2000, 100])
    sampler = PairBatchSampler(lengths, pair_ids, BatchConfig(max_tokens=BUDGET, temperature=5.0))
    for epoch in range(5):
        drawn = np.concatenate(sampler.plan(epoch))
        large = lengths[drawn[pair_ids[drawn] == 0]]
        assert len(large) < 1500
        assert abs(large.mean() - lengths[:2000].mean()) < 0.1


def test_epochs_differ_and_the_same_settings_give_the_same_plan():
    rng = np.random.default_rng(1)
    lengths, pair_ids = rng.integers(1, 10, (300, 2)), rng.integers(0, 3, 300)

    def plan(epoch, **changes):
        config = BatchConfig(max_tokens=BUDGET, **changes)
        return [batch.tolist() for batch in PairBatchSampler(lengths, pair_ids, config).plan(epoch)]

    assert plan(2) == plan(2)
    assert plan(0) != plan(1) != plan(0, seed=2)
    # Not only the batches' order changes, but also what is in them.
    assert {frozenset(batch) for batch in plan(0)} != {frozenset(batch) for batch in plan(1)}


def test_without_shuffling_batches_come_in_order_of_length_and_no_pair_is_drawn_more_often():
    rng = np.random.default_rng(2)
    lengths, pair_ids = rng.integers(1, 30, 200), np.repeat([0, 1], [190, 10])
    config = BatchConfig(max_tokens=BUDGET, temperature=5.0)
    sampler = PairBatchSampler(lengths, pair_ids, config, shuffle=False)
    seen = np.concatenate(sampler.plan(0))
    assert sorted(seen) == list(range(200))
    assert (np.diff(lengths[seen]) >= 0).all()
    assert [list(batch) for batch in sampler.plan(0)] == [list(batch) for batch in sampler.plan(7)]


@pytest.mark.parametrize("even_batches", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_accelerate_can_share_the_batches_out_and_loses_none(world_size, even_batches):
    rng = np.random.default_rng(3)
    lengths, pair_ids = rng.integers(1, 30, 50), rng.integers(0, 3, 50)
    config = BatchConfig(max_tokens=BUDGET, mixed=False)
    sampler = PairBatchSampler(lengths, pair_ids, config)
    assert len(sampler) % 2
    assert len(sampler) % 3
    whole = {frozenset(batch) for batch in sampler}

    def seen(of):
        shards = [
            BatchSamplerShard(of, world_size, rank, even_batches=even_batches) for rank in range(world_size)
        ]
        return [frozenset(batch) for shard in shards for batch in shard]

    assert set(seen(sampler)) == whole
    assert even_batches or len(seen(sampler)) == len(whole)

    class WithBatchSize(PairBatchSampler):
        batch_size = 4

    assert set(seen(WithBatchSize(lengths, pair_ids, config))) != whole  # why there is no such attribute


def test_a_loader_passes_the_epoch_on_also_after_skipped_batches():
    lengths, pair_ids = np.arange(1, 31), np.zeros(30, int)
    sampler = PairBatchSampler(lengths, pair_ids, BatchConfig(max_tokens=BUDGET))
    rest = skip_first_batches(DataLoader(range(30), batch_sampler=sampler, collate_fn=list), 2)
    # As the Trainer does it: one level below the loader's batch sampler.
    rest.batch_sampler.batch_sampler.set_epoch(4)
    assert list(rest) == [batch.tolist() for batch in sampler.plan(4)][2:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is positive"),
        ({"seed": -1}, "seed is not negative"),
        ({"seed": 1.5}, "seed is not negative, a whole number; got 1.5"),
        ({"max_tokens": float("nan")}, "max_tokens is positive, a whole number; got nan"),
        ({"max_tokens": 10, "max_length": 11}, "max_tokens 10 cannot hold a sentence of max_length 11"),
        ({"temperature": 0.5}, "temperature is 1 or more"),
        ({"temperature": float("nan")}, "temperature is 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        BatchConfig(**changes)


def test_the_longest_sentence_is_256_tokens_or_what_the_budget_holds():
    assert BatchConfig().max_length == 256
    assert BatchConfig(max_tokens=100).max_length == 100


@pytest.mark.parametrize(
    ("lengths", "pair_ids", "more", "message"),
    [
        ([], [], {}, "no sentence"),
        ([3, 4], [0], {}, "2 lengths but 1 pair ids"),
        ([3, 400], [0, 0], {}, "a sentence of 400 tokens exceeds max_tokens 60"),
        ([3, 4], [0, 0], {"rank": 2, "world_size": 2}, "rank 2 is none of 2 processes"),
        ([50, 50, 50], [0, 0, 0], {"world_size": 2}, "3 sentences give 3 batches.*4 are needed"),
    ],
)
def test_what_cannot_be_planned_is_refused(lengths, pair_ids, more, message):
    with pytest.raises(ConfigError, match=message):
        PairBatchSampler(lengths, pair_ids, BatchConfig(max_tokens=BUDGET), **more)


def test_sentences_that_are_longer_than_the_longest_that_was_asked_for_are_told():
    lengths, pair_ids = [[3, 9], [4, 4], [12, 2]], [0, 0, 1]
    with pytest.warns(UserWarning, match=r"max_length=8 is not followed.*up to 12 tokens.*max_length=8"):
        sampler = PairBatchSampler(lengths, pair_ids, BatchConfig(max_tokens=40, max_length=8))
    assert sorted(number for batch in sampler for number in batch) == [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PairBatchSampler(lengths, pair_ids, BatchConfig(max_tokens=40, max_length=12))


def test_which_sentences_of_a_large_pair_come_is_drawn_with_the_seed():
    """Else every run begins with the same ones, and a run of one epoch never sees the others."""
    lengths, pair_ids = np.arange(1, 61), np.repeat([0, 1], [56, 4])

    def drawn(seed):
        config = BatchConfig(max_tokens=BUDGET, temperature=5.0, seed=seed)
        return sorted(np.concatenate(PairBatchSampler(lengths, pair_ids, config).plan(0)).tolist())

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in (1, 2, 3)}) == 3


def test_a_batch_of_two_is_halved_and_a_sentence_may_be_empty():
    two = PairBatchSampler([30, 30], [0, 0], BatchConfig(max_tokens=BUDGET), world_size=2)
    assert sorted(batch.tolist() for batch in two.plan(0)) == [[0], [1]]
    empty = PairBatchSampler([0, 3, 0], [0, 0, 0], BatchConfig(max_tokens=BUDGET), shuffle=False)
    assert [batch.tolist() for batch in empty.plan(0)] == [[0, 2, 1]]
