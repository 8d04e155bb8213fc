"""Sites are found by structure, and what could only be gated wrongly is refused with the reason."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from nspec_hf.core import ConfigError, UnsupportedModelError
from nspec_hf.recording import KINDS, find_sites, plain_model, site_from_name, weight_fingerprint
from tests.helpers.families import (
    _LLM,
    _SEAMLESS,
    DECODERS,
    TWO_SIDED,
    audio_batch,
    tiny_fsmt,
    tiny_llama,
    tiny_nllb_moe,
    tiny_whisper,
)
from tests.helpers.models import _SHAPE, random_batch, tiny_bart, tiny_m2m100, tiny_t5

ALL = {**TWO_SIDED, **DECODERS, "whisper": tiny_whisper}


def logits_of(model, name):
    if name == "whisper":
        batch = audio_batch()
        kept = ("input_features", "decoder_input_ids")
    else:
        batch = random_batch()
        kept = ("input_ids", "attention_mask") + (("decoder_input_ids",) if name in TWO_SIDED else ())
    with torch.no_grad():
        return model(**{key: batch[key] for key in kept}, use_cache=False).logits


NEURONS = slice(4, 12)


def without_neurons(model, site, at):
    """Return a copy without some neurons: their rows taken out, or columns of the down projection."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        if at == "row":
            linear = model.get_submodule(site.name)
            linear.weight[NEURONS] = 0
            if linear.bias is not None:
                linear.bias[NEURONS] = 0
        else:
            model.get_submodule(site.down).weight[:, NEURONS] = 0
    return model


@pytest.mark.parametrize("name", ALL)
def test_rows_of_the_site_and_columns_of_its_down_projection_are_the_same_neurons(name):
    model = ALL[name]().double()
    dense = logits_of(model, name)
    for site in find_sites(model):
        by_row = logits_of(without_neurons(model, site, "row"), name)
        by_column = logits_of(without_neurons(model, site, "column"), name)
        assert torch.allclose(by_row, by_column, atol=1e-12)
        assert not torch.equal(by_row, dense), f"{site.name} has no effect"


@pytest.mark.parametrize("name", ALL)
def test_every_layer_of_every_family_has_one_feed_forward_site(name):
    found = find_sites(ALL[name]())
    sides = ("encoder", "decoder") if name not in DECODERS else ("decoder",)
    assert [(site.side, site.layer) for site in found] == [
        (side, layer) for side in sides for layer in (0, 1)
    ]
    assert {site.kind for site in found} == {"ffn"}


@pytest.mark.parametrize("name", ALL)
def test_a_site_follows_from_its_name_and_width(name):
    found = find_sites(ALL[name](), KINDS)
    assert [site_from_name(site.name, site.width) for site in found] == found


def test_names_are_those_that_papers_and_masks_use():
    assert find_sites(tiny_m2m100())[0].name == "model.encoder.layers.0.fc1"
    t5 = [site.name for site in find_sites(tiny_t5())]
    assert t5[-1] == "decoder.block.1.layer.2.DenseReluDense.wi"
    gated = find_sites(tiny_t5(gated=True))[0]
    assert gated.name == "encoder.block.0.layer.1.DenseReluDense.wi_0"
    assert (gated.up, gated.down) == (gated.name.replace("wi_0", "wi_1"), gated.name.replace("wi_0", "wo"))
    assert find_sites(tiny_llama())[1].name == "model.layers.1.mlp.gate_proj"


def test_encoder_and_decoder_may_differ_in_width_and_depth():
    widths = [site.width for site in find_sites(tiny_m2m100(encoder_layers=3))]
    assert widths == [24, 24, 24, 20, 20]


@pytest.mark.parametrize("name", TWO_SIDED)
def test_attention_sites_are_q_k_v_out_of_self_and_cross_attention(name):
    model = TWO_SIDED[name]()
    found = find_sites(model, ("attention",))
    assert len(found) == 2 * 4 + 2 * 8
    assert all(site.width == model.get_submodule(site.name).out_features for site in found)
    # Only k and v of cross-attention see the other side's tokens.
    crossing = [site for site in found if site.positions != site.side]
    assert [site.name.split(".")[-1][0] for site in crossing] == ["k", "v"] * 2
    assert all(site.side == "decoder" and site.positions == "encoder" for site in crossing)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_only_attention_sees_the_decoders_own_tokens(name):
    found = find_sites(DECODERS[name](), ("attention",))
    assert len(found) == 8
    assert {site.positions for site in found} == {"decoder"}


def test_all_kinds_come_layer_by_layer_in_forward_order():
    found = find_sites(tiny_bart(), KINDS)
    layer = [
        site.name.rpartition("layers.0.")[2] for site in found if site.side == "decoder" and site.layer == 0
    ]
    own = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    assert layer == [*own, *(name.replace("self", "encoder") for name in own), "fc1", "fc2"]
    assert [site.side for site in found] == ["encoder"] * 12 + ["decoder"] * 20


def test_seamless_speech_parts_are_left_out():
    speech = {
        "speech_encoder_layers": 1,
        "speech_encoder_attention_heads": 2,
        "speech_encoder_intermediate_size": 16,
        "t2u_encoder_layers": 1,
        "t2u_decoder_layers": 1,
        "t2u_encoder_ffn_dim": 16,
        "t2u_decoder_ffn_dim": 16,
        "t2u_encoder_attention_heads": 2,
        "t2u_decoder_attention_heads": 2,
        "num_adapter_layers": 1,
    }
    with torch.device("meta"):
        model = hf.SeamlessM4TModel(hf.SeamlessM4TConfig(**_SEAMLESS, **speech))
    names = [site.name for site in find_sites(model, KINDS)]
    assert {name.split(".")[0] for name in names} == {"text_encoder", "text_decoder"}
    assert "text_encoder.layers.0.ffn.fc1" in names


def tiny_gemma3n(sparsity):
    few = {"laurel_rank": 4, "altup_num_inputs": 2, "num_kv_shared_layers": 0, "sliding_window": 64}
    inputs = {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 48}
    shape = {**_LLM, **few, **inputs, "layer_types": ["full_attention"] * 2}
    return hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**shape, activation_sparsity_pattern=sparsity))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (tiny_fsmt, "time-first"),
        (lambda: hf.PegasusXForConditionalGeneration(hf.PegasusXConfig(**_SHAPE)), "global tokens"),
        (lambda: tiny_nllb_moe(2), "experts"),
        (lambda: tiny_bart(activation_function="sigmoid"), "0.5 at 0"),
        (lambda: tiny_m2m100().model.encoder, "whole model"),
        (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2)), "fc1/fc2"),
        (lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_LLM)), "gate_up_proj"),
        (lambda: hf.BitNetForCausalLM(hf.BitNetConfig(**_LLM)), "ffn_sub_norm"),
        (lambda: tiny_gemma3n([0.0, 0.5]), r"layers\.1\..* has activation_sparsity"),
    ],
    ids=["fsmt", "pegasus-x", "nllb-moe", "sigmoid", "half", "gpt2", "phi3", "bitnet", "gemma-3n"],
)
def test_what_could_only_be_gated_wrongly_is_refused_with_the_reason(build, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        find_sites(build())


@pytest.mark.parametrize("at_zero", [1e-6, -1e-6])
def test_an_activation_that_says_ever_so_little_at_zero_is_refused(at_zero):
    class Almost(nn.Module):
        def forward(self, z):
            return torch.relu(z) + at_zero

    model = tiny_m2m100()
    model.model.decoder.layers[1].activation_fn = Almost()
    with pytest.raises(UnsupportedModelError, match=r"decoder\.layers\.1\.fc1', Almost, gives 1e-06 at 0"):
        find_sites(model)


def test_a_gemma_3n_whose_layers_cut_nothing_off_is_as_good_as_any():
    assert [site.width for site in find_sites(tiny_gemma3n([0.0, 0.0]))] == [24, 24]


def test_an_nllb_moe_without_experts_is_as_good_as_any():
    assert len(find_sites(tiny_nllb_moe(sparse_step=0))) == 4


def test_a_layer_without_a_known_block_among_others_is_not_left_dense_in_silence():
    model = tiny_m2m100()
    model.model.decoder.layers[1].fc1 = nn.Identity()
    with pytest.raises(UnsupportedModelError, match=r"model\.decoder\.layers\.1"):
        find_sites(model)


def test_one_layer_used_twice_is_refused():
    model = tiny_m2m100(decoder_layers=3)
    model.model.decoder.layers[2] = model.model.decoder.layers[0]
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.fc1.*layers\.2\.fc1"):
        find_sites(model)


def test_layers_that_are_wrapped_one_by_one_are_refused():
    model = tiny_m2m100()
    model.model.decoder.layers[0] = torch.compile(model.model.decoder.layers[0])
    with pytest.raises(UnsupportedModelError, match="wrapped"):
        find_sites(model)


def test_wrappers_around_the_model_do_not_show_in_the_names():
    model = tiny_m2m100()
    expected = find_sites(model, KINDS)
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        assert find_sites(wrapped, KINDS) == expected
        assert plain_model(wrapped) is model


def test_lora_does_not_show_in_the_names():
    peft = pytest.importorskip("peft")
    expected = find_sites(tiny_m2m100(), KINDS)
    config = peft.LoraConfig(target_modules=["fc1", "fc2", "q_proj"], r=2)
    assert find_sites(peft.get_peft_model(tiny_m2m100(), config), KINDS) == expected


def test_a_name_in_place_of_a_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="expected a model, got str"):
        find_sites("facebook/m2m100_418M")


def test_one_kind_may_be_given_by_its_name():
    model = tiny_m2m100()
    assert find_sites(model, "attention") == find_sites(model, ("attention",))


def test_unknown_kinds_are_refused():
    for kinds in (("ffn", "embedding"), ()):
        with pytest.raises(ConfigError, match="attention"):
            find_sites(tiny_m2m100(), kinds)


def test_the_fingerprint_is_of_the_gated_weights_alone():
    model = tiny_m2m100()
    before = weight_fingerprint(model)
    assert len(before) == 16
    with torch.no_grad():
        model.model.encoder.layers[0].fc2.weight[0, 0] += 1
    assert weight_fingerprint(nn.DataParallel(model)) == before
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.weight[0, 0] += 1e-3
    assert weight_fingerprint(model) != before


def test_the_fingerprint_of_bf16_weights_does_not_depend_on_how_they_are_loaded():
    model = tiny_m2m100().to(torch.bfloat16)
    assert weight_fingerprint(model) == weight_fingerprint(copy.deepcopy(model).float())


def test_a_model_of_which_only_half_is_found_is_refused():
    """Moonshine's decoder computes gate and up projection in one fc1 (2F outputs), its encoder does not."""
    config = hf.MoonshineConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        encoder_num_key_value_heads=2,
        decoder_num_key_value_heads=2,
    )
    with pytest.raises(UnsupportedModelError, match=r"in the encoder of Moonshine\w+ alone"):
        find_sites(hf.MoonshineForConditionalGeneration(config))
