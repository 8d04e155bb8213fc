"""Variants beyond the papers: which neurons are kept, and what an average is."""

import statistics

import pytest
import torch
from safetensors.torch import load_file, save_file

from nspec_hf.core import ConfigError
from nspec_hf.masks import NeuronMasks
from nspec_hf.systems import ExperimentConfig, Run, make_system, read_settings, run_system
from tests.helpers.kin import kin_stats


@pytest.fixture
def config(based, tmp_path):
    config, _ = read_settings(ExperimentConfig, [based[1], "--results", str(tmp_path)])
    return config


def test_neurons_that_pairs_use_differently_come_first_among_the_equally_active(config, tmp_path):
    stats, coverage = kin_stats(), 0.8
    masks = make_system("variance", {"coverage": coverage}).select(stats, Run(config=config, folder=tmp_path))
    own = NeuronMasks.from_coverage(stats, coverage=coverage)
    for site in own.sites:
        shares = {}
        for pair in own.pairs:
            counts = stats[pair][site.name].tolist()
            shares[pair] = [count / sum(counts) for count in counts]
        for pair in own.pairs:
            scores = []
            for neuron in range(site.width):
                over_pairs = [shares[other][neuron] for other in own.pairs]
                varies = statistics.pstdev(over_pairs) / max(statistics.fmean(over_pairs), 1e-12)
                scores.append(shares[pair][neuron] * (1 + varies))
            ranked = sorted(range(site.width), key=lambda neuron: (-round(scores[neuron], 12), neuron))
            kept = masks[pair][site.name].nonzero().flatten().tolist()
            assert kept == sorted(ranked[: int(own[pair][site.name].sum())])
    assert masks != own


@pytest.mark.parametrize("masked", [True, False])
def test_an_average_is_the_mean_of_the_weights_and_runs_as_it_is_told(config, masked, monkeypatch):
    run = Run.of(config, f"averaged_{masked}", 7)
    base, state = run.base(), {}
    for shift, row in ((0.5, "first"), (-0.25, "second/s3")):
        name, _, seed = row.partition("/s")
        folder = Run.of(config, name, int(seed or 7)).folder / "model"
        base.save_pretrained(folder)
        path = folder / "model.safetensors"
        state = {key: value + shift for key, value in load_file(path).items()}
        save_file(state, path, metadata={"format": "pt"})
    system = make_system("averaged", {"rows": ["first", "second/s3"], "masked": masked, "coverage": 0.5})
    run_system(run, system)
    mean, plain = load_file(run.folder / "model" / "model.safetensors"), base.state_dict()
    for name, value in mean.items():
        torch.testing.assert_close(value, plain[name] + 0.125)
    assert (run.folder / "masks").is_dir() == masked


def test_rows_that_have_not_been_run_are_named(config, tmp_path):
    with pytest.raises(ConfigError, match="not run yet: nothing, other/s2"):
        make_system("averaged", {"rows": ["nothing", "other/s2"]}).check(
            Run(config=config, folder=tmp_path, row="averaged")
        )
