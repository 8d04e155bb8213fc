"""What is reached of the insides of libraries, asked of themselves: a release that changes it fails here."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig

from nspec_hf.gating.internals import (
    WeakTensorKeyDictionary,
    backward_pass,
    generation_setting,
    hooks_of,
    is_plain,
    is_replica,
    is_sharded,
    runs_layers_again,
    when_backward_ends,
)
from tests.helpers.models import tiny_m2m100


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_has_one_number_in_hooks_and_layers_run_again_and_each_has_another(reentrant):
    seen = []

    def layer(x):
        seen.append(backward_pass())
        return x.sin()

    for _ in range(2):
        x = torch.ones(2, requires_grad=True)
        y = checkpoint(layer, x * 2, use_reentrant=reentrant)
        y.register_hook(lambda grad: seen.append(backward_pass()))
        y.sum().backward()
    assert seen[0] == seen[3] == backward_pass() == -1
    assert seen[1] == seen[2] >= 0
    assert seen[4] == seen[5] not in (-1, seen[1])


def test_what_waits_for_the_end_of_a_backward_pass_runs_once_and_after_its_last_gradient():
    seen = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: when_backward_ends(lambda: seen.append(x.grad.tolist())))
    y.sum().backward()
    assert seen == [[2.0, 2.0]]


def test_a_tensor_is_known_while_it_lives_by_what_it_is_and_not_by_its_numbers():
    known, first, second = WeakTensorKeyDictionary(), torch.ones(2), torch.ones(2)
    known[first] = True
    assert first in known
    assert second not in known
    del first
    assert len(known) == 0


def test_replicas_checkpointing_and_hooks_are_seen():
    model = tiny_m2m100()
    assert not is_replica(model)
    assert is_replica(model._replicate_for_data_parallel())
    assert not runs_layers_again(model)
    model.gradient_checkpointing_enable()
    assert runs_layers_again(model)
    model.gradient_checkpointing_disable()
    assert not runs_layers_again(model)
    handles = model.register_forward_pre_hook(print), model.register_forward_hook(print)
    assert [handle.id in hooks for handle, hooks in zip(handles, hooks_of(model), strict=True)] == [True] * 2
    handles[0].remove()
    assert handles[0].id not in hooks_of(model)[0]


def test_shards_are_seen_until_they_are_gathered(one_process):
    seen = []
    layer = nn.Sequential(nn.Linear(4, 4))
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    layer[0].register_forward_hook(lambda linear, *_: seen.append(is_sharded(linear.weight)))
    assert is_sharded(layer[0].weight)
    assert is_plain(layer[0])
    layer(torch.ones(1, 4))
    assert seen == [False]
    assert not is_sharded(nn.Linear(4, 4).weight)


def test_only_linears_that_nothing_has_changed_are_plain():
    peft, accelerate = pytest.importorskip("peft"), pytest.importorskip("accelerate")

    def fc1(model):
        return model.get_submodule("model.encoder.layers.0.fc1")

    assert is_plain(fc1(tiny_m2m100()))
    assert is_plain(fc1(tiny_m2m100().bfloat16()))
    lora = tiny_m2m100()
    peft.get_peft_model(lora, peft.LoraConfig(target_modules=["fc1"]))
    assert not is_plain(fc1(lora))
    quantized = torch.ao.quantization.quantize_dynamic(tiny_m2m100(), {nn.Linear}, torch.qint8)
    assert not is_plain(fc1(quantized))
    offloaded = accelerate.cpu_offload(tiny_m2m100(), torch.device("cpu"))
    assert not is_plain(fc1(offloaded))
    parametrized = tiny_m2m100()
    nn.utils.parametrizations.weight_norm(fc1(parametrized))
    assert not is_plain(fc1(parametrized))


def test_weights_that_torchao_has_quantized_are_not_plain():
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny_m2m100()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    assert not is_plain(model.get_submodule("model.encoder.layers.0.fc1"))


@pytest.mark.parametrize(
    ("arguments", "of_model", "forced"),
    [
        ({}, 7, 7),
        ({"forced_bos_token_id": 8}, 7, 8),
        ({"forced_bos_token_id": None}, 7, None),
        ({"generation_config": GenerationConfig()}, 7, 7),
        ({"generation_config": GenerationConfig(forced_bos_token_id=9)}, 7, 9),
        ({"generation_config": GenerationConfig(forced_bos_token_id=9)}, None, 9),
        ({"generation_config": GenerationConfig(forced_bos_token_id=9), "forced_bos_token_id": 8}, 7, 8),
    ],
)
def test_the_forced_token_is_the_one_that_generate_forces(arguments, of_model, forced):
    model = tiny_m2m100()
    free = model.generate(torch.tensor([[5, 6, 2]]), max_new_tokens=2)[0, 1].item()
    assert free not in (7, 8, 9)
    model.generation_config.forced_bos_token_id = of_model
    assert generation_setting(model, arguments, "forced_bos_token_id") == forced
    if "generation_config" in arguments:
        arguments["generation_config"].max_new_tokens = 2
        arguments["generation_config"].decoder_start_token_id = 2
    else:
        arguments = {**arguments, "max_new_tokens": 2}
    assert model.generate(torch.tensor([[5, 6, 2]]), **arguments)[0, 1].item() == (forced or free)
