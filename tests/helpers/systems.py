"""What tests of the compared systems share: a tiny base, runs by the recipe, runs that are killed."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import M2M100Config, M2M100ForConditionalGeneration

from tests.helpers.tiny_experiment import recipe, saving
from tests.helpers.tiny_text import PAIRS

TESTED = {*PAIRS, "de-fr", "fr-de"}


def run(file, system, row="", settings=None, options=()):
    """Run one system as the recipe does."""
    chosen = [part for name, value in (settings or {}).items() for part in (f"--settings.{name}", str(value))]
    named = ["--row", row] if row else []
    recipe("specialize")([file, "--system", system, *named, *chosen, *options])


def stopped(folder, file, elsewhere, saves, system, row="", settings=None):
    """Run a system on the same base in another folder, killed at its checkpoint number `saves`, and again."""
    options = ["--work", str(elsewhere), "--results", str(elsewhere / "results")]
    options += ["--base", str(folder / "work" / "base" / "model"), "--specialize.arguments.save_steps", "1"]
    with saving(kill=lambda _folder, _update, begun: begun == saves):
        run(file, system, row, settings, options)
    with pytest.warns(UserWarning, match="is not whole"):
        run(file, system, row, settings, options)


def weights(run_folder):
    """Return the weights that a run saved."""
    return load_file(run_folder / "model" / "model.safetensors")


def plain(batch):
    """Return a batch without its pairs."""
    return {name: value for name, value in batch.items() if name != "pair_ids"}


def shape(width, ffn, heads, vocabulary):
    """Return a model of a paper's size, 6 + 6 layers, without memory for its weights."""
    both = {"layers": 6, "attention_heads": heads, "ffn_dim": ffn}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in both.items()}
    with torch.device("meta"):
        return M2M100ForConditionalGeneration(M2M100Config(d_model=width, vocab_size=vocabulary, **sides))


def numbers(model):
    """Return how many parameters a model has."""
    return sum(each.numel() for each in model.parameters())
