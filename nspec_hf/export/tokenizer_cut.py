"""Cut a tokenizer down to a part of its tokens, in its own files, so that `AutoTokenizer` loads the rest.

A kept token's new id is its rank among the kept ones. Files that are cut: `tokenizer.json` (Unigram and BPE),
SentencePiece models (unigram and BPE; M2M-100, Marian, PLBart) with the `vocab.json` beside them.

Why text whose tokens are all kept is split as before:

- Unigram looks for the best path. One that is still there is still the best of those that are left. What a
  character without a piece costs hangs on the lowest score, so the piece that has it stays.
- BPE joins neighbours, the best merge first. So that a kept token is still arrived at, everything stays that
  is made on the way to it; then every merge of such a text is there, and no other one was possible.

What text holds of other tokens is split into smaller ones.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import import_protobuf

from nspec_hf.core import ConfigError, UnsupportedModelError, atomic_write, read_json, write_json
from nspec_hf.data import load_tokenizer, vocabularies

_FAST, _WORDS, _SETTINGS = "tokenizer.json", "vocab.json", "tokenizer_config.json"
_UNIGRAM, _BPE = 1, 2  # SentencePiece's numbers of its kinds of model …
_NORMAL, _UNUSED = 1, 5  # … and of the pieces that text is split into

Rank = Callable[[str, str], float | None]
"""How early two neighbours are joined, lower is earlier; None: never."""


def reachable(folder: Path, tokens: set[str]) -> set[str]:
    """Return the tokens together with all that is needed so that text is still split into them.

    Args:
        folder: What the tokenizer's `save_pretrained` wrote.
        tokens: Tokens that are to stay.

    Raises:
        UnsupportedModelError: If the tokenizer splits text in a way that is not known here.
    """
    needed = set(tokens)
    for path in _models(folder):
        scores, rank = _splitting(path)
        if rank is None:
            needed.add(min(scores, key=lambda piece: scores[piece]))
        else:
            needed.update(*(_on_the_way(token, rank) for token in tokens if token in scores))
    return needed


def cut_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]
) -> PreTrainedTokenizerBase:
    """Cut the files that a tokenizer was saved as, and return the smaller tokenizer that they load as.

    Args:
        folder: What the tokenizer's `save_pretrained` wrote.
        tokenizer: The tokenizer.
        kept: Ids that stay, ascending.

    Raises:
        UnsupportedModelError: If the files do not load as one that gives every kept token its rank as id.
    """
    ids, _ = vocabularies(tokenizer)
    new_id = {old: new for new, old in enumerate(kept)}
    ranks = {token: new_id[number] for token, number in ids.items() if number in new_id}
    for path in _models(folder):
        if path.name == _FAST:
            _cut_fast(path, ranks, new_id)
        else:
            _cut_pieces(path, lambda piece: piece in ranks or piece not in ids)
    if (folder / _WORDS).is_file():
        words = read_json(folder / _WORDS)
        write_json(folder / _WORDS, {token: ranks[token] for token in words if token in ranks})
    settings = read_json(folder / _SETTINGS)
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] = {
            str(new_id[int(old)]): token for old, token in settings["added_tokens_decoder"].items()
        }
        write_json(folder / _SETTINGS, settings)
    smaller = load_tokenizer(folder)
    found, _ = vocabularies(smaller)
    wrong = sorted(
        ranks.keys() ^ found.keys() | {token for token in ranks if found.get(token) != ranks[token]}
    )
    if wrong:
        raise UnsupportedModelError(
            f"a {type(tokenizer).__name__} cannot be cut: {len(wrong)} tokens ({', '.join(wrong[:3])} …) "
            "have other ids when it is loaded again; export without trimming the vocabulary"
        )
    return smaller


def _models(folder: Path) -> list[Path]:
    """Return the files that say how text is split."""
    return sorted(
        path for path in folder.iterdir() if path.name == _FAST or path.suffix in (".model", ".spm")
    )


def _splitting(path: Path) -> tuple[dict[str, float], Rank | None]:
    """Return the score of every piece, and how pieces are joined; None where the best path is looked for."""
    if path.name != _FAST:
        return _pieces(path)
    model = read_json(path)["model"]
    kind = model["type"]
    if kind == "Unigram":
        return dict(model["vocab"]), None
    if kind != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        marks = " with marks inside words" if kind == "BPE" else ""
        raise UnsupportedModelError(
            f"a vocabulary of the kind {kind}{marks} is not trimmed; Unigram, BPE and SentencePiece are"
        )
    order = {merge: number for number, merge in enumerate(map(_merge, model["merges"]))}
    return dict.fromkeys(model["vocab"], 0.0), lambda left, right: order.get((left, right))


def _pieces(path: Path) -> tuple[dict[str, float], Rank | None]:
    model = _proto(path)
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    kind = model.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE):
        raise UnsupportedModelError(f"{path.name} splits into words or characters, and is not trimmed")

    def rank(left: str, right: str) -> float | None:
        return -scores[left + right] if left + right in scores else None

    return scores, rank if kind == _BPE else None


def _on_the_way(token: str, rank: Rank) -> set[str]:
    """Return all that BPE makes of a token's characters until it has the token."""
    symbols = list(token)
    made = set(symbols)
    while True:
        ranks = [(rank(*two), place) for place, two in enumerate(pairwise(symbols))]
        known = [(value, place) for value, place in ranks if value is not None]
        if not known:
            return made
        _, place = min(known)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        made.add(symbols[place])


def _cut_fast(path: Path, ranks: Mapping[str, int], new_id: Mapping[int, int]) -> None:
    content = read_json(path)
    model = content["model"]
    if model["type"] == "Unigram":
        model["unk_id"] = new_id.get(model["unk_id"])
        model["vocab"] = [each for each in model["vocab"] if each[0] in ranks]
    else:
        model["vocab"] = {token: ranks[token] for token in model["vocab"] if token in ranks}
        model["merges"] = [
            list(two)
            for two in map(_merge, model["merges"])
            if all(token in model["vocab"] for token in (*two, "".join(two)))
        ]
    for token in content["added_tokens"]:
        token["id"] = new_id[token["id"]]
    content["post_processor"] = _renumbered(content["post_processor"], new_id)
    if content["padding"]:
        content["padding"]["pad_id"] = new_id[content["padding"]["pad_id"]]
    write_json(path, content)


def _merge(merge: str | Sequence[str]) -> tuple[str, str]:
    """Return the two halves of a merge, which older files write as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _renumbered(part: Any, new_id: Mapping[int, int]) -> Any:
    """Give the ids in a post-processor's templates, and beside tokens (`["</s>", 2]`), their new numbers."""
    if isinstance(part, dict):
        return {
            key: [new_id[old] for old in value] if key == "ids" else _renumbered(value, new_id)
            for key, value in part.items()
        }
    if not isinstance(part, list):
        return part
    if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
        return [part[0], new_id[part[1]]]
    return [_renumbered(each, new_id) for each in part]


def _cut_pieces(path: Path, stays: Callable[[str], bool]) -> None:
    """Cut a SentencePiece model; a piece that the vocabulary lacks stays, as the unknown word that it is."""
    model = _proto(path)
    pieces = [piece for piece in model.pieces if piece.type not in (_NORMAL, _UNUSED) or stays(piece.piece)]
    names = [piece.piece for piece in pieces]
    trained = model.trainer_spec
    for field in ("unk_id", "bos_id", "eos_id", "pad_id"):
        number = getattr(trained, field)
        if 0 <= number < len(model.pieces):
            setattr(trained, field, names.index(model.pieces[number].piece))
    trained.vocab_size = len(pieces)
    del model.pieces[:]
    model.pieces.extend(pieces)
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def _proto(path: Path) -> Any:
    protobuf: Any = import_protobuf()
    model = protobuf.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own, of no public class
        raise ConfigError(f"{path.name} is no SentencePiece model: {error}") from error
    return model
