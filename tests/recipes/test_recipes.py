"""The recipes, as they are started: base, every system, stopped and begun again, in two processes, pushed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nspec_hf.core import ConfigError, CorpusError
from nspec_hf.evaluation import Translator
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats
from nspec_hf.systems import ExperimentConfig, read_settings
from nspec_hf.training import SpecializationTrainer
from nspec_hf.training.checkpoints import what_is_broken
from tests.helpers.hub_stand_in import TOKEN, HubStandIn
from tests.helpers.tiny_experiment import RECIPES, Killed, experiment, recipe, result, saving
from tests.helpers.tiny_text import PAIRS

CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))
TESTED = [*PAIRS, "de-fr", "fr-de"]

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def test_a_base_is_left_with_its_scores_and_the_whole_recipe(based):
    folder, _ = based
    found = result(folder, "base")
    assert (found["system"], found["updates"]) == ("base", 4)
    assert set(found["scores"]) == {"bleu", "chrf++"}
    for metric, version in (("bleu", "tok:13a"), ("chrf++", "nw:2")):
        ((signature, by_pair),) = found["scores"][metric].items()
        assert version in signature
        assert set(by_pair) == set(TESTED)
    assert found["recipe"]["config"]["pretrain"]["arguments"]["max_steps"] == 4
    assert {"torch", "transformers", "nspec_hf"} <= found["recipe"]["versions"].keys()
    assert found["training_seconds"] > 0
    assert (folder / "work" / "base" / "model" / "tokenizer.json").is_file()


@pytest.mark.parametrize("system", ["neuron_specialization", "random", "allocation_te", "allocation_av"])
def test_a_system_with_masks_runs_and_says_which(based, system):
    folder, file = based
    recipe("specialize")([file, "--system", system])
    found, own = result(folder, system), folder / "work" / system / "s1"
    masks = NeuronMasks.from_pretrained(own / "masks")
    assert found["extraction"]["masks"] == masks.fingerprint()
    assert masks.pairs == PAIRS
    assert 0 < masks.density() < 1
    kinds = {site.kind for site in masks.sites}
    assert kinds == ({"ffn", "attention", "ffn_out"} if "allocation" in system else {"ffn"})
    assert found["extraction"]["density"] == {
        site.name: masks.density(site=site.name) for site in masks.sites
    }
    assert found["extraction"]["seconds"] > 0
    stats = ActivationStats.load(own / "nspec_stats.safetensors")
    assert all(stats.sentences(pair) == 8 for pair in PAIRS)
    assert found["attachment"]["masks"] == masks.fingerprint()
    assert found["attachment"]["gate"]["zero_shot"] == "compose"
    assert found["extra_bytes"] == len(PAIRS) * sum(-(-site.width // 8) for site in masks.sites)
    assert NeuronMasks.from_pretrained(own / "checkpoint-2" / "nspec_masks") == masks


def test_random_masks_are_as_dense_as_the_selected_ones(based):
    folder, file = based
    for system in ("neuron_specialization", "random"):
        recipe("specialize")([file, "--system", system])
    one, other = (
        NeuronMasks.from_pretrained(folder / "work" / system / "s1" / "masks")
        for system in ("neuron_specialization", "random")
    )
    assert one != other
    for site in one.sites:
        assert all(one.density(pair, site.name) == other.density(pair, site.name) for pair in PAIRS)


def test_fine_tuning_has_no_masks_and_the_same_budget(based):
    folder, file = based
    recipe("specialize")([file, "--system", "finetune"])
    found = result(folder, "finetune")
    assert (found["updates"], found["extra_parameters"], found["extra_bytes"]) == (2, 0, 0)
    assert "extraction" not in found
    assert not (folder / "work" / "finetune" / "s1" / "masks").exists()


def test_what_is_there_is_neither_recorded_trained_nor_translated_again(based, monkeypatch):
    folder, file = based
    recipe("specialize")([file])
    before = result(folder, "neuron_specialization")
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    monkeypatch.setattr(Translator, "translate", None)
    monkeypatch.setattr("nspec_hf.training.run.record", None)
    recipe("specialize")([file])
    after = result(folder, "neuron_specialization")
    assert after == before


def test_a_stopped_recipe_goes_on(tmp_path, monkeypatch, based):
    file = experiment(tmp_path)
    with saving(kill=lambda _folder, update, _begun: update == 4):
        recipe("pretrain")([file])
    assert what_is_broken(tmp_path / "work" / "base" / "checkpoint-4")
    plain_translate = Translator.translate

    def die(self, *args, **kwargs):
        raise Killed

    monkeypatch.setattr(Translator, "translate", die)
    with pytest.raises(Killed), pytest.warns(UserWarning, match="checkpoint-4 is not whole"):
        recipe("pretrain")([file])
    monkeypatch.setattr(Translator, "translate", plain_translate)
    recipe("pretrain")([file])
    stopped, whole = result(tmp_path, "base"), result(based[0], "base")
    for found in (stopped, whole):
        del found["training_seconds"], found["recipe"]
    assert stopped == whole


def test_a_folder_of_other_settings_is_not_gone_on_with(based):
    _, file = based
    with pytest.raises(ConfigError, match=r"model.d_model: 16 then, 32 now"):
        recipe("pretrain")([file, "--model.d_model", "32"])
    recipe("specialize")([file])
    with pytest.raises(ConfigError, match=r"select.coverage"):
        recipe("specialize")([file, "--select.coverage", "0.5"])


def test_what_is_missing_is_missed_before_training(tmp_path, monkeypatch, based):
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    file = experiment(tmp_path)
    with pytest.raises(CorpusError, match="nowhere"):
        recipe("pretrain")([file, "--data.test_split", "nowhere"])
    with pytest.raises(ConfigError, match="finetune has none"):
        recipe("specialize")([based[1], "--system", "finetune", "--push", "a/b"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_read(path):
    config, _ = read_settings(ExperimentConfig, [str(path)])
    assert config.name == path.stem
    assert config.data.trained_pairs()
    assert not Path(config.data.corpus.path).is_absolute()
    languages = {code for pair in config.data.trained_pairs() for code in (pair.source, pair.target)}
    # YAML reads a bare `no` as false.
    assert all(isinstance(code, str) and code != "False" for code in languages)
    for table in (config.data.tiers, config.data.families, config.data.codes):
        assert set(table) <= languages
    for pair in config.data.zero_shot_pairs():
        assert (
            f"{pair.source}-{config.data.pivot}" in config.data.trained_pairs()
            or config.data.zero_shot is None
        )


def test_the_papers_settings_are_in_the_configs():
    def read(name):
        return read_settings(ExperimentConfig, [str(RECIPES / "configs" / f"{name}.yaml")])[0]

    for name, temperature in (("iwslt14", 2), ("ec30", 5)):
        config = read(name)
        assert (config.pretrain.patience, config.pretrain.batches.temperature) == (20, temperature)
        assert (config.select.method, config.select.coverage) == ("coverage", 0.95)
    for name, size in (("iwslt17", 40000), ("europarl", 90000)):
        config = read(name)
        assert (config.vocabulary.kind, config.vocabulary.size) == ("bpe", size)
        assert config.vocabulary.target_on_source
        assert (config.translate.num_beams, config.translate.length_penalty) == (4, 0.6)
        assert (config.select.general, config.select.threshold) == (0.9, 0.7)


def start(command, *arguments, **environment):
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
    finished = subprocess.run(
        [*command, *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if not name.startswith("HF_")} | own,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def test_two_processes_leave_what_one_does_and_nobody_waits_forever(based, tmp_path):
    """Launched as the text says; each process sees half of the batches and all counts are added up."""
    folder, file = based
    recipe("specialize")([file])
    launch = [
        Path(sys.executable).with_name("accelerate"),
        "launch",
        "--config_file",
        RECIPES / "accelerate" / "cpu.yaml",
    ]
    where = ["--results", tmp_path / "results", "--work", tmp_path / "work"]
    # A free port, so that two runs of this test do not meet.
    launch += ["--main_process_port", "0"]
    shown = start(launch, RECIPES / "pretrain.py", file, *where)
    assert shown.count("zero-shot") == 2, "only the main process shows the table"
    assert sorted(path.name for path in (tmp_path / "work/base/checkpoint-4").glob("rng_state*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    start(launch, RECIPES / "specialize.py", file, *where, "--base", folder / "work" / "base" / "model")
    found = result(tmp_path, "neuron_specialization")
    own = result(folder, "neuron_specialization")
    assert found["extraction"]["masks"] == own["extraction"]["masks"]
    assert found["updates"] == 2
    one, two = (
        ActivationStats.load(each / "work" / "neuron_specialization" / "s1" / "nspec_stats.safetensors")
        for each in (folder, tmp_path)
    )
    assert all((one.tensors()[name] == tensor).all() for name, tensor in two.tensors().items())


@pytest.mark.slow
def test_masks_are_pushed_when_all_else_is_done(based, tmp_path):
    folder, file = based
    recipe("specialize")([file])
    with HubStandIn() as hub:
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
        }
        start([sys.executable], RECIPES / "specialize.py", file, "--push", "me/masks", **environment)
        files = hub.commits["me/masks"][-1][1]
    own = folder / "work" / "neuron_specialization" / "s1" / "masks" / "nspec_masks.safetensors"
    assert files["nspec_masks.safetensors"] == own.read_bytes()
