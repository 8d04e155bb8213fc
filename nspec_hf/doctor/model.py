"""Checks of the model: its weights and their precision, what drops out, where decoding starts."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, NspecError, UnsupportedModelError
from nspec_hf.doctor.setup import Finding, NotCheckedError, Setup, note, one_line
from nspec_hf.recording import decoder_start_token, find_sites


def check_model(setup: Setup) -> Iterator[Finding]:
    """Look at the model's weights and config."""
    try:
        network = setup.network
    except NspecError as error:
        if isinstance(error.__cause__, OSError):
            raise NotCheckedError(f"there is no model {setup.model}") from error
        yield Finding(
            what=f"the model cannot be used: {one_line(error)}",
            why="nothing can be recorded, trained or translated with it",
            mend="see the message; `nspec inspect --path MODEL` shows what a folder holds",
        )
        return
    yield from _precision(network)
    yield from _dropout(network)
    yield from _decoding(network)
    try:
        find_sites(network)
    except UnsupportedModelError as error:
        yield Finding(
            what=f"its feed-forward neurons are not found: {error}",
            why="they can neither be counted nor gated",
            mend="use a model of a family that is supported; the README lists them",
        )


def _precision(network: PreTrainedModel) -> Iterator[Finding]:
    dtypes = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    if torch.float16 in dtypes:
        yield Finding(
            what="its weights are saved in float16",
            why="transformers loads them so; AdamW's ε of 1e-9 is then 0, and training gives NaN",
            mend="in a script of your own: from_pretrained(…, dtype=torch.float32), and fp16=True or "
            "bf16=True among the arguments for speed; `nspec train` does so by itself",
        )
    elif torch.bfloat16 in dtypes:
        yield note(
            what="its weights are saved in bfloat16",
            why="transformers loads them so; updates under a 256th of a weight are then lost",
            mend="in a script of your own: from_pretrained(…, dtype=torch.float32) and bf16=True; `nspec "
            "train` does so by itself",
        )


def _dropout(network: PreTrainedModel) -> Iterator[Finding]:
    names = ("encoder_layerdrop", "decoder_layerdrop")
    drops = {name: getattr(network.config, name, 0.0) for name in names}
    if any(drops.values()):
        yield note(
            what=f"whole layers drop out in training: {', '.join(f'{k} {v}' for k, v in drops.items() if v)}",
            why="several processes then fail (“expected to have finished reduction”) or drift apart, and "
            "what is dropped learns nothing",
            mend="in a script of your own: from_pretrained(…, encoder_layerdrop=0.0, decoder_layerdrop=0.0); "
            "`nspec train` does so by itself",
        )
    if getattr(network.config, "dropout", getattr(network.config, "dropout_rate", 0.1)) == 0:
        yield note(
            what="dropout is 0",
            why="on little text such a model learns it by heart; dropout 0.1 gained 3 BLEU where text was "
            "short, more than any masks",
            mend="set dropout to 0.1 in config.json, unless the text is large",
        )


def _decoding(network: PreTrainedModel) -> Iterator[Finding]:
    # Marian may have a vocabulary for each side.
    rows = cast(nn.Embedding, network.get_decoder().get_input_embeddings()).num_embeddings
    try:
        start = decoder_start_token(network)
        if not 0 <= start < rows:
            yield Finding(
                what=f"decoding starts from token {start}, but the model has embeddings for {rows}",
                why="every translation and every training batch stops with an index error",
                mend="set decoder_start_token_id in config.json and generation_config.json: the id of <pad> "
                "(Marian, T5) or of </s> (M2M-100, mBART-50, NLLB)",
            )
    except ConfigError as error:
        yield Finding(
            what=str(error).partition(";")[0],
            why="the decoder of M2M-100, NLLB, Marian and T5 begins with it; recording and training stop",
            mend="set decoder_start_token_id in generation_config.json (M2M-100, mBART-50, NLLB: the id "
            "of </s>)",
        )
    generation = network.generation_config
    if generation is None:
        return
    if (generation.num_return_sequences or 1) > 1:
        yield Finding(
            what=f"its generation config returns {generation.num_return_sequences} translations a sentence",
            why="rows and translations then no longer go together",
            mend="set num_return_sequences to 1 in generation_config.json",
        )
    if generation.use_cache is False:
        yield note(
            what="its generation config has no cache (use_cache: false)",
            why="every token runs the decoder over the whole translation again: the same words, several "
            "times slower; a model that is made from the config that a Trainer saved has this",
            mend="set use_cache to true in generation_config.json",
        )
    try:
        generation.validate(strict=True)
    except ValueError as error:
        yield Finding(
            what=f"its generation config contradicts itself: {' '.join(str(error).split())[:300]}",
            why="saving refuses it, after the whole training",
            mend="mend generation_config.json: take out what the message names",
        )
    if generation.max_length is not None and generation.max_length <= 20 and not generation.max_new_tokens:
        yield note(
            what=f"its generation config ends translations after {generation.max_length} tokens",
            why="model.generate and predict_with_generate cut what is longer, and scores fall; Translator "
            "does not use it",
            mend="set max_length to the longest translation in tokens, or pass generation_max_length",
        )
