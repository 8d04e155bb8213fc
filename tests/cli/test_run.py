"""`nspec run`: from a file of settings to a report, the recipes' way, stopped and begun again."""

import json
import sys

import pytest
import yaml
from safetensors.torch import load_file

from nspec_hf import NeuronMasks, systems
from nspec_hf.cli.main import main
from nspec_hf.data import read_outputs
from nspec_hf.evaluation import Comparison
from nspec_hf.recording import load_model
from nspec_hf.training import SpecializationTrainer
from tests.helpers import killed
from tests.helpers.tiny_experiment import experiment, recipe, result, scored
from tests.helpers.tiny_text import PAIRS, same_weights

TESTED = [*PAIRS, "de-fr", "fr-de"]
FEW = ["--compare.n_samples", "100"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*reached their longest length"),
    pytest.mark.filterwarnings("ignore:.*too few"),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which one command has run, from nothing."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["run", experiment(folder), *FEW]) == 0
    return folder


def made(folder):
    """Return what a run leaves, but for times: weights, masks, translations, scores, tests."""
    work = folder / "work"
    systems_ = ("finetune", "neuron_specialization")
    folders = {"base": work / "base", **{name: work / name / "s1" for name in systems_}}
    scores = {}
    for path in sorted((folder / "results").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        scores[path.name] = content["scores"], content["validation_loss"], content["updates"]
    return {
        "outputs": {name: read_outputs(each / "outputs") for name, each in folders.items()},
        "weights": {
            name: {key: value.tolist() for key, value in load_file(each / "model/model.safetensors").items()}
            for name, each in folders.items()
        },
        "masks": NeuronMasks.from_pretrained(folders["neuron_specialization"] / "masks").fingerprint(),
        "tests": Comparison.load(folders["neuron_specialization"] / "comparison.json").to_dict(),
        "scores": scores,
    }


def test_one_command_leaves_base_control_masks_translations_tests_and_a_report(done):
    work = done / "work"
    assert sorted(path.name for path in (done / "results").iterdir()) == [
        "tiny.base.json",
        "tiny.finetune.s1.json",
        "tiny.neuron_specialization.s1.json",
    ]
    own = work / "neuron_specialization" / "s1"
    tests = Comparison.load(own / "comparison.json")
    assert tests.baseline_name == "finetune"
    assert {(row.system_name, row.pair, row.metric) for row in tests.rows} == {
        (name, pair, metric)
        for name in ("base", "neuron_specialization")
        for pair in TESTED
        for metric in ("bleu", "chrf++")
    }
    page = (own / "report.html").read_text(encoding="utf-8")
    assert "tiny: which neurons each pair uses" in page
    assert all(str(pair) in page for pair in PAIRS)


def test_it_does_what_the_recipes_do(done, tmp_path):
    file = experiment(tmp_path)
    recipe("pretrain")([file])
    recipe("specialize")([file])
    found = result(tmp_path, "neuron_specialization")
    ours = result(done, "neuron_specialization")
    assert (ours["scores"], ours["validation_loss"]) == (found["scores"], found["validation_loss"])
    assert scored(ours) == set(TESTED)
    place = "work/neuron_specialization/s1/model"
    assert same_weights(load_model(done / place), load_model(tmp_path / place))


def test_a_run_that_is_done_trains_and_translates_nothing_again(done, monkeypatch):
    before = made(done)
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    monkeypatch.setattr("nspec_hf.evaluation.Translator.translate", None)
    assert main(["run", str(done / "tiny.yaml"), *FEW]) == 0
    assert made(done) == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_run_that_is_killed_and_begun_again_leaves_what_an_uninterrupted_one_leaves(done, tmp_path):
    line, deaths = ["run", experiment(tmp_path), *FEW], 0
    for at_rename in (1, 6, 14, 24, 40):
        deaths += killed.run(tmp_path, line, at_rename=at_rename) == -9
    said = (tmp_path / "said.txt").read_text(encoding="utf-8")
    assert "Traceback" not in said
    assert deaths >= 3
    assert killed.run(tmp_path, line) == 0, said
    assert made(tmp_path) == made(done)


def test_it_may_start_from_a_trained_model(done, tmp_path):
    base = done / "work" / "base" / "model"
    line = ["run", str(done / "tiny.yaml"), "--model", str(base), "--output", str(tmp_path / "mine")]
    assert main([*line, *FEW, "--control", "false", "--results", str(tmp_path / "scores")]) == 0
    assert not (tmp_path / "mine" / "base").exists()
    own = tmp_path / "mine" / "neuron_specialization" / "s1"
    assert Comparison.load(own / "comparison.json").baseline_name == "baseline"
    assert read_outputs(tmp_path / "mine" / "baseline" / "s1" / "outputs") == read_outputs(
        done / "work" / "base" / "outputs"
    )
    there = done / "work" / "neuron_specialization" / "s1"
    assert NeuronMasks.from_pretrained(own / "masks") == NeuronMasks.from_pretrained(there / "masks")


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for, in the place of a run."""
    seen = {}

    def run_to_report(config, system, seed, control):
        seen.update(config=config, system=system, seed=seed, control=control)

    monkeypatch.setattr(systems, "run_to_report", run_to_report, raising=False)
    return seen


def test_what_people_change_most_has_flags_beside_the_dotted_names(tmp_path, asked):
    file = experiment(tmp_path)
    flags = "--max-steps 7 --learning-rate 1e-4 --batch-tokens 100 --seed 3 --coverage 0.8"
    dotted = "--specialize.warmup_steps 5 --pretrain.max_steps 9 --pretrain.patience 2 --model.d_model 32"
    assert main(["run", file, *flags.split(), *dotted.split()]) == 0
    config = asked["config"]
    arguments, batches = config.specialize.arguments, config.specialize.batches
    assert (arguments["max_steps"], arguments["learning_rate"], arguments["seed"]) == (7, 1e-4, 3)
    assert (arguments["warmup_steps"], arguments["save_steps"]) == (5, 2)
    assert (batches.max_tokens, batches.max_length, batches.seed) == (100, 32, 3)
    assert (config.pretrain.arguments["max_steps"], config.pretrain.patience) == (9, 2)
    assert (config.select.coverage, asked["seed"], asked["control"]) == (0.8, 3, True)
    assert (config.model["d_model"], config.model["encoder_ffn_dim"]) == (32, 24)
    assert (config.work, config.results) == (str(tmp_path / "work"), str(tmp_path / "results"))


def test_a_trained_model_takes_the_place_of_the_one_that_the_file_describes(tmp_path, asked):
    assert (
        main(["run", experiment(tmp_path), "--model", "facebook/m2m100_418M", "--output", "runs/mine"]) == 0
    )
    config = asked["config"]
    assert (config.base, config.model) == ("facebook/m2m100_418M", {})
    assert (config.work, config.results) == ("runs/mine", str(tmp_path / "results"))


def test_no_file_is_needed(asked):
    line = "run --model facebook/m2m100_418M --data.corpus.path data --data.pairs en-de,de-en --output mine"
    assert main(line.split()) == 0
    assert asked["config"].data.trained_pairs() == ["en-de", "de-en"]
    assert (asked["config"].work, asked["config"].results) == ("mine", "mine/scores")
    assert asked["system"].name == "neuron_specialization"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--system", "finetune"], "recipes/specialize.py"),
        (["--system", "allocation_te", "--coverage", "0.9"], "not of allocation_te"),
        (["--specialize.optim", "adamm"], "adamm"),
        (["--specialize.max_steps", "1.5"], "max_steps"),
        (["--specialize.metric_for_best_model", "eval_loss_en-fr2"], "eval_loss_en-fr2"),
        (["--pretrain.report_to", "nothing"], "nothing"),
        (["--data.test_split", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_run_is_said_before_the_base_is_trained(tmp_path, capsys, monkeypatch, more, said):
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    assert main(["run", experiment(tmp_path), *more]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("nspec run: ")
    assert said in shown
    assert not list(tmp_path.glob("work/**/*.safetensors"))


def test_text_without_a_test_gives_a_report_of_the_masks_alone(done, tmp_path):
    content = yaml.safe_load((done / "tiny.yaml").read_text(encoding="utf-8"))
    content["data"]["test_split"] = ""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    base = str(done / "work" / "base" / "model")
    line = ["run", str(tmp_path / "mine.yaml"), "--model", base, "--output", str(tmp_path / "mine")]
    assert main([*line, "--control", "false", "--results", str(tmp_path / "scores")]) == 0
    own = tmp_path / "mine" / "neuron_specialization" / "s1"
    assert (own / "report.html").is_file()
    assert not (own / "comparison.json").exists()
