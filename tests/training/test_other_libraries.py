"""Scripts that use other libraries: what works under the four lines, and what is refused by its name."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, BitsAndBytesConfig

from nspec_hf.core import ConfigError, UnsupportedModelError
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.training import TrainConfig
from nspec_hf.training.arguments import training_arguments
from tests.gating.test_slice_mode_processes import slicing_always
from tests.helpers.gated import PAIRS, random_masks
from tests.helpers.models import random_batch, tiny_m2m100
from tests.helpers.tiny_text import model, same_weights, tokenizer
from tests.training.test_specialization import log_of, saved_masks, script, specialized


def silenced(network, masks, pair):
    """Return a model whose neurons that a pair does not keep are zeroed by hooks of the test's own."""
    for site in masks.sites:
        keep_F = masks[pair][site.name]
        network.get_submodule(site.name).register_forward_hook(
            lambda _module, _args, z, keep_F=keep_F: z.masked_fill(~keep_F, 0)
        )
    return network


def of_one_pair(pair):
    batch = random_batch()
    batch.pop("pair_ids")
    return batch, {**batch, "pair_ids": torch.full((4,), PAIRS.index(pair))}


# ---- PEFT --------------------------------------------------------------------------------------------------


def with_lora(seed):
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    return peft.get_peft_model(model(), peft.LoraConfig(target_modules=["fc1", "q_proj"], r=2))


def test_lora_trains_under_the_four_lines_and_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "predict_with_generate": True}
    whole = script(tmp_path / "whole", with_lora(1), **saving)
    base = copy.deepcopy(whole.model.get_base_model().model.encoder.layers[0].fc1.base_layer.weight)
    specialize = specialized(whole)
    whole.train()
    again = script(tmp_path / "again", with_lora(2), **saving)
    specialized(again)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same_weights(whole.model, again.model)
    assert not same_weights(whole.model, with_lora(1))
    assert torch.equal(whole.model.get_base_model().model.encoder.layers[0].fc1.base_layer.weight, base)
    whole.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    assert saved_masks(tmp_path / "saved") == specialize.gate.masks
    assert set(whole.predict(whole.eval_dataset).predictions[:, 1].tolist()) == {
        tokenizer().convert_tokens_to_ids(f"__{code}__") for code in ("en", "de", "fr")
    }


def test_lora_is_merged_once_the_gate_is_off_and_under_it_the_merged_model_is_refused():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    network = tiny_m2m100()
    masks, (_, batch) = random_masks(network), of_one_pair("en-fr")
    adapted = peft.get_peft_model(network, peft.LoraConfig(target_modules=["fc1"], init_lora_weights=False))
    with NeuronGate(adapted, masks):
        expected = adapted(**batch).logits
    merged = copy.deepcopy(adapted).merge_and_unload()
    with NeuronGate(merged, masks):
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=0, atol=1e-5)
    NeuronGate(adapted, masks).attach()
    under_it = adapted.merge_and_unload()
    with pytest.raises(UnsupportedModelError, match=r"wrapped or replaced: .*encoder\.layers\.0\.fc1"):
        under_it(**batch)


# ---- quantized weights -------------------------------------------------------------------------------------

KINDS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}


def quantized_by_bitsandbytes(folder, kind):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(**KINDS[kind])
    return AutoModelForSeq2SeqLM.from_pretrained(folder, quantization_config=config, device_map="cpu").eval()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_bitsandbytes_are_silenced_in_the_outputs_of_their_linears(kind, tmp_path):
    tiny_m2m100().save_pretrained(tmp_path)
    network, reference = (quantized_by_bitsandbytes(tmp_path, kind) for _ in range(2))
    assert type(network.model.encoder.layers[0].fc1) is not nn.Linear
    masks, (plain, batch) = random_masks(network), of_one_pair("de-en")
    silenced(reference, masks, "de-en")
    with torch.no_grad(), NeuronGate(network, masks) as gate:
        assert torch.equal(network(**batch).logits, reference(**plain).logits)
        assert gate.status().gated_sites == 4
        ids = {name: plain[name] for name in ("input_ids", "attention_mask")}
        found = network.generate(**ids, pair_ids=batch["pair_ids"], max_new_tokens=5)
        assert found.equal(reference.generate(**ids, max_new_tokens=5))


@pytest.mark.parametrize("kind", KINDS)
def test_mode_gradient_refuses_weights_of_bitsandbytes_and_mode_slice_masks_them(kind, tmp_path):
    tiny_m2m100().save_pretrained(tmp_path)
    network = quantized_by_bitsandbytes(tmp_path, kind)
    masks, (_, batch) = random_masks(network), of_one_pair("de-en")
    with pytest.raises(UnsupportedModelError, match=r"encoder\.layers\.0\.fc1.*mode 'mask'"):
        NeuronGate(network, masks, GateConfig(mode="gradient")).attach()
    with torch.no_grad(), NeuronGate(network, masks):
        expected = network(**batch).logits
    with pytest.warns(UserWarning, match="slice"), torch.no_grad():
        with NeuronGate(network, masks, GateConfig(mode="slice")):
            assert network(**batch).logits.equal(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_weights_of_bitsandbytes_is_gated_with_what_it_adds(kind, tmp_path):
    peft = pytest.importorskip("peft")
    tiny_m2m100().save_pretrained(tmp_path)
    adapted = []
    for _ in range(2):
        torch.manual_seed(4)
        config = peft.LoraConfig(target_modules=["fc1"], init_lora_weights=False)
        adapted.append(peft.get_peft_model(quantized_by_bitsandbytes(tmp_path, kind), config))
    network, reference = adapted
    masks, (plain, batch) = random_masks(network), of_one_pair("en-de")
    silenced(reference.get_base_model(), masks, "en-de")
    with torch.no_grad(), NeuronGate(network, masks):
        torch.testing.assert_close(network(**batch).logits, reference(**plain).logits, rtol=0, atol=1e-6)


# ---- torch.compile, DeepSpeed ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_script_that_compiles_its_model_trains_as_one_that_does_not(tmp_path):
    torch._dynamo.reset()
    runs = []
    for settings in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        trainer = script(tmp_path, gradient_accumulation_steps=2, **settings)
        specialized(trainer)
        trainer.train()
        runs.append(log_of(trainer)[:3])
    torch._dynamo.reset()
    for line, other in zip(*runs, strict=True):
        assert line == pytest.approx(other, abs=1e-5)


def test_weights_that_are_there_for_their_linear_s_forward_alone_are_masked_and_sliced_or_refused():
    """As under DeepSpeed's ZeRO-3: hooks on the module gather weights before it runs, and let go of them."""
    network, (_, batch) = tiny_m2m100(), of_one_pair("en-de")
    masks = random_masks(network)
    with torch.no_grad(), NeuronGate(network, masks):
        expected = network(**batch).logits
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        if linear is network.lm_head:  # the embeddings' weights
            continue
        whole = {name: weight.data for name, weight in linear.named_parameters()}

        def gather(module, _args, whole=whole):
            for name, weight in module.named_parameters():
                weight.data = whole[name]

        def let_go(module, *_):
            for weight in module.parameters():
                weight.data = torch.empty(0)

        linear.register_forward_pre_hook(gather)
        linear.register_forward_hook(let_go)
        let_go(linear)
    sliced = {silence: GateConfig(mode="slice", silence=silence) for silence in ("neuron", "weights")}
    with torch.no_grad(), slicing_always():
        with NeuronGate(network, masks):
            assert network(**batch).logits.equal(expected)
        with NeuronGate(network, masks, sliced["neuron"]):
            torch.testing.assert_close(network(**batch).logits, expected, rtol=0, atol=1e-5)
        with NeuronGate(network, masks, sliced["weights"]):
            with pytest.raises(UnsupportedModelError, match="they are sharded"):
                network(**batch)


def test_a_deepspeed_config_without_deepspeed_is_missed_by_name(tmp_path):
    config = {"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto"}
    with pytest.raises(ConfigError, match=r"(?i)deepspeed"):
        training_arguments(TrainConfig(arguments={"deepspeed": config}), tmp_path)
