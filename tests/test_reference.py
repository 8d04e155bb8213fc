"""`make docs`: the reference is built from the docstrings and has every public name."""

import subprocess
import sys

import pytest

import nspec_hf
from tests.helpers.pages import ROOT


@pytest.mark.slow
def test_the_reference_has_a_place_for_every_public_name(tmp_path):
    modules = ["nspec_hf", *(f"nspec_hf.{room}" for room in nspec_hf.ROOMS)]
    command = [
        sys.executable,
        "-m",
        "pdoc",
        "--docformat",
        "google",
        "--output-directory",
        tmp_path,
        *modules,
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "nspec_hf.html").read_text(encoding="utf-8")
    missing = [name for name in nspec_hf.__all__ if f'id="{name}"' not in page and not name.startswith("_")]
    assert not missing
    assert all((tmp_path / "nspec_hf" / f"{room}.html").is_file() for room in nspec_hf.ROOMS)
