"""A pair is its printed name, and wherever a name can stand a pair can stand."""

import copy
import json
import pickle

import pytest
from hypothesis import given, strategies as st

from nspec_hf.core import (
    MANY_TO_ONE,
    ONE_TO_MANY,
    ZERO_SHOT,
    ConfigError,
    Pair,
    UnknownPairError,
    as_pairs,
    english_centric,
    pair_index,
    pivot_of,
    translation_pairs,
    zero_shot,
)

codes = st.text(st.characters(categories=["L", "Nd"], include_characters="_-"), min_size=1).filter(
    lambda code: code.strip() == code
)


@given(codes, codes)
def test_every_pair_can_be_read_back_from_its_name(source, target):
    pair = Pair(source, target)
    assert Pair(str(pair)) == pair
    assert (Pair(str(pair)).source, Pair(str(pair)).target) == (source, target)
    assert pair.reverse.reverse == pair
    assert eval(repr(pair)) == pair


def test_a_pair_equals_its_name_and_stands_where_a_string_can():
    pair = Pair("en", "de")
    assert pair == "en-de" == Pair("en-de") == Pair(" en - de ")
    assert {pair: 1}["en-de"] == {"en-de": 1}[pair] == 1
    assert json.loads(json.dumps({pair: [pair]})) == {"en-de": ["en-de"]}
    assert Pair("zh-CN->en") == "zh-CN->en"
    assert Pair("zh-CN", "en").reverse == "en->zh-CN"
    assert Pair(pair) is pair


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_a_copy_knows_its_languages(duplicate):
    pair = duplicate(Pair("zh-CN", "en"))
    assert (type(pair), pair, pair.source, pair.target) == (Pair, "zh-CN->en", "zh-CN", "en")


@pytest.mark.parametrize("given", [None, 0, ("en", "de"), ["en", "de"]])
def test_what_is_no_name_is_refused_with_how_to_write_one(given):
    with pytest.raises(ConfigError, match="a pair is written 'en-de'"):
        Pair(given)
    with pytest.raises(ConfigError, match="language codes are strings"):
        Pair("en", 7)


@pytest.mark.parametrize("text", ["", "en", "en-", "-de", "en-de-fr", "zh-CN-en", "a->b->c", " - "])
def test_what_does_not_name_two_languages_is_refused(text):
    with pytest.raises(ConfigError):
        Pair(text)


def test_pairs_are_grouped_by_where_the_pivot_stands():
    assert Pair("en-de").group() == ONE_TO_MANY == "one-to-many"
    assert Pair("de-en").group() == MANY_TO_ONE == "many-to-one"
    assert Pair("de-fr").group() == ZERO_SHOT == "zero-shot"
    assert Pair("de-fr").group(pivot="fr") == MANY_TO_ONE


def test_directions_come_in_the_order_of_their_languages():
    assert english_centric(["de", "en", "fr"]) == ["en-de", "de-en", "en-fr", "fr-en"]
    assert zero_shot(["de", "en", "fr"]) == ["de-fr", "fr-de"]
    assert english_centric(["a", "b"], pivot="b") == ["b-a", "a-b"]


@pytest.mark.parametrize("english", ["eng_Latn", "en_XX", "eng", "en-US", "__en__", "en@latin"])
def test_the_usual_pivot_is_english_however_it_is_spelled(english):
    assert Pair(english, "deu_Latn").group() == ONE_TO_MANY
    assert Pair("deu_Latn", english).group() == MANY_TO_ONE
    assert english_centric(["deu_Latn", english]) == [Pair(english, "deu_Latn"), Pair("deu_Latn", english)]
    assert zero_shot(["deu_Latn", english, "fra_Latn"]) == ["deu_Latn-fra_Latn", "fra_Latn-deu_Latn"]


def test_a_pivot_that_is_there_or_is_not_english_or_not_clear_stays_as_it_is():
    assert pivot_of(["de", "en", "en_GB"]) == "en"
    assert pivot_of(["deu_Latn", "eng_Latn"], "deu") == "deu"
    assert pivot_of(["en_GB", "en_US", "de"]) == "en"
    assert pivot_of(["enf_Latn", "english", "de"]) == "en"
    assert Pair("fra_Latn-deu_Latn").group() == ZERO_SHOT


def test_a_list_of_pairs_holds_each_once():
    pairs = as_pairs(["en-de", Pair("de", "en")])
    assert pairs == ["en-de", "de-en"]
    assert all(isinstance(pair, Pair) for pair in pairs)
    with pytest.raises(ConfigError, match=r"named again: en-de$"):
        as_pairs(["en-de", "de-en", Pair("en", "de")])
    with pytest.raises(ConfigError, match=r"got one string; write \['en-de'\]"):
        as_pairs("en-de")


def test_the_index_of_a_pair_is_its_place_and_an_unknown_pair_is_named_with_those_that_are_known():
    pairs = as_pairs(["en-de", "de-en"])
    assert pair_index(pairs, "de-en", "masks") == 1
    with pytest.raises(
        UnknownPairError, match=r"^pair 'en-xx' is not in the masks; masks hold: de-en, en-de$"
    ):
        pair_index(pairs, "en-xx", "masks")
    with pytest.raises(KeyError, match="masks hold: none"):
        pair_index([], "en-de", "masks")


@pytest.mark.parametrize(
    "code", ["../x", "x\n", "a/b", "a\\b", "a b", "a:b", "a>b", ".", "e.n", "x\t", 'a"b', "\0"]
)
def test_a_code_that_could_not_stand_in_a_file_s_name_is_refused(code):
    for codes_ in ((code, "de"), ("en", code)):
        with pytest.raises(ConfigError, match="no language code"):
            Pair(*codes_)


@given(codes, codes)
def test_a_pair_can_be_read_back_from_the_name_of_its_file(source, target):
    assert Pair(Pair(source, target).file_name) == Pair(source, target)


def test_the_name_of_a_file_is_legal_on_every_system():
    assert Pair("zh-CN", "pt-BR").file_name == "zh-CN--pt-BR"
    assert Pair("en", "de").file_name == "en-de"


def test_a_pair_of_one_language_is_no_direction_to_read_text_of():
    assert translation_pairs(["en-de", "zh-CN->zh-TW"]) == ["en-de", "zh-CN->zh-TW"]
    for name in ("en-en", "zh-CN->zh-CN", " en - en "):
        with pytest.raises(ConfigError, match=r"from a language into itself.*write two languages"):
            translation_pairs(["en-de", name])
    with pytest.raises(ConfigError, match="named again: en-de"):
        translation_pairs(["en-de", "en-de"])
    # Masks may have one: a union of all pairs, and rows that rewrite a language.
    assert as_pairs(["en-en"]) == ["en-en"]
