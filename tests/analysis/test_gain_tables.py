import math

import pytest

from nspec_hf.analysis import gains
from nspec_hf.analysis.gain_tables import efficiency, setting_gains
from nspec_hf.core import ConfigError, UnknownPairError
from nspec_hf.masks import NeuronMasks

BILINGUAL = {"en-de": 30.0, "de-en": 28.0, "en-is": 10.0, "de-is": 5.0}
SCORES = {
    "bilingual": BILINGUAL,
    "multilingual": {"en-de": 28.5, "de-en": 28.0, "en-is": 14.0, "de-is": 6.0},
    "specialized": {"en-de": 29.5, "de-en": 29.0, "en-is": 15.0},
}


def test_gains_are_scores_minus_the_baselines():
    result = gains(SCORES, "bilingual")
    assert result.systems == ("multilingual", "specialized")
    for row, system in enumerate(result.systems):
        for column, pair in enumerate(result.pairs):
            wanted = SCORES[system].get(pair, math.nan) - BILINGUAL[pair]
            assert result.change[row, column] == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("separator", ["->", "--"])
def test_pairs_of_scores_may_be_spelled_in_any_way(separator):
    spelled = {
        name: {pair.replace("-", separator): value for pair, value in scores.items()}
        for name, scores in SCORES.items()
    }
    usual = gains(SCORES, "bilingual").to_json()
    assert gains(spelled, "bilingual").to_json() == usual
    assert gains({**SCORES, "specialized": spelled["specialized"]}, "bilingual").to_json() == usual
    of_setting = setting_gains("k", {0.9: spelled["specialized"]}, BILINGUAL)
    assert of_setting.to_json() == setting_gains("k", {0.9: SCORES["specialized"]}, BILINGUAL).to_json()
    with pytest.raises(ConfigError, match="named again: en-de"):
        gains({**SCORES, "twice": {"en-de": 1.0, "en->de": 2.0}}, "bilingual")


def test_groups_and_tiers_are_the_same_in_the_codes_of_mbart():
    code = {"en": "en_XX", "de": "de_DE", "is": "is_IS"}
    spelled = {
        system: {"-".join(code[part] for part in pair.split("-")): value for pair, value in scores.items()}
        for system, scores in SCORES.items()
    }
    # A tier of English itself counts for no pair with it.
    tiers = {"en": "high", "de": "high", "is": "low"}
    of_mbart = gains(spelled, "bilingual", tiers={code[each]: tier for each, tier in tiers.items()})
    assert of_mbart.groups == gains(SCORES, "bilingual", tiers=tiers).groups


def test_interference_and_synergy_are_counted_by_direction_and_tier():
    result = gains(SCORES, "bilingual", tiers={"de": "high", "is": "low"})
    assert result.groups == ("one-to-many high", "many-to-one high", "one-to-many low", "zero-shot high–low")
    grouped = result.by_group()
    table = grouped.to_pandas().set_index(["system", "group"])
    assert table.loc[("multilingual", "one-to-many high"), "lost"] == 1
    assert table.loc[("multilingual", "one-to-many low"), "gained"] == 1
    # A tie is neither.
    assert table.loc[("multilingual", "many-to-one high"), ["gained", "lost"]].tolist() == [0, 0]
    assert table.loc[("multilingual", "all"), "mean"] == pytest.approx((-1.5 + 0 + 4 + 1) / 4)
    # A pair without a score does not pull the mean towards zero.
    assert table.loc[("specialized", "all"), "mean"] == pytest.approx((-0.5 + 1 + 5) / 3)
    assert table.loc[("specialized", "all"), "pairs"] == 3
    assert math.isnan(table.loc[("specialized", "zero-shot high–low"), "mean"])


def test_of_a_metric_whose_smaller_score_is_better_a_fall_is_a_gain():
    falls = {"base": {"en-de": 60.0, "de-en": 50.0, "en-is": 40.0}}
    falls["other"] = {"en-de": 55.0, "de-en": 52.0, "en-is": 40.0}
    ter, bleu = (gains(falls, "base", metric=metric).by_group() for metric in ("ter", "bleu"))
    assert (ter.gained[0, -1], ter.lost[0, -1]) == (1, 1) == (bleu.lost[0, -1], bleu.gained[0, -1])
    assert ter.gained[0].tolist() == bleu.lost[0].tolist() == [1, 0, 1]
    assert ter.mean.tolist() == bleu.mean.tolist()  # which says how the score changes


def test_a_missing_baseline_or_a_stranger_is_refused():
    with pytest.raises(ConfigError, match="'base'"):
        gains(SCORES, "base")
    with pytest.raises(UnknownPairError, match="'other'"):
        gains({**SCORES, "other": {"en-fr": 1.0}}, "bilingual")


def test_gains_against_a_setting_are_means_by_group_in_rising_order():
    by_value = {0.95: SCORES["specialized"], 0.5: SCORES["multilingual"]}
    result = setting_gains("coverage k", by_value, BILINGUAL)
    assert result.values == (0.5, 0.95)
    assert result.groups == ("one-to-many", "many-to-one", "zero-shot", "all")
    assert result.mean[0].tolist() == pytest.approx([(-1.5 + 4) / 2, 0.0, 1.0, 3.5 / 4])
    assert result.mean[1].tolist() == pytest.approx([(-0.5 + 5) / 2, 1.0, math.nan, 5.5 / 3], nan_ok=True)
    assert result.pairs[1].tolist() == [2, 1, 0, 3]
    with pytest.raises(ConfigError, match="no values of coverage k"):
        setting_gains("coverage k", {}, BILINGUAL)


def test_masks_cost_bits_and_no_parameter():
    masks = NeuronMasks.random({"model.decoder.layers.0.fc1": 21}, ["en-de", "en-fr"], 0.5)
    result = efficiency(masks, seconds=2.5, model_width=16)
    assert result.systems == ("masks, packed bits", "masks, a boolean a weight")
    assert result.extra_parameters.tolist() == [0, 0]
    assert result.extra_bytes.tolist() == [2 * 3, 2 * 21 * 16]
    assert result.extraction_seconds[0] == 2.5
    assert result.computed[0] == pytest.approx(round(0.5 * 21) / 21)
