"""The command line itself: which commands there are, what they say of themselves, and how they fail."""

import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters

from nspec_hf import __version__
from nspec_hf.cli.main import _OF_A_TRAINING, COMMANDS, main, underscored
from nspec_hf.data import CorpusConfig, LanguageTags
from nspec_hf.systems import DataConfig, ExperimentConfig, Run, whole_run
from nspec_hf.training import TrainConfig, record_corpus
from tests.helpers import killed, tiny_text

FROZEN = (
    "run record select train translate inspect serve add-pair export evaluate compare analyze doctor probe "
    "publish report demo"
).split()


def test_the_commands_are_these():
    assert list(COMMANDS) == FROZEN


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_and_the_pipeline(arguments, capsys):
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in FROZEN)
    assert "nspec record    --model MODEL" in said


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nspec {__version__}\n"


def parameters(name):
    """Return a command's arguments, with those that it passes on to the function below it."""
    function = getattr(import_module(f"nspec_hf.{COMMANDS[name][0]}"), name.replace("-", "_"))
    return {each.name: each for each in get_signature_parameters(function)}


@pytest.mark.parametrize("name", FROZEN)
def test_every_command_explains_itself_and_each_of_its_arguments(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    function = getattr(import_module(f"nspec_hf.{COMMANDS[name][0]}"), name.replace("-", "_"))
    assert f"nspec {name}" in said
    assert all(f"--{argument}" in said for argument in parameters(name))
    before_arguments = inspect.getdoc(function).partition("Args:")[0].strip()
    assert f"nspec {name} " in before_arguments.partition("Example: ")[2]
    assert before_arguments in said


@pytest.mark.parametrize("name", FROZEN)
def test_every_argument_is_described_where_the_function_is(name):
    assert all(each.doc for each in parameters(name).values())


def test_an_unknown_command_is_answered_with_those_there_are(capsys):
    assert main(["reccord"]) == 2
    said = capsys.readouterr().err
    assert "'reccord'" in said
    assert "record, select" in said


def test_an_unknown_setting_leaves_with_status_2_and_is_named(capsys):
    with pytest.raises(SystemExit) as left:
        main(["select", "--coverages", "0.9"])
    assert left.value.code == 2
    assert "coverage" in capsys.readouterr().err


def test_a_setting_out_of_range_leaves_with_status_2_and_says_the_range(capsys, tmp_path):
    for flag in ("--select.coverage", "--coverage"):
        assert main(["select", "--stats", str(tmp_path / "none"), flag, "1.5"]) == 2
        assert "(0, 1]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--comet-out", "--comet_out"),
        ("--train.max-steps=5", "--train.arguments.max_steps=5"),
        ("--specialize.bf16", "--specialize.arguments.bf16"),
        ("--train.arguments.seed", "--train.arguments.seed"),
        ("--train.batches.max_tokens", "--train.batches.max_tokens"),
        ("--train.patience", "--train.patience"),
        ("--train", "--train"),
        ("--select.coverage", "--select.coverage"),
        ("en-de", "en-de"),
        ("--codes.pt-BR", "--codes.pt-BR"),
        ("--codes.pt-BR=pt-x", "--codes.pt-BR=pt-x"),
        ("--data.codes.zh-CN", "--data.codes.zh-CN"),
        ("--corpus.lines-by-language.pt-BR", "--corpus.lines_by_language.pt-BR"),
    ],
)
def test_an_argument_of_the_trainer_needs_no_name_of_what_holds_it(typed, meant):
    assert underscored(typed) == meant
    assert {field.name for field in fields(TrainConfig)} == set(_OF_A_TRAINING)


def test_an_error_of_ours_is_one_line_and_status_2(capsys, tmp_path):
    assert main(["compare", "--baseline", str(tmp_path / "a"), "--system", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nspec compare: ")
    assert "Traceback" not in said


HEAVY = {"torch", "transformers", "accelerate", "safetensors", "datasets", "pandas", "scipy", "matplotlib"}


@pytest.fixture(scope="module")
def loaded_for_help():
    """Which slow modules are loaded once a command has explained itself, one command after the other."""
    code = (
        "import contextlib, io, json, sys\n"
        "from nspec_hf.cli.main import COMMANDS, main\n"
        "loaded = {}\n"
        "for arguments in [[], *([name, '--help'] for name in COMMANDS)]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main(arguments)\n"
        "    loaded[' '.join(arguments[:1])] = [*sys.modules]\n"
        "print(json.dumps(loaded))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return {name: HEAVY & set(modules) for name, modules in json.loads(said).items()}


@pytest.mark.parametrize("name", ["", *FROZEN])
def test_help_loads_no_library_that_takes_seconds(name, loaded_for_help):
    assert not loaded_for_help[name]


def test_the_module_is_the_same_command_line():
    said = subprocess.run(
        [sys.executable, "-m", "nspec_hf", "--version"], check=True, capture_output=True, text=True
    ).stdout
    assert said == f"nspec {__version__}\n"


def test_an_interrupted_command_says_so_in_one_line_and_leaves_with_130(monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("nspec_hf.masks.NeuronMasks.from_pretrained", interrupted)
    assert main(["inspect", "--path", "masks"]) == 130
    assert capsys.readouterr().err == "nspec inspect: interrupted\n"


def test_what_reads_the_output_may_go():
    command = f"{sys.executable} -m nspec_hf --help | true; echo ${{PIPESTATUS[0]}}"
    said = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True)
    assert said.stdout == "141\n"
    assert said.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "nspec_hf", "--help"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "nspec: [Errno 28] No space left on device\n"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_ctrl_c_ends_a_command_and_its_workers_at_once_with_one_line(tmp_path):
    sentences = [f"a sentence of six words number {number}" for number in range(400)]
    for folder, ending in (("one", " a"), ("two", " b"), ("gold", "")):
        (tmp_path / folder).mkdir()
        for pair in ("en-de", "de-en", "en-fr"):
            lines = "".join(f"{line}{ending}\n" for line in sentences)
            (tmp_path / folder / f"{pair}.txt").write_text(lines, encoding="utf-8")
    # A shell that starts the tests in the background has them ignore Ctrl-C, and what they start too.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from nspec_hf.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "compare", "--baseline", "one", "--system", "two"]
    command += ["--references", "gold", "--n_samples", "10000000", "--n_jobs", "3"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(workers.read_text(encoding="utf-8").split()) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    numbers = workers.read_text(encoding="utf-8").split()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "nspec compare: interrupted\n"
    assert not any(Path(f"/proc/{number}").exists() for number in numbers)


WRITERS = [
    ["record", "--model", "absent", "--pairs", "en-de", "--corpus.path", "absent"],
    ["select", "--stats", "absent"],
    ["train", "--model", "absent", "--corpus.path", "absent"],
    ["translate", "--model", "absent", "--pair", "en-de"],
    ["export", "--model", "absent", "--pairs", "en-de", "--masks", "absent"],
    ["add-pair", "--model", "absent", "--pairs", "en-de", "--corpus.path", "absent"],
    ["evaluate", "--hypotheses", "absent", "--references", "absent"],
    ["compare", "--baseline", "absent", "--system", "absent", "--references", "absent"],
    ["analyze", "--masks", "absent"],
    ["report", "--masks", "absent"],
    ["probe", "--model", "absent", "--masks", "absent", "--corpus.path", "absent"],
]


@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "file").write_text("kept")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main([*command, "--output", "file/result"]) == 2
    assert re.search(r"cannot be written.*file/result", capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("command", WRITERS)
def test_a_folder_that_is_read_only_is_named_before_the_work_and_stays_as_it_is(command):
    with tempfile.TemporaryDirectory() as name:  # pytest's own may be entered by its user alone
        folder = Path(name)
        (folder / "closed").mkdir()
        (folder / "closed").chmod(0o555)
        folder.chmod(0o777)
        status = killed.run(folder, [*command, "--output", "closed/result"], as_nobody=True)
        said = (folder / "said.txt").read_text(encoding="utf-8")
        assert status == 2
        assert re.search(r"cannot be written.*closed/result", said)
        assert len(said.splitlines()) == 1
        assert not list((folder / "closed").iterdir())


def test_a_folder_that_an_export_may_not_fill_is_named_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    command = ["export", "--model", "absent", "--pairs", "en-de", "--output", str(tmp_path)]
    assert main(command) == 2
    assert f"{tmp_path} is there already; give a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_lists_need_no_brackets_on_the_command_line(tmp_path, capsys):
    for folder in ("ours", "gold"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "eng_Latn-deu_Latn.txt").write_text("ein Hund rennt\n", encoding="utf-8")
    told = ["--hypotheses", f"{tmp_path}/ours", "--references", f"{tmp_path}/gold"]
    assert main(["evaluate", *told, "--metric", "ter, chrf++", "--style", "json"]) == 0
    # Out of English, as NLLB spells it.
    row = {"pair": "eng_Latn-deu_Latn", "group": "one-to-many", "ter": 0.0, "chrf++": 100.0}
    assert json.loads(capsys.readouterr().out)[0]["rows"] == [row]


def test_a_command_that_is_printed_names_folders_as_a_shell_takes_them(tmp_path, capsys):
    stats, output = tmp_path / "my counts.safetensors", tmp_path / "my masks"
    network = tiny_text.model()
    tags = LanguageTags(tiny_text.tokenizer())
    record_corpus(network, tags, tiny_text.corpus(8)).save(stats)
    assert main(["select", "--stats", str(stats), "--output", str(output)]) == 0
    printed = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])
    assert printed[-3:] == ["train", "--masks", str(output)]
    config = ExperimentConfig(
        data=DataConfig(corpus=CorpusConfig(path="text"), pairs="en-de"), work=str(output)
    )
    run = Run.of(config, "neuron_specialization")
    printed = shlex.split(whole_run._ending(run, output / "report.html").rpartition("next: ")[2])
    model, masks = (str(run.folder / part) for part in ("model", "masks"))
    words = ["translate", "--model", model, "--masks", masks, "--pair", "en-de"]
    assert printed[printed.index("translate") :][:7] == words
