"""A few made-up parallel sentences, a tokenizer trained on them, and a model that fits it."""

import random
from functools import cache

import torch

from nspec_hf.core import Pair, as_pairs
from nspec_hf.data import (
    EncodedCorpus,
    LanguageTags,
    PairText,
    VocabularyConfig,
    encode_corpus,
    train_vocabulary,
)
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.helpers.models import tiny_m2m100

LANGUAGES = ("en", "de", "fr")
PAIRS = as_pairs(["en-de", "de-en", "en-fr", "fr-en"])
WORDS = {
    "en": "one two three four five six seven eight".split(),
    "de": "eins zwei drei vier fünf sechs sieben acht".split(),
    "fr": "un deux trois quatre cinq six sept huit".split(),
}


def sentences(count=24, seed=0):
    """Return `count` aligned sentences of 1 to 7 number words in each language."""
    draw = random.Random(seed)
    numbers = [draw.choices(range(8), k=draw.randint(1, 7)) for _ in range(count)]
    return {code: [" ".join(words[i] for i in row) for row in numbers] for code, words in WORDS.items()}


def texts(count=24, seed=0, pairs=PAIRS):
    said = sentences(count, seed)
    return [PairText(Pair(pair), said[Pair(pair).source], said[Pair(pair).target]) for pair in pairs]


def write_text(folder, **counts):
    """Write splits as files: `write_text(folder, train=40, valid=8)` makes train.en, train.de …"""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(counts.items()):
        for code, lines in sentences(count, seed).items():
            (folder / f"{split}.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")


@cache
def tokenizer(target_on_source=False, languages=LANGUAGES):
    text = [line for lines in sentences(60, seed=9).values() for line in lines]
    return train_vocabulary(text, languages, VocabularyConfig(size=70, target_on_source=target_on_source))


def corpus(count=24, seed=0, pairs=PAIRS) -> EncodedCorpus:
    return encode_corpus(texts(count, seed, pairs), LanguageTags(tokenizer()), progress=False)


def model(seed=0, **changes):
    ids = tokenizer()
    return tiny_m2m100(
        seed,
        vocab_size=len(ids),
        pad_token_id=ids.pad_token_id,
        bos_token_id=ids.bos_token_id,
        eos_token_id=ids.eos_token_id,
        decoder_start_token_id=ids.eos_token_id,
        **changes,
    )


def masks(of, pairs=PAIRS, density=0.6, seed=3):
    return NeuronMasks.random(find_sites(of), pairs, density, seed)


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
