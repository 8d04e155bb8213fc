"""Which tokens the text of some pairs needs, and a model that has no others.

Shape letters: V = tokens of the model, N = kept ones, D = model width.

Kept are: what text of the pairs is split into; everything that is added to the subwords (special tokens and
tags: few rows, and some tokenizers number them by their count); bytes; and single characters of the scripts
that the text is written in, so that a word that was not in it is spelled out. Embeddings and output layer
lose the other rows, once where they share their weights; a kept token's new id is its rank.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, UnsupportedModelError
from nspec_hf.data import LanguageTags, PairText, vocabularies
from nspec_hf.export.memory import let_go
from nspec_hf.export.tokenizer_cut import reachable

_LEAST_SHARE = 0.01  # of a side's letters: a word that is quoted in another script does not bring all of it
_CHUNK = 10_000  # sentences encoded at a time
_ROWS = 4096  # rows of a weight copied at a time
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LISTS = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens")


def kept_tokens(
    model: PreTrainedModel, tags: LanguageTags, texts: Sequence[PairText], least: int, folder: Path
) -> list[int]:
    """Return the ids that stay, ascending: the id of place n is the new id n's old one.

    Args:
        model: The model, for the ids that its configs name.
        tags: Its tokenizer.
        texts: Text of the pairs; both sides are counted.
        least: How often a token must occur in it; a text that several pairs have is counted once a side.
        folder: What the tokenizer's `save_pretrained` wrote.

    Raises:
        ConfigError: If there is no text, or the model has no row for a token that was added.
        UnsupportedModelError: If the tokenizer cannot be cut.
    """
    counts: Counter[int] = Counter()
    scripts: set[str] = set()
    around: set[int] = set()
    seen: set[tuple[str, str, int]] = set()
    for text in texts:
        for side, sentences, encode in (
            ("source", text.sources, tags.encode_source),
            ("target", text.targets, tags.encode_target),
        ):
            around.update(*encode([""], text.pair))  # tags, or words such as "translate English to"
            text_of_side = (side, getattr(text.pair, side), hash(tuple(sentences)))
            if text_of_side not in seen:  # with English in every pair, its text is there many times
                seen.add(text_of_side)
                for first in range(0, len(sentences), _CHUNK):
                    counts.update(chain.from_iterable(encode(sentences[first : first + _CHUNK], text.pair)))
                scripts |= _scripts(sentences)
    if not counts.keys() - around:
        raise ConfigError("there is no text whose subwords could be kept; trimming counts them on a corpus")
    ids, added = vocabularies(tags.tokenizer)
    size = token_count(model)
    beyond = sorted(token for token, number in added.items() if number >= size)
    if beyond:
        raise ConfigError(
            f"the tokenizer has tokens beyond the {size} of the model ({', '.join(beyond[:3])}), which it "
            "can neither read nor write; give it rows for them: model.resize_token_embeddings(len(tokenizer))"
        )
    always = {*around, *added.values(), *tags.tokenizer.all_special_ids, *_named(model)}
    bytewise = "Ġ" in ids  # letters of such a vocabulary stand for bytes
    tokens = {
        token
        for token, number in ids.items()
        if number in always
        or counts[number] >= least
        or _BYTE.fullmatch(token)
        or (len(token) == 1 and (bytewise or not token.isalpha() or _script(token) in scripts))
    }
    return sorted(number for token in reachable(folder, tokens) if (number := ids.get(token, size)) < size)


def token_count(model: PreTrainedModel) -> int:
    """Return how many tokens a model's embeddings have; a tokenizer may know fewer."""
    embeddings: Any = model.get_input_embeddings()
    return embeddings.weight.shape[0]


def cut_vocabulary(model: PreTrainedModel, kept: Sequence[int], release: bool = False) -> None:
    """Take all rows but the kept ones out of a model's embeddings and output layer, in place.

    Ids in its configs get their new numbers; words that may not be written and are gone are forgotten.

    Args:
        model: The model, changed in place; weights get new tensors, so that a copy may share the old ones.
        kept: Old id of each new id.
        release: Whether nothing else uses the old tensors: they go from memory while their rows are copied.

    Raises:
        UnsupportedModelError: If it has a vocabulary for each side, or ids that are not known here.
    """
    size = token_count(model)
    modules = _token_modules(model)
    if model.config.model_type.startswith("seamless") or any(
        module.weight.shape[0] != size for module in modules
    ):
        raise UnsupportedModelError(
            f"a {type(model).__name__} has more than one vocabulary, and is exported without trimming"
        )
    new_id = {old: new for new, old in enumerate(kept)}
    index_N = torch.tensor(kept, device=modules[0].weight.device)
    cut: dict[int, nn.Parameter] = {}
    for module in modules:
        weight = module.weight
        if id(weight) not in cut:
            cut[id(weight)] = nn.Parameter(_rows(weight.detach(), index_N, release), weight.requires_grad)
        module.weight = cut[id(weight)]
        if isinstance(module, nn.Embedding):
            module.num_embeddings = len(kept)
            module.padding_idx = new_id.get(module.padding_idx)  # type: ignore[assignment, arg-type]
        elif isinstance(module, nn.Linear):
            module.out_features = len(kept)
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach()[index_N], module.bias.requires_grad)
    bias_1V = getattr(model, "final_logits_bias", None)
    if isinstance(bias_1V, Tensor):
        model.register_buffer("final_logits_bias", bias_1V[:, index_N])
    for config in _configs(model):
        _renumber(config, new_id)


def _rows(weight_VD: Tensor, index_N: Tensor, release: bool) -> Tensor:
    """Return some rows, [N, D]; where the old ones are released, a few at a time."""
    if not release:
        return weight_VD[index_N]
    rows_ND = weight_VD.new_empty(len(index_N), *weight_VD.shape[1:])
    for first in range(0, len(index_N), _ROWS):
        part = index_N[first : first + _ROWS]
        rows_ND[first : first + _ROWS] = weight_VD[part]
        let_go(weight_VD[: int(part[-1]) + 1])
    let_go(weight_VD)
    return rows_ND


def _token_modules(model: PreTrainedModel) -> list[Any]:
    """Return the modules that have a row a token: embeddings and output layer."""
    parts: list[Any] = [model, model.get_encoder(), model.get_decoder()]
    named = [part.get_input_embeddings() for part in parts] + [model.get_output_embeddings()]
    shared = {id(module.weight) for module in named if module is not None}
    return [module for module in model.modules() if id(getattr(module, "weight", None)) in shared]


def _configs(model: PreTrainedModel) -> list[Any]:
    """Return each config in the model once; parts may have copies."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return list({id(config): config for config in [*configs, model.generation_config]}.values())


def _named(model: PreTrainedModel) -> set[int]:
    """Return the ids that the model's configs name."""
    return {
        number for config in _configs(model) for _, value in _id_fields(config) for number in _as_list(value)
    }


def _id_fields(config: Any) -> Iterable[tuple[str, Any]]:
    fields = vars(config).items()
    return [(name, value) for name, value in fields if name.endswith("_token_id") and value is not None]


def _as_list(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _renumber(config: Any, new_id: Mapping[int, int]) -> None:
    for name, value in _id_fields(config):
        new = [new_id.get(number) for number in _as_list(value)]
        setattr(config, name, new[0] if isinstance(value, int) else new)
    for name in _LISTS:
        old = getattr(config, name, None)
        if old:
            rows = [[new_id.get(number) for number in _as_list(each)] for each in old]
            known = [row for row in rows if None not in row]
            # None where nothing is left: generate refuses an empty list.
            setattr(config, name, (known if name == "bad_words_ids" else [row[0] for row in known]) or None)
    biased = getattr(config, "sequence_bias", None)
    if biased:
        each = biased.items() if isinstance(biased, Mapping) else biased
        rows = [([new_id.get(number) for number in row], bias) for row, bias in each]
        config.sequence_bias = [[row, bias] for row, bias in rows if None not in row] or None
    for name in ("vocab_size", "decoder_vocab_size"):
        if hasattr(config, name):
            setattr(config, name, len(new_id))


def _scripts(sentences: Iterable[str]) -> set[str]:
    """Return the scripts that text is written in, but for those of a few quoted words."""
    letters: Counter[str] = Counter()
    for sentence in sentences:
        letters.update(sentence)
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        if letter.isalpha():
            counts[_script(letter)] += count
    return {script for script, count in counts.items() if count >= _LEAST_SHARE * counts.total()}


def _script(letter: str) -> str:
    """Return a letter's script as Unicode names it: `LATIN SMALL LETTER A` is of LATIN."""
    return unicodedata.name(letter, "?").split()[0]
