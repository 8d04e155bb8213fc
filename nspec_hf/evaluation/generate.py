"""Translate a test set: any number of pairs in one go, outputs kept, a stopped run goes on.

The translations are written one file a pair, so that a significance test or COMET can read them later, and
so that nothing is translated twice. What made them stands beside them: translations of other weights, masks
or settings are not taken for these.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch

from nspec_hf.core import (
    ConfigError,
    Pair,
    as_line,
    as_pairs,
    digest,
    lock_folder,
    plain,
    rank,
    read_json,
    read_lines,
    write_json,
    write_lines,
)
from nspec_hf.data import PairText
from nspec_hf.evaluation.translator import Translator
from nspec_hf.recording import decoder_prompt

MAKER_FILE = ".made_by.json"

_NAMES = {"_name_or_path", "transformers_version", "_commit_hash", "_from_model_config"}
_AT_ONCE = 2048  # sentences between two savings of outputs


def translate_test_set(
    translator: Translator, texts: Sequence[PairText], folder: Path
) -> dict[Pair, list[str]]:
    """Translate every pair of a corpus and keep the outputs in `folder` (`en-de.txt` …), made if needed.

    A pair whose translations lie there already is not translated again, if the same weights, masks and
    settings made them of the same text. A line break in a translation becomes a space.

    Raises:
        ConfigError: If a pair comes twice.
        UnknownPairError: If there are masks, but none for a pair.
        FolderInUseError: If another process translates into the folder: its lines would get this one's name.
    """
    as_pairs(text.pair for text in texts)
    with lock_folder(folder) if rank() == 0 else nullcontext():
        return _translate_all(translator, texts, folder)


def seconds_kept(folder: Path) -> dict[tuple[Path, str], float]:
    """Return what each translated test that lies in or below `folder` took, by its folder and pair.

    Those of a part, which are translated together, have equal shares of its seconds.
    """
    found = {path.parent: _seconds(_read_maker(path.parent)) for path in folder.rglob(MAKER_FILE)}
    return {(place, pair): seconds for place, own in found.items() for pair, seconds in own.items()}


def _translate_all(translator: Translator, texts: Sequence[PairText], folder: Path) -> dict[Pair, list[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    if translator.acting_gate is not None:
        # Composed now, if need be, not halfway.
        translator.acting_gate.include_all([text.pair for text in texts])
    with translator.acting_gate or nullcontext():  # whose own weights the model has while it is on it
        maker = _maker(translator)
    kept = _read_maker(folder)
    # Text that was made otherwise is forgotten first: a run that is stopped leaves nothing of two makers.
    done = kept["texts"] if kept["maker"] == maker else {}
    content = {"maker": maker, "texts": done, "seconds": _seconds(kept | {"texts": done})}
    write_json(folder / MAKER_FILE, content)
    model, tags = translator.model, translator.tags
    # Of a text as the model is given it: the prompt of the decoder, and token ids.
    digests = {
        text.pair: digest(
            decoder_prompt(model, tags, text.pair), tags.encode_source(list(text.sources), text.pair)
        )
        for text in texts
    }
    outputs: dict[Pair, list[str]] = {}
    todo: list[PairText] = []
    for text in texts:
        path = folder / f"{text.pair.file_name}.txt"
        lines = read_lines(path) if done.get(text.pair) == digests[text.pair] and path.is_file() else []
        if len(lines) == len(text):
            outputs[text.pair] = lines
        else:
            todo.append(text)
    for part in _in_parts(todo):
        started = time.perf_counter()
        for pair, translations in translator.translate_corpus(part).items():
            outputs[pair] = list(map(as_line, translations))
            write_lines(folder / f"{pair.file_name}.txt", outputs[pair], pair)
        took = time.perf_counter() - started
        done |= {text.pair: digests[text.pair] for text in part}
        content["seconds"] |= {text.pair: took / len(part) for text in part}
        write_json(folder / MAKER_FILE, content)
    return {text.pair: outputs[text.pair] for text in texts}


def _maker(translator: Translator) -> dict[str, Any]:
    """Return all that a translation depends on, but for its source."""
    gate, model, tokenizer = translator.acting_gate, translator.model, translator.tokenizer
    settings = {name: value for name, value in plain(translator.config).items() if name != "progress"}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # As it writes text; how it reads text is seen in the token ids of a source.
    writes = [
        type(tokenizer).__name__,
        dict(tokenizer.get_vocab()),
        sorted(tokenizer.all_special_ids),
        getattr(tokenizer, "clean_up_tokenization_spaces", None),
        json.loads(backend.to_str())["decoder"] if backend else None,
    ]
    return {
        **settings,
        "weights": _weights_digest(model),
        "gate": gate and gate.facts(),
        "generation_config": _without_names(model.generation_config.to_dict()),
        "model_config": digest(_without_names(model.config.to_dict())),
        "tokenizer": digest(writes),
    }


def _without_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without what says where it came from."""
    return {name: value for name, value in plain(config).items() if name not in _NAMES}


def _read_maker(folder: Path) -> dict[str, Any]:
    """Return who made what lies in a folder; a file of another shape says nothing."""
    try:
        content = read_json(folder / MAKER_FILE)
    except (FileNotFoundError, ConfigError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("texts"), dict):
        content = {"texts": {}}
    return {"maker": None, **content}


def _seconds(kept: Mapping[str, Any]) -> dict[str, float]:
    """Return what the translations took that are kept; earlier versions did not note it."""
    noted = kept.get("seconds", {})
    return {pair: noted[pair] for pair in kept["texts"] if pair in noted}


def _weights_digest(model: torch.nn.Module) -> str:
    """Return a hash of all weights, adapters and other additions included."""
    # Which of PEFT's adapters act, and how strongly, is in no weight.
    acting = [
        (name, list(part.active_adapters), part.disable_adapters, dict(getattr(part, "scaling", {})))
        for name, part in cast(Any, model).named_modules()
        if isinstance(getattr(part, "active_adapters", None), list)
    ]
    weights = (
        part
        for name, tensor in sorted(model.state_dict().items())
        # As bytes: NumPy has no bfloat16.
        for part in (name, tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    )
    return digest(weights, *([acting] if acting else []))


def _in_parts(texts: Sequence[PairText]) -> list[list[PairText]]:
    """Cut a list of pairs into parts of about `_AT_ONCE` sentences.

    A part is large enough for mixed batches, and small enough that a stopped run loses little.
    """
    parts: list[list[PairText]] = []
    for text in texts:
        if parts and sum(map(len, parts[-1])) < _AT_ONCE:
            parts[-1].append(text)
        else:
            parts.append([text])
    return parts
