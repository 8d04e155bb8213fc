"""Token ids with tags are those of the library's own tokenizers, and an unknown language is never written."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import NllbTokenizer, PreTrainedTokenizerFast
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right as shift_m2m100
from transformers.models.marian.modeling_marian import shift_tokens_right as shift_marian
from transformers.models.mbart.modeling_mbart import shift_tokens_right as shift_mbart
from transformers.models.plbart.modeling_plbart import shift_tokens_right as shift_plbart

from nspec_hf.core import ConfigError, CorpusError, Pair, UnknownLanguageError
from nspec_hf.data import LanguageTags
from nspec_hf.data.language_tags import TARGET_ON_SOURCE
from tests.helpers.tiny_tokenizers import make_tokenizers

SOURCES = ["a small dog", "two men talk in the park", "a"]
TARGETS = ["ein kleiner hund", "zwei männer reden", "im park"]

# Tokenizer → family, the pair as its users write it, and what stands before the text in the library's usage.
FAMILIES = {
    "m2m100": ("m2m100", "en-de", ""),
    "nllb": ("nllb", "eng_Latn-deu_Latn", ""),
    "mbart": ("mbart", "en-de", ""),
    "mbart50": ("mbart50", "en_XX-de_DE", ""),
    "seamless": ("m2m100", "eng-deu", ""),
    "plbart": ("plbart", "java-en_XX", ""),
    "marian": ("marian", "eng-deu", ">>deu<< "),
    "marian_one_target": ("untagged", "eng-deu", ""),
    "t5": ("t5", "en-de", "translate English to German: "),
    "madlad": ("madlad", "en-de", "<2de> "),
    "bart": ("untagged", "en-de", ""),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return make_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_library_with_its_state_set(tokenizers, name):
    tokenizer, (family, pair, prefix) = tokenizers[name], FAMILIES[name]
    tags = LanguageTags(tokenizer)
    tags.check(pair)
    assert tags.family == family
    assert tags.shows_both == (name in ("m2m100", "nllb", "mbart", "mbart50", "seamless", "plbart"))
    expected = tokenizer([prefix + text for text in SOURCES])["input_ids"]
    assert tags.encode_source(SOURCES, pair) == expected
    assert tokenizer.unk_token_id not in [row[0] for row in expected]
    labels = tokenizer(text_target=TARGETS)["input_ids"]
    if name == "seamless":  # its labels begin with the token that its decoder starts from
        labels = [row[1:] for row in labels]
    assert tags.encode_target(TARGETS, pair) == labels
    assert tags.encode_source([], pair) == []


@pytest.mark.parametrize("name", ["m2m100", "nllb", "mbart", "mbart50"])
def test_nothing_depends_on_what_the_tokenizer_was_last_set_to(tokenizers, name):
    tokenizer, (_, pair, _) = tokenizers[name], FAMILIES[name]
    tags, reverse = LanguageTags(tokenizer), "-".join(reversed(pair.split("-")))
    before = tags.encode_source(SOURCES, pair), tags.encode_target(TARGETS, pair)
    state = tokenizer.src_lang, tokenizer.tgt_lang
    try:
        tokenizer.src_lang, tokenizer.tgt_lang = tokenizer.tgt_lang, tokenizer.src_lang
        assert tags.encode_source(SOURCES, reverse) == tokenizer(SOURCES)["input_ids"]
        assert (tags.encode_source(SOURCES, pair), tags.encode_target(TARGETS, pair)) == before
        # As it is loaded from the Hub; the library's own M2M-100 raises a KeyError for a target then.
        tokenizer.tgt_lang = None
        assert tags.encode_target(TARGETS, pair) == before[1]
        assert tokenizer.tgt_lang is None
    finally:
        tokenizer.src_lang, tokenizer.tgt_lang = state


@pytest.mark.parametrize(
    ("name", "start", "shift"),
    [
        ("m2m100", 2, lambda labels: shift_m2m100(labels, 1, 2)),
        ("nllb", 2, lambda labels: shift_m2m100(labels, 1, 2)),
        ("seamless", 3, lambda labels: shift_m2m100(labels, 0, 3)),
        ("mbart50", 2, lambda labels: shift_mbart(labels, 1)),
        ("mbart", 2, lambda labels: shift_mbart(labels, 1)),
        ("plbart", 2, lambda labels: shift_plbart(labels, 1)),
        ("marian", 1, lambda labels: shift_marian(labels, 1, 1)),
        ("t5", 0, lambda labels: shift_marian(labels, 0, 0)),
    ],
)
def test_decoder_inputs_are_those_of_the_library_and_begin_with_what_generation_starts_from(
    tokenizers, name, start, shift
):
    tags, (_, pair, _) = LanguageTags(tokenizers[name]), FAMILIES[name]
    for labels in tags.encode_target(TARGETS, pair):
        inputs = tags.decoder_inputs(labels, pair, start)
        assert inputs == shift(torch.tensor([labels]))[0].tolist()
        prefix = tags.decoder_prefix(pair, start)
        assert inputs[: len(prefix)] == prefix
        if tags.shows_both:
            assert prefix[-1] == tags.tag_id(pair.split("-")[1])


@pytest.mark.parametrize(
    ("name", "pair", "message"),
    [
        ("m2m100", "en-qq", r"the m2m100 tokenizer has no tag for language 'qq'.*codes=\{'qq': "),
        ("m2m100", "eng-de", r"'eng'; near ones: en"),
        ("nllb", "zzz_Zzzz-deu_Latn", r"the nllb tokenizer has no tag for language 'zzz_Zzzz'"),
        ("nllb", "en-deu_Latn", r"'en'; near ones: eng_Latn"),
        ("nllb", "ace-deu_Latn", r"'ace'; near ones: ace_Arab, ace_Latn"),
        ("nllb", "eng_Latin-deu_Latn", r"'eng_Latin'; near ones:.*eng_Latn"),
        ("mbart", "en-qq", r"no tag for language 'qq'"),
        ("marian", "en-fr", r"the marian tokenizer has no tag for language 'fr'; near ones: fra"),
        ("madlad", "en-ja", r"the madlad tokenizer has no tag for language 'ja'; near ones: de, fr, pt_BR"),
        ("t5", "en-nl", r"T5 names languages in words and has none for 'nl'.*codes=\{'nl': 'Language'\}"),
    ],
)
def test_an_unknown_language_raises_and_near_codes_are_suggested(tokenizers, name, pair, message):
    tags = LanguageTags(tokenizers[name])
    with pytest.raises(UnknownLanguageError, match=message):
        tags.check(pair)
    with pytest.raises(ValueError, match=message):
        tags.encode_source(["a"], pair) + tags.encode_target(["a"], pair)


def test_codes_are_mapped_or_completed_where_only_one_fits(tokenizers):
    nllb = LanguageTags(tokenizers["nllb"], {"en": "eng_Latn", "de": "deu_Latn"})
    assert nllb.encode_source(["a"], "en-de") == nllb.encode_source(["a"], "eng_Latn-deu_Latn")
    assert nllb.tag_id("fra") == nllb.tag_id("fra_Latn")
    assert LanguageTags(tokenizers["madlad"]).encode_source(["a"], "en-pt") == [
        tokenizers["madlad"]("<2pt_BR> a")["input_ids"][:]
    ]
    t5 = LanguageTags(tokenizers["t5"], {"es": "Spanish"})
    assert (
        t5.encode_source(["a"], "es-en")[0]
        == tokenizers["t5"]("translate Spanish to English: a")["input_ids"]
    )


@pytest.mark.parametrize("name", ["m2m100", "nllb", "seamless", "marian"])
def test_a_sentence_that_quotes_a_tag_or_the_end_of_a_sentence_holds_none(tokenizers, name):
    tags, (_, pair, _) = LanguageTags(tokenizers[name]), FAMILIES[name]
    special = {tokenizers[name].eos_token_id, *(tags.tag_id(code) for code in pair.split("-")[1:])}
    quoted = {"m2m100": "__de__", "nllb": "deu_Latn", "seamless": "__deu__", "marian": "a >>deu<<"}[name]
    for ids in (
        tags.encode_source([f"{quoted} </s>"], pair)[0],
        tags.encode_target([f"{quoted} </s>"], pair)[0],
    ):
        assert ids[-1] == tokenizers[name].eos_token_id
        assert not special & set(ids[1:-1])


def words(*tokens, **settings):
    vocabulary = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **settings)


def test_the_family_of_a_tokenizer_of_ones_own_is_told_from_its_tags():
    own = {"additional_special_tokens": ["__qa1__", "__qb2__"]}
    assert LanguageTags(words("dog", **own)).family == "m2m100"
    assert LanguageTags(words("dog", "__en__", "__de__")).family == "m2m100"
    assert LanguageTags(words("dog", "eng_Latn")).family == "nllb"
    assert LanguageTags(words("dog", "en_XX", "sl_SI")).family == "mbart50"
    tags = LanguageTags(words("dog", **own, language_style=TARGET_ON_SOURCE))
    assert (tags.family, tags.shows_both) == (TARGET_ON_SOURCE, False)
    assert tags.encode_source(["dog"], "qa1-qb2") == [[tags.tag_id("qb2"), 3, 1]]
    assert tags.encode_target(["dog"], "qa1-qb2") == [[3, 1]]
    assert tags.decoder_prefix("qa1-qb2", 1) == [1]


def test_subwords_that_only_look_like_tags_make_no_family():
    assert LanguageTags(words("__init__", "en_US", "abc_Defg", "<2go>")).family == "untagged"


@pytest.mark.parametrize(
    ("name", "pair", "other", "found"),
    [
        ("m2m100", "en-de", "de-en", "en"),
        ("nllb", "eng_Latn-deu_Latn", "deu_Latn-eng_Latn", "eng_Latn"),
        ("mbart", "en_XX-de_DE", "de_DE-en_XX", "en_XX"),
        ("mbart50", "en_XX-de_DE", "de_DE-en_XX", "en_XX"),
        ("marian", "eng-deu", "eng-fra", "deu"),
    ],
)
def test_ids_with_another_languages_tag_are_refused(tokenizers, name, pair, other, found):
    tags = LanguageTags(tokenizers[name])
    source, labels = tags.encode_source(["two men"], pair)[0], tags.encode_target(["zwei"], pair)[0]
    tags.check_row(source, labels, pair)
    with pytest.raises(CorpusError, match=f"source of a row of {other} has the tag of {found}, not"):
        tags.check_row(source, labels, other)
    right = tags.encode_source(["two men"], other)[0]
    if name == "marian":  # its targets have no tag
        tags.check_row(right, labels, other)
    else:
        with pytest.raises(
            CorpusError, match=f"target of a row of {other} has the tag of {Pair(pair).target}"
        ):
            tags.check_row(right, labels, other)
    # Ids without a tag say nothing, and a sentence may quote one.
    tags.check_row([5, 6], [7], other)
    tags.check_row([*source, *right], [7], other)


QUOTED = {
    "m2m100": "__de__",
    "nllb": "deu_Latn",
    "mbart": "fr_XX",
    "mbart50": "fr_XX",
    "seamless": "__deu__",
    "plbart": "__java__",
    "marian": ">>fra<<",
    "marian_one_target": "</s>",
    "t5": "<extra_id_0>",
    "madlad": "<2fr>",
    "bart": "<mask>",
}


@pytest.mark.parametrize("name", QUOTED)
def test_what_a_sentence_quotes_is_never_read_as_a_special_token_in_any_family(tokenizers, name):
    tokenizer, (_, pair, _) = tokenizers[name], FAMILIES[name]
    tags = LanguageTags(tokenizer)
    for encode, plain in ((tags.encode_source, "a a"), (tags.encode_target, "a a")):
        around = encode([plain], pair)[0]
        quoted = encode([f"a {QUOTED[name]} a </s> a"], pair)[0]
        special = {*tokenizer.all_special_ids, tokenizer.get_vocab().get(QUOTED[name])}
        special -= {tokenizer.unk_token_id}
        # The only special ids are those that stand around any sentence.
        assert [number for number in quoted if number in special] == [
            number for number in around if number in special
        ]


def test_what_stands_beside_a_quoted_tag_is_read_as_it_is_without_one():
    letters = ["d", "e", "_"]
    tags = LanguageTags(words("dog", "cat", *letters, "__en__", "__de__"))
    known = tags.tokenizer.get_vocab()
    expected = ["__en__", "dog", *"__de__", "cat", "</s>"]
    found = tags.encode_source(["dog __de__ cat"], "en-de")
    assert found == [[known[token] for token in expected]]


def test_a_prefix_may_hold_the_word_that_a_text_begins_with(tokenizers):
    named = {"es": "a small", "en": "man talk"}  # names of one's own come before the usual ones
    expected = tokenizers["t5"](["translate a small to man talk: a dog"])["input_ids"]
    assert LanguageTags(tokenizers["t5"], named).encode_source(["a dog"], "es-en") == expected


def test_a_tag_of_ones_own_may_have_a_hyphen():
    tags = LanguageTags(words("dog", additional_special_tokens=["__zh-Hant__", "__en__"]))
    assert tags.encode_source(["dog"], Pair("zh-Hant", "en")) == [[4, 3, 1]]


@pytest.mark.parametrize("side", ["source", "target"])
def test_nllb_of_the_old_behaviour_has_its_tags_at_the_end_as_the_library_has_them(side):
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", "a"])}
    tokenizer = NllbTokenizer(vocabulary, [], src_lang="eng_Latn", tgt_lang="deu_Latn", legacy_behaviour=True)
    tags = LanguageTags(tokenizer)
    if side == "source":
        assert tags.encode_source(["a"], "eng_Latn-deu_Latn") == tokenizer(["a"])["input_ids"]
    else:
        assert tags.encode_target(["a"], "eng_Latn-deu_Latn") == tokenizer(text_target=["a"])["input_ids"]


@pytest.mark.parametrize(
    ("name", "code"), [("mbart50", "myv_XX"), ("mbart", "kpv_RU"), ("nllb", "srp_Latn_RS")]
)
def test_the_code_of_a_new_language_is_one_that_was_added(tokenizers, name, code):
    tokenizer = copy.deepcopy(tokenizers[name])
    with pytest.raises(UnknownLanguageError, match=f"no tag for language '{code}'"):
        LanguageTags(tokenizer).tag_id(code)
    tokenizer.add_special_tokens({"extra_special_tokens": [code]})
    assert LanguageTags(tokenizer).tag_id(code) == tokenizer.convert_tokens_to_ids(code)


def test_a_suggestion_is_never_presented_as_the_same_language(tokenizers):
    with pytest.raises(UnknownLanguageError) as raised:
        LanguageTags(tokenizers["mbart50"]).tag_id("myv_XX")  # Erzya; my_MM is Burmese
    assert "maybe of other languages" in str(raised.value)
    assert "my_MM'" not in str(raised.value).partition("codes=")[2]


def test_two_languages_with_one_id_are_refused():
    tokenizer = words("dog", "__en__", "__de__")
    tokenizer.lang_token_to_id = {"__qa__": 4, "__qb__": 5}
    with pytest.raises(UnknownLanguageError, match=r"gives one id, 4, to the tags of en, qa"):
        LanguageTags(tokenizer).check("en-de")


def test_a_class_that_has_tags_without_any_is_refused():
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", "a"])}
    tokenizer = NllbTokenizer(vocabulary, [], extra_special_tokens=["<other>"])
    with pytest.raises(UnknownLanguageError, match="a NllbTokenizer without language tags"):
        LanguageTags(tokenizer)


def test_a_tokenizer_that_draws_its_subwords_at_random_is_refused():
    pieces = {letter: number for number, letter in enumerate(["<unk>", "a", "b", "ab"])}
    bpe = models.BPE(pieces, [("a", "b")], dropout=0.5, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe), unk_token="<unk>", eos_token="<unk>")
    readings = {tuple(tokenizer("ab" * 9)["input_ids"]) for _ in range(20)}
    assert len(readings) > 1  # what it would do to every count, loss and translation
    with pytest.raises(ConfigError, match="at random"):
        LanguageTags(tokenizer)
    tokenizer.backend_tokenizer.model.dropout = None
    assert LanguageTags(tokenizer).family == "untagged"


def test_a_sentencepiece_tokenizer_that_samples_is_refused(tokenizers):
    tokenizer = copy.deepcopy(tokenizers["marian"])
    tokenizer.sp_model_kwargs = {"enable_sampling": True, "alpha": 0.1, "nbest_size": -1}
    with pytest.raises(ConfigError, match="at random"):
        LanguageTags(tokenizer)
