"""Averages grouped as in the papers' tables, and tiers from corpus sizes."""

import pytest
from hypothesis import given, strategies as st

from nspec_hf.core import ConfigError, Pair
from nspec_hf.evaluation import grouped_table, tiers_from_sizes
from nspec_hf.evaluation.groups import wrong_language
from nspec_hf.evaluation.language_id import OffTarget
from tests.evaluation.test_system_scores import TIERS, VALUES, board


def test_averages_of_groups_stand_beside_zero_shot_counts():
    table = grouped_table(board())
    assert table.columns == (
        *("system", "one-to-many", "many-to-one", "zero-shot", "all", "zero-shot ≥ 5", "zero-shot ≥ 10"),
    )
    assert table.rows == (pytest.approx(("base", 20.0, 23.0, 5.0, 16.0, 1, 0)),)


def test_tiers_stand_from_high_to_low_within_each_group():
    table = grouped_table(board(tiers=TIERS, metric="chrf++"), "chrf++", by="tier")
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "system": "base",
        "one-to-many high": 30.0,
        "one-to-many low": 10.0,
        "one-to-many all": 20.0,
        "many-to-one high": 34.0,
        "many-to-one low": 12.0,
        "many-to-one all": 23.0,
        "zero-shot high-low": 4.0,
        "zero-shot low-high": 6.0,
        "zero-shot all": 5.0,
        "all": 16.0,
    }


def test_a_group_that_stands_alone_has_no_second_average_of_the_same_directions():
    alone = {pair: value for pair, value in VALUES.items() if pair.startswith("en-")}
    table = grouped_table(board(values=alone, tiers=TIERS), by="tier")
    assert table.columns == ("system", "one-to-many high", "one-to-many low", "one-to-many all")


def test_thresholds_are_for_bleu_of_zero_shot_directions():
    assert "≥" not in "".join(grouped_table(board(metric="chrf++"), "chrf++").columns)
    supervised = {pair: value for pair, value in VALUES.items() if "en" in pair}
    assert "≥" not in "".join(grouped_table(board(values=supervised)).columns)


def off_target_of(pair, share):
    return OffTarget(
        pair=Pair(pair), share=share, floor=0.0, sentences=8, languages={}, undecided=0, identifier="x"
    )


def test_wrong_language_is_averaged_over_the_zero_shot_directions_that_have_a_share():
    shares = {"en-de": 0.9, "de-da": 0.25, "da-de": 0.75}
    looked = board(off_target={Pair(pair): off_target_of(pair, share) for pair, share in shares.items()})
    assert wrong_language(looked) == pytest.approx(50.0)
    table = grouped_table(looked)
    assert table.columns[-1] == "zero-shot wrong language %"
    assert table.rows[0][-1] == pytest.approx(50.0)
    some = board(off_target={Pair(pair): off_target_of(pair, {"de-da": 0.25}.get(pair)) for pair in shares})
    assert wrong_language(some) == pytest.approx(25.0)
    unknown = board(off_target={Pair("de-da"): off_target_of("de-da", None)})
    assert wrong_language(unknown) is None
    assert "zero-shot wrong language %" not in grouped_table(unknown).columns


def test_the_notes_carry_signatures_and_settings():
    notes = grouped_table(board(generation={"beams": 5})).notes
    assert "bleu: sig-en-de" in notes
    assert "base: beams=5" in notes


def test_what_averages_cannot_be_grouped_by_is_refused():
    with pytest.raises(ConfigError, match="no tiers"):
        grouped_table(board(), by="tier")
    with pytest.raises(ConfigError, match="'group' or 'tier'"):
        grouped_table(board(), by="family")


def test_corpus_sizes_become_the_tiers_of_both_corpora():
    assert tiers_from_sizes({"de": 5_000_000, "sv": 1_000_000, "af": 100_000}) == {
        "de": "high",
        "sv": "med",
        "af": "low",
    }
    assert tiers_from_sizes({"de": 20_000, "sv": 5_000, "da": 1_250}) == {
        "de": "high",
        "sv": "med",
        "da": "low",
    }


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 10**9), min_size=1))
def test_more_text_is_never_a_lower_tier(sizes):
    rank = {"low": 0, "med": 1, "high": 2}
    found = tiers_from_sizes(sizes)
    ordered = [rank[found[language]] for language in sorted(sizes, key=sizes.get)]
    assert ordered == sorted(ordered)
    assert ordered[-1] == 2


@pytest.mark.parametrize("sizes", [{}, {"a": 0}])
def test_wrong_sizes_are_refused(sizes):
    with pytest.raises(ConfigError):
        tiers_from_sizes(sizes)
