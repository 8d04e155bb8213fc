"""A whole experiment of seconds, from text to scores, and the recipes that run it."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from nspec_hf.training import SpecializationTrainer
from tests.helpers.tiny_text import write_text

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


class Killed(BaseException):
    """Stands for kill -9."""


@contextmanager
def saving(kill: Callable[[str, int, int], bool] | None = None) -> Iterator[list[str]]:
    """Give the folders of the checkpoints that trainings write, in order.

    Args:
        kill: Told a checkpoint's folder, its update and how many were begun, says whether to die while it is
            written; then the block must end by that.
    """
    plain, written = SpecializationTrainer._save_rng_state, []

    def save(self, folder):
        written.append(folder)
        if kill is not None and kill(folder, self.state.global_step, len(written)):
            raise Killed
        return plain(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpecializationTrainer, "_save_rng_state", save)
        if kill is None:
            yield written
        else:
            with pytest.raises(Killed):
                yield written


def experiment(folder):
    """Write text and settings of a run of seconds; return the settings' file."""
    write_text(folder / "text", train=40, valid=8, test=4)
    batches = {"max_tokens": 128, "max_length": 32}
    arguments = {
        "save_steps": 2,
        "eval_steps": 2,
        "logging_steps": 1,
        "warmup_steps": 1,
        "disable_tqdm": True,
    }
    layers = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    content = {
        "name": "tiny",
        "work": str(folder / "work"),
        "results": str(folder / "results"),
        "data": {"corpus": {"path": str(folder / "text")}, "languages": ["en", "de", "fr"]},
        "vocabulary": {"size": 70},
        "model": {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "dropout": 0.1, **layers},
        "pretrain": {"batches": batches, "arguments": {**arguments, "max_steps": 4}},
        "specialize": {"batches": batches, "arguments": {**arguments, "max_steps": 2}},
        "translate": {"num_beams": 2, "length_extra": 4, "progress": False},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def recipe(name):
    """Return the `main` of a script."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where the types of its settings are looked up
    spec.loader.exec_module(module)
    return module.main


def result(folder, system):
    name = "tiny.base.json" if system == "base" else f"tiny.{system}.s1.json"
    return json.loads((folder / "results" / name).read_text(encoding="utf-8"))


def scored(found):
    """Return the directions of a result; every metric has the same."""
    pairs = {metric: {pair for own in by.values() for pair in own} for metric, by in found["scores"].items()}
    assert set(pairs) == {"bleu", "chrf++"}
    assert pairs["bleu"] == pairs["chrf++"]
    return pairs["bleu"]
