"""Text on disk is the text in memory; it is read and encoded once, and anew where anything has changed."""

import copy
import gzip
import random
import warnings

import numpy as np
import pytest

from nspec_hf.core import CorpusError, EmptyPairError
from nspec_hf.data import (
    BatchConfig,
    CorpusConfig,
    LanguageTags,
    PairBatchSampler,
    StoredText,
    encode_corpus,
    read_corpus,
)
from tests.helpers import tiny_text

PAIRS = ["en-de", "de-en"]
WORDS = [word for code in ("en", "de") for word in tiny_text.WORDS[code]]


def sentences(count, seed):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 12))) for _ in range(count)]


@pytest.fixture
def folder(tmp_path):
    for code, seed in (("en", 1), ("de", 2)):
        (tmp_path / f"train.{code}").write_text("".join(f"{line}\n" for line in sentences(300, seed)))
    return tmp_path


@pytest.fixture(scope="module")
def tags():
    return LanguageTags(tiny_text.tokenizer())


def read(folder, store="store", **settings):
    place = {"store": str(folder / store)} if store else {}
    return read_corpus(CorpusConfig(path=str(folder), **place, **settings), PAIRS, "train")


def test_text_on_disk_is_the_text_in_memory_and_so_are_its_ids(folder, tags):
    stored, held = read(folder), read(folder, store="")
    assert all(isinstance(text, StoredText) for text in stored)
    for one, other in zip(stored, held, strict=True):
        assert (one.pair, len(one)) == (other.pair, len(other))
        assert list(one.sources) == other.sources
        assert list(one.targets) == other.targets
        assert (one.sources[7], one.targets[-1], one.sources[3:9]) == (
            other.sources[7],
            other.targets[-1],
            other.sources[3:9],
        )
    with pytest.warns(UserWarning, match="longer than 9 tokens") as caught:
        mapped, flat = (encode_corpus(texts, tags, 9, progress=False) for texts in (stored, held))
    assert len({str(warning.message) for warning in caught}) == 2
    assert len(mapped) == len(flat) < 600
    assert mapped.digest() == flat.digest()
    assert [mapped[index] for index in range(len(flat))] == [flat[index] for index in range(len(flat))]
    assert mapped[-1] == flat[-1]
    assert np.array_equal(mapped.lengths, flat.lengths)
    assert np.array_equal(mapped.pair_ids, flat.pair_ids)
    assert mapped.subset("de-en").digest() == flat.subset("de-en").digest()
    with pytest.raises(IndexError):
        mapped[len(flat)]


def test_batches_of_text_on_disk_are_those_of_text_in_memory(folder, tags):
    corpora = [encode_corpus(read(folder, store=store), tags, progress=False) for store in ("store", "")]
    budget = BatchConfig(max_tokens=300, temperature=2.0)
    plans = [
        [
            [corpus[row] for row in batch]
            for batch in PairBatchSampler(corpus.lengths, corpus.pair_ids, budget)
        ]
        for corpus in corpora
    ]
    assert plans[0] == plans[1]


def test_a_second_start_reads_and_encodes_nothing(folder, tags, monkeypatch):
    first = encode_corpus(read(folder), tags, progress=False).digest()

    def never(*_args):
        raise AssertionError("read or encoded again")

    monkeypatch.setattr("nspec_hf.data.corpus.raw_lines", never)
    again = LanguageTags(tiny_text.tokenizer())
    for name in ("encode_source", "encode_target"):
        plain = getattr(again, name)
        monkeypatch.setattr(
            again, name, lambda texts, pair, plain=plain: never() if texts else plain([], pair)
        )
    assert encode_corpus(read(folder), again, progress=False).digest() == first


@pytest.mark.parametrize("change", ["text", "tokenizer", "length", "lines"])
def test_what_has_changed_is_made_anew(folder, tags, change):
    before = encode_corpus(read(folder), tags, progress=False)
    settings, length = {}, 256
    if change == "text":
        (folder / "train.de").write_text("".join(f"{line}\n" for line in sentences(300, 3)))
    elif change == "tokenizer":
        other = copy.deepcopy(tiny_text.tokenizer())
        other.add_tokens(["three"])
        tags = LanguageTags(other)
    elif change == "length":
        length = 11
    else:
        settings = {"max_lines": 40}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = encode_corpus(read(folder, **settings), tags, length, progress=False)
        expected = encode_corpus(read(folder, store="", **settings), tags, length, progress=False)
    assert found.digest() == expected.digest() != before.digest()


def test_a_bad_line_is_named_as_in_memory_and_counted_at_each_start(folder):
    lines = (folder / "train.de").read_bytes().split(b"\n")
    lines[41], lines[77] = b"", b"\xff\xfe bad"
    (folder / "train.de").write_bytes(b"\n".join(lines))
    with pytest.raises(CorpusError, match=r"train\.de, line 42: empty"):
        read(folder)
    expected = (
        r"left out 2 of 300 lines, 1 not UTF-8 and 1 empty on a side; the first is .*de, line 42: empty"
    )
    for _ in range(2):
        with pytest.warns(UserWarning, match=expected):
            texts = read(folder, bad_lines="skip")
        assert [len(text) for text in texts] == [298, 298]
    (folder / "train.de").write_bytes(b"one line\n")
    with pytest.raises(CorpusError, match=r"not parallel: .*300 lines.*1 lines"):
        read(folder)


@pytest.mark.parametrize("store", ["store", ""])
def test_no_more_lines_are_read_than_are_asked_for(tmp_path, store):
    for code, seed in (("en", 1), ("de", 2)):
        packed = gzip.compress("".join(f"{line}\n" for line in sentences(50_000, seed)).encode())
        # What comes behind the first lines cannot be read.
        (tmp_path / f"train.{code}.gz").write_bytes(packed[: len(packed) // 2])
    texts = read(tmp_path, store=store, max_lines=200)
    assert list(texts[0].sources) == sentences(50_000, 1)[:200]
    with pytest.raises(CorpusError, match="cannot be read"):
        read(tmp_path, store=store)


def test_text_of_which_nothing_is_left_is_refused(folder, tags):
    with pytest.raises(EmptyPairError, match="none of 300"):
        encode_corpus(read(folder), tags, 2, progress=False)


@pytest.mark.medium
def test_several_processes_encode_what_one_does(folder, tags):
    one = encode_corpus(read(folder), tags, progress=False)
    several = encode_corpus(read(folder, store="other", num_proc=3), tags, progress=False)
    assert several.digest() == one.digest()
    # A later start with another number of processes finds what they have made.
    assert encode_corpus(read(folder, store="other"), tags, progress=False).digest() == one.digest()
    assert len(list((folder / "other").glob("ids.*.arrow"))) == 6
