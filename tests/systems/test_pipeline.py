"""From text to scores, when something stands in the way: another process, a result that has no place."""

import fcntl
import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from nspec_hf.core import ConfigError, FolderInUseError, NspecError
from nspec_hf.evaluation import Translator, generate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import load_model, weight_fingerprint
from nspec_hf.systems import (
    ExperimentConfig,
    Run,
    make_system,
    pretrain,
    read_settings,
    run as systems,
    run_system,
)
from nspec_hf.systems.pipeline import check_training
from nspec_hf.training import SpecializationTrainer
from tests.helpers.tiny_experiment import Killed, experiment, result, scored
from tests.helpers.tiny_text import PAIRS


def config_of(file, *arguments):
    return read_settings(ExperimentConfig, [file, *map(str, arguments)])[0]


def test_of_two_processes_in_one_folder_the_second_is_refused_and_the_first_goes_on(based, tmp_path):
    folder, file = based
    base = folder / "work" / "base" / "model"
    config = config_of(file, "--base", base, "--work", tmp_path, "--results", tmp_path / "results")
    run = Run.of(config, "finetune")
    run.folder.mkdir(parents=True)
    with open(run.folder / ".lock", "a", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # what another process that runs this holds
        with pytest.raises(FolderInUseError, match="another process"):
            run_system(run, make_system("finetune"))
    assert [path.name for path in run.folder.iterdir()] == [".lock"]
    assert run_system(run, make_system("finetune")) is not None
    assert scored(result(tmp_path, "finetune")) == {*PAIRS, "de-fr", "fr-de"}


def test_what_took_several_sittings_is_timed_over_all_of_them(based, tmp_path, monkeypatch):
    """By a clock that recording moves by 50 seconds, and each of six parts of the test by 100."""
    folder, file = based
    base = folder / "work" / "base" / "model"
    config = config_of(file, "--base", base, "--work", tmp_path, "--results", tmp_path / "results")
    now, parts = [0.0], []
    record, translate, select = systems.record_corpus, Translator.translate_corpus, NeuronMasks.from_config

    def slow_record(*args):
        now[0] += 50
        return record(*args)

    def slow_translate(translator, texts):
        now[0] += 100
        parts.append(texts)
        if len(parts) == 3:
            raise Killed  # what was not kept is translated again, and counts once
        return translate(translator, texts)

    def dies_once(*args):
        monkeypatch.setattr(NeuronMasks, "from_config", select)
        raise Killed

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(generate, "_AT_ONCE", 1)
    monkeypatch.setattr(systems, "record_corpus", slow_record)
    monkeypatch.setattr(Translator, "translate_corpus", slow_translate)
    monkeypatch.setattr(NeuronMasks, "from_config", dies_once)
    run = Run.of(config, "neuron_specialization")
    for _ in range(2):  # once behind the recording, once in the decoding
        with pytest.raises(Killed):
            run_system(run, make_system("neuron_specialization"))
    run_system(run, make_system("neuron_specialization"))
    found = result(tmp_path, "neuron_specialization")
    assert len(parts) == 7
    assert found["decoding_seconds"] == 600
    assert found["extraction"]["seconds"] == 50


def test_a_result_says_which_weights_it_goes_on_from(based, tmp_path):
    folder, file = based
    base = folder / "work" / "base" / "model"
    config = config_of(file, "--base", base, "--work", tmp_path, "--results", tmp_path / "results")
    run_system(Run.of(config, "finetune"), make_system("finetune", {"continued_dropout": 0.0}))
    model = load_model(base)
    assert result(tmp_path, "finetune")["base_weights"] == weight_fingerprint(model)


def test_a_base_is_trained_by_one_process_at_a_time(tmp_path):
    file = experiment(tmp_path)
    folder = tmp_path / "work" / "base"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "a", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="another process"):
            pretrain(config_of(file))
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("system", ["base", "neuron_specialization"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_steps": 1.5}, "max_steps"),
        ({"max_step": 3}, "max_step"),
        ({"optim": "adamm"}, "adamm"),
        ({"report_to": "nothing"}, "nothing"),
        ({"lr_scheduler_type": "fast"}, "fast"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"nothing": 1}}, "nothing"),
        ({"metric_for_best_model": "eval_bleu", "load_best_model_at_end": True}, "eval_bleu"),
        ({"load_best_model_at_end": True, "save_steps": 3, "eval_steps": 2}, "saving steps"),
        ({"deepspeed": "nowhere.json"}, "nowhere|deepspeed"),
        ({"eval_strategy": "often"}, "often"),
        ({"data_seed": 3}, "BatchConfig"),
        ({"output_dir": "x"}, "output_dir"),
    ],
)
def test_wrong_arguments_of_the_trainer_are_told_before_any_work(
    tmp_path, monkeypatch, system, arguments, said
):
    for name in ("make_tokenizer", "load_model"):
        monkeypatch.setattr(f"nspec_hf.systems.pipeline.{name}", None)
    monkeypatch.setattr("nspec_hf.systems.run.load_model", None)
    phase = "pretrain" if system == "base" else "specialize"
    config = config_of(experiment(tmp_path), f"--{phase}.arguments", json.dumps(arguments))
    with pytest.raises(NspecError, match=said):
        pretrain(config) if system == "base" else run_system(Run.of(config, system), make_system(system))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("system", ["base", "finetune"])
def test_a_result_that_has_no_place_is_missed_before_training(based, tmp_path, monkeypatch, system):
    folder, file = based
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    base = folder / "work" / "base" / "model"
    config = config_of(
        file, "--work", tmp_path / "work", "--results", tmp_path / "file" / "results", "--base", base
    )
    work = {
        "base": lambda: pretrain(config),
        "finetune": lambda: run_system(Run.of(config, "finetune"), make_system("finetune")),
    }
    with pytest.raises(OSError, match=r"file.*cannot be written|cannot be written.*file"):
        work[system]()
    assert Path(tmp_path / "file").read_text(encoding="utf-8") == "kept"
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("system", "split", "settings"),
    [
        ("base", "train", {}),
        ("neuron_specialization", "valid", {}),
        ("lass", "train", {"updates": 1}),
        ("differentiation", "valid", {}),
        ("individual", "train", {"small_vocabulary": 40}),
    ],
)
def test_what_was_made_of_text_that_is_another_now_is_not_gone_on_with(
    based, tmp_path, monkeypatch, system, split, settings
):
    base = based[0] / "work" / "base" / "model"
    config = config_of(experiment(tmp_path), *(() if system == "base" else ("--base", base)))
    config = replace(config, data=replace(config.data, tiers={"de": "low", "fr": "low"}))

    def sitting():
        if system == "base":
            return pretrain(config)
        return run_system(Run.of(config, system), make_system(system, settings))

    def stop(self, *_args, **_more):
        if system != "lass" or "fine_tuned" not in self.args.output_dir:
            raise Killed
        return train(self)

    train = SpecializationTrainer.train
    monkeypatch.setattr(SpecializationTrainer, "train", stop)
    with pytest.raises(Killed):  # before there is a checkpoint, which says what text it is of
        sitting()
    files = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "text").glob(f"{split}.*")}
    for path, text in files.items():
        path.write_text("".join(reversed(text.splitlines(keepends=True))), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"begun with other settings \((corpus|validation): .* delete"):
        sitting()
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    with pytest.raises(Killed):
        sitting()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("tiers", {"en": "high", "fr": "high", "de": "low", "dee": "low"}),
        ("families", {"de": "germanic", "dee": "germanic"}),
        ("codes", {"dee": "de"}),
        ("corpus.lines_by_language", {"de": 5, "dee": 5}),
    ],
)
def test_a_language_that_no_direction_has_is_told_by_its_name(tmp_path, name, given):
    def check(given):
        config = config_of(experiment(tmp_path), f"--data.{name}", json.dumps(given))
        check_training(config.pretrain, tmp_path, config)

    with pytest.warns(UserWarning, match=rf"^data\.{name} has no effect for dee, which no direction has"):
        check(given)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="data")
        check({code: value for code, value in given.items() if code != "dee"})
