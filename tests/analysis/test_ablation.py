import numpy as np
import pytest
import torch

from nspec_hf.analysis import ablate
from nspec_hf.analysis.ablation import erase_general, erase_specific
from nspec_hf.analysis.general_specific import general_neurons, specific_neurons
from nspec_hf.core import ConfigError, UnknownPairError
from nspec_hf.masks import NeuronMasks

PAIRS = ["en-de", "de-en", "en-fr"]
NAMES = ["model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1"]


@pytest.fixture
def masks() -> NeuronMasks:
    generator = torch.Generator().manual_seed(0)
    general = {name: torch.arange(60) < 30 for name in NAMES}
    keep = {name: (torch.rand(3, 60, generator=generator) < 0.4) | general[name] for name in NAMES}
    return NeuronMasks(PAIRS, keep, general=general)


def lost(before, after, name):
    gone = before.keep[name] & ~after.keep[name]
    assert not (after.keep[name] & ~before.keep[name]).any()
    return gone


def test_a_fifth_of_the_general_neurons_goes_for_every_pair(masks):
    erased = erase_general(masks, 0.2, seed=3)
    for name in NAMES:
        gone = lost(masks, erased, name)
        assert gone.sum(dim=1).tolist() == [6, 6, 6]
        assert (gone == gone[0]).all()
        assert not (gone & ~masks.general[name]).any()
        assert erased.general[name].sum() == 24


def test_each_pair_loses_half_of_its_own_neurons_and_no_general_one(masks):
    erased = erase_specific(masks, 0.5, seed=3)
    for name in NAMES:
        gone, own = lost(masks, erased, name), specific_neurons(masks)[name]
        assert gone.sum(dim=1).tolist() == [round(0.5 * count) for count in own.sum(dim=1).tolist()]
        assert not (gone & ~own).any()
        assert torch.equal(erased.general[name], masks.general[name])


def test_another_pairs_neurons_are_taken_from_all(masks):
    erased = erase_specific(masks, 0.5, of="de-en", seed=3)
    for name in NAMES:
        gone, own = lost(masks, erased, name), specific_neurons(masks)[name]
        assert gone[1].sum() == round(0.5 * int(own[1].sum()))
        # Others lose only what they share with it.
        assert torch.equal(gone, gone[1] & masks.keep[name])
        assert gone[0].sum() < gone[1].sum()


def test_a_larger_share_erases_a_superset_and_another_seed_other_neurons(masks):
    small, large = erase_general(masks, 0.2, seed=1), erase_general(masks, 0.6, seed=1)
    other = erase_general(masks, 0.2, seed=2)
    for name in NAMES:
        assert not (lost(masks, small, name) & ~lost(masks, large, name)).any()
        assert not torch.equal(lost(masks, small, name), lost(masks, other, name))


def test_masks_without_declared_general_neurons_lose_those_that_all_keep(masks):
    plain = NeuronMasks(PAIRS, masks.keep)
    erased = erase_general(plain, 0.5)
    for name in NAMES:
        common = int(general_neurons(plain)[name].sum())
        assert lost(plain, erased, name).sum(dim=1).tolist() == [round(0.5 * common)] * 3


def test_erased_masks_say_so_and_the_originals_are_untouched(masks):
    before = {name: keep.clone() for name, keep in masks.keep.items()}
    erased = erase_general(masks)
    assert "20% of the general neurons" in erased.recipe.derived[-1]
    assert all(torch.equal(masks.keep[name], before[name]) for name in NAMES)


def test_the_effect_is_the_score_after_minus_the_score_before(masks):
    def score(given):
        return {pair: float(given[pair][NAMES[0]].sum()) for pair in PAIRS if pair != "en-fr"}

    result = ablate(masks, score, of=["de-en"], seed=4)
    assert result.kinds == ("nothing", "general", "own", "of de-en")
    erased = [erase_general(masks, 0.2, 4), erase_specific(masks, 0.5, seed=4)]
    erased.append(erase_specific(masks, 0.5, of="de-en", seed=4))
    for row, given in enumerate(erased, start=1):
        for column, pair in enumerate(PAIRS[:2]):
            assert result.change[row, column] == score(given)[pair] - score(masks)[pair]
    assert np.isnan(result.score[:, 2]).all()
    assert (result.change[1:, :2] < 0).all()
    mean, change, own, others = result.mean_change(3)
    assert (mean, change) == (result.score[3, :2].mean(), result.change[3, :2].mean())
    assert (own, others) == (result.change[3, 1], result.change[3, 0])
    assert result.mean_change(1)[2:] == (None, None)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_out_of_range_is_refused(masks, share):
    with pytest.raises(ConfigError, match="share"):
        erase_general(masks, share)


def test_neurons_of_an_unknown_pair_cannot_be_erased(masks):
    with pytest.raises(UnknownPairError, match="en-xx"):
        erase_specific(masks, of="en-xx")


def test_a_pair_that_is_spelled_otherwise_is_the_same_pair_and_the_others_may_be_none(masks):
    def score(given):
        return {pair: float(given[pair][NAMES[0]].sum()) for pair in given.pairs}

    result = ablate(masks, score, of=["de->en"])
    assert result.kinds[3] == "of de-en"
    assert result.mean_change(3) == ablate(masks, score, of=["de-en"]).mean_change(3)
    alone = ablate(masks.subset(["de-en"]), score, of=["de-en"])
    assert alone.mean_change(3)[2:] == (alone.change[3, 0], None)
