"""The names that code outside the package relies on, and what importing it costs."""

import inspect
import json
import subprocess
import sys

import pytest

import nspec_hf
from tests.helpers import fresh_python

FIXED = (
    "ActivationStats GateConfig NeuronGate NeuronMasks Pair PairBatchSampler PairCollator RecordConfig Site "
    "SpecializationCallback SpecializationTrainer Translator allocate_by_importance find_sites record "
    "select_by_coverage select_random"
).split()


def test_the_fixed_names_are_there():
    assert set(FIXED) <= set(nspec_hf.__all__)


@pytest.mark.parametrize("name", [name for name in nspec_hf.__all__ if not name.startswith("_")])
def test_every_public_name_loads_and_is_documented(name):
    value = getattr(nspec_hf, name)
    assert not inspect.ismodule(value)
    assert name == "READING_ORDER" or inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_names():
    with pytest.raises(AttributeError, match="NeuronGate"):
        nspec_hf.no_such_name  # noqa: B018


def run_python(code: str) -> str:
    """Return what a program prints in an interpreter that has loaded nothing."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_neither_matplotlib_nor_datasets_nor_torch():
    loaded = json.loads(
        run_python("import json, sys, nspec_hf; print(json.dumps([name for name in sys.modules]))")
    )
    assert not {"matplotlib", "datasets", "torch", "transformers"} & set(loaded)


@pytest.mark.parametrize("first", ["import nspec_hf.training.run", "import nspec_hf.recording.recorder"])
def test_record_is_the_function_whatever_was_imported_before(first):
    ended = fresh_python.run_python(f"{first}; from nspec_hf import record; print(callable(record))")
    assert ended.stdout.strip() == "True", ended.stderr


def test_signatures_hold():
    from nspec_hf import ActivationStats, NeuronGate, NeuronMasks, find_sites, record

    assert list(inspect.signature(find_sites).parameters)[:2] == ["model", "kinds"]
    assert list(inspect.signature(record).parameters)[:4] == ["model", "batches", "pairs", "config"]
    assert list(inspect.signature(NeuronGate).parameters) == ["model", "masks", "config"]
    for name in ("from_coverage", "from_importance", "random", "compose", "union", "subset", "density"):
        assert callable(getattr(NeuronMasks, name))
    for name in ("save_pretrained", "from_pretrained", "push_to_hub"):
        assert callable(getattr(NeuronMasks, name))
    for name in ("tokens", "sentences", "merge", "save", "load"):
        assert callable(getattr(ActivationStats, name))
    for name in ("attach", "detach", "use", "status", "read_languages"):
        assert callable(getattr(NeuronGate, name))
