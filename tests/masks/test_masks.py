"""NeuronMasks: rows by pair, composition, union, subset, density, and the check against a model."""

import copy
import pickle

import pytest
import torch

from nspec_hf.core import ConfigError, Pair, SiteMismatchError, UnknownPairError
from nspec_hf.masks import NeuronMasks, SelectConfig, select_by_coverage
from nspec_hf.recording import Site, find_sites
from tests.helpers.models import tiny_m2m100
from tests.masks.test_select import DECODER, ENCODER, PAIRS, made_up_stats

WIDTHS = {ENCODER: 24, DECODER: 20}


@pytest.fixture
def masks():
    return NeuronMasks.random(WIDTHS, PAIRS, density=0.6, seed=3)


def test_masks_are_found_by_pair_and_by_site(masks):
    assert masks.pairs == PAIRS
    assert all(isinstance(pair, Pair) for pair in masks)
    assert [(site.name, site.width, site.side) for site in masks.sites] == [
        (ENCODER, 24, "encoder"),
        (DECODER, 20, "decoder"),
    ]
    for row, pair in enumerate(PAIRS):
        assert masks.index(pair) == row
        assert list(masks[pair]) == [ENCODER, DECODER]
        assert torch.equal(masks[Pair(pair)][DECODER], masks.keep[DECODER][row])
    assert "en-de" in masks
    assert "de-fr" not in masks
    assert len(masks) == 4


def test_a_pair_is_held_by_every_name_that_its_masks_are_found_by(masks):
    for name in ("en->de", "en--de", " en - de", Pair("en", "de")):
        assert torch.equal(masks[name][DECODER], masks["en-de"][DECODER])
        assert name in masks
    assert "all" in masks.union("all")
    assert not any(name in masks for name in ("all", "de->fr", "en-de-fr", "", 1, None))


def test_masks_of_more_or_fewer_pairs_than_are_named_are_refused(masks):
    assert NeuronMasks(PAIRS, masks.keep) == masks
    for named in (PAIRS[:1], [*PAIRS, "de-fr"]):
        with pytest.raises(ConfigError, match=rf"of 4 pairs, but {len(named)} are named"):
            NeuronMasks(named, masks.keep)


def test_a_pair_without_masks_is_refused_with_those_that_have_some(masks):
    with pytest.raises(UnknownPairError, match=r"'en-xx'.*masks hold: de-en, en-de, en-fr, fr-en"):
        masks["en-xx"]


def test_each_constructor_and_the_settings_give_the_same_masks():
    stats = made_up_stats()
    by_coverage = NeuronMasks.from_coverage(stats, coverage=0.8, sides=("decoder",))
    assert list(by_coverage.keep) == [DECODER]
    assert torch.equal(by_coverage["fr-en"][DECODER], select_by_coverage(stats["fr-en"][DECODER], 0.8))
    config = SelectConfig(method="coverage", coverage=0.8, sides=("decoder",))
    assert by_coverage == NeuronMasks.from_config(stats, config)
    by_importance = NeuronMasks.from_importance(stats, "av", general=0.5, threshold=0.6, by="separate")
    config = SelectConfig(method="av", general=0.5, threshold=0.6, by="separate")
    assert by_importance == NeuronMasks.from_config(stats, config)
    assert by_importance.general is not None
    by_chance = NeuronMasks.from_config(stats, SelectConfig(method="random", density=0.4, seed=9))
    assert by_chance == NeuronMasks.random(stats.sites, PAIRS, density=0.4, seed=9)
    assert by_chance.recipe.tokens == by_coverage.recipe.tokens


def test_a_score_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="'coverage'"):
        NeuronMasks.from_importance(made_up_stats(), "coverage")


def test_random_masks_like_others_have_their_density_everywhere():
    like = NeuronMasks.from_coverage(made_up_stats(), 0.8)
    drawn = NeuronMasks.random(like=like, seed=4)
    assert drawn != like
    for pair in PAIRS:
        for name in like.keep:
            assert drawn.density(pair, name) == like.density(pair, name)
    assert drawn.recipe.settings == {"density_like": like.fingerprint(), "seed": 4}


@pytest.mark.parametrize(
    "arguments",
    [{}, {"sites": WIDTHS}, {"pairs": PAIRS}, {"like": True, "density": 0.5}, {"like": True, "pairs": PAIRS}],
)
def test_random_masks_need_one_way_to_know_their_density(masks, arguments):
    if "like" in arguments:
        arguments = {**arguments, "like": masks}
    with pytest.raises(ConfigError, match="like"):
        NeuronMasks.random(**arguments)


def test_a_composed_pair_has_the_encoder_of_its_source_and_the_decoder_of_its_target(masks):
    composed = masks.compose(Pair("de", "fr"), pivot="en")
    assert composed.pairs == [*PAIRS, "de-fr"]
    assert composed.index("de-fr") == 4
    assert torch.equal(composed["de-fr"][ENCODER], masks["de-en"][ENCODER])
    assert torch.equal(composed["de-fr"][DECODER], masks["en-fr"][DECODER])
    # Not the other way round, and the rows that were there are as they were.
    assert not torch.equal(masks["de-en"][ENCODER], masks["en-fr"][ENCODER])
    assert composed.subset(PAIRS) == masks
    assert composed.recipe.derived == ("de-fr composed through en",)


def test_pairs_of_nllb_are_composed_through_its_english(masks):
    code = {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn"}
    nllb = NeuronMasks([Pair(code[pair.source], code[pair.target]) for pair in masks.pairs], masks.keep)
    composed, usual = nllb.compose("deu_Latn-fra_Latn"), masks.compose("de-fr")
    assert composed.recipe.derived == ("deu_Latn-fra_Latn composed through eng_Latn",)
    for site in (ENCODER, DECODER):
        assert torch.equal(composed["deu_Latn-fra_Latn"][site], usual["de-fr"][site])


def test_pairs_composed_together_are_those_composed_one_by_one(masks):
    together, one_by_one = masks.compose(["de-fr", "fr-de"]), masks.compose("de-fr").compose("fr-de")
    assert together == one_by_one
    assert together.recipe == one_by_one.recipe
    assert torch.equal(together["fr-de"][ENCODER], masks["fr-en"][ENCODER])
    assert torch.equal(together["fr-de"][DECODER], masks["en-de"][DECODER])
    with pytest.raises(UnknownPairError, match="de-xx"):
        masks.compose(["de-fr", "de-xx"])


def test_composition_names_the_pairs_that_it_lacks(masks):
    with pytest.raises(UnknownPairError, match=r"'de-xx'.*through 'en': masks lack en-xx; masks hold: de-en"):
        masks.compose("de-xx")
    with pytest.raises(UnknownPairError, match="masks lack de-fr, fr-fr"):
        masks.compose("de-fr", pivot="fr")
    with pytest.raises(ConfigError, match="of its own"):
        masks.compose("en-de")


def test_a_union_keeps_what_any_pair_keeps(masks):
    union = masks.subset(["en-de", "fr-en"]).union("xx-yy")
    assert union.pairs == ["xx-yy"]
    for name in WIDTHS:
        expected = masks["en-de"][name] | masks["fr-en"][name]
        assert torch.equal(union["xx-yy"][name], expected)
        assert not expected.all()
    assert union.recipe.derived == ("subset of 4 pairs", "union of en-de, fr-en")


def test_a_union_may_have_a_name_without_a_second_language(masks):
    union = masks.union("all")
    assert union.pairs == ["all-all"]
    assert torch.equal(union["all"][ENCODER], union["all-all"][ENCODER])


def test_a_subset_has_the_order_that_was_asked_for(masks):
    subset = masks.subset(["fr-en", "en-de"])
    assert subset.pairs == ["fr-en", "en-de"]
    assert torch.equal(subset.keep[ENCODER], masks.keep[ENCODER][[3, 0]])
    with pytest.raises(UnknownPairError, match="xx-en"):
        masks.subset(["fr-en", "xx-en"])


def test_general_neurons_outlive_composition_union_and_subset():
    masks = NeuronMasks.from_importance(made_up_stats(), general=0.5)
    for derived in (masks.compose("de-fr"), masks.union("xx-yy"), masks.subset(["en-de"])):
        for name, general_F in masks.general.items():
            assert torch.equal(derived.general[name], general_F)


def test_density_is_the_share_of_kept_neurons():
    keep = {ENCODER: torch.zeros(2, 10, dtype=torch.bool), DECODER: torch.zeros(2, 30, dtype=torch.bool)}
    keep[ENCODER][0, :5] = True
    keep[DECODER][0, :3] = True
    keep[DECODER][1, :6] = True
    masks = NeuronMasks(["en-de", "de-en"], keep)
    assert masks.density("en-de", ENCODER) == 5 / 10
    assert masks.density("de-en") == 6 / 40
    assert masks.density(site=DECODER) == 9 / 60
    assert masks.density() == 14 / 80
    with pytest.raises(UnknownPairError):
        masks.density("xx-en")
    with pytest.raises(SiteMismatchError, match="no site 'fc9'"):
        masks.density(site="fc9")


def test_masks_are_equal_when_neurons_pairs_and_their_order_are(masks):
    assert masks == NeuronMasks(PAIRS, masks.keep)
    assert hash(masks) == hash(masks.subset(PAIRS))
    assert masks != masks.subset(list(reversed(PAIRS)))
    assert masks != "masks"
    assert masks.fingerprint() in repr(masks)


class TestCheckModel:
    """Tiny M2M-100: two layers a side, 24 neurons in the encoder and 20 in the decoder."""

    model = tiny_m2m100()
    sites = find_sites(model)

    def test_masks_of_this_model_pass_also_those_of_one_side(self):
        masks = NeuronMasks.random(self.sites, PAIRS)
        masks.check_model(self.sites)
        masks.check_model(find_sites(self.model, ("ffn", "attention")))
        NeuronMasks.random([s for s in self.sites if s.side == "encoder"], PAIRS).check_model(self.sites)

    def test_a_site_that_the_model_lacks_is_named(self):
        deeper = find_sites(tiny_m2m100(encoder_layers=3))
        with pytest.raises(SiteMismatchError, match=r"encoder\.layers\.2\.fc1 is not in the model"):
            NeuronMasks.random(deeper, PAIRS).check_model(self.sites)

    def test_a_layer_that_the_masks_lack_is_named_and_not_left_dense(self):
        deeper = find_sites(tiny_m2m100(decoder_layers=3))
        with pytest.raises(SiteMismatchError, match=r"decoder\.layers\.2\.fc1 is not in the masks"):
            NeuronMasks.random(self.sites, PAIRS).check_model(deeper)

    def test_another_width_is_named_with_both(self):
        wider = find_sites(tiny_m2m100(encoder_ffn_dim=32))
        with pytest.raises(SiteMismatchError, match=r"layers\.0\.fc1 has 32 neurons in the model, 24 in the"):
            NeuronMasks.random(self.sites, PAIRS).check_model(wider)

    def test_sites_found_in_a_model_are_those_that_masks_rebuild_from_names(self):
        found = find_sites(self.model, ("ffn", "attention", "ffn_out"))
        assert NeuronMasks.random(found, PAIRS).sites == found
        assert all(isinstance(site, Site) for site in found)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_masks_can_be_copied_and_pickled(duplicate):
    """Spawned processes and searches over settings send them from one process to another."""
    stats = made_up_stats()
    for masks in (NeuronMasks.from_coverage(stats, 0.8), NeuronMasks.from_importance(stats, general=0.5)):
        twin = duplicate(masks)
        assert twin == masks
        assert (twin.recipe, twin.sites) == (masks.recipe, masks.sites)
        assert (twin.general is None) == (masks.general is None)


def test_one_name_where_several_are_expected_is_one_name_or_refused(masks):
    stats = made_up_stats()
    assert NeuronMasks.from_coverage(stats, sides="encoder") == NeuronMasks.from_coverage(
        stats, sides=("encoder",)
    )
    with pytest.raises(ConfigError, match=r"one string; write \['en-de'\]"):
        masks.subset("en-de")
    with pytest.raises(ConfigError, match=r"'en-de'.* got 0"):
        masks[0]
