"""From text to scores, when something stands in the way: another process, a result that has no place."""

import fcntl
from pathlib import Path

import pytest

from nspec_hf.core import FolderInUseError
from nspec_hf.systems import ExperimentConfig, Run, make_system, pretrain, read_settings, run_system
from nspec_hf.training import SpecializationTrainer
from tests.helpers.tiny_experiment import experiment, result, scored
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


def test_a_base_is_trained_by_one_process_at_a_time(tmp_path):
    file = experiment(tmp_path)
    folder = tmp_path / "work" / "base"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "a", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="another process"):
            pretrain(config_of(file))
    assert [path.name for path in folder.iterdir()] == [".lock"]


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
