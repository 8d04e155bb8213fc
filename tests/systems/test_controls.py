"""Controls as dense as neuron specialization: one mask for all pairs, and masks of other pairs."""

from dataclasses import replace

import pytest
import torch

from nspec_hf.core import ConfigError
from nspec_hf.masks import NeuronMasks
from nspec_hf.systems import SYSTEMS, ExperimentConfig, Run, make_system, read_settings
from tests.helpers.kin import kin_stats


@pytest.fixture(scope="module")
def specialized(based, tmp_path_factory):
    """Return a run, statistics in which every pair differs, and the specialized masks."""
    config, _ = read_settings(ExperimentConfig, [based[1]])
    run = Run(config=config, folder=tmp_path_factory.mktemp("run"), seed=3)
    return run, kin_stats(), NeuronMasks.from_coverage(kin_stats(), coverage=0.95)


def test_a_shared_mask_keeps_the_most_active_neurons_over_all_pairs_and_as_many_as_a_pair_keeps(specialized):
    run, stats, own = specialized
    shared = make_system("shared", {"coverage": 0.95}).select(stats, run)
    for site in own.sites:
        shares = [0.0] * site.width
        for pair in own.pairs:
            counts = stats[pair][site.name].tolist()
            for neuron, count in enumerate(counts):
                shares[neuron] += count / sum(counts) / len(own.pairs)
        kept = round(sum(int(own[pair][site.name].sum()) for pair in own.pairs) / len(own.pairs))
        ranked = sorted(range(site.width), key=lambda neuron: (-round(shares[neuron], 12), neuron))
        for pair in own.pairs:
            assert shared[pair][site.name].nonzero().flatten().tolist() == sorted(ranked[:kept])
    assert shared != own


def shared_with(own, pair, other):
    """Return the mean IoU of two pairs over the sites, counted neuron by neuron."""
    ious = []
    for site in own.keep:
        one, two = ({n for n, kept in enumerate(own[p][site].tolist()) if kept} for p in (pair, other))
        ious.append(len(one & two) / len(one | two))
    return sum(ious) / len(ious)


@pytest.mark.parametrize("seed", [1, 2])
def test_swapped_masks_are_those_of_other_pairs_that_share_least_in_all(specialized, seed):
    run, stats, own = specialized
    swapped = make_system("swapped", {"coverage": 0.95}).select(stats, replace(run, seed=seed))
    # The pair whose masks a pair got, by comparing whole sets of masks; the specialized ones must differ.
    givers = [
        [other for other in own.pairs if all(torch.equal(swapped[pair][s], own[other][s]) for s in own.keep)]
        for pair in own.pairs
    ]
    assert [len(found) for found in givers] == [1] * len(own.pairs)
    shared = {(pair, other): shared_with(own, pair, other) for pair in own.pairs for other in own.pairs}
    # The least total of the first n pairs, over every choice of n pairs that give them their masks.
    least = {frozenset(): 0.0}
    for pair in own.pairs:
        grown = {}
        for chosen, total in least.items():
            for other in {*own.pairs} - chosen - {pair}:
                key, value = chosen | {other}, total + shared[pair, other]
                grown[key] = min(grown.get(key, value), value)
        least = grown
    found = sum(shared[pair, other] for pair, (other,) in zip(own.pairs, givers, strict=True))
    assert sorted(other for (other,) in givers) == sorted(own.pairs)
    assert all(other != pair for pair, (other,) in zip(own.pairs, givers, strict=True))
    assert found == pytest.approx(least[frozenset(own.pairs)])


def test_pairs_that_keep_their_own_neurons_on_a_side_although_masks_are_swapped_are_told(specialized):
    run, _, _ = specialized
    stats = kin_stats()
    for site in stats.sites:
        if site.side == "encoder":
            stats.counts[site.name][1:] = stats.counts[site.name][:1]
    with pytest.warns(UserWarning, match=r"still en-de, .* keep their own neurons in the encoder"):
        make_system("swapped", {"coverage": 0.95}).select(stats, run)


def test_masks_of_one_side_are_swapped_too(based, tmp_path):
    config, _ = read_settings(ExperimentConfig, [based[1], "--select.sides", '["encoder"]'])
    run = Run(config=config, folder=tmp_path, seed=1)
    swapped = make_system("swapped", {"coverage": 0.95}).select(kin_stats(), run)
    own = NeuronMasks.from_coverage(kin_stats(), coverage=0.95, sides=["encoder"])
    assert swapped.keep.keys() == own.keep.keys()
    assert not any(
        torch.equal(swapped[pair][site], own[pair][site]) for pair in own.pairs for site in own.keep
    )


def test_a_single_pair_has_nothing_to_swap_with(based, tmp_path):
    config, _ = read_settings(ExperimentConfig, [based[1], "--data.pairs", '["en-de"]'])
    run = Run(config=config, folder=tmp_path, seed=1)
    with pytest.raises(ConfigError, match="two pairs or more"):
        make_system("swapped").check(run)


@pytest.mark.parametrize("by", ["source", "target", "separate"])
def test_masks_that_pairs_share_are_not_swapped_for_themselves(based, tmp_path, by):
    config, _ = read_settings(ExperimentConfig, [based[1], "--select.by", by])
    run = Run(config=config, folder=tmp_path, seed=1)
    with pytest.raises(ConfigError, match=f"by='{by}'"):
        make_system("swapped").check(run)
    make_system("swapped", {"by": "pair"}).check(run)


def test_dropout_of_the_continued_training_is_the_one_asked_for_and_else_the_base_s(specialized):
    run, _, _ = specialized
    for dropout in (0.0, 0.4):
        model = make_system("finetune", {"continued_dropout": dropout}).model(run)
        assert model.config.dropout == dropout
        assert {layer.dropout for layer in model.model.decoder.layers} == {dropout}
    assert make_system("finetune").model(run).config.dropout == run.base().config.dropout


@pytest.mark.parametrize("name", [name for name, kind in SYSTEMS.items() if name != "baseline"])
def test_a_dropout_that_is_none_is_refused_by_every_system_that_trains(name):
    with pytest.raises(ConfigError, match="continued_dropout"):
        make_system(name, {"continued_dropout": 1.5})
