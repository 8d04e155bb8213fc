"""A result travels with its recipe: versions, hardware and every setting, as JSON."""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest

from nspec_hf.core import plain, versions, write_result
from nspec_hf.core.provenance import hardware
from nspec_hf.data import CorpusConfig
from nspec_hf.gating import GateConfig
from nspec_hf.systems import DataConfig, ExperimentConfig


def test_versions_are_those_that_are_installed():
    found = versions()
    for name in ("torch", "transformers", "accelerate", "sacrebleu"):
        assert found[name] == importlib.metadata.version(name)
    assert {"nspec_hf", "python"} <= found.keys()


def test_hardware_says_what_ran():
    found = hardware()
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["threads"] >= 1
    assert isinstance(found["gpus"], list)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": (1, 2.5), 3: {True}}, {"a": [1, 2.5], "3": [True]}),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (float("nan"), None),
        (float("inf"), None),
        (Path("a/b"), "a/b"),
        (None, None),
        (True, True),
    ],
)
def test_values_become_plain(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)


def test_a_setting_becomes_a_dict_of_its_fields():
    assert plain(GateConfig(mode="gradient"))["mode"] == "gradient"


def test_a_result_holds_all_settings_and_is_whole_or_absent(tmp_path):
    config = ExperimentConfig(data=DataConfig(corpus=CorpusConfig(path="text"), languages=["en", "de"]))
    path = tmp_path / "results" / "a.json"
    write_result(path, {"bleu": 12.5, "loss": float("nan")}, config)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["bleu"], found["loss"]) == (12.5, None)
    recipe = found["recipe"]
    assert recipe["config"]["data"]["languages"] == ["en", "de"]
    assert recipe["config"]["select"]["coverage"] == 0.95
    assert recipe["versions"] == versions()
    assert recipe["hardware"] == hardware()

    class Broken:
        def __str__(self):
            raise RuntimeError("no text")

    with pytest.raises(RuntimeError):
        write_result(path, {"bleu": Broken()}, config)
    assert json.loads(path.read_text(encoding="utf-8")) == found
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]
