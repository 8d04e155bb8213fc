"""Mode `slice` in several processes: under DDP and FSDP2 it gives the numbers of mode `mask` in one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from nspec_hf.core import UnsupportedModelError
from nspec_hf.gating import GateConfig, NeuronGate, slice_mode as slicing
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.helpers.models import random_batch, tiny_m2m100, tiny_t5
from tests.helpers.two_processes import run_in_processes

PAIRS = ["en-de", "de-en", "en-fr"]
ROUTES = (([0] * 4, [1] * 4), ([2] * 4, [2] * 4), ([0, 1, 2, 1], [1] * 4))
"""Pairs of the rows of each step, for either process: other pairs, one pair, and a mixed batch."""
Batch = dict[str, Tensor]
MODELS = {"m2m100": tiny_m2m100, "mt5": lambda: tiny_t5(gated=True)}
CASES = (("m2m100", "neuron"), ("m2m100", "weights"), ("mt5", "neuron"))


@contextmanager
def slicing_always() -> Iterator[None]:
    """Let the few tokens of tiny models be sliced, and see that something is.

    A process of its own has no fixtures.
    """
    calls = []
    original = slicing.cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "_SAVED_TOKENS", 0)
        patch.setattr(slicing, "_SAVED_TOKENS_KEPT", 0)
        patch.setattr(slicing, "cut", lambda *args: calls.append(args) or original(*args))
        yield
    assert calls


def gate_on(model: PreTrainedModel, mode: str, silence: str) -> NeuronGate:
    """Return a gate whose masks are the same in every process."""
    sites = {site.name: site.width for site in find_sites(model)}
    masks = NeuronMasks.random(sites=sites, pairs=PAIRS, density=0.6, seed=1)
    return NeuronGate(model, masks, GateConfig(mode=mode, silence=silence)).attach()


def batches_of(step: int) -> list[Batch]:
    """Return the batch of either process; as many target tokens in both, so that losses average."""
    found = []
    for rank, pair_ids in enumerate(ROUTES[step]):
        batch = random_batch(seed=10 * step + rank)
        batch["labels"] = batch["labels"].clamp(min=3)
        found.append({**batch, "pair_ids": torch.tensor(pair_ids)})
    return found


def as_one_process(model: PreTrainedModel) -> list[tuple[float, dict[str, Tensor], Tensor]]:
    """Train in mode `mask`: each step's loss, gradients, and logits of the second batch after the update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    found = []
    for step in range(len(ROUTES)):
        loss = sum(model.train()(**batch).loss for batch in batches_of(step)) / 2
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            found.append((loss.item(), grads, model.eval()(**batches_of(step)[1]).logits))
    return found


def in_this_process(
    run: torch.nn.Module, plain: PreTrainedModel, rank: int, whole: Callable[[Tensor], Tensor]
) -> list[tuple[float, dict[str, Tensor], Tensor]]:
    """Do the same with this process's batches in the forward pass of `run`."""
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    found = []
    for step in range(len(ROUTES)):
        loss = run.train()(**batches_of(step)[rank]).loss
        loss.backward()
        grads = {name: whole(p.grad).clone() for name, p in plain.named_parameters()}
        # Slices of every pair are in the cache when the weights change.
        with torch.no_grad():
            for batch in batches_of(step):
                run.eval()(**batch)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        distributed.all_reduce(total)
        with torch.no_grad():
            for _ in range(2):
                logits = run.eval()(**batches_of(step)[1]).logits
        found.append((total.item() / 2, grads, logits))
    return found


def assert_same(found: list, expected: list) -> None:
    """Compare losses, all gradients and logits."""
    for (loss, grads, logits), (loss_expected, grads_expected, logits_expected) in zip(
        found, expected, strict=True
    ):
        assert abs(loss - loss_expected) < 1e-5
        assert grads.keys() == grads_expected.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, grads_expected[name], rtol=0, atol=1e-5, msg=name)
        torch.testing.assert_close(logits, logits_expected, rtol=0, atol=1e-4)


def expected_of(name: str, silence: str) -> list:
    """Return what one process finds in mode `mask`."""
    model = MODELS[name]()
    gate_on(model, "mask", silence)
    return as_one_process(model)


def train_replicated(rank: int, count: int) -> None:
    """DDP in one of two processes."""
    distributed.init_process_group("gloo")
    for name, silence in CASES:
        expected = expected_of(name, silence)
        with slicing_always():
            model = MODELS[name]()
            gate_on(model, "slice", silence)
            found = in_this_process(DistributedDataParallel(model), model, rank, lambda grad: grad)
        assert_same(found, expected)


def shard(model: PreTrainedModel, **settings: object) -> PreTrainedModel:
    """Shard every layer, then the rest, as FSDP2 is used."""
    for module in model.modules():
        if type(module).__name__.endswith(("EncoderLayer", "DecoderLayer", "T5Block")):
            fully_shard(module, **settings)
    # By default the root would keep what a forward pass without a backward pass has gathered, and overlook
    # the optimizer's step, with or without a gate.
    return fully_shard(model, reshard_after_forward=True, **settings)


def train_sharded(rank: int, count: int) -> None:
    """FSDP2 in one of two processes, with the gate put on before and after sharding."""
    distributed.init_process_group("gloo")
    for (name, silence), early in zip(CASES, (True, False, False), strict=True):
        expected = expected_of(name, silence)
        with slicing_always():
            model = MODELS[name]()
            gate = gate_on(model, "slice", silence) if early else None
            shard(model)
            gate = gate or gate_on(model, "slice", silence)
            found = in_this_process(model, model, rank, lambda grad: grad.full_tensor())
        assert_same(found, expected)


def run_in_bfloat16_and_refuse(rank: int, count: int) -> None:
    """What else FSDP2 may do to weights."""
    distributed.init_process_group("gloo")
    run_sharded_in_bfloat16(rank)
    refuse_sharded_linears(rank)


def run_sharded_in_bfloat16(rank: int) -> None:
    """FSDP2 with mixed precision."""
    logits = {}
    with slicing_always(), torch.no_grad():
        for mode in ("mask", "slice"):
            model = shard(tiny_m2m100(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
            gate_on(model, mode, "neuron")
            logits[mode] = model(**batches_of(0)[rank]).logits
    assert logits["mask"].dtype == torch.bfloat16
    torch.testing.assert_close(logits["slice"], logits["mask"], rtol=0, atol=0.1)


def refuse_sharded_linears(rank: int) -> None:
    """Every linear sharded by itself: fine where each reads its own weights, else refused."""
    with slicing_always(), torch.no_grad():
        for silence in ("neuron", "weights"):
            model = tiny_m2m100()
            batch = batches_of(0)[rank]
            masked = tiny_m2m100()
            gate_on(masked, "mask", silence)
            expected = masked(**batch).logits
            for site in find_sites(model):
                for path in (site.name, site.down):
                    fully_shard(model.get_submodule(path))
            gate_on(fully_shard(model), "slice", silence)
            if silence == "neuron":
                torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)
            else:
                with pytest.raises(UnsupportedModelError, match="shard whole layers"):
                    model(**batch)


@pytest.mark.slow
def test_two_replicas_with_slices_learn_what_one_masked_process_learns():
    run_in_processes(train_replicated, 2)


@pytest.mark.slow
def test_sharded_layers_with_slices_learn_what_one_masked_process_learns():
    run_in_processes(train_sharded, 2)


@pytest.mark.slow
def test_sharded_weights_slice_in_mixed_precision_and_are_refused_where_no_process_has_them_whole():
    run_in_processes(run_in_bfloat16_and_refuse, 2)
