"""Bases of other shapes: their sizes, the paper's count, and runs from scratch."""

import dataclasses

import pytest
import torch
from transformers import M2M100Config, T5Config

from nspec_hf.core import ConfigError
from nspec_hf.evaluation import Translator
from nspec_hf.recording import load_model
from nspec_hf.systems import SYSTEMS, make_system
from nspec_hf.systems.architectures import Architecture, Deep, Expansion, Gelu, Shallow, Wide
from nspec_hf.training import SpecializationTrainer, fresh_model, make_model
from tests.helpers.models import tiny_marian, tiny_t5
from tests.helpers.systems import TESTED, numbers, run, shape, stopped, weights
from tests.helpers.tiny_experiment import result, scored
from tests.helpers.tiny_text import same_weights, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")

SYSTEMS_HERE = {"expansion": Expansion, "gelu": Gelu, "shallow": Shallow, "wide": Wide, "deep": Deep}
BASE = M2M100Config(
    d_model=512,
    encoder_layers=6,
    decoder_layers=5,
    encoder_ffn_dim=2048,
    decoder_ffn_dim=1024,
    encoder_attention_heads=8,
    decoder_attention_heads=4,
)


def test_all_are_registered_and_from_scratch():
    for name, kind in SYSTEMS_HERE.items():
        assert SYSTEMS[name] is kind
        assert kind().from_scratch


@pytest.mark.parametrize(
    ("system", "changed"),
    [
        (Expansion(), {"encoder_ffn_dim": 3000, "decoder_ffn_dim": 1500}),
        (Expansion(width=1.5), {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 1536}),
        (Gelu(), {"activation_function": "gelu"}),
        # Half a layer is rounded up.
        (Shallow(), {"encoder_layers": 3, "decoder_layers": 3}),
        (Shallow(layers=0.01), {"encoder_layers": 1, "decoder_layers": 1}),
        (Deep(), {"encoder_layers": 12, "decoder_layers": 10}),
        # 4,096 → 8,192 in the paper, and nothing else.
        (Wide(), {"encoder_ffn_dim": 4096, "decoder_ffn_dim": 2048}),
    ],
)
def test_sizes_are_factors_of_the_bases(system, changed):
    assert system.changed(BASE) == changed


def test_expansion_costs_what_xie_et_al_count():
    base, expanded = shape(512, 2048, 8, 40_000), shape(512, 3000, 8, 40_000)
    assert Expansion().changed(base.config) == {"encoder_ffn_dim": 3000, "decoder_ffn_dim": 3000}
    assert numbers(expanded) - numbers(base) == 12 * 952 * (512 + 1 + 512) == 11_709_600  # 11.71 M


def test_sizes_that_are_none_and_bases_without_them_are_refused():
    with pytest.raises(ConfigError, match="positive factor, got 0"):
        Deep(layers=0).changed(BASE)
    with pytest.raises(ConfigError, match="t5 model has no encoder_ffn_dim, decoder_ffn_dim"):
        Expansion().changed(T5Config())


def test_settings_may_name_any_field_of_the_config():
    assert {field.name for field in dataclasses.fields(Wide)} == {"changes", "width", "continued_dropout"}
    with pytest.raises(ConfigError, match="no setting width; it has: changes, continued_dropout, layers"):
        make_system(Shallow, {"width": 3})


def test_a_fresh_model_is_that_of_the_seed_and_of_the_trained_ones_shape(tmp_path):
    settings = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24}
    settings |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    base = make_model(tokenizer(), settings, seed=4)
    base.save_pretrained(tmp_path)
    again = fresh_model(str(tmp_path), {}, seed=4)
    assert same_weights(again, base)
    assert not same_weights(fresh_model(str(tmp_path), {}, seed=5), base)
    deeper = fresh_model(str(tmp_path), {"decoder_layers": 3, "encoder_ffn_dim": 30}, seed=4)
    assert len(deeper.model.decoder.layers) == 3
    assert deeper.model.encoder.layers[0].fc1.out_features == 30
    assert deeper.config.encoder_layerdrop == deeper.config.decoder_layerdrop == 0


def test_a_fresh_model_translates_with_a_cache_whatever_a_trainer_left_in_the_config(tmp_path):
    base = tiny_marian()
    base.config.use_cache = False  # as the Trainer sets it, when it is made
    base.save_pretrained(tmp_path)
    model = fresh_model(str(tmp_path), {}, seed=1).eval()
    widths = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(torch.tensor([[5, 6, 2]]), num_beams=1, min_new_tokens=4, max_new_tokens=4)
    assert widths == [1] * 4


def test_how_attention_is_computed_may_be_chosen_for_loaded_and_fresh_models_alike(tmp_path):
    """It is no field of a saved config: every row with a model of its own stopped at it."""
    tiny_marian().save_pretrained(tmp_path)
    for name in ("eager", "sdpa"):
        settings = {"attn_implementation": name}
        assert fresh_model(str(tmp_path), settings, seed=1).config._attn_implementation == name
        assert load_model(tmp_path, settings).config._attn_implementation == name


def test_a_post_norm_base_is_that_of_vaswani_et_al(tmp_path):
    """Its layer, written out: LayerNorm(x + sublayer(x)), twice in an encoder, no norm after the stack."""
    settings = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24}
    settings |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = make_model(tokenizer(), {"model_type": "marian", **settings}, seed=4).eval()
    encoder = model.model.encoder
    layer, ids = encoder.layers[0], torch.tensor([[5, 6, 7, 2]])
    with torch.no_grad():
        x = 16**0.5 * model.model.shared(ids) + encoder.embed_positions(ids.shape)
        x = layer.self_attn_layer_norm(x + layer.self_attn(x)[0])
        x = layer.final_layer_norm(x + layer.fc2(torch.relu(layer.fc1(x))))
        assert torch.allclose(encoder(ids).last_hidden_state, x, atol=1e-6)
    assert not hasattr(encoder, "layer_norm")
    model.save_pretrained(tmp_path)
    again = fresh_model(str(tmp_path), {"model_type": "marian", **settings}, seed=4)
    assert type(again) is type(model)
    assert same_weights(again, model)
    # The longest translation ends as it was written, not in the token 0.
    assert model.generation_config.forced_eos_token_id is None
    assert model.config.decoder_start_token_id == model.config.eos_token_id == 2
    with pytest.raises(
        ConfigError, match="a Marian model has no setting encoder_layer; did you mean encoder_l"
    ):
        make_model(tokenizer(), {"model_type": "marian", "encoder_layer": 1}, seed=4)
    with pytest.raises(ConfigError, match="model_type is m2m_100 or marian, got 't5'"):
        make_model(tokenizer(), {"model_type": "t5"}, seed=4)


@pytest.mark.parametrize("make", [tiny_marian, tiny_t5])
def test_a_fresh_model_is_of_the_trained_ones_architecture(tmp_path, make):
    base = make()
    base.save_pretrained(tmp_path)
    assert type(fresh_model(str(tmp_path), {}, seed=1)) is type(base)


@pytest.mark.parametrize("name", SYSTEMS_HERE)
def test_a_run_trains_its_shape_scores_and_is_not_done_again(based, name, monkeypatch):
    folder, file = based
    run(file, name)
    found = result(folder, name)
    assert (found["pretraining"]["updates"], found["updates"]) == (4, 2)
    assert scored(found) == TESTED
    attention, norm = 4 * (16 * 16 + 16), 2 * 16
    layers = 2 * (2 * norm + 24 * 16 * 2 + 24 + 16) + 3 * attention + norm
    added = {"expansion": 2 * 11 * 33, "gelu": 0, "shallow": 0, "deep": layers}
    assert found["extra_parameters"] == added.get(name, found["extra_parameters"])
    assert found["extra_parameters"] > 0 or name in ("gelu", "shallow")
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    monkeypatch.setattr(Translator, "translate", None)
    run(file, name)
    assert result(folder, name) == found


def test_a_killed_run_ends_with_the_same_weights(based, tmp_path):
    folder, file = based
    run(file, "expansion")
    stopped(folder, file, tmp_path, 4, "expansion")
    one, other = (weights(each / "expansion" / "s1") for each in (folder / "work", tmp_path))
    assert one["model.encoder.layers.0.fc1.weight"].shape == (35, 16)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_field_that_the_base_has_not_is_missed_before_training(based):
    _, file = based
    with pytest.raises(ConfigError, match="has no depth; name fields that it has"):
        run(file, "deep", "deep_wrong", options=["--settings.changes", '{"depth": 3}'])


def test_a_shape_of_its_own_says_only_what_changes():
    with pytest.raises(NotImplementedError):
        Architecture().changed(BASE)
