"""The tokenizer of each family with real subwords: words of several pieces, merges, and two scripts.

`tiny_tokenizers.py` has single letters, on which nothing can be trimmed.
"""

import io
import json
import random
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BartTokenizer,
    M2M100Tokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PLBartTokenizer,
    PreTrainedTokenizerBase,
    T5Tokenizer,
)

from nspec_hf.data import VocabularyConfig, train_vocabulary

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_STEMS = {
    "en": ["walk", "talk", "hous", "garden", "stream", "friend", "window", "sing", "clever", "light"],
    "de": ["geh", "sprech", "haus", "garten", "strom", "freund", "fenster", "singst", "klug", "leucht"],
    "ru": ["ход", "говор", "дом", "сад", "реч", "друг", "окон", "пес", "умн", "свет"],
}
_ENDINGS = {
    "en": ["", "s", "ed", "ing", "er", "ers", "less", "lessly"],
    "de": ["", "en", "et", "ung", "ungen", "er", "erin", "erinnen"],
    "ru": ["", "ая", "ы", "ить", "ами", "ник", "ники", "ость"],
}


@cache
def sentences(code: str, count: int = 60, seed: int = 0) -> list[str]:
    """Return sentences of words that are a stem and an ending each."""
    draw = random.Random(f"{code}{seed}")
    words = [
        [draw.choice(_STEMS[code]) + draw.choice(_ENDINGS[code]) for _ in range(7)] for _ in range(count)
    ]
    return [" ".join(row[: draw.randint(2, 7)]).capitalize() + "." for row in words]


def all_text() -> list[str]:
    return [line for code in _STEMS for line in sentences(code, 200, seed=9)]


@cache
def trained(kind: str, size: int = 170) -> bytes:
    """Return a SentencePiece model."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(all_text()),
        model_writer=file,
        vocab_size=size,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return file.getvalue()


def _pieces(kind: str) -> list[tuple[str, float]]:
    model = sentencepiece.SentencePieceProcessor(model_proto=trained(kind))
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))]
    return [piece for piece in pieces if piece[0] not in _SPECIAL]


def _files(folder: Path, kind: str, *tags: str) -> tuple[str, str]:
    """Write a SentencePiece model and its vocabulary, in another order and without two pieces."""
    folder.mkdir()
    (folder / "spm.model").write_bytes(trained(kind))
    names = [name for name, _ in _pieces(kind)]
    random.Random(4).shuffle(names)
    ids = {token: number for number, token in enumerate([*_SPECIAL, *names[2:], *tags])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    return str(folder / "vocab.json"), str(folder / "spm.model")


def _bytewise() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(_SPECIAL), initial_alphabet=letters)
    tokenizer.train_from_iterator(all_text(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return BartTokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]])


def make(name: str, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a family, for English to German where it keeps a state."""
    here = {"src_lang": "en_XX", "tgt_lang": "de_DE"}
    if name.startswith("recipe"):
        return train_vocabulary(all_text(), ["en", "de", "ru"], VocabularyConfig(size=170, kind=name[7:]))
    if name.startswith("m2m100"):
        return M2M100Tokenizer(*_files(folder / name, name[7:]), src_lang="en", tgt_lang="de")
    if name == "nllb":
        own = json.loads(make("recipe_bpe", folder).backend_tokenizer.to_str())["model"]
        vocabulary = {token: number for token, number in own["vocab"].items() if token[:2] != "__"}
        merges = [tuple(merge) for merge in own["merges"]]
        return NllbTokenizer(vocabulary, merges, src_lang="eng_Latn", tgt_lang="deu_Latn")
    if name == "marian":
        vocabulary, model = _files(folder / name, "unigram", ">>deu<<", ">>rus<<")
        return MarianTokenizer(model, model, vocabulary)
    if name == "plbart":
        _, model = _files(folder / name, "bpe")
        return PLBartTokenizer(model, language_codes="multi", src_lang="java", tgt_lang="en_XX")
    if name == "bart":
        return _bytewise()
    scored = _pieces("unigram")
    special = [(token, 0.0) for token in _SPECIAL]
    return {
        "mbart": lambda: MBartTokenizer(special + scored, **here),
        "mbart50": lambda: MBart50Tokenizer(scored, **here),
        "t5": lambda: T5Tokenizer([(token, 0.0) for token in ("<pad>", "</s>", "<unk>")] + scored),
    }[name]()


PAIRS = {
    "recipe_unigram": ("en-de", "de-en"),
    "recipe_bpe": ("en-de", "de-en"),
    "m2m100_unigram": ("en-de", "de-en"),
    "m2m100_bpe": ("en-de", "de-en"),
    "nllb": ("eng_Latn-deu_Latn", "deu_Latn-eng_Latn"),
    "mbart": ("en_XX-de_DE", "de_DE-en_XX"),
    "mbart50": ("en_XX-de_DE", "de_DE-en_XX"),
    "marian": ("eng-deu",),
    "plbart": ("java-en_XX",),
    "t5": ("en-de", "de-en"),
    "bart": ("en-de",),
}
"""Family → pairs that its tokenizer can write. All are English and German here, whatever the tags."""
