"""The rules applied to statistics: which rows, which sites, which groups, and what the recipe says."""

from dataclasses import replace

import pytest
import torch

from nspec_hf.core import ConfigError, EmptyPairError
from nspec_hf.masks import NeuronMasks, Recipe, SelectConfig, allocate_by_importance, select_by_coverage
from nspec_hf.recording import ActivationStats, RecordConfig, site_from_name

ENCODER = "model.encoder.layers.0.fc1"
DECODER = "model.decoder.layers.0.fc1"
CROSS_KEYS = "model.decoder.layers.0.encoder_attn.k_proj"
PAIRS = ["en-de", "de-en", "en-fr", "fr-en"]


def made_up_stats(pairs=PAIRS, sites=None, seed=0, base=None, corpus=None):
    """Return statistics with random counts and importance; every pair and side has other tokens."""
    config = RecordConfig(av=True, te=True, kinds=("ffn", "attention"))
    sites = sites or {ENCODER: 24, DECODER: 20, CROSS_KEYS: 16}
    stats = ActivationStats(pairs, sites, config, base, corpus)
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*stats.counts.values(), *stats.token_counts.values(), stats.sentence_counts]:
        tensor.copy_(torch.randint(1, 200, tensor.shape, generator=generator))
    for sums in stats.sums.values():
        for tensor in sums.values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
    return stats


def test_coverage_selects_each_pair_and_feed_forward_site_on_its_own():
    stats = made_up_stats()
    masks = NeuronMasks.from_config(stats, SelectConfig(coverage=0.8))
    assert list(masks.keep) == [ENCODER, DECODER]
    assert masks.pairs == PAIRS
    assert masks.general is None
    for row, pair in enumerate(PAIRS):
        for name in masks.keep:
            assert torch.equal(masks.keep[name][row], select_by_coverage(stats[pair][name], 0.8))
    assert 0 < masks.keep[ENCODER].sum() < masks.keep[ENCODER].numel()


@pytest.mark.parametrize("by", ["pair", "target", "separate"])
def test_chance_draws_for_each_site_and_group_whatever_other_pairs_there_are(by):
    config = SelectConfig(coverage=0.6, temperature=0.3, by=by)
    masks, own = (
        NeuronMasks.from_config(made_up_stats(), each) for each in (config, replace(config, temperature=0.0))
    )
    assert masks != own
    for pair in PAIRS:
        for site in masks.sites:
            assert masks.density(pair, site.name) == own.density(pair, site.name)
    for site in masks.sites:
        for one in PAIRS:
            for other in PAIRS:
                if torch.equal(own[one][site.name], own[other][site.name]):  # a group shares its draw
                    assert torch.equal(masks[one][site.name], masks[other][site.name])
    assert NeuronMasks.from_config(made_up_stats(), replace(config, seed=2)) != masks
    if by == "pair":
        fewer = NeuronMasks.from_config(made_up_stats().subset(PAIRS[2:]), config)
        assert all(
            torch.equal(fewer[pair][site], masks[pair][site]) for pair in PAIRS[2:] for site in fewer.keep
        )


@pytest.mark.parametrize("by", ["pair", "separate"])
def test_groups_and_sites_of_the_same_activity_are_drawn_apart(by):
    stats = made_up_stats(sites={ENCODER: 40, ENCODER.replace("0", "1"): 40})
    alike = stats.counts[ENCODER][0].clone()
    for counts_PF in stats.counts.values():
        counts_PF[:] = alike  # so groups have the same shares too
    masks = NeuronMasks.from_config(stats, SelectConfig(coverage=0.6, temperature=1.0, by=by))
    groups = {
        (pair if by == "pair" else pair.source, site): tuple(masks[pair][site].tolist())
        for pair in masks
        for site in masks.keep
    }
    drawn = set(groups.values())
    assert len(drawn) == len(groups) == (8 if by == "pair" else 6)


def test_the_recipe_says_what_was_left_to_chance():
    plain = NeuronMasks.from_config(made_up_stats(), SelectConfig(coverage=0.6)).recipe.settings
    assert not {"temperature", "seed"} & plain.keys()
    drawn = NeuronMasks.from_config(made_up_stats(), SelectConfig(temperature=0.3, seed=4)).recipe.settings
    assert (drawn["temperature"], drawn["seed"]) == (0.3, 4)
    assert (
        NeuronMasks.from_config(made_up_stats(), SelectConfig(method="random")).recipe.settings["seed"] == 1
    )


def test_the_recipe_says_whether_importance_is_that_of_a_smoothed_loss():
    stats = made_up_stats()
    assert "label_smoothing" not in NeuronMasks.from_importance(stats).recipe.settings
    stats.config = replace(stats.config, label_smoothing=0.1)
    assert NeuronMasks.from_importance(stats).recipe.settings["label_smoothing"] == 0.1
    assert "label_smoothing" not in NeuronMasks.from_importance(stats, score="av").recipe.settings


@pytest.mark.parametrize("method", ["coverage", "te", "random"])
def test_only_the_selected_sides_get_masks(method):
    masks = NeuronMasks.from_config(made_up_stats(), SelectConfig(method=method, sides=("encoder",)))
    assert list(masks.keep) == [ENCODER]
    assert masks.recipe.settings["sides"] == ["encoder"]


def test_a_side_without_sites_is_refused_and_a_decoder_only_model_is_not():
    stats = made_up_stats(sites={DECODER: 20})
    with pytest.raises(ConfigError, match="no site of the side encoder"):
        NeuronMasks.from_config(stats, SelectConfig(sides=("encoder",)))
    assert list(NeuronMasks.from_config(stats, SelectConfig()).keep) == [DECODER]


def test_statistics_without_feed_forward_sites_cannot_be_selected_by_coverage():
    with pytest.raises(ConfigError, match="feed-forward"):
        NeuronMasks.from_config(made_up_stats(sites={CROSS_KEYS: 16}), SelectConfig())


@pytest.mark.parametrize("score", ["te", "av"])
def test_importance_is_allocated_site_by_site(score):
    stats = made_up_stats()
    masks = NeuronMasks.from_config(stats, SelectConfig(method=score, general=0.5, threshold=0.6))
    for name in (ENCODER, DECODER, CROSS_KEYS):
        keep_PF, general_F = allocate_by_importance(stats.importance(score)[name], 0.5, 0.6)
        assert torch.equal(masks.keep[name], keep_PF)
        assert torch.equal(masks.general[name], general_F)


def recorded_as_one(stats, members):
    """Return the statistics that recording some pairs under one name would have given."""
    sites = {site.name: site.width for site in stats.sites}
    merged = ActivationStats(list(members), sites, stats.config)
    for row, pairs in enumerate(members.values()):
        rows = [stats.pairs.index(pair) for pair in pairs]
        for name, tensor in merged.tensors().items():
            tensor[row] = stats.tensors()[name][rows].sum(dim=0)
    return merged


@pytest.mark.parametrize(
    ("by", "encoder", "decoder"),
    [("source", 0, 0), ("target", 1, 1), ("separate", 0, 1)],
)
def test_pairs_that_share_a_language_get_what_recording_them_as_one_pair_would_give(by, encoder, decoder):
    stats = made_up_stats()
    masks = NeuronMasks.from_config(stats, SelectConfig(method="te", general=0.5, threshold=0.6, by=by))
    for name, position in ((ENCODER, encoder), (DECODER, decoder), (CROSS_KEYS, decoder)):
        members = {}
        for pair in stats.pairs:
            members.setdefault(f"{(pair.source, pair.target)[position]}-xx", []).append(pair)
        assert len(members) == 3
        importance_GF = recorded_as_one(stats, members).importance("te")[name]
        keep_GF, general_F = allocate_by_importance(importance_GF, 0.5, 0.6)
        for group, pairs in enumerate(members.values()):
            for pair in pairs:
                assert torch.equal(masks.keep[name][PAIRS.index(pair)], keep_GF[group])
        assert torch.equal(masks.general[name], general_F)


@pytest.mark.parametrize(
    ("by", "encoder", "decoder"),
    [("source", 0, 0), ("target", 1, 1), ("separate", 0, 1)],
)
def test_coverage_of_pairs_that_share_a_language_is_that_of_their_counts_together(by, encoder, decoder):
    stats = made_up_stats()
    masks = NeuronMasks.from_config(stats, SelectConfig(coverage=0.7, by=by))
    for name, position in ((ENCODER, encoder), (DECODER, decoder)):
        for row, pair in enumerate(stats.pairs):
            language = (pair.source, pair.target)[position]
            alike = [each for each in stats.pairs if (each.source, each.target)[position] == language]
            together = sum(stats[each][name] for each in alike)
            assert torch.equal(masks.keep[name][row], select_by_coverage(together, 0.7))
    assert not torch.equal(
        masks.keep[ENCODER], NeuronMasks.from_config(stats, SelectConfig(coverage=0.7)).keep[ENCODER]
    )
    assert masks.recipe.settings["by"] == by


def test_the_decoder_may_have_a_coverage_of_its_own():
    stats = made_up_stats()
    masks = NeuronMasks.from_config(stats, SelectConfig(coverage=0.8, coverage_decoder=0.5))
    for row, pair in enumerate(stats.pairs):
        assert torch.equal(masks.keep[ENCODER][row], select_by_coverage(stats[pair][ENCODER], 0.8))
        assert torch.equal(masks.keep[DECODER][row], select_by_coverage(stats[pair][DECODER], 0.5))
    assert masks.recipe.settings["coverage_decoder"] == 0.5


def test_rows_that_never_fired_are_named_in_one_warning():
    stats = made_up_stats()
    stats.counts[ENCODER][1] = 0
    stats.counts[DECODER][2] = 0
    with pytest.warns(
        UserWarning, match=rf"nothing is kept.*de-en at {ENCODER}, en-fr at {DECODER}"
    ) as caught:
        masks = NeuronMasks.from_config(stats, SelectConfig())
    assert len(caught) == 1
    assert not masks.keep[ENCODER][1].any()
    stats.sums["te"][ENCODER][3] = 0
    with pytest.warns(UserWarning, match="general neurons only is kept.*fr-en"):
        NeuronMasks.from_config(stats, SelectConfig(method="te"))


def test_importance_that_was_not_recorded_or_of_an_empty_pair_is_refused():
    with pytest.raises(ConfigError, match="te"):
        NeuronMasks.from_config(ActivationStats(["en-de"], {ENCODER: 8}), SelectConfig(method="te"))
    stats = made_up_stats()
    stats.sentence_counts[2] = 0
    with pytest.raises(EmptyPairError, match="en-fr"):
        NeuronMasks.from_config(stats, SelectConfig(method="te"))


def test_statistics_in_which_no_neuron_of_a_pair_fired_give_no_masks():
    stats = made_up_stats()
    for counts_PF in stats.counts.values():
        counts_PF[1] = 0
    with pytest.raises(EmptyPairError, match="no neuron ever fired for de-en"):
        NeuronMasks.from_config(stats, SelectConfig())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_importance_that_is_not_finite_gives_no_masks(value):
    stats = made_up_stats()
    stats.sums["te"][DECODER][2, 5] = value
    with pytest.raises(ConfigError, match="importance must be finite"):
        NeuronMasks.from_config(stats, SelectConfig(method="te"))


def test_the_recipe_says_how_to_make_the_masks_again():
    base = {"id": "some/base", "revision": "abc", "fingerprint": "0123456789abcdef"}
    stats = made_up_stats(base=base, corpus={"name": "dev"})
    recipe = NeuronMasks.from_config(stats, SelectConfig(method="av", general=0.8, by="target")).recipe
    assert recipe.method == "av"
    assert recipe.settings == {
        "general": 0.8,
        "threshold": 0.7,
        "by": "target",
        "sides": ["encoder", "decoder"],
        "count": "tokens",
        "active_on": "product",
    }
    assert (recipe.base_model, recipe.revision, recipe.weight_fingerprint) == tuple(base.values())
    assert recipe.corpus == {"name": "dev"}
    assert recipe.tokens == {pair: stats.tokens(pair) for pair in PAIRS}
    assert set(recipe.versions) == {"nspec_hf", "torch", "transformers"}


def test_random_masks_keep_exactly_the_density_everywhere_and_differ():
    masks = NeuronMasks.random({ENCODER: 24, DECODER: 30}, PAIRS, density=0.7, seed=5)
    assert masks.keep[ENCODER].sum(dim=1).tolist() == [round(0.7 * 24)] * 4
    assert masks.keep[DECODER].sum(dim=1).tolist() == [21] * 4
    assert len({tuple(row.tolist()) for row in masks.keep[DECODER]}) == 4
    chosen = NeuronMasks.from_config(made_up_stats(), SelectConfig(method="random", density=0.7, seed=5))
    assert {name: keep_PF.sum(dim=1).tolist() for name, keep_PF in chosen.keep.items()} == {
        ENCODER: [17] * 4,  # 16.8 of 24
        DECODER: [14] * 4,
        CROSS_KEYS: [11] * 4,  # 11.2 of 16
    }
    assert torch.equal(chosen.keep[ENCODER], masks.keep[ENCODER])


def test_a_random_mask_depends_on_seed_site_and_pair_alone():
    widths = {ENCODER: 24, DECODER: 24}
    first = NeuronMasks.random(widths, PAIRS, seed=5)
    again = NeuronMasks.random(dict(reversed(widths.items())), ["xx-yy", *reversed(PAIRS)], seed=5)
    for name in widths:
        for row, pair in enumerate(PAIRS):
            assert torch.equal(first.keep[name][row], again.keep[name][again.pairs.index(pair)])
    assert not torch.equal(first.keep[ENCODER], first.keep[DECODER])
    assert not torch.equal(first.keep[ENCODER], NeuronMasks.random(widths, PAIRS, seed=6).keep[ENCODER])


def test_random_masks_are_the_same_on_every_machine():
    # Drawn once and written down: a change would silently change what a published seed means.
    keep_F = NeuronMasks.random({ENCODER: 16}, ["en-de"], density=0.5, seed=1).keep[ENCODER][0]
    assert keep_F.nonzero()[:, 0].tolist() == [1, 3, 5, 10, 11, 13, 14, 15]


def test_random_masks_like_others_keep_as_many_neurons_in_every_row():
    like = NeuronMasks.from_config(made_up_stats(), SelectConfig(method="te", general=0.3))
    drawn = NeuronMasks.random(like=like, seed=2)
    assert drawn.general is None
    for name, keep_PF in like.keep.items():
        assert torch.equal(drawn.keep[name].sum(dim=1), keep_PF.sum(dim=1))
        assert not torch.equal(drawn.keep[name], keep_PF)
    assert drawn.recipe.tokens == like.recipe.tokens


def test_the_fingerprint_stands_for_neurons_pairs_and_widths_not_for_the_order_of_sites():
    masks = NeuronMasks.random({ENCODER: 24, DECODER: 20}, PAIRS)
    turned = NeuronMasks(
        pairs=PAIRS,
        keep={name: masks.keep[name] for name in reversed(masks.keep)},
        recipe=Recipe(method="te"),
    )
    assert masks.fingerprint() == turned.fingerprint()
    changed = {name: keep_PF.clone() for name, keep_PF in masks.keep.items()}
    changed[DECODER][3, 19] ^= True
    wider = {**masks.keep, DECODER: torch.nn.functional.pad(masks.keep[DECODER], (0, 1))}
    others = [
        NeuronMasks(pairs=PAIRS, keep=changed),
        NeuronMasks(pairs=[*PAIRS[:3], "xx-en"], keep=masks.keep),
        NeuronMasks(pairs=PAIRS, keep=wider),
        NeuronMasks(pairs=PAIRS, keep={**masks.keep, "model.encoder.layers.1.fc1": masks.keep[ENCODER]}),
        NeuronMasks(pairs=PAIRS, keep=masks.keep, general={n: k.all(dim=0) for n, k in masks.keep.items()}),
    ]
    assert len({masks.fingerprint(), *(each.fingerprint() for each in others)}) == 6


def booleans(*shape):
    return torch.arange(int(torch.tensor(shape).prod())).reshape(shape) % 2 == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": []}, "0 pairs"),
        ({"keep": {}}, "0 sites"),
        ({"pairs": ["en-de", "en-de"]}, "named again: en-de"),
        ({"keep": {ENCODER: booleans(2, 8).long()}}, "int64"),
        ({"keep": {ENCODER: booleans(3, 8)}}, r"\[2 pairs, F\], got \[3, 8\]"),
        ({"keep": {ENCODER: booleans(8)}}, r"got \[8\]"),
        ({"keep": {ENCODER: booleans(2, 0)}}, r"got \[2, 0\]"),
        ({"general": {}}, f"not in both: {ENCODER}"),
        ({"general": {ENCODER: booleans(7)}}, r"shape \[8\], got \[7\]"),
        ({"general": {ENCODER: ~booleans(8)}}, "silenced for a pair"),
    ],
)
def test_tensors_that_are_no_masks_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        NeuronMasks(**{"pairs": ["en-de", "de-en"], "keep": {ENCODER: booleans(2, 8)}, **changes})


def test_a_choice_is_not_changed_by_its_giver():
    keep_PF = booleans(2, 8)
    masks = NeuronMasks(pairs=["en-de", "de-en"], keep={ENCODER: keep_PF})
    keep_PF.fill_(True)
    assert torch.equal(masks.keep[ENCODER], booleans(2, 8))
    with pytest.raises(TypeError):
        masks.keep[DECODER] = keep_PF


def test_the_tokens_of_keys_that_look_at_the_source_are_the_sources():
    # Otherwise the test of pooled groups would not see which side's tokens weigh the importance.
    assert site_from_name(CROSS_KEYS, 16).side == "decoder"
    assert site_from_name(CROSS_KEYS, 16).positions == "encoder"
