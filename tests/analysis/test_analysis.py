import json

import numpy as np
import pytest

from nspec_hf.analysis import analyze, draw_all
from nspec_hf.analysis.analysis import general_share
from nspec_hf.core import ConfigError, Pair
from nspec_hf.masks import NeuronMasks
from tests.helpers.kin import FAMILIES, kin_comparison, kin_masks, kin_scores, kin_stats


def test_masks_alone_are_enough_and_what_is_missing_is_said():
    analysis = analyze(kin_masks())
    assert analysis.coverage_sweep is None
    assert analysis.gains is None
    assert any("no statistics" in why for why in analysis.notes.values())
    assert {"overlap", "density", "progression", "agreement", "layer_score"} <= set(analysis.results())


def test_statistics_and_scores_add_results():
    stats = kin_stats()
    analysis = analyze(kin_masks(stats), stats, kin_scores(), tiers=dict.fromkeys(FAMILIES, "high"))
    assert {"coverage_sweep", "allocation_sweep", "gains", "gains_by_group"} <= set(analysis.results())
    assert [curve.site.name for curve in analysis.curves] == [
        "model.encoder.layers.1.fc1",
        "model.decoder.layers.1.fc1",
    ]
    assert not analysis.notes


def test_scores_of_the_baseline_alone_give_gains_against_a_setting_and_no_others(tmp_path):
    scores = kin_scores()
    analysis = analyze(
        kin_masks(),
        scores={"baseline": scores["baseline"]},
        baseline="baseline",
        by_setting={"coverage k": {0.9: scores["specialized"]}},
    )
    assert analysis.gains is None
    assert "another system were not given" in analysis.notes["groups of gains"]
    assert len(analysis.setting_gains) == 1
    assert any("gains_against_coverage_k" in path.name for path in draw_all(analysis, tmp_path))


def test_families_that_share_neurons_are_found():
    analysis = analyze(kin_masks(), families=FAMILIES)
    agreement = analysis.agreement
    assert analysis.pivot == "en"
    assert (agreement.within > agreement.across).all()
    # Of 6!/(3!·3!) = 20 relabelings two are as good: the true one, and the one with the names swapped.
    np.testing.assert_allclose(agreement.p_value, 2 / 20)
    assert agreement.exact.all()
    for tree in analysis.trees.values():
        assert "en" not in tree.leaves
        assert {frozenset(tree.leaves[:3]), frozenset(tree.leaves[3:])} == {
            frozenset({"de", "nl", "sv"}),
            frozenset({"es", "fr", "it"}),
        }


@pytest.mark.parametrize(
    "spelled",
    [
        "eng_Latn deu_Latn nld_Latn swe_Latn spa_Latn fra_Latn ita_Latn",
        "en_XX de_DE nl_XX sv_SE es_XX fr_XX it_IT",
        "en-US de-AT nl-BE sv-SE es-MX fr-CA it-CH",
    ],
)
def test_families_are_known_however_a_tokenizer_spells_its_languages(spelled):
    code = dict(zip(["en", *FAMILIES], spelled.split(), strict=True))
    masks = kin_masks()
    pairs = [Pair(code[pair.source], code[pair.target]) for pair in masks.pairs]
    found, wanted = analyze(NeuronMasks(pairs, masks.keep)), analyze(masks, families=FAMILIES)
    assert found.families == {code[each]: family for each, family in FAMILIES.items()} | {
        code["en"]: "Germanic"
    }
    for name in ("within", "across", "p_value"):
        np.testing.assert_allclose(getattr(found.agreement, name), getattr(wanted.agreement, name))


def test_a_language_whose_family_nobody_knows_is_named_beside_the_dashes():
    masks = kin_masks()
    pairs = [Pair(f"x{pair.source}", f"x{pair.target}") for pair in masks.pairs]
    analysis = analyze(NeuronMasks(pairs, masks.keep))
    assert np.isnan(analysis.agreement.within).all()
    named = "family of xde, xes, xfr, xit, xnl, xsv"
    assert named in analysis.notes
    table = analysis.agreement_table().render("text")
    assert named in table
    assert "ways to deal" not in table
    # Two families of three languages each: C(6, 3).
    assert "all 20 ways to deal" in analyze(kin_masks(), families=FAMILIES).agreement_table().render("text")


def test_random_masks_show_no_families():
    masks = NeuronMasks.random(like=kin_masks(), seed=3)
    agreement = analyze(masks, families=FAMILIES).agreement
    assert (np.abs(agreement.within - agreement.across) < 0.1).all()


def test_a_single_pair_can_be_analysed():
    masks = NeuronMasks.random({"model.decoder.layers.0.fc1": 16}, ["en-de"], 0.5)
    analysis = analyze(masks)
    assert not analysis.trees
    assert "tree of model.decoder.layers.0.fc1" in analysis.notes
    assert general_share(masks) == 0.5
    json.loads(json.dumps(analysis.overview(), allow_nan=False))


def test_a_folder_holds_every_result_twice_and_an_overview(tmp_path):
    stats = kin_stats()
    analysis = analyze(kin_masks(stats), stats, kin_scores(), comparison=kin_comparison())
    paths = analysis.save(tmp_path / "out")
    names = {path.name for path in paths}
    for name in analysis.results():
        assert {f"{name}.json", f"{name}.csv"} <= names
    assert {"overview.json", "trees.txt", "comparison.json"} <= names
    overview = json.loads((tmp_path / "out" / "overview.json").read_text(), parse_constant=pytest.fail)
    assert overview["masks"] == analysis.masks.fingerprint()
    assert overview["sites"]["decoder 0"]["p_value"] == pytest.approx(0.1)
    assert overview["recipe"]["method"] == "coverage"
    assert all(path.stat().st_size for path in paths)


def test_a_baseline_without_scores_is_refused():
    with pytest.raises(ConfigError, match="'mT'"):
        analyze(kin_masks(), scores=kin_scores(), baseline="mT")


def test_systems_that_the_comparison_does_not_test_are_named():
    found = analyze(kin_masks(), scores=kin_scores(), comparison=kin_comparison())
    assert not any(name.startswith("significance") for name in found.notes)
    scores = {**kin_scores(), "ours": kin_scores()["specialized"]}
    found = analyze(kin_masks(), scores=scores, comparison=kin_comparison())
    assert found.notes["significance of ours"] == "the comparison tests specialized"
