"""New languages: which they are, which tags and subwords they bring."""

import pytest

from nspec_hf.adding import AddConfig, auto_width, find_words, new_languages
from nspec_hf.core import ConfigError, Pair, UnknownLanguageError
from nspec_hf.data import LanguageTags, PairText, load_tokenizer
from tests.helpers import tiny_text
from tests.helpers.tiny_tokenizers import make_tokenizer

TAGS = LanguageTags(tiny_text.tokenizer())
SIZE = len(tiny_text.tokenizer())


def words(texts, config=AddConfig(), vocabulary=SIZE, old=()):
    return find_words(TAGS, texts, config, old=old, vocabulary=vocabulary, rows=SIZE)


def as_zz(texts):
    codes = {"fr": "zz"}
    return [
        PairText(Pair(*(codes.get(c, c) for c in (t.pair.source, t.pair.target))), t.sources, t.targets)
        for t in texts
    ]


@pytest.mark.parametrize(
    ("pairs", "named", "expected"),
    [
        (["en-lb", "lb-en"], [], ["lb"]),
        (["en-lb", "lb-en", "de-lb"], [], ["lb"]),
        (["en-lb", "lb-en", "en-mt"], [], ["lb", "mt"]),
        (["de-lb", "lb-fr"], [], ["lb"]),
        (["de-lb", "lb-de"], ["lb"], ["lb"]),
    ],
)
def test_the_new_language_is_the_one_that_all_pairs_share(pairs, named, expected):
    assert new_languages(pairs, named) == expected


@pytest.mark.parametrize(
    ("english", "codes"),
    [("eng_Latn", {}), ("en_XX", {}), ("eng", {}), ("english", {"english": "eng_Latn"}), ("x", {"x": "en"})],
)
def test_english_is_not_new_however_it_is_spelled(english, codes):
    assert new_languages([f"{english}-ltz_Latn", f"ltz_Latn-{english}"], codes=codes) == ["ltz_Latn"]


def test_of_two_languages_that_all_pairs_share_the_new_one_is_asked_for():
    with pytest.raises(
        ConfigError, match=r"de and lb are in every new pair; say which is new: --add.languages"
    ):
        new_languages(["de-lb", "lb-de"])
    assert new_languages(["de-lb", "lb-de"], ["de", "lb"]) == ["de", "lb"]


def test_a_named_language_that_no_pair_has_is_refused():
    with pytest.raises(ConfigError, match="mt"):
        new_languages(["en-lb"], ["mt"])


def test_new_pairs_have_embeddings_of_their_languages_subwords_or_of_those_that_no_other_uses():
    texts = tiny_text.texts(pairs=["en-fr", "fr-en"])
    en = {i for t in texts for ids in TAGS.encode_source(tiny_text.sentences()["en"], "en-fr") for i in ids}
    fr = {i for ids in TAGS.encode_source(tiny_text.sentences()["fr"], "fr-en") for i in ids}
    special = {*TAGS.tokenizer.all_special_ids}
    tag = TAGS.tag_id("fr")
    assert fr & en - special
    new = AddConfig(pieces="new")
    assert words(texts, new).ids == sorted(fr - en - special | {tag})
    old = [PairText(Pair("en-de"), ["one"], ["deux"])]
    deux = {*TAGS.encode_target(["deux"], "en-de")[0]}
    assert deux & fr - en - special
    assert words(texts, new, old=old).ids == sorted(fr - en - deux - special | {tag})
    assert words(texts, old=old).ids == words(texts).ids == sorted(fr - special | {tag})
    assert words(texts, AddConfig(pieces="none")).ids == [tag]
    assert words(texts).tokens == {}
    assert words(texts).begins_as == {}


def test_an_unknown_code_gets_the_next_id_and_begins_as_the_mean_of_all_tags_or_as_its_kin():
    texts = as_zz(tiny_text.texts(pairs=["en-fr", "fr-en"]))
    found = words(texts)
    known = [TAGS.tag_id(code) for code in tiny_text.LANGUAGES]
    assert found.tokens == {"__zz__": SIZE}
    assert found.begins_as == {SIZE: sorted(known)}
    assert found.tags.tag_id("zz") == SIZE
    assert found.tags.encode_source(["un deux"], "zz-en")[0][0] == SIZE
    assert "begins as the mean of" in found.in_words()
    assert words(texts, AddConfig(kin="fr")).begins_as == {SIZE: [TAGS.tag_id("fr")]}
    with pytest.raises(UnknownLanguageError):
        TAGS.tag_id("zz")  # the tokenizer that was given stays as it was
    with pytest.raises(UnknownLanguageError):
        words(texts, AddConfig(kin="xx"))


def test_embeddings_that_an_earlier_addition_brought_are_had_too():
    texts = tiny_text.texts(pairs=["en-fr"])
    found = words(texts, vocabulary=SIZE + 2)
    assert {SIZE, SIZE + 1} < {*found.ids}
    assert {*found.begins_as} == {SIZE, SIZE + 1}


@pytest.mark.parametrize(
    ("family", "code"),
    [("m2m100", "lbx"), ("nllb", "xxx_Latn"), ("mbart50", "xx_XX"), ("mbart", "xx_XX"), ("marian", "xxx")],
)
def test_each_family_spells_a_new_tag_as_its_own(family, code, tmp_path):
    tags = LanguageTags(make_tokenizer(tmp_path, family))
    english = {"m2m100": "en", "nllb": "eng_Latn", "marian": "deu"}.get(family, "en_XX")
    texts = [PairText(Pair(f"{english}-{code}"), ["two men talk"], ["zwei"])]
    settings = AddConfig(languages=[code], pieces="none")
    found = find_words(tags, texts, settings, vocabulary=10_000, rows=10_000)
    assert list(found.tokens.values()) == [found.tags.tag_id(code)]
    assert found.tags.tag_id(code) not in tags.tag_ids
    assert found.tags.tag_id(english) == tags.tag_id(english)
    token = found.tags.tokenizer.convert_ids_to_tokens(found.tags.tag_id(code))
    assert token in found.tokens
    found.tags.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = LanguageTags(load_tokenizer(tmp_path / "saved"))
    numbers = {each: loaded.tag_id(each) for each in (english, code)}
    assert numbers == {each: found.tags.tag_id(each) for each in (english, code)}
    pair, quoted = texts[0].pair, [f"two {token} men"]
    assert loaded.encode_target(quoted, pair) == found.tags.encode_target(quoted, pair)


def test_a_code_that_a_family_could_not_spell_is_refused(tmp_path):
    tags = LanguageTags(make_tokenizer(tmp_path, "nllb"))
    texts = [PairText(Pair("eng_Latn-x1"), ["two"], ["zwei"])]
    with pytest.raises(UnknownLanguageError, match="spell the code"):
        find_words(tags, texts, AddConfig(languages=["x1"], pieces="none"), vocabulary=99, rows=99)


def test_auto_width_grows_with_text_up_to_a_bound():
    widths = [auto_width(lines) for lines in (1, 500, 4_000, 8_000, 29_000)]
    assert widths == sorted(widths)
    assert widths[0] == widths[1] == 0.25
    assert widths[-2:] == [4.0, 4.0]
