"""A base install, simulated in a process of its own that cannot import the optional parts."""

import json
import subprocess
import sys

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


def run_without(commands, parts=OPTIONAL):
    """Return exit status and output of each command."""
    arguments = [sys.executable, "-c", PROGRAM, ",".join(parts), json.dumps(commands)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base_install")
    for name, ending in (("old", "a b c d e"), ("new", "a b c d f"), ("references", "a b c d f")):
        (folder / name).mkdir()
        (folder / name / "en-de.txt").write_text(f"{ending}\n" * 3, encoding="utf-8")
    sites = {f"model.{side}.layers.0.fc1": 6 for side in ("encoder", "decoder")}
    NeuronMasks.random(sites, ["en-de", "de-en"]).save_pretrained(folder / "masks")
    return folder


def test_commands_that_need_an_optional_part_name_it_and_write_nothing(folder):
    masks = ["--masks", str(folder / "masks")]
    commands = [
        ["demo", "--output", str(folder / "demo")],
        ["analyze", *masks, "--output", str(folder / "analysis")],
        ["report", *masks, "--output", str(folder / "report.html")],
        ["probe", *masks, "--model", "m", "--corpus.path", str(folder), "--output", str(folder / "probed")],
        ["serve", "--model", str(folder / "masks")],
    ]
    before = sorted(folder.iterdir())
    for command, (status, said) in zip(commands, run_without(commands), strict=True):
        assert status == 2, said
        assert said.count("\n") == 1, said
        if command[0] == "probe":  # it looks for the model first
            assert "m is no model's folder" in said
        else:
            extra = "serve" if command[0] == "serve" else "analysis"
            assert f"pip install 'nspec-hf[{extra}]'" in said
    assert sorted(folder.iterdir()) == before


def test_help_and_scores_need_none_of_them(folder):
    texts = ["--references", str(folder / "references"), "--metric", "bleu"]
    commands = [[name, "--help"] for name in ("demo", "analyze", "report", "probe")]
    commands += [
        ["evaluate", "--hypotheses", str(folder / "new"), *texts],
        ["compare", "--baseline", str(folder / "old"), "--system", str(folder / "new"), *texts],
    ]
    found = run_without(commands)
    assert [status for status, _ in found] == [0] * len(commands)
    assert "100.00" in found[-2][1]
    assert "better" in found[-1][1]
