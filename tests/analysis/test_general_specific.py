import numpy as np
import pytest
import torch

from nspec_hf.analysis.general_specific import (
    general_neurons,
    importance_curves,
    layer_score,
    module_score,
    ownership,
    specific_neurons,
)
from nspec_hf.core import ConfigError
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats, RecordConfig

PAIRS = ["en-de", "de-en", "en-fr"]
# Two sites in one layer of the decoder, so that Eq. 10 has something to sum.
SITES = {
    "model.encoder.layers.0.fc1": 20,
    "model.decoder.layers.0.self_attn.q_proj": 12,
    "model.decoder.layers.0.fc1": 28,
}


@pytest.fixture
def stats() -> ActivationStats:
    stats = ActivationStats(PAIRS, SITES, RecordConfig(te=True, kinds=("ffn", "attention")))
    generator = torch.Generator().manual_seed(2)
    for name, width in SITES.items():
        stats.sums["te"][name] += torch.rand(3, width, generator=generator, dtype=torch.float64)
        stats.counts[name] += torch.randint(1, 90, (3, width), generator=generator)
    for side in stats.token_counts:
        stats.token_counts[side] += torch.tensor([50, 60, 70])
    stats.sentence_counts += 5
    return stats


@pytest.fixture
def masks(stats) -> NeuronMasks:
    return NeuronMasks.from_importance(stats, "te", general=0.5, threshold=0.8)


def specific_count(masks, pair, name):
    """Neurons that a pair keeps and that were not declared general, counted one by one."""
    kept, general = masks[pair][name].tolist(), masks.general[name].tolist()
    return sum(1 for k, g in zip(kept, general, strict=True) if k and not g)


def test_lscore_is_the_share_of_a_layers_neurons_specific_to_a_pair(masks):
    result = layer_score(masks)
    layers = {"encoder 0": list(SITES)[:1], "decoder 0": list(SITES)[1:]}
    assert set(result.layers) == set(layers)
    for row, layer in enumerate(result.layers):
        for column, pair in enumerate(PAIRS):
            allocated = sum(specific_count(masks, pair, name) for name in layers[layer])
            total = sum(SITES[name] for name in layers[layer])
            assert result.score[row, column] == pytest.approx(allocated / total)
    assert (result.score > 0).all()


def test_mscore_is_the_mean_over_pairs_from_one_to_m(masks):
    result = module_score(masks)
    for number, site in enumerate(result.sites):
        total = 0.0
        for m in range(1, len(PAIRS) + 1):
            total += specific_count(masks, PAIRS[m - 1], site.name) / site.width
        assert result.score[number] == pytest.approx(total / len(PAIRS))


def test_without_declared_general_neurons_those_are_general_that_every_pair_keeps():
    keep = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    name = "model.decoder.layers.0.fc1"
    masks = NeuronMasks(PAIRS, {name: keep})
    assert general_neurons(masks)[name].tolist() == [True, False, False, False]
    assert specific_neurons(masks)[name].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    assert module_score(masks).score[0] == pytest.approx(3 / 12)
    assert ownership(masks).neurons.tolist() == [[1, 1, 1, 1]]


def test_declared_general_neurons_win_over_chance_agreement(masks):
    general = general_neurons(masks)
    for site in masks.sites:
        assert torch.equal(general[site.name], masks.general[site.name])


def test_importance_curves_are_the_importance_sorted_by_its_mean(stats):
    name = "model.decoder.layers.0.fc1"
    curves = importance_curves(stats, "te", name)
    theta = stats.importance("te")[name].numpy()
    assert sorted(curves.neurons) == list(range(28))
    for place, neuron in enumerate(curves.neurons):
        np.testing.assert_array_equal(curves.importance[:, place], theta[:, neuron])
    assert (np.diff(curves.mean) <= 1e-15).all()
    assert curves.mean[0] == pytest.approx(theta.mean(axis=0).max())


def test_importance_that_was_not_recorded_is_refused(stats):
    with pytest.raises(ConfigError, match="av"):
        importance_curves(stats, "av", "model.decoder.layers.0.fc1")
