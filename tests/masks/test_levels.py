"""Masks that keep several coverages: each level is exactly what it is when it is selected alone."""

import copy
import pickle

import pytest
import torch

from nspec_hf.core import ArtifactError, ConfigError, read_artifact, write_artifact
from nspec_hf.masks import MASKS_FILE, NeuronMasks, SelectConfig
from nspec_hf.masks.hub import KIND
from tests.masks.test_select import PAIRS, made_up_stats

LEVELS = (1.0, 0.8, 0.4)
NEW = ["de-fr", "fr-de"]


@pytest.fixture
def stats():
    return made_up_stats()


@pytest.fixture
def masks(stats):
    return NeuronMasks.from_coverage(stats, 0.6, levels=LEVELS)


def same(one, other):
    """Return whether all is the same, the recipe too."""
    return one == other and one.recipe == other.recipe


def test_a_level_from_one_folder_is_exactly_what_is_selected_alone(stats, masks, tmp_path):
    masks.save_pretrained(tmp_path)
    kept = NeuronMasks.from_pretrained(tmp_path)
    alone = {coverage: NeuronMasks.from_coverage(stats, coverage) for coverage in (*LEVELS, 0.6)}
    assert len({own.fingerprint() for own in alone.values()}) == 4
    for coverage, own in alone.items():
        assert same(kept.at(coverage), own)
        for name, keep_PF in own.keep.items():
            assert torch.equal(kept.at(coverage).keep[name], keep_PF)


def test_masks_without_levels_are_the_same_file_as_before_there_were_levels(stats, masks, tmp_path):
    NeuronMasks.from_coverage(stats, 0.6).save_pretrained(tmp_path / "plain")
    masks.save_pretrained(tmp_path / "levels")
    plain = NeuronMasks.from_pretrained(tmp_path / "plain")
    assert (plain.levels, plain.fingerprint()) == ({}, masks.fingerprint())
    plain.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plain" / MASKS_FILE).read_bytes()
    assert b"levels" not in (tmp_path / "again").read_bytes()
    assert b"levels" in (tmp_path / "levels" / MASKS_FILE).read_bytes()


def test_a_level_takes_a_bit_a_neuron_more(masks):
    own = sum((keep_PF.shape[1] + 7) // 8 * len(PAIRS) for keep_PF in masks.keep.values())
    held = sum(level.at(name).bits.tensor.nbytes for level in masks.levels.values() for name in level)
    assert held == len(LEVELS) * own


def test_masks_made_of_others_keep_their_levels(stats, masks, tmp_path):
    """Each must be what the level alone gives, in memory and read from a file."""
    made = {
        "subset": lambda each: each.subset(PAIRS[1:]),
        "union": lambda each: each.union("all"),
        "composed": lambda each: each.compose(NEW),
    }
    for name, make in made.items():
        make(masks).save(tmp_path / name)
        for kept in (make(masks), NeuronMasks.from_pretrained(tmp_path / name)):
            for level in LEVELS:
                assert same(kept.at(level), make(NeuronMasks.from_coverage(stats, level)))
                assert kept.at(level) != make(masks)


def test_composing_like_other_masks_composes_the_levels(stats, masks):
    composed = masks.compose_like(NeuronMasks.from_coverage(stats, 0.9).compose(NEW))
    for level in LEVELS:
        assert composed.at(level) == NeuronMasks.from_coverage(stats, level).compose(NEW)


def test_a_file_whose_levels_are_not_stated_or_not_there_is_refused(masks, tmp_path):
    masks.save(tmp_path / "masks")
    tensors, stated = read_artifact(tmp_path / "masks", KIND)
    described = {name: stated[name] for name in ("pairs", "sites", "general", "recipe")}
    write_artifact(tmp_path / "more", tensors, {**described, "levels": [0.8, 1.0]}, KIND)
    with pytest.raises(ArtifactError, match=r"tensors that it does not describe: 0\.4/keep/"):
        NeuronMasks.from_pretrained(tmp_path / "more")
    write_artifact(tmp_path / "less", tensors, {**described, "levels": [*LEVELS, 0.2]}, KIND)
    with pytest.raises(ArtifactError, match=r"does not describe masks .*0\.2/keep/"):
        NeuronMasks.from_pretrained(tmp_path / "less")


def test_a_level_has_the_others_beside_it_and_leads_back(stats, masks):
    for level in LEVELS:
        chosen = masks.at(level)
        assert sorted(chosen.levels) == sorted({*LEVELS, 0.6} - {level})
        for other in (*LEVELS, 0.6):
            assert same(chosen.at(other), NeuronMasks.from_coverage(stats, other))
    uneven = NeuronMasks.from_coverage(stats, 0.6, coverage_decoder=0.9, levels=(0.8, 0.4))
    assert list(uneven.at(0.8).levels) == [0.4]  # 0.6 alone would not say it


def test_levels_are_nested_and_the_sparser_is_less_dense(masks):
    for denser, sparser in ((1.0, 0.8), (0.8, 0.6), (0.6, 0.4)):
        assert masks.at(denser).density() > masks.at(sparser).density()
        for name, keep_PF in masks.at(sparser).keep.items():
            assert not (keep_PF & ~masks.at(denser).keep[name]).any()


def test_a_level_that_is_not_there_is_refused_with_those_that_are(stats, masks):
    with pytest.raises(ConfigError, match=r"no masks of coverage 0\.5 .* 0\.4, 0\.8, 1 .*themselves: 0\.6"):
        masks.at(0.5)
    with pytest.raises(ConfigError, match="no levels"):
        NeuronMasks.from_coverage(stats, 0.6).at(0.8)


def test_a_coverage_of_the_encoder_alone_does_not_stand_for_both_sides(stats):
    uneven = NeuronMasks.from_coverage(stats, 0.6, coverage_decoder=0.9, levels=(0.8,))
    with pytest.raises(ConfigError, match=r"no masks of coverage 0\.6"):
        uneven.at(0.6)
    assert same(uneven.at(0.8), NeuronMasks.from_coverage(stats, 0.8))


def test_levels_must_fit_and_need_a_coverage(stats, masks):
    with pytest.raises(ConfigError, match=r"level 0\.8 have other pairs, sites or widths"):
        NeuronMasks(PAIRS, masks.keep, levels={0.8: masks.subset(PAIRS[:1]).keep})
    with pytest.raises(ConfigError, match="levels are coverages"):
        NeuronMasks.from_config(stats, SelectConfig(method="random"), levels=(0.8,))
    with pytest.raises(ConfigError, match="coverage"):
        NeuronMasks.from_coverage(stats, 0.6, levels=(1.2,))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))])
def test_levels_are_copied_along(masks, duplicate):
    assert all(same(duplicate(masks).at(level), masks.at(level)) for level in LEVELS)


def test_masks_for_the_hub_keep_their_levels(masks):
    assert all(same(masks.without_paths("a/b").at(level), masks.at(level)) for level in LEVELS)


def test_a_coverage_may_have_a_name(stats):
    for name, coverage in (("sparse", 0.6), ("paper", 0.95)):
        assert same(NeuronMasks.from_coverage(stats, name), NeuronMasks.from_coverage(stats, coverage))
        assert SelectConfig(coverage=name) == SelectConfig(coverage=coverage)
    with pytest.raises(ConfigError, match="a share, paper, sparse; got 'dense'"):
        SelectConfig(coverage="dense")
