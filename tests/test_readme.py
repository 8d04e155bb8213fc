"""The README's commands and code do what they say: extracted from the text, then run or parsed."""

import importlib
import re
import shlex
from pathlib import Path

import jsonargparse
import pytest
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from nspec_hf.cli.main import COMMANDS
from nspec_hf.systems import ExperimentConfig, read_settings
from tests.helpers import tiny_text

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def commands(first: str) -> list[str]:
    return [line for line in SHELL if line.startswith(f"{first} ")]


def test_there_are_commands_to_test():
    assert commands("make")
    assert commands("nspec")
    assert len(PYTHON) >= 2


@pytest.mark.parametrize("line", commands("make"))
def test_every_make_command_is_a_target(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", commands("nspec"))
def test_every_nspec_command_has_these_settings(line):
    name, *arguments = shlex.split(line.split("<")[0].split(">")[0])[1:]
    function = getattr(importlib.import_module(f"nspec_hf.{COMMANDS[name][0]}"), name)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, as_positional=False, as_group=False)
    parser.parse_args(arguments)


@pytest.mark.parametrize("line", commands("python"))
def test_every_recipe_command_names_a_script_and_settings_that_are_there(line):
    script, *arguments = shlex.split(line)[1:]
    assert (ROOT / script).is_file()
    if script.endswith("bench.py"):
        return
    config = str(ROOT / arguments[0])
    extra = {"system": {"type": str, "default": ""}} if "specialize" in script else {}
    settings, _ = read_settings(ExperimentConfig, [config, *arguments[1:]], **extra)
    assert settings.data.trained_pairs()


def test_the_lines_for_an_existing_trainer_script_train_and_translate(tmp_path):
    pairs = ["en-de", "de-en"]
    tokenizer, model = tiny_text.tokenizer(), tiny_text.model()
    rows = [{"pair": pair, "source": "one two", "target": "eins zwei drei"} for pair in pairs * 2]
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "pairs": pairs,
        "train_dataset": rows,
        "Seq2SeqTrainer": Seq2SeqTrainer,
        "args": Seq2SeqTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        ),
    }
    exec("from nspec_hf import PairCollator", names)
    names["validation_batches"] = [names["PairCollator"](tokenizer, pairs)(rows)]
    before = model.model.encoder.layers[0].fc1.weight.detach().clone()
    exec(PYTHON[0], names)
    assert not before.equal(model.model.encoder.layers[0].fc1.weight)
    assert 0 < names["gate"].masks.density() < 1
    folder = tmp_path / "masks"
    exec(PYTHON[1].replace('"masks"', repr(str(folder))), names)
    assert (folder / "nspec_masks.safetensors").is_file()
