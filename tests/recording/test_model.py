"""Loading a model: whole, finite, in the right precision, and without running code of its own."""

import json
import os

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from transformers import AutoModelForSeq2SeqLM

from nspec_hf import Specialization, Translator
from nspec_hf.core import ArtifactError, ConfigError, UnsupportedModelError
from nspec_hf.data import LanguageTags, load_tokenizer
from nspec_hf.recording import (
    decoder_prompt,
    decoder_start_token,
    empty_model,
    eval_mode,
    find_sites,
    load_config,
    load_model,
)
from tests.helpers.families import tiny_llama
from tests.helpers.models import tiny_bart, tiny_m2m100, tiny_marian, tiny_mbart, tiny_pegasus, tiny_t5
from tests.helpers.tiny_text import tokenizer
from tests.helpers.two_processes import run_in_processes

FAMILIES = (tiny_m2m100, tiny_mbart, tiny_bart, tiny_marian, tiny_pegasus, tiny_t5)


@pytest.fixture
def folder(tmp_path):
    tiny_m2m100(encoder_layerdrop=0.25).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("make", FAMILIES)
def test_what_a_family_saves_is_loaded_with_equal_logits(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[2, 9]])}
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert not any(module.training for module in again.modules())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_weights_behind_a_wrapper_s_prefix_are_refused_with_three_names(folder, prefix):
    rewrite(folder, lambda weights: {prefix + name: weight for name, weight in weights.items()})
    with pytest.raises(
        ArtifactError, match=r"92 are missing \(\S+, \S+, \S+, …\); it holds others under"
    ) as refusal:
        load_model(folder)
    assert prefix in str(refusal.value)


@pytest.mark.parametrize("part", ["encoder.layers.1.", "decoder.layers.0.fc1.weight", "shared.weight"])
def test_a_checkpoint_that_lacks_a_layer_a_linear_or_the_embedding_is_refused(folder, part):
    rewrite(folder, lambda weights: {name: each for name, each in weights.items() if part not in name})
    with pytest.raises(ArtifactError, match="are missing"):
        load_model(folder)


def test_a_config_of_another_width_is_refused_with_both_shapes(folder):
    edit_config(folder, encoder_ffn_dim=99)
    with pytest.raises(ArtifactError, match=r"encoder\.layers\.0\.fc1\.bias \[24\] instead of \[99\]"):
        load_model(folder)


def test_layers_that_the_config_does_not_count_are_refused(folder):
    edit_config(folder, encoder_layers=1)
    with pytest.raises(ArtifactError, match=r"16 are of further layers \(model\.encoder\.layers\.1\."):
        load_model(folder)


def test_a_git_lfs_pointer_is_refused_by_its_name(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is a Git LFS pointer.*git lfs pull"):
        load_model(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    def spoil(weights):
        weights["model.decoder.layers.1.fc2.bias"][3] = float("nan")
        return weights

    rewrite(folder, spoil)
    with pytest.raises(ArtifactError, match=r"not finite \(model\.decoder\.layers\.1\.fc2\.bias\)"):
        load_model(folder)


def test_a_buffer_of_nan_is_refused_and_one_that_forbids_a_token_is_not(tmp_path):
    """Marian adds `final_logits_bias` to its scores, and -inf there forbids a token."""
    tiny_marian().save_pretrained(tmp_path)

    def spoil(value):
        def change(weights):
            weights["final_logits_bias"][0, 3] = value
            return weights

        rewrite(tmp_path, change)

    spoil(-float("inf"))
    assert load_model(tmp_path).final_logits_bias[0, 3] == -float("inf")
    for value in (float("nan"), float("inf")):
        spoil(value)
        with pytest.raises(ArtifactError, match=r"1 weights of \S+ are not finite \(final_logits_bias\)"):
            load_model(tmp_path)


def test_a_damaged_checkpoint_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_model(folder)


def test_code_of_a_repository_is_not_run_and_not_asked_about(folder, monkeypatch):
    (folder / "evil.py").write_text("open(__file__ + '.ran', 'w').close()\n")
    edit_config(
        folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForSeq2SeqLM": "evil.M"}
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on standard input"))
    with pytest.raises(UnsupportedModelError, match="trust_remote_code=True"):
        load_model(folder)
    assert not list(folder.glob("*.ran"))


def test_an_adapter_in_place_of_a_model_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"PEFT adapter.*merge_and_unload"):
        load_model(tmp_path)


def adapter(folder, config):
    """Save a base and an adapter of it; return PEFT's wrapper."""
    tiny_m2m100().save_pretrained(folder / "base")
    wrapped = peft.get_peft_model(load_model(folder / "base"), config)
    wrapped.save_pretrained(folder / "adapter")
    return wrapped.eval()


def test_an_adapter_s_folder_is_its_base_with_the_adapter_merged(tmp_path):
    kinds = {"r": 2, "target_modules": ["q_proj", "fc1"], "init_lora_weights": False}
    wrapped = adapter(tmp_path, peft.LoraConfig(**kinds))
    model, base = load_model(tmp_path / "adapter"), load_model(tmp_path / "base")
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "decoder_input_ids": torch.tensor([[2, 9]])}
    with torch.no_grad():
        expected, got, plain = (each(**batch).logits for each in (wrapped, model, base))
    torch.testing.assert_close(got, expected)
    assert (got - plain).abs().max() > 0.01
    assert model.state_dict().keys() == base.state_dict().keys()
    assert not any(module.training for module in model.modules())
    assert len(find_sites(model)) == len(find_sites(base))
    assert load_config(tmp_path / "adapter").d_model == base.config.d_model


def test_an_adapter_of_an_adapter_is_merged_into_both_and_one_of_itself_is_refused(tmp_path):
    kinds = {"r": 2, "target_modules": ["fc1"], "init_lora_weights": False}
    adapter(tmp_path, peft.LoraConfig(**kinds))
    wrapped = peft.get_peft_model(load_model(tmp_path / "adapter"), peft.LoraConfig(**kinds))
    wrapped.save_pretrained(tmp_path / "second")
    tokenizer().save_pretrained(tmp_path / "base")
    assert load_config(tmp_path / "second").d_model == wrapped.config.d_model
    assert load_tokenizer(tmp_path / "second").get_vocab() == tokenizer().get_vocab()
    expected = wrapped.merge_and_unload().state_dict()
    found = load_model(tmp_path / "second").state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    (tmp_path / "second" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "second")})
    )
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_model(tmp_path / "second")


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {name: each for name, each in weights.items() if "encoder" not in name},
        lambda weights: {name: each for name, each in weights.items() if "lora_B" not in name},
        lambda weights: {f"module.{name}": each for name, each in weights.items()},
    ],
)
def test_an_adapter_that_lacks_weights_is_refused_with_three_names(change, tmp_path):
    """PEFT warns, and leaves those layers to the base."""
    kinds = {"r": 2, "target_modules": ["q_proj", "fc1"], "init_lora_weights": False}
    adapter(tmp_path, peft.LoraConfig(**kinds))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    load_model(tmp_path / "adapter")
    save_file(change(load_file(path)), path, {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lacks (12|10|20) of its 20 weights \(\S+, \S+, \S+, …\)"):
        load_model(tmp_path / "adapter")


def test_an_adapter_that_tunes_a_prompt_or_whose_base_is_gone_is_refused(tmp_path):
    adapter(tmp_path, peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2))
    with pytest.raises(UnsupportedModelError, match="tunes a prompt"):
        load_model(tmp_path / "adapter")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="no model's folder"):
        load_model(tmp_path / "adapter")


def test_a_folder_without_a_model_and_a_decoder_alone_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no model's folder"):
        load_model(tmp_path / "missing")
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no encoder"):
        load_model(tmp_path)
    assert load_model(tmp_path, decoder_only=True).config.model_type == "llama"


def test_training_gets_float32_and_no_layer_dropout_and_inference_what_was_saved(folder):
    load_model(folder).half().save_pretrained(folder)
    saved, trained = load_model(folder), load_model(folder, for_training=True)
    assert (saved.dtype, saved.config.encoder_layerdrop) == (torch.float16, 0.25)
    assert (trained.dtype, trained.config.encoder_layerdrop) == (torch.float32, 0.0)
    asked = load_model(folder, dtype=torch.bfloat16, for_training=True)
    assert asked.dtype == torch.bfloat16


def test_a_field_that_the_config_does_not_have_is_refused(folder):
    assert load_config(folder, {"dropout": 0.5}).dropout == 0.5
    with pytest.raises(ConfigError, match="no field drop_out"):
        load_config(folder, {"drop_out": 0.5})


def test_eval_mode_gives_each_module_back_the_mode_that_it_had():
    model = tiny_m2m100().train()
    model.model.encoder.layers[0].eval()
    modes = [module.training for module in model.modules()]

    def stop():
        with eval_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes


def test_the_start_token_is_the_generation_config_s_then_the_config_s():
    model = tiny_m2m100()
    model.config.decoder_start_token_id, model.generation_config.decoder_start_token_id = 7, 5
    assert decoder_start_token(model) == 5
    model.generation_config.decoder_start_token_id = None
    assert decoder_start_token(model) == 7
    model.config.decoder_start_token_id = None
    with pytest.raises(ConfigError, match="decoder_start_token_id"):
        decoder_start_token(model)


def test_a_model_without_an_encoder_has_no_prompt_of_a_decoder_whatever_its_configs_say():
    model, tags = tiny_llama(), LanguageTags(tokenizer())
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 2
    for ask in (
        lambda: decoder_prompt(model, tags, "en-de"),
        lambda: Translator(model, tags).translate(["one two"], "en-de"),
        lambda: Specialization(model, tokenizer(), pair="en-de"),
    ):
        with pytest.raises(UnsupportedModelError, match="a llama has no encoder"):
            ask()


def test_a_model_without_weights_has_the_sites_of_the_whole_one(tmp_path):
    whole = tiny_m2m100()
    whole.config.save_pretrained(tmp_path)
    empty = empty_model(tmp_path)
    assert find_sites(empty) == find_sites(whole)
    assert all(weight.is_meta for weight in empty.parameters())


def test_a_model_without_weights_is_missed_by_name(tmp_path):
    with pytest.raises(ArtifactError, match="nowhere"):
        empty_model(tmp_path / "nowhere")


def same_weights(found, expected):
    weights = dict(expected.named_parameters())
    return all(not p.is_meta and torch.equal(p, weights[name]) for name, p in found.named_parameters())


def load_in_one_of_two(index, count, folder):
    distributed.init_process_group("gloo")
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    expected, by_library = tiny_marian(), AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert same_weights(by_library, expected) == (index == 0)  # Marian's table of positions is computed
    assert same_weights(load_model(folder), expected)
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


@pytest.mark.slow
def test_every_process_has_all_weights_to_record_also_where_fsdp_would_leave_some_to_the_first(tmp_path):
    tiny_marian().save_pretrained(tmp_path)
    run_in_processes(load_in_one_of_two, 2, str(tmp_path))
