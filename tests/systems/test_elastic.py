"""One elastic model, from training to its scores at several coverages."""

import json

import pytest
from transformers import AutoModelForSeq2SeqLM

from nspec_hf.core import ConfigError
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats
from nspec_hf.systems import ExperimentConfig, Run, make_system, read_settings
from tests.helpers.kin import kin_stats
from tests.helpers.tiny_experiment import recipe, result

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def test_an_elastic_model_is_trained_and_scored_at_several_coverages(based):
    folder, file = based
    settings = ["--settings.coverage", "0.6", "--settings.teacher", "0.5", "--settings.levels", "[0.9, 0.5]"]
    recipe("specialize")([file, "--system", "elastic", *settings])
    assert result(folder, "elastic")["settings"]["levels"] == [0.9, 0.5]
    timed = ["--levels", "1.0", "0.6", "0.3", "--timed", "2", "--rounds", "1"]
    recipe("dial")([file, "--row", "elastic", *settings, *timed])
    levels = json.loads((folder / "results" / "tiny.elastic.s1.dial.json").read_text("utf-8"))["levels"]
    assert [level["coverage"] for level in levels] == [1.0, 0.6, 0.3]
    stats = ActivationStats.load(folder / "work" / "elastic" / "s1" / "nspec_stats.safetensors")
    assert [level["density"] for level in levels] == [
        NeuronMasks.from_coverage(stats, coverage).density() for coverage in (1.0, 0.6, 0.3)
    ]
    # An export loses a row of fc1, its bias and a column of fc2 for each neuron that is left out.
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "work" / "elastic" / "s1" / "model")
    whole, width = model.num_parameters(), model.config.d_model
    for level in levels:
        keep = NeuronMasks.from_coverage(stats, level["coverage"])[stats.pairs[0]]
        gone = sum(int((~own).sum()) for own in keep.values())
        assert level["bytes"] == pytest.approx(1 - gone * (2 * width + 1) / whole)
        assert level["time"] > 0
    # The folder of masks holds all levels that were trained.
    kept = NeuronMasks.from_pretrained(folder / "work" / "elastic" / "s1" / "masks")
    assert kept == NeuronMasks.from_coverage(stats, 0.6)
    assert all(kept.at(level) == NeuronMasks.from_coverage(stats, level) for level in (0.9, 0.5))
    # What it is scored at by itself is one of these levels: the same translations, the same loss.
    alone = result(folder, "elastic")
    assert levels[1]["scores"] == alone["scores"]
    assert levels[1]["text_loss"] == pytest.approx(list(alone["validation_loss"].values())[-1], rel=1e-4)
    assert levels[0]["text_loss"] != levels[2]["text_loss"]


@pytest.mark.parametrize("said_by", ["settings", "select"])
def test_a_level_is_one_coverage_on_both_sides_where_the_decoder_has_another(based, tmp_path, said_by):
    select = ["--select.coverage_decoder", "0.5"] if said_by == "select" else []
    config, _ = read_settings(ExperimentConfig, [based[1], *select])
    run, stats = Run(config=config, folder=tmp_path, seed=1), kin_stats()
    stats.save(tmp_path / "nspec_stats.safetensors")
    own = {} if select else {"coverage_decoder": 0.5}
    system = make_system("elastic", {"coverage": 0.9, "levels": [1.0, 0.3], "teacher": 0.25, **own})
    masks = system.masks(None, run)
    assert masks == NeuronMasks.from_coverage(stats, 0.9, coverage_decoder=0.5)
    trainer = system.trainer(None, run).keywords
    for level, trained in zip((1.0, 0.3), trainer["levels"], strict=True):
        wanted = NeuronMasks.from_coverage(stats, level)
        assert masks.at(level) == wanted
        assert trained == wanted
    assert trainer["dense"] == NeuronMasks.from_coverage(stats, 1.0)
    assert trainer["teacher"] == 0.25


def test_a_run_that_is_not_there_is_named(based):
    with pytest.raises(ConfigError, match=r"no elastic model in .*nowhere"):
        recipe("dial")([based[1], "--row", "nowhere"])
