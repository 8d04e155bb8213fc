"""Encoded text gives back every sentence with its pair, whole or one pair of it."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from nspec_hf.core import CorpusError, EmptyPairError, Pair, UnknownLanguageError, UnknownPairError
from nspec_hf.data import (
    EncodedCorpus,
    LanguageTags,
    PairText,
    VocabularyConfig,
    encode_corpus,
    train_vocabulary,
)

PAIRS = ("en-de", "de-en", "en-fr")
ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)
additions = st.lists(st.tuples(st.sampled_from(PAIRS), st.lists(st.tuples(ids, ids), max_size=4)), max_size=5)


def filled(added):
    corpus, rows = EncodedCorpus(PAIRS), []
    for pair, sentences in added:
        corpus.add(pair, [row[0] for row in sentences], [row[1] for row in sentences])
        rows += [(pair, *row) for row in sentences]
    return corpus, rows


@given(additions)
def test_every_sentence_comes_back_in_the_order_in_which_it_was_added(added):
    corpus, rows = filled(added)
    assert [tuple(row.values()) for row in corpus] == rows
    assert len(corpus) == len(rows)
    assert corpus.pair_ids.tolist() == [PAIRS.index(row[0]) for row in rows]
    assert corpus.lengths.tolist() == [[len(row[1]), len(row[2])] for row in rows]
    if rows:
        assert corpus[-1] == corpus[len(rows) - 1]
    with pytest.raises(IndexError):
        corpus[len(rows)]


@given(additions, st.sampled_from(PAIRS))
def test_a_subset_holds_one_pair_and_keeps_its_number(added, pair):
    corpus, rows = filled(added)
    part = corpus.subset(pair)
    assert part.pairs == corpus.pairs
    assert [tuple(row.values()) for row in part] == [row for row in rows if row[0] == pair]
    assert part.lengths.shape == (len(part), 2)
    assert [row["pair"] for row in part] == [pair] * len(part)


def test_sentences_can_be_added_after_some_were_looked_at():
    corpus, _ = filled([("en-de", [([1, 2], [3])])])
    assert len(corpus) == 1
    corpus.add("en-fr", [[4]], [[5, 6]])
    assert corpus[1] == {"pair": PAIRS[2], "input_ids": [4], "labels": [5, 6]}
    assert corpus[0] == {"pair": PAIRS[0], "input_ids": [1, 2], "labels": [3]}


def test_what_does_not_belong_is_refused():
    corpus = EncodedCorpus(PAIRS)
    with pytest.raises(UnknownPairError, match=r"'en-cs' is not in the corpus's pairs.*de-en, en-de, en-fr"):
        corpus.add("en-cs", [[1]], [[2]])
    with pytest.raises(UnknownPairError):
        corpus.subset("cs-en")
    with pytest.raises(CorpusError, match="en-de: 2 sources but 1 targets"):
        corpus.add("en-de", [[1], [2]], [[3]])


@pytest.fixture(scope="module")
def tags():
    text = ["a dog runs", "ein hund läuft", "a man", "ein mann"]
    return LanguageTags(train_vocabulary(text * 5, ["en", "de"], VocabularyConfig(size=40)))


def text(pair, *rows):
    return PairText(Pair(pair), [row[0] for row in rows], [row[1] for row in rows])


def test_text_is_encoded_pair_by_pair_with_its_tags(tags, monkeypatch):
    monkeypatch.setattr("nspec_hf.data.dataset._AT_ONCE", 2)
    rows = [("a dog", "ein hund"), ("a man", "ein mann"), ("a dog runs", "ein hund läuft")]
    corpus = encode_corpus([text("en-de", *rows), text("de-en", *[row[::-1] for row in rows])], tags)
    assert corpus.pairs == ["en-de", "de-en"]
    assert corpus.pair_ids.tolist() == [0, 0, 0, 1, 1, 1]
    for number, (source, target) in enumerate(rows):
        assert corpus[number]["input_ids"] == tags.encode_source([source], "en-de")[0]
        assert corpus[number]["labels"] == tags.encode_target([target], "en-de")[0]
        assert corpus[3 + number]["input_ids"] == tags.encode_source([target], "de-en")[0]


def test_long_sentences_are_left_out_and_counted(tags):
    rows = [("a dog", "ein hund"), ("a dog " * 20, "ein hund"), ("a man", "ein mann " * 20)]
    longest = max(
        len(side)
        for side in (tags.encode_source(["a dog"], "en-de") + tags.encode_target(["ein hund"], "en-de"))
    )
    with pytest.warns(UserWarning, match=f"en-de: left out 2 of 3 sentence pairs.*{longest} tokens"):
        corpus = encode_corpus([text("en-de", *rows)], tags, max_length=longest)
    assert len(corpus) == 1
    assert corpus.lengths.max() == longest
    with pytest.raises(
        EmptyPairError, match=f"en-de: none of 3 sentence pairs is within {longest - 1} tokens"
    ):
        encode_corpus([text("en-de", *rows)], tags, max_length=longest - 1)


def test_an_unknown_language_is_told_before_anything_is_encoded(tags, monkeypatch):
    monkeypatch.setattr("nspec_hf.data.language_tags.subword_ids", None)
    with pytest.raises(UnknownLanguageError, match="'fr'"):
        encode_corpus([text("en-de", ("a", "b")), text("en-fr", ("a", "b"))], tags)


def test_a_million_tokens_take_four_bytes_each():
    corpus = EncodedCorpus(["en-de"])
    corpus.add("en-de", [range(1000)] * 500, [range(1000)] * 500)
    (part,) = corpus._parts
    sources, targets = part.sources, part.targets
    assert sources.tokens.nbytes + targets.tokens.nbytes == 4_000_000
    assert sources.tokens.dtype == np.int32


def test_text_that_the_tokenizer_does_not_know_is_refused(tags):
    strange = text("en-de", *[("漢字 漢字 漢字", "ein hund")] * 5)
    with pytest.raises(CorpusError, match=r"% of the source side of en-de is unknown to the tokenizer"):
        encode_corpus([strange], tags)
