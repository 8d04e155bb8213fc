"""Wider layers: new neurons change nothing until they are trained, and the model stays a plain one."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from nspec_hf.core import ConfigError, TrainingSetupError, UnsupportedModelError
from nspec_hf.gating import NeuronGate, add_neurons
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100


def logits(model, **batch):
    with torch.no_grad():
        return model(**batch).logits


def plain_batch(seed=0):
    return {key: value for key, value in random_batch(seed=seed).items() if key != "pair_ids"}


def train_a_little(model, batches=3):
    """Train on random text, so that new neurons have their say."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for seed in range(batches):
        optimizer.zero_grad()
        model(**plain_batch(seed)).loss.backward()
        optimizer.step()


def wider(model, more=6, seed=1):
    """Give every site so many more neurons."""
    add_neurons(model, {site.name: site.width + more for site in find_sites(model)}, seed)
    return model


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_a_wider_model_says_what_it_said_and_is_loaded_by_transformers(name, tmp_path):
    model = SIX_ARCHITECTURES[name]()
    before, old = logits(model, **plain_batch()), {site.name: site.width for site in find_sites(model)}
    wider(model)
    torch.testing.assert_close(logits(model, **plain_batch()), before, rtol=0, atol=1e-5)
    assert {site.name: site.width for site in find_sites(model)} == {
        name: width + 6 for name, width in old.items()
    }
    train_a_little(model)
    for site in find_sites(model):
        assert model.get_submodule(site.down).weight[:, old[site.name] :].abs().sum() > 0
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(again, **plain_batch()), logits(model, **plain_batch()), rtol=0, atol=1e-5
    )


def test_new_rows_are_drawn_column_by_column_from_the_trained_ones():
    model, twin = wider(tiny_m2m100(), seed=1), wider(tiny_m2m100(), seed=2)
    site = find_sites(model)[0]
    one, other = model.get_submodule(site.name), twin.get_submodule(site.name)
    trained = tiny_m2m100().get_submodule(site.name)
    for column in range(trained.in_features):
        assert set(one.weight[24:, column].tolist()) <= set(trained.weight[:, column].tolist())
    assert set(one.bias[24:].tolist()) <= set(trained.bias.tolist())
    assert not torch.equal(one.weight[24:], other.weight[24:])
    assert len({tuple(row) for row in one.weight[24:].tolist()}) == site.width - 24


def test_a_frozen_layer_stays_frozen_and_keeps_its_type():
    model = wider(tiny_m2m100().to(torch.bfloat16).requires_grad_(False))
    assert not any(each.requires_grad for each in model.parameters())
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_what_cannot_be_made_wider_is_refused_before_anything_is_changed():
    t5 = SIX_ARCHITECTURES["t5"]()
    before = {name: each.clone() for name, each in t5.state_dict().items()}
    uneven = {site.name: site.width + 1 + (site.side == "decoder") for site in find_sites(t5)}
    with pytest.raises(UnsupportedModelError, match="one d_ff for all layers"):
        add_neurons(t5, uneven)
    assert all(torch.equal(before[name], each) for name, each in t5.state_dict().items())
    assert t5.config.d_ff == 24
    model = tiny_m2m100()
    with pytest.raises(ConfigError, match="not below theirs"):
        add_neurons(model, {site.name: site.width - 1 for site in find_sites(model)})
    masks = NeuronMasks.random(sites=find_sites(model), pairs=["en-de"], density=0.5)
    with NeuronGate(model, masks), pytest.raises(TrainingSetupError, match="detach"):
        wider(model)
