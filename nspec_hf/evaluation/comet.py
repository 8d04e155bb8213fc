"""COMET by way of files, since it cannot be installed beside transformers 5.

Three steps: `write_comet` lays out the sentences and a script; the script runs `comet-score` in an
environment of its own (`pip install unbabel-comet`); `read_comet` takes the scores back and checks that
they belong to these sentences.

    folder/comet.sh                 one call of comet-score a pair; passes arguments on: sh comet.sh --gpus 0
    folder/comet.json               the model, the pairs and their numbers of sentences
    folder/en-de.src .hyp .ref      one sentence a line
    folder/en-de.scores.json        what comet-score writes
"""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nspec_hf.core import (
    ConfigError,
    CorpusError,
    Pair,
    UnknownPairError,
    by_pair,
    read_json,
    read_lines,
    write_json,
    write_lines,
    write_text,
)
from nspec_hf.data import require_parallel
from nspec_hf.evaluation.metrics import Score

COMET_MODEL = "Unbabel/wmt22-comet-da"
"""The model that papers of these years report."""


def write_comet(
    folder: str | os.PathLike,
    hypotheses: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]] | None,
    sources: Mapping[str, Sequence[str]],
    model: str = COMET_MODEL,
) -> Path:
    """Write what comet-score reads, and the script that runs it.

    Args:
        folder: Made if needed. One folder a system.
        hypotheses: The system's translations: `{pair: [sentence, …]}`.
        references: One a sentence; None for a model that needs none.
        sources: What was translated.
        model: Name of a COMET model, or path of its checkpoint.

    Returns:
        The path of the script.

    Raises:
        UnknownPairError: If a direction has no sources or references.
        CorpusError: If line counts differ or a sentence holds a line break.
    """
    folder, translated = Path(folder), by_pair(hypotheses)
    given = {"src": sources, "hyp": hypotheses, "ref": references}
    sides = {side: by_pair(texts) for side, texts in given.items() if texts is not None}
    flags = {"src": "-s", "hyp": "-t", "ref": "-r"}
    commands = []
    for pair in translated:
        for side, texts in sides.items():
            if pair not in texts:
                held = ", ".join(texts) or "none"
                raise UnknownPairError(f"{pair} has no sentences for .{side}; there are those of: {held}")
            require_parallel(pair, translated[pair], texts[pair])
            write_lines(folder / f"{pair.file_name}.{side}", texts[pair], pair)
        # Scores of earlier translations must not be taken for those of these.
        (folder / f"{pair.file_name}.scores.json").unlink(missing_ok=True)
        files = " ".join(f"{flags[side]} {shlex.quote(f'{pair.file_name}.{side}')}" for side in sides)
        target = shlex.quote(f"{pair.file_name}.scores.json")
        # Further arguments come first, so that they cannot make the scores those of another model or text.
        commands.append(f'comet-score "$@" {files} --model {shlex.quote(model)} --to_json {target} --quiet')
    manifest = {"model": model, "pairs": {str(pair): len(lines) for pair, lines in translated.items()}}
    write_json(folder / "comet.json", manifest)
    script = folder / "comet.sh"
    write_text(script, "\n".join(["#!/bin/sh", "set -e", 'cd "$(dirname "$0")"', *commands, ""]))
    return script


def read_comet(
    folder: str | os.PathLike, hypotheses: Mapping[str, Sequence[str]] | None = None
) -> dict[Pair, Score]:
    """Read the scores that comet-score wrote into a folder of `write_comet`.

    Args:
        folder: That folder.
        hypotheses: The translations that the scores are to be of; None: those that lie in the folder.

    Returns:
        For each pair the mean over its sentences, times 100, as metric `comet`.

    Raises:
        ConfigError: If the folder was not written by `write_comet`, or a pair was not scored yet.
        CorpusError: If scores are missing, or belong to other sentences than the folder's translations or
            those that are given.
    """
    folder, translations = Path(folder), by_pair(hypotheses or {})
    try:
        manifest = read_json(folder / "comet.json")
        model, pairs = manifest["model"], manifest["pairs"]
    except (OSError, ConfigError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} was not written for COMET (comet.json: {error!r})") from None
    scores = {}
    for pair in map(Pair, pairs):
        given = translations.get(pair)
        if given is not None and list(given) != read_lines(folder / f"{pair.file_name}.hyp"):
            raise CorpusError(
                f"{pair}: {folder} is of other translations than these; write them for COMET and score again"
            )
        values = _read_values(folder, pair)
        scores[pair] = Score(
            metric="comet",
            value=100 * math.fsum(values) / len(values),
            signature=f"comet|model:{model}|scale:100",
            sentences=len(values),
        )
    return scores


def _read_values(folder: Path, pair: Pair) -> list[float]:
    path = folder / f"{pair.file_name}.scores.json"
    if not path.is_file():
        raise ConfigError(
            f"{pair} is not scored yet: there is no {path}; run comet.sh where comet-score is installed"
        )
    content = read_json(path, CorpusError)
    # COMET 1.1 and later write {file: [segment, …]}, the first versions a bare list.
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    segments: list[Any] = content if isinstance(content, list) else [None]
    if not all(isinstance(segment, dict) and "COMET" in segment for segment in segments):
        raise CorpusError(
            f"{path} is not what comet-score --to_json writes: a list of segments with a COMET score"
        )
    hypotheses = read_lines(folder / f"{pair.file_name}.hyp")
    if len(segments) != len(hypotheses) or not segments:
        raise CorpusError(
            f"{pair}: {len(segments)} COMET scores for {len(hypotheses)} translations; score again"
        )
    for number, (segment, sentence) in enumerate(zip(segments, hypotheses, strict=True), start=1):
        # comet-score strips the lines that it reads.
        if segment.get("mt", sentence).strip() != sentence.strip():
            raise CorpusError(
                f"{pair}, sentence {number}: COMET scored {segment['mt']!r}, the translation is "
                f"{sentence!r}; these scores belong to other translations, so score again"
            )
    return [float(segment["COMET"]) for segment in segments]
