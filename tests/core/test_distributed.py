"""Several processes record what one process would: the same counts, nothing lost, nothing twice."""

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import distributed
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from nspec_hf.core import (
    ConfigError,
    EmptyPairError,
    NotFiniteError,
    add_up,
    gather,
    generating,
    in_step,
    rank,
    real_rows,
    world_size,
)
from nspec_hf.recording import ActivationStats, RecordConfig, record
from nspec_hf.training.setup_checks import check_finite
from tests.gating.test_slice_mode_processes import shard
from tests.helpers.models import random_batch, tiny_m2m100
from tests.helpers.two_processes import run_in_processes

PAIRS = ["en-de", "de-en", "en-fr"]
FULL = RecordConfig(av=True, te=True)
PLAN = [random_batch(seed=seed, rows=2 + seed % 4) for seed in range(7)]
SOURCE = {name: PLAN[0][name] for name in ("input_ids", "attention_mask")}
# In batches of 3 on two processes the last step has one real row and five duplicates.
ROWS = 19


class Sentences(Dataset):
    def __init__(self):
        self.batch = random_batch(rows=ROWS, seed=50)

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.batch.items()}


class Stream(IterableDataset):
    def __iter__(self):
        sentences = Sentences()
        return (sentences[index] for index in range(ROWS))


def model():
    return tiny_m2m100().double()


def prepared(data=None, batch_size=3, **settings):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings))
    return accelerator.prepare(DataLoader(data or Sentences(), batch_size=batch_size))


def everything(index, count):
    """Return what one of the processes records, by the name of the case."""
    yield "plan", record(model(), PLAN[index::count], PAIRS, FULL)
    yield "limit", record(model(), PLAN[index::count], PAIRS, RecordConfig(max_sentences=5, av=True))
    yield "even batches", record(model(), prepared(), PAIRS, FULL)
    yield "uneven batches", record(model(), prepared(even_batches=False), PAIRS, FULL)
    yield "split batches", record(model(), prepared(batch_size=6, split_batches=True), PAIRS, FULL)
    yield "dispatched", record(model(), prepared(Stream(), dispatch_batches=True), PAIRS, FULL)


def work(index, count, folder):
    Accelerator(cpu=True)
    assert (rank(), world_size()) == (index, count)
    for name, stats in everything(index, count):
        stats.save(f"{folder}/{name}.{index}")
    # Only one process has en-fr, and none has en-cs: all must hear of it.
    mine = [batch for batch in PLAN if (batch["pair_ids"] == 2).any()] if index else [random_batch(pairs=2)]
    record(model(), mine, PAIRS).save(f"{folder}/one sided.{index}")
    with pytest.raises(EmptyPairError, match="en-cs"):
        record(model(), mine, [*PAIRS, "en-cs"])
    with pytest.raises(ConfigError, match="dispatch_batches"):
        record(model(), prepared(Stream(), dispatch_batches=False), PAIRS)
    assert [part.tolist() for part in gather(torch.tensor([index, 7]))] == [[0, 7], [1, 7]]
    assert add_up(torch.tensor([index + 0.5])).tolist() == [2.0]
    assert list(in_step(range(3 * index))) == ([0, 1, 2] if index else [None] * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run everything once in two processes; each saves what it got."""
    folder = tmp_path_factory.mktemp("two")
    run_in_processes(work, 2, str(folder))
    return folder


@pytest.fixture(scope="module")
def alone():
    batch = Sentences().batch
    rows = [{name: value[start : start + 3] for name, value in batch.items()} for start in range(0, ROWS, 3)]
    whole = record(model(), rows, PAIRS, FULL)
    return {
        "plan": record(model(), PLAN, PAIRS, FULL),
        "limit": record(model(), PLAN, PAIRS, RecordConfig(max_sentences=5, av=True)),
        **dict.fromkeys(("even batches", "uneven batches", "split batches", "dispatched"), whole),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["plan", "limit", "even batches", "uneven batches", "split batches", "dispatched"]
)
def test_two_processes_record_what_one_does(folder, alone, name):
    ranks = [ActivationStats.load(folder / f"{name}.{index}").tensors() for index in range(2)]
    for key, expected in alone[name].tensors().items():
        assert torch.equal(ranks[0][key], ranks[1][key])
        if expected.dtype == torch.int64:
            assert torch.equal(ranks[0][key], expected), key
        else:
            assert torch.allclose(ranks[0][key], expected, rtol=1e-9, atol=0), key


def test_duplicates_would_have_been_counted(alone):
    assert int(alone["even batches"].sentence_counts.sum()) == ROWS
    assert int(alone["limit"].sentence_counts.sum()) == 15


@pytest.mark.slow
def test_a_pair_that_only_one_process_has_is_not_empty(folder):
    stats = ActivationStats.load(folder / "one sided.0")
    assert stats.sentences("en-fr") == sum(int((batch["pair_ids"] == 2).sum()) for batch in PLAN)


def test_alone_each_function_is_the_identity():
    tensor = torch.arange(3)
    assert (rank(), world_size()) == (0, 1)
    assert add_up(tensor) is tensor
    assert gather(tensor)[0] is tensor
    assert list(in_step("ab")) == ["a", "b"]
    assert real_rows(DataLoader(Sentences()), {"x": tensor}) is None


class BatchesOfPairs(BatchSampler):
    """Batches of one pair each, of up to three rows: the last of a pair may be smaller, that of all whole."""

    def __init__(self):
        super().__init__(range(ROWS), batch_size=3, drop_last=False)

    def __iter__(self):
        rows_of = [
            [row for row, pair in enumerate(Sentences().batch["pair_ids"]) if pair == p] for p in (2, 1, 0)
        ]
        batches = [rows[first : first + 3] for rows in rows_of for first in range(0, len(rows), 3)]
        yield from sorted(batches, key=len)


def test_all_rows_of_a_prepared_loader_count_in_one_process():
    by_pair = Accelerator(cpu=True).prepare(DataLoader(Sentences(), batch_sampler=BatchesOfPairs()))
    assert [len(batch["pair_ids"]) for batch in by_pair][-1] == 3 != ROWS % 3
    for loader in (prepared(), by_pair):
        stats = record(model(), loader, PAIRS)
        assert stats.sentence_counts.tolist() == Sentences().batch["pair_ids"].bincount().tolist()


UNEVEN = ([0, 1, 2, 3], [4], [5, 6])
"""Numbers of the batches of each of three processes."""


def of_length(tokens):
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


def work_on_shared_out_weights(index, count, folder):
    distributed.init_process_group("gloo")
    mine = [PLAN[number] for number in UNEVEN[index]]
    record(shard(model()), mine, PAIRS, FULL).save(f"{folder}/shared out.{index}")
    limited = RecordConfig(max_sentences=5)
    record(shard(model()), mine, PAIRS, limited).save(f"{folder}/shared out, limit.{index}")
    network = shard(model())
    with pytest.raises(ConfigError, match="each needs text of its own"):
        record(network, mine if index else [], PAIRS)
    # Before any forward pass of the model, and as many tokens as this process alone wants.
    written = generating(network, network.generate)(
        **SOURCE, max_new_tokens=2 + index, min_new_tokens=2 + index
    )
    network(**{name: value for name, value in PLAN[0].items() if name != "pair_ids"}).loss.backward()
    again = generating(network, network.generate)(
        **SOURCE, max_new_tokens=2 + index, min_new_tokens=2 + index
    )
    assert torch.equal(again, written)
    torch.save(written, f"{folder}/written.{index}")
    check_finite(network)
    if index == 1:
        with torch.no_grad():
            next(network.parameters()).to_local()[0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"model\.shared\.weight"):
        check_finite(network)


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared_out")
    run_in_processes(work_on_shared_out_weights, 3, str(folder))
    return folder


@pytest.mark.slow
def test_processes_with_parts_of_the_weights_and_unequal_shares_record_what_one_does(shared_out, alone):
    for index in range(3):
        found = ActivationStats.load(shared_out / f"shared out.{index}").tensors()
        for key, expected in alone["plan"].tensors().items():
            if expected.dtype == torch.int64:
                assert torch.equal(found[key], expected), key
            else:
                assert torch.allclose(found[key], expected, rtol=1e-9, atol=0), key
        limited = ActivationStats.load(shared_out / f"shared out, limit.{index}")
        assert [limited.sentences(pair) for pair in PAIRS] == [5, 5, 5]


@pytest.mark.slow
def test_processes_with_parts_of_the_weights_generate_as_many_tokens_as_each_wants(shared_out):
    for index in range(3):
        expected = model().generate(**SOURCE, **of_length(2 + index))
        assert torch.equal(torch.load(shared_out / f"written.{index}", weights_only=True), expected)
