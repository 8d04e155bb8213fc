"""Own neurons as a system: what it costs, whose they are, and that a stopped run ends the same."""

import pytest
import torch

from nspec_hf.core import ConfigError
from nspec_hf.masks import NeuronMasks
from tests.helpers.systems import TESTED, run, stopped, weights
from tests.helpers.tiny_experiment import result, scored
from tests.helpers.tiny_text import PAIRS

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")

LANGUAGES = len({language for pair in PAIRS for language in pair.split("-")})
WIDTH, MODEL, NEW = 24, 16, 6
"""Neurons of the tiny base's layers (one a side), its d_model, and a quarter of the neurons."""


@pytest.mark.parametrize(
    ("settings", "owners"),
    [
        ({}, len(PAIRS)),
        ({"owner": "separate"}, LANGUAGES),
        ({"owner": "all"}, 1),
        ({"old": "specialized", "coverage": 0.6}, len(PAIRS)),
    ],
)
def test_a_run_has_the_neurons_that_it_says(based, settings, owners):
    folder, file = based
    row = "_".join(["own", *map(str, settings.values())]).replace(".", "")
    run(file, "own_neurons", row, settings)
    found, at = result(folder, row), folder / "work" / row / "s1"
    new = owners * NEW
    assert found["extra_parameters"] == 2 * new * (2 * MODEL + 1)
    assert scored(found) == TESTED  # zero-shot pairs are composed
    masks, trained = NeuronMasks.from_pretrained(at / "masks"), weights(at)
    kept = dict.fromkeys(PAIRS, 0)
    for name, keep_PF in masks.keep.items():
        assert trained[f"{name}.weight"].shape == (WIDTH + new, MODEL)
        # New neurons have learned: the zeros that their columns began with are gone.
        columns = trained[f"{name.removesuffix('fc1')}fc2.weight"][:, WIDTH:]
        assert (columns.abs().sum(0) > 0).float().mean() > 0.5
        for row_number, pair in enumerate(masks.pairs):
            assert int(keep_PF[row_number, WIDTH:].sum()) == NEW
            kept[str(pair)] += int(keep_PF[row_number, :WIDTH].sum())
    whole = all(each == 2 * WIDTH for each in kept.values())
    assert whole == ("old" not in settings)


def test_a_killed_run_ends_with_the_same_weights(based, tmp_path):
    folder, file = based
    run(file, "own_neurons")
    stopped(folder, file, tmp_path, 2, "own_neurons")
    one, other = (weights(each / "own_neurons" / "s1") for each in (folder / "work", tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_masks_that_are_selected_anew_are_refused(based):
    _, file = based
    with pytest.raises(ConfigError, match="own neurons keep their masks"):
        run(file, "own_neurons", "anew", {"refresh_every": 2})
