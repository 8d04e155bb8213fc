"""Variants beyond the papers: which neurons are kept."""

import pytest

from nspec_hf.core import ConfigError
from nspec_hf.masks import NeuronMasks, SelectConfig
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


def test_masks_are_drawn_with_the_seed_of_the_run(drawn):
    assert drawn(coverage=0.6, temperature=0.0) == NeuronMasks.from_coverage(STATS, coverage=0.6)
    for seed in (1, 2):
        chosen = SelectConfig(coverage=0.6, temperature=0.3, seed=seed)
        assert drawn(coverage=0.6, seed=seed) == NeuronMasks.from_config(STATS, chosen)
    assert drawn(coverage=0.6) != drawn(coverage=0.6, seed=2)


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), True])
def test_noise_without_a_weight_is_refused(drawn, temperature):
    with pytest.raises(ConfigError, match="temperature"):
        drawn(temperature=temperature)
