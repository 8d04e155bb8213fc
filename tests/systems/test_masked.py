"""Systems that are masks: which masks, where they come from, and masks that are selected anew in training."""

import pytest
import torch

from nspec_hf.core import ConfigError
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig
from nspec_hf.systems import SYSTEMS, ExperimentConfig, Run, System, make_system, read_settings
from nspec_hf.training import record_corpus
from tests.helpers.tiny_text import PAIRS

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def bench(based, seed=1):
    folder, file = based
    config, _ = read_settings(ExperimentConfig, [file])
    return Run(config=config, folder=folder / "work" / f"bench{seed}", seed=seed)


def counted(model, own, **settings):
    """Count the validation text without any system."""
    return record_corpus(model, own.tags, own.validation, RecordConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "coverage", "record"),
    [
        ({"coverage": 0.6}, 0.95, {}),
        ({"coverage": 0.9, "coverage_decoder": 0.5}, 0.95, {}),
        ({"sides": ["decoder"]}, 0.95, {}),
        ({"by": "target", "coverage": 0.5}, 0.5, {}),
        ({"count": "sentences", "coverage": 0.5}, 0.5, {"count": "sentences"}),
    ],
)
def test_the_settings_of_neuron_specialization_are_those_of_its_masks(
    based, tmp_path, settings, coverage, record
):
    own = bench(based)
    own = Run(config=own.config, folder=tmp_path, seed=1)
    masks = make_system(SYSTEMS["neuron_specialization"], settings).masks(own.base(), own)
    given = {name: value for name, value in settings.items() if name != "count"}
    assert masks == NeuronMasks.from_coverage(counted(own.base(), own, **record), **given)
    assert masks != NeuronMasks.from_coverage(counted(own.base(), own), coverage)


@pytest.mark.parametrize("score", ["te", "av"])
@pytest.mark.parametrize("settings", [{"general": 0.5}, {"threshold": 0.2}, {"by": "target"}])
def test_the_settings_of_allocation_are_those_of_its_masks(based, tmp_path, score, settings):
    config = bench(based).config
    own, other = (Run(config=config, folder=tmp_path / name, seed=1) for name in ("own", "other"))
    masks = make_system(f"allocation_{score}", settings).masks(own.base(), own)
    recorded = RecordConfig(kinds=("ffn", "attention", "ffn_out"), **{score: True})
    stats = other.recorded(other.base(), recorded)
    assert masks == NeuronMasks.from_importance(stats, score, **settings)
    assert masks != NeuronMasks.from_importance(stats, score)


def test_random_masks_are_of_one_density_or_as_dense_as_the_specialized_ones(based, tmp_path):
    own = Run(config=bench(based).config, folder=tmp_path, seed=3)
    specialized = make_system(SYSTEMS["neuron_specialization"], {}).masks(own.base(), own)
    matched = make_system(SYSTEMS["random"], {}).masks(own.base(), own)
    fixed = make_system(SYSTEMS["random"], {"density": 0.7}).masks(own.base(), own)
    for site in specialized.sites:
        assert torch.equal(matched.keep[site.name].sum(1), specialized.keep[site.name].sum(1))
        assert fixed.keep[site.name].sum(1).tolist() == [round(0.7 * site.width)] * len(PAIRS)
    assert matched == NeuronMasks.random(like=specialized, seed=3)
    assert fixed == NeuronMasks.random(specialized.sites, PAIRS, 0.7, seed=3)


def test_the_gate_acts_as_the_settings_say(based, tmp_path):
    own = Run(config=bench(based).config, folder=tmp_path, seed=1)
    system = make_system(SYSTEMS["neuron_specialization"], {"silence": "weights", "mode": "gradient"})
    model = own.base()
    system.prepare(model, own)
    gate = system.attach(model, own)
    assert (gate.config.silence, gate.config.mode, gate.config.zero_shot) == (
        "weights",
        "gradient",
        "compose",
    )
    assert gate.knows("de-fr")
    assert not gate.knows("de-xx")


def test_a_system_without_such_a_setting_says_which_it_has():
    with pytest.raises(ConfigError, match=r"finetune has no setting coverage; it has: continued_dropout"):
        make_system(SYSTEMS["finetune"], {"coverage": 0.5})
    with pytest.raises(ConfigError, match=r"it has: .*coverage, coverage_decoder, .*silence"):
        make_system(SYSTEMS["neuron_specialization"], {"density": 0.5})


def test_settings_from_a_command_line_are_read_as_what_they_stand_for():
    system = make_system(SYSTEMS["random"], {"density": "0.7", "sides": ["encoder"], "count": "sentences"})
    assert (system.density, list(system.sides), system.count) == (0.7, ["encoder"], "sentences")
    with pytest.raises(ConfigError, match="a setting of random cannot be read"):
        make_system(SYSTEMS["random"], {"density": "much"})


def test_every_system_says_where_it_comes_from():
    for name, kind in SYSTEMS.items():
        assert issubclass(kind, System)
        assert kind.name == name
        assert kind.source
        assert kind.__doc__
