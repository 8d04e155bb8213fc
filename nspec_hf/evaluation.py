"""Translate a test set and score it: any number of pairs in one go, outputs kept, a stopped run goes on.

The translations are written one file a pair, so that a significance test or COMET can read them later, and
so that nothing is translated twice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nspec_hf.corpus import PairText
from nspec_hf.outputs import write_sentences
from nspec_hf.pairs import Pair
from nspec_hf.provenance import plain
from nspec_hf.scoreboard import SystemScores, score_system
from nspec_hf.textfiles import read_lines
from nspec_hf.translate import Translator

_AT_ONCE = 2048  # sentences between two savings of outputs


def translate_test_set(
    translator: Translator, texts: Sequence[PairText], folder: Path
) -> dict[Pair, list[str]]:
    """Translate every pair and keep the outputs in `folder` (`en-de.txt` …); pairs that lie there are not
    redone.

    Args:
        translator: The system.
        texts: What `read_corpus` returned.
        folder: Made if needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs: dict[Pair, list[str]] = {}
    todo: list[PairText] = []
    for text in texts:
        path = folder / f"{text.pair}.txt"
        done = read_lines(path) if path.is_file() else []
        if len(done) == len(text):
            outputs[text.pair] = done
        else:
            todo.append(text)
    for part in _in_parts(todo):
        sources = [source for text in part for source in text.sources]
        pairs = [text.pair for text in part for _ in text.sources]
        translated = iter(translator.translate(sources, pairs))
        for text in part:
            outputs[text.pair] = [next(translated) for _ in text.sources]
            temporary = folder / f".{text.pair}.tmp"
            write_sentences(temporary, outputs[text.pair], text.pair)
            temporary.replace(folder / f"{text.pair}.txt")
    return {text.pair: outputs[text.pair] for text in texts}


def evaluate_system(
    name: str,
    translator: Translator,
    texts: Sequence[PairText],
    folder: Path,
    metrics: Sequence[str] = ("bleu", "chrf++"),
    pivot: str = "en",
    tiers: Mapping[str, str] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> SystemScores:
    """Translate and score a system on every pair.

    Args:
        name: What tables call it.
        translator: The system.
        texts: Sources and references.
        folder: Where its translations are kept.
        metrics: See `scores.score`.
        pivot: The language that tells one-to-many from many-to-one.
        tiers: Language → resource tier.
        recipe: What made it, kept with the scores beside the decoding settings and the masks' fingerprint.
    """
    outputs = translate_test_set(translator, texts, folder)
    generation = dict(plain(translator.config)) | dict(recipe or {})
    if translator.gate is not None:
        generation["masks"] = translator.gate.masks.fingerprint()
    return score_system(
        name,
        outputs,
        {text.pair: text.targets for text in texts},
        metrics,
        sources={text.pair: text.sources for text in texts},
        generation=generation,
        pivot=pivot,
        tiers=tiers or {},
    )


def _in_parts(texts: Sequence[PairText]) -> list[list[PairText]]:
    """Cut a list of pairs into parts of about `_AT_ONCE` sentences: mixed batches, yet seldom much to
    lose.
    """
    parts: list[list[PairText]] = []
    for text in texts:
        if parts and sum(map(len, parts[-1])) < _AT_ONCE:
            parts[-1].append(text)
        else:
            parts.append([text])
    return parts
