"""One folder of each format version, as it was written: the newest is read to the bit, older ones refused.

A format that is written otherwise gets a new number and a new folder; `golden()` says what is in them.
"""

from pathlib import Path

import pytest
import torch

from nspec_hf.core import FORMAT, ArtifactError
from nspec_hf.masks import MASKS_FILE, NeuronMasks, Recipe

FOLDER = Path(__file__).parent / "golden"
ENCODER, DECODER = "model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1"


def rows(*bits):
    return torch.tensor([[bit == "1" for bit in row] for row in bits])


def golden():
    """Two pairs at two sites of 11 and 8 neurons, general ones among them, with a whole recipe."""
    keep = {ENCODER: rows("11010001101", "10110001001"), DECODER: rows("01100110", "01011010")}
    general = {ENCODER: rows("10010001001")[0], DECODER: rows("01000010")[0]}
    recipe = Recipe(
        method="te",
        settings={"general": 0.4, "threshold": 0.7, "by": "pair"},
        base_model="some/base",
        revision="0123456789abcdef0123456789abcdef01234567",
        weight_fingerprint="0123456789abcdef",
        corpus={"name": "dev", "sentences": 1000},
        tokens={"en-de": 12345, "zh-CN->en": 678},
        versions={"nspec_hf": "0.1.0"},
        derived=("subset of 3 pairs",),
    )
    return NeuronMasks(["en-de", "zh-CN->en"], keep, general=general, recipe=recipe)


def test_there_is_a_folder_of_every_format():
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"format_{n}" for n in range(1, FORMAT + 1)]


def test_the_newest_is_read_to_the_bit():
    read, made = NeuronMasks.from_pretrained(FOLDER / f"format_{FORMAT}"), golden()
    assert read.pairs == made.pairs
    assert read.recipe == made.recipe
    for name in (ENCODER, DECODER):
        assert torch.equal(read.keep[name], made.keep[name])
        assert torch.equal(read.general[name], made.general[name])
    assert read["zh-CN->en"][DECODER].tolist() == [False, True, False, True, True, False, True, False]


def test_what_is_written_today_is_that_file(tmp_path):
    golden().save(tmp_path / MASKS_FILE)
    assert (tmp_path / MASKS_FILE).read_bytes() == (FOLDER / f"format_{FORMAT}" / MASKS_FILE).read_bytes()


def test_an_older_one_is_refused_by_name():
    with pytest.raises(ArtifactError, match="format 1, which this version no longer reads; make it again"):
        NeuronMasks.from_pretrained(FOLDER / "format_1")
