"""A batch says what the model needs: decoder inputs as the library makes them, and each row's pair."""

import copy
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PegasusTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right as shift_m2m100
from transformers.models.marian.modeling_marian import shift_tokens_right as shift_marian
from transformers.models.mbart.modeling_mbart import shift_tokens_right as shift_mbart

from nspec_hf.core import ConfigError, CorpusError, UnknownLanguageError, UnknownPairError
from nspec_hf.data import IGNORED, LanguageTags, PairCollator
from tests.helpers.models import tiny_m2m100
from tests.helpers.tiny_tokenizers import TEXT, make_tokenizers

PAIRS = ["en-de", "de-en", "fr-en"]
ROWS = [
    {"source": "a small dog", "target": "ein kleiner hund", "pair": "en-de"},
    {"source": "zwei", "target": "two men talk in the park", "pair": "de-en"},
    {"source": "im park", "target": "in the park", "pair": "fr-en"},
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return make_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def collator(tokenizers):
    return PairCollator(tokenizers["m2m100"], PAIRS)


def test_a_batch_of_text_is_padded_and_says_each_rows_pair(collator):
    batch = collator(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "decoder_input_ids", "pair_ids"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["pair_ids"].tolist() == [0, 1, 2]
    for i, row in enumerate(ROWS):
        source, target = collator.tags.encode_source([row["source"]], row["pair"])[0], row["target"]
        labels = collator.tags.encode_target([target], row["pair"])[0]
        padding = batch["input_ids"].shape[1] - len(source)
        assert batch["input_ids"][i].tolist() == source + [1] * padding
        assert batch["attention_mask"][i].tolist() == [1] * len(source) + [0] * padding
        unused = batch["labels"].shape[1] - len(labels)
        assert batch["labels"][i].tolist() == labels + [IGNORED] * unused
        assert batch["decoder_input_ids"][i].tolist() == [2, *labels[:-1]] + [1] * unused
    assert (batch["attention_mask"] == 0).any()
    assert (batch["labels"] == IGNORED).any()


@pytest.mark.parametrize(
    ("name", "pairs", "shift"),
    [
        ("m2m100", ["en-de", "de-en"], lambda labels: shift_m2m100(labels, 1, 2)),
        ("nllb", ["eng_Latn-deu_Latn", "deu_Latn-eng_Latn"], lambda labels: shift_m2m100(labels, 1, 2)),
        ("mbart", ["en-de", "de-en"], lambda labels: shift_mbart(labels, 1)),
        ("mbart50", ["en-de", "de-en"], lambda labels: shift_mbart(labels, 1)),
        ("marian", ["eng-deu", "eng-fra"], lambda labels: shift_marian(labels, 1, 1)),
        ("t5", ["en-de", "de-en"], lambda labels: shift_marian(labels, 0, 0)),
    ],
)
def test_decoder_inputs_equal_the_librarys_shift_of_the_padded_labels(tokenizers, name, pairs, shift):
    rows = [
        {"source": "a", "target": target, "pair": pair}
        for target, pair in zip(("ein hund", "two"), pairs, strict=True)
    ]
    batch = PairCollator(tokenizers[name], pairs)(rows)
    labels = batch["labels"]
    expected = shift(labels.masked_fill(labels == IGNORED, tokenizers[name].pad_token_id))
    # Positions without a label: the library also moves the last token one on; nothing is learned there.
    real = labels != IGNORED
    assert torch.equal(batch["decoder_input_ids"][real], expected[real])
    assert not real.all()


def test_encoded_rows_and_translations_give_the_same_batch(collator):
    expected = collator(ROWS)
    translations = [
        {
            "translation": dict(zip(row["pair"].split("-"), (row["source"], row["target"]), strict=True)),
            "pair": row["pair"],
        }
        for row in ROWS
    ]
    encoded = [
        {
            "pair_ids": PAIRS.index(row["pair"]),
            "input_ids": collator.tags.encode_source([row["source"]], row["pair"])[0],
            "labels": torch.tensor(collator.tags.encode_target([row["target"]], row["pair"])[0]),
            "other": [1],
        }
        for row in ROWS
    ]
    # What `concatenate_datasets` makes of data sets that have different columns.
    names = {name for rows in (ROWS, translations, encoded) for row in rows for name in row}
    several = [dict.fromkeys(names) | row for row in (ROWS[0], *translations[1:-1], encoded[-1])]
    for rows in (translations, encoded, several):
        batch = collator(rows)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_lengths_can_be_padded_to_a_multiple(tokenizers):
    batch = PairCollator(tokenizers["m2m100"], PAIRS, pad_to_multiple_of=8)(ROWS)
    assert batch["input_ids"].shape[1] % 8 == batch["labels"].shape[1] % 8 == 0
    assert batch["decoder_input_ids"].shape == batch["labels"].shape


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (
            {"input_ids": [1], "labels": [2]},
            CorpusError,
            "names no pair; it has: input_ids, labels.*remove_unused_columns=False",
        ),
        ({}, CorpusError, "names no pair; it has: nothing"),
        (
            {"pair": "en-cs", "source": "a", "target": "b"},
            UnknownPairError,
            "'en-cs' is not in the collator's pairs",
        ),
        (
            {"pair_ids": 3, "input_ids": [1], "labels": [2]},
            UnknownPairError,
            "pair_ids 3.*0 en-de, 1 de-en, 2 fr-en",
        ),
        ({"pair_ids": -1, "input_ids": [1], "labels": [2]}, UnknownPairError, "pair_ids -1"),
        ({"pair": "en-de", "source": "a"}, CorpusError, "a row of en-de has pair, source; expected"),
        (
            {"pair": "en-de", "translation": {"en": "a", "fr": "b"}},
            CorpusError,
            "translation with 'en' and 'de'",
        ),
    ],
)
def test_a_row_without_its_pair_or_text_is_refused(collator, row, error, message):
    with pytest.raises(error, match=message):
        collator([ROWS[0], row])


def test_the_column_that_the_trainer_strips_is_missed(collator, tmp_path):
    rows = [{"input_ids": [5, 2], "labels": [6, 2], "pair": "en-de"}] * 4
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, max_steps=1, disable_tqdm=True
    )
    trainer = Seq2SeqTrainer(
        tiny_m2m100(), arguments, train_dataset=Dataset.from_list(rows), data_collator=collator
    )
    with pytest.raises(CorpusError, match="remove_unused_columns=False"):
        trainer.train()


def test_a_model_learns_from_the_batch_what_it_learns_from_the_librarys_for_one_pair(tokenizers):
    tokenizer = tokenizers["m2m100"]
    model = tiny_m2m100(vocab_size=len(tokenizer) + 200)
    batch = PairCollator(tokenizer, ["en-de"])(
        [
            {"source": "a dog", "target": "ein hund", "pair": "en-de"},
            {"source": "two men", "target": "zwei", "pair": "en-de"},
        ]
    )
    encoded = [
        tokenizer(text, text_target=target) for text, target in (("a dog", "ein hund"), ("two men", "zwei"))
    ]
    library = DataCollatorForSeq2Seq(tokenizer, model)([dict(row) for row in encoded])
    del batch["pair_ids"]
    assert torch.equal(model(**batch).loss, model(**library).loss)


def test_tags_are_checked_when_the_collator_is_made(tokenizers):
    with pytest.raises(UnknownLanguageError, match="'qq'"):
        PairCollator(tokenizers["m2m100"], ["en-de", "en-qq"])
    mapped = PairCollator(LanguageTags(tokenizers["nllb"], {"en": "eng_Latn", "de": "deu_Latn"}), ["en-de"])
    assert mapped([ROWS[0]])["labels"][0, 0] == tokenizers["nllb"].convert_tokens_to_ids("deu_Latn")


def test_what_a_decoder_starts_from_is_known_given_or_asked_for(tokenizers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        starts = {
            name: PairCollator(tokenizers[name], ["en-de"]).decoder_start_token_id
            for name in ("m2m100", "t5")
        }
        assert starts == {"m2m100": 2, "t5": 0}
        assert PairCollator(tokenizers["marian_one_target"], ["en-de"]).decoder_start_token_id == 1
        pegasus = PegasusTokenizer(
            vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", 0.0)], offset=0
        )
        assert PairCollator(pegasus, ["en-de"]).decoder_start_token_id == 0
        assert PairCollator(tokenizers["madlad"], ["en-de"], 0).decoder_start_token_id == 0
    with pytest.raises(ConfigError, match=r"decoder_start_token_id=model\.config\.decoder_start_token_id"):
        PairCollator(tokenizers["madlad"], ["en-de"])
    with pytest.warns(UserWarning, match="taken to be </s>"):
        assert PairCollator(tokenizers["bart"], ["en-de"]).decoder_start_token_id == 2


def test_several_targets_without_a_tag_are_warned_about(tokenizers):
    with pytest.warns(UserWarning, match="nothing tells the model which language to write: de, fr"):
        PairCollator(tokenizers["marian_one_target"], ["en-de", "en-fr"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PairCollator(tokenizers["marian_one_target"], ["en-de", "fr-de"])


@pytest.mark.parametrize(
    ("name", "codes", "pairs"),
    [
        ("m2m100", {"nl": "de"}, ["en-de", "en-nl", "en-fr"]),
        ("nllb", {"nl": "deu_Latn", "de": "deu_Latn"}, ["eng_Latn-nl", "eng_Latn-de"]),
        ("mbart50", {}, ["en_XX-de_DE", "fr-en", "en-de", "en-nl"]),
        ("marian", {"nl": "deu", "de": "deu", "fr": "fra"}, ["en-de", "en-nl", "en-fr"]),
        ("t5", {"nl": "German"}, ["en-de", "en-nl"]),
    ],
)
def test_languages_whose_codes_stand_for_one_tag_are_told(tokenizers, name, codes, pairs):
    tags = LanguageTags(tokenizers[name], codes)
    with pytest.warns(UserWarning, match=r"which language to write: de, (nl|de_DE)$"):
        PairCollator(tags, pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PairCollator(tags, pairs[1:])


def test_padding_that_rows_bring_along_is_taken_off(tokenizers):
    """As `tokenizer(…, padding="max_length")` leaves it, with labels of -100 or of padding, left or right."""
    tokenizer = tokenizers["m2m100"]
    collator = PairCollator(tokenizer, ["en-de", "de-en"])
    text = collator([{"pair": "en-de", "source": TEXT[2], "target": TEXT[3]}])
    ids, labels, pad = text["input_ids"][0].tolist(), text["labels"][0].tolist(), tokenizer.pad_token_id
    ones = [1] * len(ids)
    right = {"input_ids": [*ids, pad, pad], "attention_mask": [*ones, 0, 0], "labels": [*labels, -100]}
    left = {"input_ids": [pad, *ids], "attention_mask": [0, *ones], "labels": [-100, *labels]}
    unsaid = {"input_ids": np.array([*ids, pad]), "labels": torch.tensor([*labels, pad, pad])}
    for row in (right, left, unsaid):
        batch = collator([{**row, "pair": "en-de"}])
        assert all(torch.equal(batch[name], value) for name, value in text.items())


def test_the_end_of_a_sentence_stays_where_padding_is_the_same_token(tokenizers):
    tokenizer = copy.deepcopy(tokenizers["m2m100"])
    tokenizer.pad_token = tokenizer.eos_token
    collator, tags = PairCollator(tokenizer, ["en-de"]), LanguageTags(tokenizer)
    ids, labels = tags.encode_source(TEXT[:1], "en-de")[0], tags.encode_target(TEXT[1:2], "en-de")[0]
    assert ids[-1] == labels[-1] == tokenizer.pad_token_id
    batch = collator([{"pair": "en-de", "input_ids": ids, "labels": labels}])
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([ids], [labels])


def test_rows_that_contradict_themselves_are_refused(tokenizers):
    collator = PairCollator(tokenizers["m2m100"], ["en-de", "de-en"])
    with pytest.raises(CorpusError, match="number 1, but pair_ids 0"):
        collator([{"pair": "de-en", "pair_ids": 0, "source": "a", "target": "b"}])
    encoded = collator([{"pair": "en-de", "source": TEXT[2], "target": TEXT[3]}])
    row = {name: encoded[name][0].tolist() for name in ("input_ids", "labels")}
    with pytest.raises(CorpusError, match="has the tag of en, not of 'de'"):
        collator([{**row, "pair": "de-en"}])
    with pytest.raises(CorpusError, match="an attention_mask of 1;"):
        collator([{**row, "pair": "en-de", "attention_mask": [1]}])
    with pytest.raises(CorpusError, match="a batch needs a row"):
        collator([])


def test_rows_without_a_target_are_a_batch_to_be_translated(collator):
    sources = [{name: row[name] for name in ("source", "pair")} for row in ROWS]
    batch, whole = collator(sources), collator(ROWS)
    assert set(batch) == {"input_ids", "attention_mask", "pair_ids"}
    assert all(torch.equal(batch[name], whole[name]) for name in batch)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "a", "target": None}, "a row of en-de: target is None, no text"),
        ({"source": 3, "target": "b"}, "a row of en-de: source is 3, no text"),
        ({"source": "a\ud800", "target": "b"}, r"a text of en-de holds half a character.*'a\\ud800'"),
        ({"source": "a", "target": "\udfff b"}, "a text of en-de holds half a character"),
        ({"translation": {"en": "a", "de": 5}}, "a row of en-de: de is 5, no text"),
        ({"input_ids": [4, -7], "labels": [5]}, "a row of en-de: input_ids hold -7"),
        ({"input_ids": [4], "labels": [-100]}, "a row of en-de: labels hold nothing"),
        ({"input_ids": [4], "labels": [5, -7]}, "a row of en-de: labels hold -7"),
    ],
)
def test_an_error_names_the_field_of_a_row_that_is_wrong(collator, row, message):
    with pytest.raises(CorpusError, match=message):
        collator([{**row, "pair": "en-de"}])
