"""One process, two and three find the same, under DDP, FSDP2 and ZeRO-3: the benchmark's table, held."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from nspec_hf.gating import slice_mode as slicing
from nspec_hf.masks import NeuronMasks
from recipes.bench import processes
from recipes.bench.process_case import Case, make_world

pytestmark = pytest.mark.slow

CASES = (
    Case("ddp", "mask", 2),
    Case("ddp", "slice", 3),
    Case("fsdp2", "mask", 3),
    Case("fsdp2", "slice", 2),
    Case("fully_shard", "mask", 3),
    Case("fully_shard", "slice", 2),
    Case("zero3", "mask", 2),
    Case("zero3", "slice", 3),
)


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """Return what one process of the Trainer finds in mode `mask`, and its folder."""
    folder = tmp_path_factory.mktemp("alone")
    return processes.in_processes(world, Case("ddp", "mask", 1), folder), folder


@pytest.mark.parametrize("case", CASES, ids=str)
def test_several_processes_find_what_one_does(world, alone, case, tmp_path, monkeypatch):
    if case.way == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed, which is not installed")
    original = slicing.cut
    monkeypatch.setattr(slicing, "cut", lambda *args: (tmp_path / "cut").touch() or original(*args))
    found = processes.compare(processes.in_processes(world, case, tmp_path), alone[0], tmp_path, alone[1])
    assert (tmp_path / "cut").exists() == (case.mode == "slice")
    assert found["statistics_equal"]
    assert found["translations_equal"] == f"{len(world.texts)} of {len(world.texts)}"
    for name in ("evaluation", "training", "trained", "resumed"):
        if case.way != "fully_shard" or name == "training":
            assert found[name] < 1e-4, name
    if case.way != "fully_shard":
        assert found["weights"] < 1e-4


def test_a_difference_is_seen(world, alone, tmp_path):
    masks = NeuronMasks.random(like=world.masks, seed=5)
    other = processes.in_processes(replace(world, masks=masks), Case("ddp", "mask", 1), tmp_path)
    found = processes.compare(other, alone[0], tmp_path, alone[1])
    assert found["statistics_equal"]  # the base is the same
    assert min(found[name] for name in ("training", "evaluation", "resumed", "weights")) > 1e-3
