"""The pages' commands and code do what they say: taken from the text, then run; links lead somewhere."""

import importlib
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonargparse
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from nspec_hf.cli.main import COMMANDS, main, spelled_out, underscored
from nspec_hf.core import with_lists
from nspec_hf.systems import ExperimentConfig, read_settings
from recipes.bench import __main__ as bench, big_model, processes, text_scale
from tests.helpers import tiny_text
from tests.helpers.pages import GIVEN, PAGES, README, ROOT, blocks, shell

PAIRS = ["en-de", "de-en"]
STEPS = "{max_steps: 2, learning_rate: 0.01, warmup_steps: 1, logging_steps: 1, eval_steps: 2, save_steps: 2}"
DECODING = "--translate.num_beams 1 --translate.length_ratio 0.5 --translate.length_extra 6"
SMALL = {
    "run": "--max_steps 2 --batch_tokens 60 --compare.n_samples 50 --specialize.arguments.logging_steps 1 "
    f"--specialize.eval_steps 2 --specialize.save_steps 2 {DECODING}",
    "train": f"--train.batches.max_tokens 60 --train.batches.max_length 60 --train.arguments '{STEPS}'",
    "add-pair": f"--train.batches.max_tokens 60 --train.batches.max_length 60 --train.arguments '{STEPS}'",
    "translate": DECODING,
    "compare": "--n_samples 50 --n_jobs 1",
    "probe": f"--lines 4 --sizes [4] --seeds [1] {DECODING}",
    "export": "--export.sample 4 --export.max_new_tokens 20",
    "analyze": "--figures false",
}
"""Settings that make a command of a page a matter of seconds."""
SMALL_RECIPES = {
    "compare": "--rows finetune ns allocation_te --seeds 1 --jobs 1 --compare.n_samples 50",
    "untrained": "--rows finetune ns --seeds 1",
}
SMALL_TRAINING = {
    "batches": {"max_tokens": 256, "max_length": 32},
    "arguments": {"max_steps": 2, "warmup_steps": 1, "logging_steps": 1, "disable_tqdm": True}
    | {"eval_steps": 2, "save_steps": 2, "learning_rate": 0.01},
}
SMALL_EXPERIMENT = {
    "results": "results",
    "vocabulary": {"size": 80},
    "model": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    | {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2},
    "pretrain": SMALL_TRAINING,
    "specialize": SMALL_TRAINING,
    "translate": {"num_beams": 1, "length_ratio": 0.5, "length_extra": 4, "progress": False},
    # In place of a plan's rows, of which not every plan has one of these names.
    "compare": {"rows": {"finetune": {}, "ns": {"system": "neuron_specialization"}, "allocation_te": {}}},
}
"""The same for a recipe and the YAML file that it reads."""


def loaded(name):
    """Return a recipe's module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where the types of its settings are looked up
    spec.loader.exec_module(module)
    return module


_WITH_OPTIONS = "disjoint_english exports frontier lab lab_diagram serve_load smaller smaller_shapes".split()


def every(program):
    """Return the lines of a program on all pages, each once, with its page."""
    lines = {line: page for page in PAGES for line in shell(page, program)}
    return [
        pytest.param(line, id=f"{page.stem}-{number}") for number, (line, page) in enumerate(lines.items())
    ]


def test_there_are_commands_and_code_to_test():
    assert {"make", "nspec"} <= {line.split()[0] for line in shell(README)}
    assert len(blocks(README, "python")) == 2
    programs = {line.split()[0] for page in PAGES for line in shell(page)}
    assert programs <= {"make", "nspec", "python", "mkdir", "git", "accelerate"}


def test_the_readme_is_read_in_five_minutes():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def anchors(page):
    """Return what GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        assert "://" in target or (page.parent / target).exists(), target
        assert not anchor or anchor in anchors(page.parent / target if target else page), anchor
    named = re.findall(r"`((?:nspec_hf|tests|recipes|\.github|\.ci)/[\w./*-]+)`", text)
    for path in named:
        assert list(ROOT.glob(path.rstrip("/"))) or "NAME" in path, path
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text):
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_of_a_recipe_that_a_sentence_names_are_its_own(page):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for script, rest in re.findall(r"`(?:python )?(recipes/\w+\.py)([^`]*)`", prose):
        for option in re.findall(r"--([\w-]+)", rest):
            text = (ROOT / script).read_text(encoding="utf-8")
            assert re.search(rf"\b{option.replace('-', '_')}\b", text), f"{script} --{option}"


@pytest.mark.parametrize("line", every("make"))
def test_every_make_command_is_a_target(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", every("nspec"))
def test_every_nspec_command_has_these_settings(line):
    name, *arguments = shlex.split(line.split("<")[0].split(">")[0])[1:]
    function = getattr(importlib.import_module(f"nspec_hf.{COMMANDS[name][0]}"), name.replace("-", "_"))
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(function, as_positional=False, as_group=False)
    if "--config" in arguments:  # its file is run below; here, what stands beside it
        parser.add_argument("--config")
        arguments += ["--data.corpus.path", "data"] if name == "run" else []
    typed = spelled_out(function, [underscored(argument) for argument in arguments])
    parser.parse_args(with_lists(parser, typed))


@pytest.mark.parametrize("line", every("python"))
def test_every_recipe_command_has_these_settings(line):
    script, *arguments = shlex.split(line)[1:]
    if script == "-m":
        assert arguments[0].startswith("recipes.bench")
        names = {"": bench, ".processes": processes, ".big_model": big_model, ".text_scale": text_scale}
        parts = {f"recipes.bench{name}": module for name, module in names.items()}
        assert parts[arguments[0]].read_options(arguments[1:])
    elif Path(script).stem in _WITH_OPTIONS:
        assert loaded(Path(script).stem).read_options(arguments)
    elif script.endswith("add_language.py"):
        config, _ = loaded("add_language").read_options([str(ROOT / arguments[0]), *arguments[1:]])
        assert config.data.trained_pairs()
    else:
        config = str(ROOT / arguments[0])
        rest = [str(ROOT / each) if each.startswith("recipes/") else each for each in arguments[1:]]
        text, settings = {"type": str, "default": ""}, {"type": dict, "default": {}}
        of_a_run = {"row": text, "settings": settings, "seed": {"type": int, "default": 1}}
        levels = {"type": float, "nargs": "+", "default": []}
        extras = {"specialize": {**of_a_run, "system": text}, "dial": {**of_a_run, "levels": levels}}
        extras["figures"] = {"row": text, "lines": {"type": int, "default": 0}}
        extra = extras.get(Path(script).stem, {})
        settings, _ = read_settings(ExperimentConfig, [config, *rest], **extra)
        assert settings.data.trained_pairs()


@pytest.mark.parametrize("line", every("accelerate"))
def test_every_launch_has_these_settings(line):
    arguments = launch_command_parser().parse_args(shlex.split(line)[2:])
    for path in (arguments.config_file, arguments.training_script):
        assert (ROOT / path).is_file()


def with_recipes(page):
    return [line for line in shell(page, "python") if re.search(r"recipes/(pre|spec|comp|untr)", line)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [page for page in PAGES if with_recipes(page)], ids=lambda page: page.stem)
def test_the_recipe_commands_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    """With the page's files and a last one that makes text, model and training small."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    text = tmp_path / "data" / "multi30k"
    tiny_text.write_text(text, train=40, val=8, test_2016_flickr=4, test_2018_flickr=4)
    for split in ("train", "val", "test_2016_flickr", "test_2018_flickr"):
        shutil.copy(text / f"{split}.de", text / f"{split}.cs")
    shutil.copytree(text, tmp_path / "data" / "multi30k_disjoint")
    verses = tmp_path / "data" / "bible"
    tiny_text.write_text(verses, train=40, dev=8, test=4)
    for split in ("train", "dev", "test"):
        for code in "cs es he eo pl pt sv zh da hr nn no sl".split():
            shutil.copy(verses / f"{split}.de", verses / f"{split}.{code}")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL_EXPERIMENT), encoding="utf-8")
    for line in with_recipes(page):
        script, *arguments = shlex.split(line)[1:]
        name = Path(script).stem
        more = ["--config", "small.yaml", *shlex.split(SMALL_RECIPES.get(name, ""))]
        assert not loaded(name).main([*arguments, *more]), line
    assert any((tmp_path / "results").glob("*.base.json"))


@pytest.mark.medium
@pytest.mark.parametrize("page", [page for page in PAGES if shell(page, "nspec")], ids=lambda page: page.stem)
def test_the_nspec_commands_of_a_page_run_one_after_the_other_as_they_stand(page, tmp_path, monkeypatch):
    """With a tiny model under the name of the page's, and few updates, beams and trials."""
    monkeypatch.chdir(tmp_path)
    tiny_text.write_text(tmp_path / "data", train=40, valid=16, test=10)
    shutil.copy(tmp_path / "data" / "test.en", "in.txt")
    (tmp_path / "facebook").mkdir()
    for part in (tiny_text.model(), tiny_text.tokenizer()):
        part.save_pretrained("facebook/m2m100_418M")
    for part in (tiny_text.model(), tiny_text.tokenizer(languages=("eng_Latn", "deu_Latn", "fra_Latn"))):
        part.save_pretrained("facebook/nllb-200-distilled-600M")
    for block in blocks(page, "yaml"):
        file = re.match(r"# (\w+\.yaml)\n", block)
        if file:
            Path(file[1]).write_text(block, encoding="utf-8")
    for line in shell(page):
        program, *arguments = shlex.split(line)
        if program == "mkdir":
            subprocess.run([program, *arguments], check=True)
        if program != "nspec" or arguments[0] in ("demo", "serve"):  # `serve` runs in tests/serving
            continue
        printed = io.StringIO()
        monkeypatch.setattr("sys.stdout", printed)
        status = main([*arguments, *shlex.split(SMALL.get(arguments[0], ""))])
        assert status in ((0, 1) if arguments[0] == "doctor" else (0,)), line  # 1: it has found something
        outputs = [arguments[at + 1] for at, each in enumerate(arguments) if each == "--output"]
        assert all((tmp_path / output).exists() for output in outputs), line
        assert outputs or printed.getvalue().strip(), line


def trainer_script(folder):
    """Return what a page's Python leaves to the reader's script."""
    tokenizer, model = tiny_text.tokenizer(), tiny_text.model()
    rows = [{"pair": pair, "source": "one two", "target": "eins zwei drei"} for pair in PAIRS * 2]
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "pairs": PAIRS,
        "train_dataset": rows,
        "Seq2SeqTrainer": Seq2SeqTrainer,
        "args": Seq2SeqTrainingArguments(
            output_dir=str(folder),
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
    names["validation_batches"] = [names["PairCollator"](tokenizer, PAIRS)(rows)]
    return names


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_the_python_of_a_page_trains_and_translates(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_text.write_text(tmp_path / "data", train=40, valid=8, test=4)
    names = trainer_script(tmp_path / "run")
    before = names["model"].model.encoder.layers[0].fc1.weight.detach().clone()
    for block in blocks(page, "python"):
        exec(block, names)
    assert not before.equal(names["model"].model.encoder.layers[0].fc1.weight)
    assert 0 < names["gate"].masks.density() < 1
    if page == README:
        assert (tmp_path / "masks" / "nspec_masks.safetensors").is_file()


def test_what_the_type_checker_takes_as_given_is_what_a_script_has(tmp_path):
    given = re.findall(r"^    (\w+): ", GIVEN, re.MULTILINE)
    assert set(given) <= set(trainer_script(tmp_path))
