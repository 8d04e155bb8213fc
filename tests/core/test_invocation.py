"""Commands that are printed for the user, run by a shell as they were printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import nspec_hf
from nspec_hf import __version__
from nspec_hf.core import exit_status, program
from tests.helpers import tiny_text


def say(command):
    """Return what a shell prints for a command."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A script that stands for the one that pip installs, below the current folder."""
    folder = tmp_path / "an environment" / "bin"
    folder.mkdir(parents=True)
    path = folder / "nspec"
    path.write_text('#!/bin/sh\necho "called with $1"\n', encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(path), "record"])
    return path


def test_a_script_that_is_not_on_the_path_is_named_by_its_place(script):
    assert program() == "'an environment/bin/nspec'"
    assert say(f"{program()} select") == "called with select"


def test_a_script_in_the_current_folder_is_not_looked_for_on_the_path(script, monkeypatch):
    monkeypatch.chdir(script.parent)
    assert say(f"{program()} select") == "called with select"


def test_a_script_on_the_path_is_named_alone(script, monkeypatch):
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    assert program() == "nspec"
    assert say(f"{program()} select") == "called with select"


def test_another_script_of_that_name_on_the_path_is_not_meant(script, monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "nspec").write_text("#!/bin/sh\necho another\n", encoding="utf-8")
    (other / "nspec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}{os.pathsep}{os.environ['PATH']}")
    assert say(f"{program()} select") == "called with select"


def test_a_module_is_called_by_its_interpreter(monkeypatch):
    folder = Path(nspec_hf.__file__).parent
    monkeypatch.setattr("sys.argv", [str(folder / "__main__.py"), "record"])
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    assert program().endswith(" -m nspec_hf")
    assert say(f"{program()} --version") == f"nspec {__version__}"


def test_elsewhere_the_name_stands_alone(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest"])
    assert program() == "nspec"


LIBRARY = """
import logging, warnings
def remind():
    logging.getLogger(__name__).warning("a reminder")
    warnings.warn("a warning of torch")
def fail():
    logging.getLogger(__name__).error("an error")
"""


def test_libraries_are_quiet_and_a_warning_of_ours_is_one_line():
    code = (
        "from nspec_hf.core import quiet_libraries, warn\n"
        f"library = {{'__name__': 'torch.optim'}}; exec({LIBRARY!r}, library)\n"
        "with quiet_libraries('nspec train'):\n"
        "    library['remind'](); library['fail'](); warn('two\\n  lines')\n"
        "print('now', file=__import__('sys').stderr)\n"
        "library['remind']()"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    quiet, _, loud = ended.stderr.partition("now\n")
    assert quiet == "an error\nnspec train: warning: two lines\n"
    assert "a reminder" in loud
    assert "a warning of torch" in loud


LIBRARIES = {
    "torch": lambda path: torch.save(torch.zeros(100_000), path),
    "safetensors": lambda path: save_file({"weight": torch.zeros(100_000)}, path),
    "tokenizers": lambda path: tiny_text.tokenizer().backend_tokenizer.save(str(path)),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_file_that_a_library_cannot_write_for_want_of_room_is_one_line(library, tmp_path, capsys):
    resource = pytest.importorskip("resource", reason="needs limits of a process")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        status = exit_status("nspec train", lambda: LIBRARIES[library](tmp_path / "file"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("nspec train: a file could not be written; is the disk full")
    assert said.count("\n") == 1


def test_another_error_of_a_library_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        exit_status("nspec train", lambda: torch.zeros(2) @ torch.zeros(3, 4))
