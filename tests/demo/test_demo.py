"""The demo end to end in a much smaller setting, stopped and begun again, and its twin among the recipes."""

import json
from pathlib import Path

import pytest

from nspec_hf import ActivationStats, NeuronMasks
from nspec_hf.cli.demo import demo
from nspec_hf.core import ConfigError, plain
from nspec_hf.data import LanguageFamilies, SyntheticConfig, read_outputs
from nspec_hf.demo.demo import demo_experiment
from nspec_hf.systems import ExperimentConfig, RunResult, TrainingBar, read_settings

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "families": 2,
    "languages": 2,
    "sentences": 60,
    "updates": 12,
    "more_updates": 6,
    "test_sentences": 4,
    "trials": 100,
}


class Stopped(Exception):
    """What a user's Ctrl-C, or a machine that goes down, would be."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A demo that was stopped while the specialized system trained, and then run again."""
    folder, seen = tmp_path_factory.mktemp("demo"), []

    def stop(self, args, state, control, **kwargs):
        seen.append((self._name, state.global_step))
        if self._name == "neuron_specialization":
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBar, "on_step_end", stop)
        with pytest.raises(Stopped):
            demo(str(folder), **SMALL)
        patch.setattr(
            TrainingBar, "on_step_end", lambda self, args, state, control, **kwargs: seen.append(self._name)
        )
        first = list(seen)
        seen.clear()
        demo(str(folder), **SMALL)
    return folder, first, seen


@pytest.mark.slow
def test_a_stopped_demo_goes_on_and_redoes_nothing_that_was_done(written):
    _, first, second = written
    trained = [("base", step + 1) for step in range(12)] + [("finetune", step + 1) for step in range(6)]
    assert first == [*trained, ("neuron_specialization", 1)]
    assert second == ["neuron_specialization"] * 6 + ["random"] * 6


@pytest.mark.slow
def test_the_demo_writes_masks_map_report_text_and_scores(written):
    folder, *_ = written
    masks = NeuronMasks.from_pretrained(folder / "neuron_specialization" / "s1" / "masks")
    assert list(masks.pairs) == [
        "qpv-qaa", "qaa-qpv", "qpv-qab", "qab-qpv", "qpv-qba", "qba-qpv", "qpv-qbb", "qbb-qpv"
    ]  # fmt: skip
    assert 0 < masks.density() < 1
    assert (folder / "overlap.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "overlap.svg").read_text(encoding="utf-8")
    assert "Neurons of made-up language families" in (folder / "report.html").read_text(encoding="utf-8")
    assert len((folder / "data" / "train.qab").read_text(encoding="utf-8").splitlines()) == 60
    for name in ("base", "finetune", "neuron_specialization", "random"):
        run = "base" if name == "base" else f"{name}/s1"
        result = RunResult.read(folder / "scores" / f"demo.{run.replace('/', '.')}.json")
        assert result.facts["updates"] == (12 if name == "base" else 6)
        assert set(result.scores) == set(read_outputs(folder / run / "outputs"))
        assert "bleu" in result.scores["qpv-qaa"]
        assert result.facts["recipe"]["versions"]["torch"]
    tested = json.loads((folder / "scores" / "comparison.json").read_text(encoding="utf-8"))
    assert {row["system_name"] for row in tested["rows"]} == {"neuron_specialization", "random"}


@pytest.mark.slow
def test_the_masks_are_those_that_the_statistics_give(written):
    folder, *_ = written
    run = folder / "neuron_specialization" / "s1"
    stats = ActivationStats.load(run / "nspec_stats.safetensors")
    assert NeuronMasks.from_coverage(stats, 0.95) == NeuronMasks.from_pretrained(run / "masks")
    assert all(stats.sentences(pair) == 300 for pair in stats.pairs)


@pytest.mark.slow
def test_the_demo_prints_a_line_for_every_direction_and_what_to_do_next(written, capsys):
    folder, *_ = written
    demo(str(folder), **SMALL)
    said = capsys.readouterr().out
    for name in (
        "qpv-qaa",
        "qbb-qpv",
        "mean out of the pivot (4)",
        "mean of zero-shot (4)",
        "encoder 0",
        "decoder 1",
    ):
        assert name in said
    assert f"inspect --path {folder}/neuron_specialization/s1/masks" in said
    assert "{'loss'" not in said


@pytest.mark.slow
def test_a_finished_demo_is_not_taken_for_another(written):
    folder, *_ = written
    with pytest.raises(ConfigError, match="seed"):
        demo(str(folder), seed=2, **SMALL)


def test_one_family_shows_no_kinship(tmp_path):
    with pytest.raises(ConfigError, match="2 families"):
        demo(str(tmp_path), families=1)
    assert not list(tmp_path.iterdir())


def test_the_file_is_the_same_experiment():
    config, _ = read_settings(ExperimentConfig, [str(ROOT / "nspec_hf" / "demo" / "demo.yaml")])
    own = demo_experiment(LanguageFamilies(SyntheticConfig()), "demo_out")
    recipe, demos = plain(config), plain(own)
    for place in ("work", "results"):
        assert recipe.pop(place) != demos.pop(place)
    assert recipe == demos
