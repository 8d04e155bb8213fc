"""A base install, simulated in a process of its own that cannot import the optional parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nspec_hf.masks import NeuronMasks

# jinja2 is missed too, but torch needs it, so a base install has it.
OPTIONAL = (
    *("pandas", "matplotlib", "scipy", "lingua", "evaluate", "datasets", "ctranslate2", "peft"),
    *("fastapi", "uvicorn"),
)
PROGRAM = """
import contextlib, importlib.machinery, io, json, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missed = name.partition(".")[0] in sys.argv[1].split(",")
        return None if missed else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
from nspec_hf.cli.main import main

for command in json.loads(sys.argv[2]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(command)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status or 0, said.getvalue()]))
"""


NEEDY = {
    "demo": [],
    "analyze": ["--masks", "masks"],
    "report": ["--masks", "masks"],
    "probe": ["--masks", "masks", "--model", "m", "--corpus.path", "."],
    "serve": ["--model", "masks"],
}
TEXTS = ["--references", "references", "--metric", "bleu"]
NOT_NEEDY = [
    *([name, "--help"] for name in ("demo", "analyze", "report", "probe")),
    ["evaluate", "--hypotheses", "new", *TEXTS],
    ["compare", "--baseline", "old", "--system", "new", *TEXTS],
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Return exit status and output of each command, and what the folder held before and after."""
    folder = tmp_path_factory.mktemp("base_install")
    for name, ending in (("old", "a b c d e"), ("new", "a b c d f"), ("references", "a b c d f")):
        (folder / name).mkdir()
        (folder / name / "en-de.txt").write_text(f"{ending}\n" * 3, encoding="utf-8")
    sites = {f"model.{side}.layers.0.fc1": 6 for side in ("encoder", "decoder")}
    NeuronMasks.random(sites, ["en-de", "de-en"]).save_pretrained(folder / "masks")
    before = sorted(folder.iterdir())
    commands = [[name, *arguments] for name, arguments in NEEDY.items()] + NOT_NEEDY
    arguments = [sys.executable, "-c", PROGRAM, ",".join(OPTIONAL), json.dumps(commands)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=folder, env=environment)
    return [json.loads(line) for line in found.stdout.splitlines()], before, sorted(folder.iterdir())


def test_commands_that_need_an_optional_part_name_it_and_write_nothing(answers):
    found, before, after = answers
    for command, (status, said) in zip(NEEDY, found, strict=False):
        assert status == 2, said
        assert said.count("\n") == 1, said
        if command == "probe":  # it looks for the model first
            assert "m is no model's folder" in said
        else:
            extra = "serve" if command == "serve" else "analysis"
            assert f"pip install 'nspec-hf[{extra}]'" in said
    assert after == before


def test_help_and_scores_need_none_of_them(answers):
    found = answers[0][len(NEEDY) :]
    assert [status for status, _ in found] == [0] * len(NOT_NEEDY)
    assert "100.00" in found[-2][1]
    assert "better" in found[-1][1]
