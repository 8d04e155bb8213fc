"""Growth: new neurons change nothing until they are trained, belong to their pair, and stay a plain model."""

import pytest
import torch
from hypothesis import given, strategies as st
from transformers import AutoModelForSeq2SeqLM

from nspec_hf.core import ConfigError, Pair, SiteMismatchError, TrainingSetupError, UnsupportedModelError
from nspec_hf.export import pruned
from nspec_hf.gating import NeuronGate, grow, grown_masks
from nspec_hf.gating.widen import add_neurons
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100

PAIRS = ["en-de", "de-en", "en-fr"]


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
        model(**random_batch(seed=seed)).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_a_grown_model_says_what_it_said_and_is_loaded_by_transformers(name, tmp_path):
    model = SIX_ARCHITECTURES[name]()
    before, old = logits(model, **plain_batch()), {site.name: site.width for site in find_sites(model)}
    masks = grow(model, PAIRS, share=0.3)
    batch = random_batch()
    torch.testing.assert_close(logits(model, **plain_batch()), before, rtol=0, atol=1e-5)
    with NeuronGate(model, masks):
        torch.testing.assert_close(logits(model, **batch), before, rtol=0, atol=1e-5)
        train_a_little(model)
        trained = logits(model, **batch)
        each = [
            logits(model, **{**batch, "pair_ids": torch.full_like(batch["pair_ids"], i)}) for i in range(3)
        ]
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    assert {site.name: site.width for site in find_sites(model)} == {
        name: width + 3 * round(0.3 * width) for name, width in old.items()
    }
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    with NeuronGate(again, masks):
        torch.testing.assert_close(logits(again, **batch), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_a_pairs_rows_train_its_own_new_neurons_and_no_others(name):
    model = SIX_ARCHITECTURES[name]()
    old = {site.name: site.width for site in find_sites(model)}
    masks = grow(model, PAIRS, share=0.25)
    with NeuronGate(model, masks):
        train_a_little(model)
        model.zero_grad()
        batch = random_batch()
        model(**{**batch, "pair_ids": torch.full_like(batch["pair_ids"], 1)}).loss.backward()
    for site in find_sites(model):
        width, wide = old[site.name], round(0.25 * old[site.name])
        own = range(width + wide, width + 2 * wide)  # the second of three pairs
        for path in filter(None, (site.name, site.up)):
            touched = model.get_submodule(path).weight.grad.abs().sum(1) > 0
            assert not any(touched[i] for i in range(width, width + 3 * wide) if i not in own)
            assert any(touched[i] for i in own)
        columns = model.get_submodule(site.down).weight.grad.abs().sum(0) > 0
        assert not any(columns[i] for i in range(width, width + 3 * wide) if i not in own)


def test_a_pair_is_exported_with_the_old_neurons_and_its_own():
    model = tiny_m2m100()
    masks = grow(model, PAIRS, share=0.25)
    with NeuronGate(model, masks) as gate:
        train_a_little(model)
        gate.use("en-fr")
        expected = logits(model, **plain_batch())
    twin, widths = pruned(model, masks, "en-fr")
    assert set(widths.values()) == {24 + 6, 20 + 5}
    torch.testing.assert_close(logits(twin, **plain_batch()), expected, rtol=0, atol=1e-5)


@given(
    names=st.lists(st.sampled_from(["en-de", "de-en", "en-fr", "fr-en", "de-fr"]), min_size=1, unique=True),
    by=st.sampled_from(["pair", "source", "target", "separate", "all"]),
    share=st.floats(0.01, 2.0),
)
def test_new_neurons_belong_to_whom_they_are_given(names, by, share):
    sites = find_sites(tiny_m2m100())
    masks = grown_masks(sites, names, share, by)
    for site in sites:
        # The rule as a loop: whose neurons they are, in the order in which owners first come.
        owners = []
        for name in names:
            pair = Pair(name)
            per_side = pair.source if site.side == "encoder" else pair.target
            owners.append(
                {"pair": name, "source": pair.source, "target": pair.target, "all": ""}.get(by, per_side)
            )
        groups, wide = list(dict.fromkeys(owners)), max(1, round(share * site.width))
        for name, owner in zip(names, owners, strict=True):
            kept = masks[name][site.name].tolist()
            assert len(kept) == site.width + len(groups) * wide
            assert all(kept[: site.width])
            for i, has in enumerate(kept[site.width :]):
                assert has == (groups[i // wide] == owner)


@pytest.mark.parametrize("by", ["pair", "source", "target", "separate", "all"])
def test_neurons_of_no_pair_are_refused_by_name(by):
    with pytest.raises(ConfigError, match="masks need a pair"):
        grown_masks(find_sites(tiny_m2m100()), [], by=by)


def test_old_neurons_may_be_masked_too():
    model = tiny_m2m100()
    widths = {site.name: site.width for site in find_sites(model)}
    old = NeuronMasks.random(sites=widths, pairs=PAIRS, density=0.5, seed=1)
    grown = grow(model, PAIRS, share=0.25, masks=old)
    for name, keep_PF in grown.keep.items():
        assert torch.equal(keep_PF[:, : widths[name]], old.keep[name])
    assert grown.recipe.settings["old"] == old.fingerprint()
    with pytest.raises(ConfigError, match="another order"):
        grow(tiny_m2m100(), PAIRS[::-1], masks=old)
    with pytest.raises(SiteMismatchError):
        grow(tiny_m2m100(encoder_ffn_dim=8), PAIRS, masks=old)


def test_new_rows_are_drawn_column_by_column_from_the_trained_ones():
    model, twin = tiny_m2m100(), tiny_m2m100()
    grow(model, PAIRS, seed=1)
    grow(twin, PAIRS, seed=2)
    site = find_sites(model)[0]
    one, other = model.get_submodule(site.name), twin.get_submodule(site.name)
    trained = tiny_m2m100().get_submodule(site.name)
    for column in range(trained.in_features):
        assert set(one.weight[24:, column].tolist()) <= set(trained.weight[:, column].tolist())
    assert set(one.bias[24:].tolist()) <= set(trained.bias.tolist())
    assert not torch.equal(one.weight[24:], other.weight[24:])
    assert len({tuple(row) for row in one.weight[24:].tolist()}) == site.width - 24


def test_a_frozen_layer_stays_frozen_and_keeps_its_type():
    model = tiny_m2m100().to(torch.bfloat16).requires_grad_(False)
    grow(model, PAIRS)
    assert not any(each.requires_grad for each in model.parameters())
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_what_cannot_be_grown_is_refused_before_anything_is_changed():
    t5 = SIX_ARCHITECTURES["t5"]()
    before = {name: each.clone() for name, each in t5.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match="one d_ff for all layers"):
        grow(t5, ["en-de", "en-fr", "en-nl"], by="separate")
    assert all(torch.equal(before[name], each) for name, each in t5.state_dict().items())
    assert t5.config.d_ff == 24
    model = tiny_m2m100()
    with pytest.raises(ConfigError, match="share is positive"):
        grow(model, PAIRS, share=0.0)
    with pytest.raises(ConfigError, match="by is one of"):
        grow(model, PAIRS, by="family")
    with pytest.raises(ConfigError, match="not below theirs"):
        add_neurons(model, {site.name: site.width - 1 for site in find_sites(model)})
    masks = NeuronMasks.random(sites=find_sites(model), pairs=PAIRS, density=0.5)
    with NeuronGate(model, masks), pytest.raises(TrainingSetupError, match="detach"):
        grow(model, PAIRS)
