"""A trained tokenizer splits and joins text as SentencePiece does, and survives being saved."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nspec_hf.core import ArtifactError, ConfigError, UnsupportedModelError
from nspec_hf.data import (
    CorpusConfig,
    LanguageTags,
    VocabularyConfig,
    load_tokenizer,
    read_corpus,
    tokenizer as vocabulary,
    train_vocabulary,
)
from nspec_hf.data.language_tags import TARGET_ON_SOURCE
from tests.helpers import tiny_text
from tests.helpers.tiny_tokenizers import make_tokenizer, make_tokenizers

WORDS = (
    "dog",
    "dogs",
    "hund",
    "hunde",
    "park",
    "parks",
    "läuft",
    "run",
    "runs",
    "im",
    "in",
    "the",
    "ein",
    "kleiner",
)
TEXT = [f"{a} {b} {c}." for a in WORDS for b in WORDS[::2] for c in WORDS[::3]]

UNUSUAL = [
    "  two  spaces \t and a tab ",
    "ﬁne ½ №5 ™ \uff26\uff35\uff2c\uff2c width \u00a0",
    "cafe\u0301 e\u0301 \u200b x\u2028y",
    "ไทย 한국어 日本語 שָׁלוֹם क्षेत्र",
    "😀 dogs",
    "",
    "▁ under __ > < [",
]


@pytest.fixture
def train(monkeypatch):
    """Train a vocabulary; return the tokenizer and the SentencePiece model that it was made from."""
    models = []
    convert = vocabulary._as_tokenizer
    monkeypatch.setattr(
        vocabulary, "_as_tokenizer", lambda model, kind: models.append(model) or convert(model, kind)
    )

    def run(text, languages=("en", "de"), **settings):
        tokenizer = train_vocabulary(text, languages, VocabularyConfig(**settings))
        return tokenizer, sentencepiece.SentencePieceProcessor(model_proto=models[-1])

    return run


def mismatches(tokenizer, reference, text):
    ids = tokenizer(list(text), add_special_tokens=False)["input_ids"]
    return [line for line, row in zip(text, ids, strict=True) if row != reference.encode(line)]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_text_is_split_as_sentencepiece_splits_it(train, kind):
    tokenizer, reference = train(TEXT, size=60, kind=kind)
    assert mismatches(tokenizer, reference, TEXT[::7] + UNUSUAL) == []
    assert len(reference.encode(TEXT[-1])) < len(TEXT[-1]) / 1.5  # so it is not letter by letter


@pytest.mark.data
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    ("corpus", "pairs"),
    [("multi30k", ["en-de", "fr-cs"]), ("bible", ["en-he", "zh-pl"])],
    ids=["multi30k", "bible"],
)
def test_real_text_is_split_as_sentencepiece_splits_it(train, shared_data, corpus, pairs, kind):
    config = CorpusConfig(path=str(shared_data / corpus), max_lines=1500)
    texts = read_corpus(config, pairs, "train")
    sides = [side for text in texts for side in (text.sources, text.targets)]
    tokenizer, reference = train((line for side in sides for line in side[:700]), size=3000, kind=kind)
    assert mismatches(tokenizer, reference, [line for side in sides for line in side[700:]]) == []


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_text_comes_back_from_its_ids(train, kind):
    tokenizer, _ = train(TEXT, size=60, kind=kind)
    for line in islice(TEXT, 0, None, 11):
        ids = tokenizer(line)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == line


def test_saved_and_loaded_it_is_the_same_tokenizer(train, tmp_path):
    made, _ = train(TEXT, languages=["en", "de", "qaa"], size=60, target_on_source=True)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXT[:20]).data == made(TEXT[:20]).data
    assert set(loaded(TEXT[0])) == {"input_ids", "attention_mask"}
    assert loaded.get_vocab() == made.get_vocab()
    before, after = LanguageTags(made), LanguageTags(loaded)
    assert before.family == after.family == TARGET_ON_SOURCE
    assert after.encode_source(["dog"], "en-qaa") == before.encode_source(["dog"], "en-qaa")
    assert after.encode_source(["dog"], "en-qaa")[0][0] == loaded.convert_tokens_to_ids("__qaa__")
    ids = after.encode_source(["the dog runs in the park."], "en-qaa")[0]
    assert loaded.decode(ids, skip_special_tokens=True) == "the dog runs in the park."


def test_special_tokens_have_the_ids_of_m2m100_and_tags_come_on_top_of_the_size(train):
    tokenizer, reference = train(TEXT, languages=["en", "de", "fr"], size=30)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert len(reference) == 30
    assert len(tokenizer) == 33
    assert LanguageTags(tokenizer).family == "m2m100"


def test_long_lines_take_part(train):
    long = " ".join(["zzyzx"] * 2000)  # 12,000 bytes, beyond what SentencePiece reads by default
    tokenizer, _ = train([*TEXT, long], size=70)
    assert "▁zzyzx" in tokenizer.get_vocab()


def test_the_same_text_gives_the_same_vocabulary(train):
    first, second = (train(TEXT, size=60)[0] for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.get_vocab() != train(TEXT[: len(TEXT) // 2], size=50)[0].get_vocab()


@pytest.mark.parametrize("changes", [{"kind": "words"}, {"size": 4}, {"coverage": 0}, {"coverage": 1.5}])
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ConfigError, match="got"):
        VocabularyConfig(**changes)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_size_that_the_text_does_not_give_gives_what_there_is(train, kind):
    tokenizer, reference = train(TEXT[:5], size=500, kind=kind)
    assert 10 < len(reference) < 100
    assert mismatches(tokenizer, reference, TEXT) == []


@pytest.mark.parametrize(("text", "size"), [([], 500), (TEXT, 10)])
def test_text_that_gives_no_such_vocabulary_is_refused(text, size):
    with pytest.raises(ConfigError, match=f"no vocabulary of {size} subwords"):
        train_vocabulary(text, ["en"], VocabularyConfig(size=size))


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="nowhere has no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["m2m100", "nllb", "mbart", "mbart50", "seamless", "plbart", "marian", "t5", "bart"]
)
def test_a_tokenizer_without_its_vocabulary_file_is_refused(tmp_path, name):
    tokenizer = make_tokenizer(tmp_path, name)
    tokenizer.save_pretrained(tmp_path / "whole")
    assert load_tokenizer(tmp_path / "whole").get_vocab() == tokenizer.get_vocab()
    (tmp_path / "empty").mkdir()
    shutil.copy(tmp_path / "whole" / "tokenizer_config.json", tmp_path / "empty")
    with pytest.raises(ArtifactError, match=r"empty (has no tokenizer that can be loaded|knows no subwords)"):
        load_tokenizer(tmp_path / "empty")


def test_a_tokenizer_with_code_of_its_own_asks_nothing_and_runs_nothing(tmp_path):
    (tmp_path / "own.py").write_text("open('ran', 'w')\nclass Own: ...\n")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises((UnsupportedModelError, ArtifactError), match=str(tmp_path)):
        load_tokenizer(tmp_path)
    assert not Path("ran").exists()


def test_an_adapter_without_a_tokenizer_has_its_base_s(tmp_path):
    tiny_text.tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    content = json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    (tmp_path / "adapter" / "adapter_config.json").write_text(content, encoding="utf-8")
    assert load_tokenizer(tmp_path / "adapter").get_vocab() == tiny_text.tokenizer().get_vocab()


@pytest.mark.parametrize("side", ["text", "text_target"])
def test_plain_ids_are_those_of_a_call_whatever_the_last_call_was_set_to(tmp_path, side):
    texts = ["dogs", "the dogs __de__ run </s> in parks", "run <unk> x"]
    for name, tokenizer in make_tokenizers(tmp_path).items():
        whole = {side: texts, "add_special_tokens": False, "split_special_tokens": True}
        expected = tokenizer(**whole)["input_ids"]
        tokenizer(texts, truncation=True, max_length=2, padding="max_length", split_special_tokens=False)
        assert vocabulary.subword_ids(tokenizer, texts, side) == expected, name
        assert tokenizer(texts)["input_ids"] == tokenizer(texts, split_special_tokens=False)["input_ids"], (
            name
        )


def test_a_tokenizer_that_prepares_its_text_is_still_asked_to():
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            return super().__call__([line.lower() for line in text], **options)

    quiet = train_vocabulary(TEXT, ["en", "de"], VocabularyConfig(size=60))
    shouting = Shouting(tokenizer_object=quiet.backend_tokenizer, unk_token="<unk>")
    assert vocabulary.subword_ids(quiet, ["THE DOG"], "text") != vocabulary.subword_ids(
        quiet, ["the dog"], "text"
    )
    assert vocabulary.subword_ids(shouting, ["THE DOG"], "text") == vocabulary.subword_ids(
        quiet, ["the dog"], "text"
    )
