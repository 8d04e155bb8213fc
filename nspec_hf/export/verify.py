"""The proof of an exported model: the sample that it must translate as the gate does, and the gate's tokens.

Decoding is greedy, and without the settings of a model's own `generation_config` that other runtimes lack.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.core import ConfigError, Pair, by_pair, warn
from nspec_hf.data import LanguageTags
from nspec_hf.export.config import ExportConfig
from nspec_hf.gating import GateConfig, NeuronGate, set_aside
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import decoder_prompt, eval_mode, longest_text

_BATCH = 16
_GREEDY = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "do_sample": False,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "return_dict_in_generate": False,
}

Tokens = dict[Pair, list[list[int]]]
"""Token ids of each pair's sentences."""


def samples(
    tags: LanguageTags,
    pairs: Sequence[Pair],
    texts: Mapping[str, Sequence[str]] | None,
    count: int,
    longest: int | None = None,
) -> Tokens:
    """Return the encoder's token ids of each pair's sample.

    Args:
        tags: How the tokenizer spells languages.
        pairs: Which pairs.
        texts: Pair → sentences; None makes sentences up.
        count: How many to make up.
        longest: How many tokens the encoder has positions for; a longer sentence is cut, with a warning.

    Raises:
        ConfigError: If texts are given, but none for one of the pairs.
    """
    if texts is not None:
        given = {pair: list(each) for pair, each in by_pair(texts).items()}
        missing = [str(pair) for pair in pairs if not given.get(pair)]
        if missing:
            raise ConfigError(f"no sample text for {', '.join(missing)}")
    else:
        given = dict.fromkeys(pairs, _made_up(tags.tokenizer, count))
    encoded = {pair: tags.encode_source(given[pair], pair) for pair in pairs}
    too_long = sum(len(row) > (longest or len(row)) for rows in encoded.values() for row in rows)
    if too_long:
        warn(f"{too_long} sample sentences are over the model's {longest} positions; their ends are cut")
    return {pair: [row[:longest] for row in rows] for pair, rows in encoded.items()}


def within_positions(
    config: ExportConfig, model: PreTrainedModel, tags: LanguageTags, pairs: Sequence[Pair]
) -> ExportConfig:
    """Return the settings with translations that are no longer than the model has positions for."""
    prompt = max(len(decoder_prompt(model, tags, pair)) for pair in pairs)
    room = (longest_text(model, "decoder") or sys.maxsize) - prompt
    return config if config.max_new_tokens <= room else replace(config, max_new_tokens=max(1, room))


def _made_up(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    known = [number for number in range(tokenizer.vocab_size) if number not in special]
    picks = torch.randint(len(known), (count, 10), generator=generator).tolist()
    lengths = [3 + number % 8 for number in range(count)]
    return [
        str(tokenizer.decode([known[pick] for pick in row[:length]]))
        for row, length in zip(picks, lengths, strict=True)
    ]


def gated_tokens(
    model: PreTrainedModel,
    tags: LanguageTags,
    masks: NeuronMasks | None,
    sample: Tokens,
    silence: Literal["neuron", "weights"],
    max_new_tokens: int,
    forbidden: Sequence[int] = (),
) -> Tokens:
    """Return what a gate writes for each pair's sample: with its own neurons, else those of the first pair.

    Args:
        model: The model; a gate on it is off meanwhile.
        tags: How the tokenizer spells languages.
        masks: The masks: of these pairs, or of all together. None: all neurons are used.
        sample: Encoded sentences.
        silence: What the gate does to a neuron.
        max_new_tokens: Longest translation.
        forbidden: Tokens that are not written.
    """
    with set_aside(model):
        gate = None if masks is None else NeuronGate(model, masks, GateConfig(silence=silence))
        found: Tokens = {}
        with eval_mode(model), gate or nullcontext():
            for pair, rows in sample.items():
                if gate is not None and masks is not None:
                    gate.use(pair if pair in masks else masks.pairs[0])
                found[pair] = greedy(model, tags, pair, rows, max_new_tokens, forbidden)
    return found


def greedy(
    model: PreTrainedModel,
    tags: LanguageTags,
    pair: Pair,
    rows: list[list[int]],
    max_new_tokens: int,
    forbidden: Sequence[int] = (),
) -> list[list[int]]:
    """Return the greedy translations of encoded sentences, without prompt and end of sentence."""
    prefix = decoder_prompt(model, tags, pair)
    # A generation config may forbid padding or not; it is no word in any case.
    tokenizer = tags.tokenizer
    padding = [] if tokenizer.pad_token_id == tokenizer.eos_token_id else [tokenizer.pad_token_id]
    found = []
    for first in range(0, len(rows), _BATCH):
        batch = tags.tokenizer.pad({"input_ids": rows[first : first + _BATCH]}, return_tensors="pt")
        ids_BL = batch["input_ids"].to(model.device)
        with torch.no_grad():
            outputs = cast(Any, model).generate(
                input_ids=ids_BL,
                attention_mask=batch["attention_mask"].to(model.device),
                decoder_input_ids=torch.tensor([prefix] * len(ids_BL), device=model.device),
                decoder_start_token_id=prefix[0],
                max_new_tokens=max_new_tokens,
                suppress_tokens=[*padding, *forbidden] or None,
                **_GREEDY,
            )
        found += [until_end(row[len(prefix) :], tags.tokenizer) for row in outputs.tolist()]
    return found


def until_end(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens before the end of the sentence."""
    ids = list(ids)
    return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids


def prompts(
    model: PreTrainedModel, tags: LanguageTags, pairs: Sequence[Pair]
) -> tuple[int | None, dict[Pair, list[int]]]:
    """Return the token that all pairs' translations start from, if there is one, and what follows it.

    mBART-25 starts from the language, so there is none for several of them.
    """
    starts = {pair: decoder_prompt(model, tags, pair) for pair in pairs}
    first = {prompt[0] for prompt in starts.values()}
    if len(first) > 1:
        return None, starts
    return first.pop(), {pair: prompt[1:] for pair, prompt in starts.items()}
