"""CONTRIBUTING's diffs apply to the package as it is, and what they add is there and works."""

import os
import re
import shutil
import subprocess

import pytest

from tests.helpers.fresh_python import run_python
from tests.helpers.pages import ROOT

PAGE = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = {
    title: re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## (Add .*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
USES = {
    "Add a system": """
from nspec_hf.systems import make_system
from tests.helpers.models import tiny_m2m100
model = tiny_m2m100()
make_system("frozen_encoder").freeze(model)
frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
assert "model.encoder.layers.0.fc1.weight" in frozen
assert not any(name.startswith("model.decoder") for name in frozen)
""",
    "Add a gate mode": """
import torch
from nspec_hf import GateConfig, NeuronGate, NeuronMasks, find_sites
from tests.helpers.models import tiny_m2m100
model = tiny_m2m100()
masks = NeuronMasks.random(find_sites(model), ["en-de", "de-en"], density=0.5, seed=1)
linear, x = model.model.encoder.layers[0].fc1, torch.randn(2, 3, model.config.d_model)
z, keep_F = linear(x), masks["de-en"]["model.encoder.layers.0.fc1"]
with NeuronGate(model, masks, GateConfig(mode="quiet")) as gate:
    gate.use("de-en")
    torch.testing.assert_close(linear(x), z * torch.where(keep_F, 1.0, 0.1))
""",
    "Add a tokenizer family": """
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from nspec_hf import LanguageTags
ids = {"<unk>": 0, "</s>": 1, "<lang:en>": 2, "<lang:de>": 3, "one": 4, "eins": 5}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="<unk>")), eos_token="</s>", unk_token="<unk>",
    additional_special_tokens=["<lang:en>", "<lang:de>"],
)
tags = LanguageTags(tokenizer)
assert (tags.family, tags.encode_source(["one"], "en-de"), tags.encode_target(["eins"], "en-de")) == (
    "lang", [[2, 4, 1]], [[3, 5, 1]]
)
""",
    "Add a check of the doctor": """
import shutil
from types import SimpleNamespace
from nspec_hf.doctor import CHECKS
from tests.helpers.models import tiny_m2m100
setup = SimpleNamespace(network=tiny_m2m100())
assert not list(CHECKS["disk"](setup))
shutil.disk_usage = lambda path: SimpleNamespace(free=1)
assert ["0.0 GiB are free" in finding.what for finding in CHECKS["disk"](setup)] == [True]
""",
    "Add a figure": """
from nspec_hf.analysis.mask_overlap import density
from nspec_hf.analysis.figures.registry import FIGURES
from nspec_hf.masks import NeuronMasks
masks = NeuronMasks.random({"model.encoder.layers.0.fc1": 10}, ["en-de", "de-en"], density=0.3, seed=1)
draw = {name: function for name, function, _ in FIGURES}["pair_density"]
assert [bar.get_width() for bar in draw(density(masks)).axes[0].patches] == [0.3, 0.3]
""",
}
"""Section → what a contributor would then do."""


def test_every_section_has_a_diff_and_a_use():
    assert list(DIFFS) == list(USES)
    assert all(DIFFS.values())


@pytest.mark.medium
@pytest.mark.parametrize("title", DIFFS)
def test_what_a_section_adds_works_in_a_copy(title, tmp_path):
    shutil.copytree(ROOT / "nspec_hf", tmp_path / "nspec_hf")
    shutil.copytree(ROOT / "tests" / "helpers", tmp_path / "tests" / "helpers")
    (tmp_path / "tests" / "__init__.py").touch()
    for diff in DIFFS[title]:
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=tmp_path, check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = run_python(USES[title], cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
