"""Variants beyond the papers: which neurons are kept."""

import math

import pytest

from nspec_hf.core import ConfigError
from nspec_hf.masks import NeuronMasks
from nspec_hf.systems import ExperimentConfig, Run, make_system, read_settings
from tests.helpers.kin import kin_stats

STATS = kin_stats()


@pytest.fixture
def drawn(based, tmp_path):
    """Return what draws masks with a seed."""
    config, _ = read_settings(ExperimentConfig, [based[1], "--results", str(tmp_path)])

    def draw(seed=1, **settings):
        run = Run(config=config, folder=tmp_path, seed=seed)
        return make_system("sampled", settings).select(STATS, run)

    return draw


def test_without_noise_the_masks_are_the_specialized_ones_and_with_it_as_dense(drawn):
    own = NeuronMasks.from_coverage(STATS, coverage=0.6)
    assert drawn(coverage=0.6, temperature=0.0) == own
    sampled = drawn(coverage=0.6)
    assert sampled != own
    for pair in own.pairs:
        for site in own.sites:
            assert sampled.density(pair, site.name) == own.density(pair, site.name)
    assert drawn(coverage=0.6) == sampled
    assert drawn(coverage=0.6, seed=2) != sampled


def test_at_temperature_1_a_single_neuron_is_drawn_with_the_chance_of_its_share(drawn):
    """Over 200 seeds, within four standard deviations, and two draws for those that are hardly drawn."""
    seeds, pair = 200, STATS.pairs[0]
    seen = [drawn(seed=seed, coverage=1e-6, temperature=1.0)[pair] for seed in range(seeds)]
    for site, counts in STATS[pair].items():
        assert all(int(each[site].sum()) == 1 for each in seen)
        for neuron, share in enumerate((counts.double() / counts.sum()).tolist()):
            found = sum(bool(each[site][neuron]) for each in seen)
            assert abs(found - seeds * share) <= 4 * math.sqrt(seeds * share * (1 - share)) + 2


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), True])
def test_noise_without_a_weight_is_refused(drawn, temperature):
    with pytest.raises(ConfigError, match="temperature"):
        drawn(temperature=temperature)
