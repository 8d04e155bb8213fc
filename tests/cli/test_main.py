"""The command line itself: which commands there are, what they say of themselves, and how they fail."""

import inspect
import json
import subprocess
import sys
from importlib import import_module

import pytest

from nspec_hf import __version__
from nspec_hf.cli.main import COMMANDS, main

FROZEN = "record select train translate inspect export evaluate compare analyze probe report demo".split()


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


@pytest.mark.parametrize("name", FROZEN)
def test_every_command_explains_itself_and_each_of_its_arguments(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    function = getattr(import_module(f"nspec_hf.{COMMANDS[name][0]}"), name)
    assert f"nspec {name}" in said
    assert all(f"--{argument}" in said for argument in inspect.signature(function).parameters)
    before_arguments = inspect.getdoc(function).partition("Args:")[0].strip()
    assert f"nspec {name} " in before_arguments.partition("Example: ")[2]
    assert before_arguments in said


@pytest.mark.parametrize("name", FROZEN)
def test_every_argument_is_described_where_the_function_is(name):
    function = getattr(import_module(f"nspec_hf.{COMMANDS[name][0]}"), name)
    described = inspect.getdoc(function).partition("Args:")[2]
    assert all(f"\n    {argument}: " in described for argument in inspect.signature(function).parameters)
    assert f"nspec {name} " in inspect.getdoc(function).partition("Example: ")[2]


def test_an_unknown_command_is_answered_with_those_there_are(capsys):
    assert main(["reccord"]) == 2
    said = capsys.readouterr().err
    assert "'reccord'" in said
    assert "record, select" in said


def test_an_unknown_setting_leaves_with_status_2_and_is_named(capsys):
    with pytest.raises(SystemExit) as left:
        main(["select", "--coverage", "0.9"])
    assert left.value.code == 2
    assert "coverage" in capsys.readouterr().err


def test_a_setting_out_of_range_leaves_with_status_2_and_says_the_range(capsys, tmp_path):
    assert main(["select", "--stats", str(tmp_path / "none"), "--select.coverage", "1.5"]) == 2
    assert "(0, 1]" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line_and_status_2(capsys, tmp_path):
    assert main(["compare", "--baseline", str(tmp_path / "a"), "--system", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nspec compare: ")
    assert "Traceback" not in said


def test_help_loads_neither_torch_nor_matplotlib():
    code = "import json, sys; from nspec_hf.cli.main import main; main(['-h']); "
    code += "print(json.dumps([*sys.modules]))"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "matplotlib", "transformers"} & set(json.loads(said.splitlines()[-1]))


def test_recording_does_not_load_matplotlib():
    code = (
        "import json, sys; from nspec_hf.cli.main import main\n"
        "try: main(['record', '--help'])\n"
        "except SystemExit: print(json.dumps(list(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "matplotlib" not in json.loads(said.splitlines()[-1])
