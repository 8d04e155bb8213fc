"""The base model: its subwords and weights made from scratch.

`model_type` among a model's settings chooses the architecture: `m2m_100` (pre-norm, as in Tan et al. 2024) or
`marian` (post-norm, with ReLU and without any norm after the stacks, as in Vaswani et al. 2017 and Xie et al.
2021). Embeddings are shared and scaled, positions are sinusoidal in both.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    M2M100Config,
    MarianConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from nspec_hf.core import ConfigError, atomic_folder
from nspec_hf.data import PairText, VocabularyConfig, learned, load_tokenizer, train_vocabulary
from nspec_hf.recording import load_config

_A_MODEL = {M2M100Config.model_type: "an M2M-100", MarianConfig.model_type: "a Marian"}
_NO_DROPOUT = ("encoder_layerdrop", "decoder_layerdrop", "activation_dropout", "attention_dropout")


def make_tokenizer(
    texts: Iterable[PairText], settings: VocabularyConfig, folder: Path
) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `folder`, trained first if it is not there.

    It is trained on the sentences of each language, each once, however many pairs share them.
    """
    if not folder.is_dir():
        sentences: dict[str, dict[str, None]] = {}
        for text in texts:
            sentences.setdefault(text.pair.source, {}).update(dict.fromkeys(text.sources))
            sentences.setdefault(text.pair.target, {}).update(dict.fromkeys(text.targets))
        prepared = learned(settings.moses, sentences)
        everything = (each for code, own in sentences.items() for each in prepared.before(own, code))
        tokenizer = train_vocabulary(everything, list(sentences), settings, prepared)
        with atomic_folder(folder) as unfinished:
            tokenizer.save_pretrained(unfinished)
    return load_tokenizer(folder)


def make_model(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """Return a fresh model of a tokenizer's subwords, with tied embeddings, without layer dropout.

    `settings` are `model_type`, `m2m_100` if none is given, and any field of its config.
    """
    check_model_settings(settings)
    set_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    ids |= {"eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.eos_token_id}
    kind, own = _kind(settings)
    fields = {**dict.fromkeys(_NO_DROPOUT, 0.0), **ids, "vocab_size": len(tokenizer), **own}
    return AutoModelForSeq2SeqLM.from_config(kind(**fields))


def check_model_settings(settings: Mapping[str, Any]) -> None:
    """Check the names of a fresh model's settings; the config would take any, and change nothing by it.

    Raises:
        ConfigError: If there is no such architecture here, or its config has no such field.
    """
    kind, own = _kind(settings)
    known = kind()
    unknown = [name for name in own if not hasattr(known, name) and name != "attn_implementation"]
    if unknown:
        near = get_close_matches(unknown[0], list(known.to_dict()), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{_A_MODEL[kind.model_type]} model has no setting {', '.join(unknown)}{hint}")


def _kind(settings: Mapping[str, Any]) -> tuple[type[PretrainedConfig], dict[str, Any]]:
    """Return the class of a fresh model's config, and the settings with what our architecture adds."""
    own = dict(settings)
    name = own.pop("model_type", M2M100Config.model_type)
    if name == M2M100Config.model_type:
        return M2M100Config, own
    if name != MarianConfig.model_type:
        raise ConfigError(f"model_type is {' or '.join(_A_MODEL)}, got {name!r}")
    # Marian's own default is the token 0, with which every longest translation would end.
    ours = {"activation_function": "relu", "scale_embedding": True, "forced_eos_token_id": None}
    return MarianConfig, ours | own


def fresh_model(
    name: str, settings: Mapping[str, Any], seed: int, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Return an untrained model of the shape of the one of that name, but for `settings` of its config."""
    config = load_config(name, settings, for_training=True)
    # A Trainer leaves False in the config that it saves, and a model made from that would translate without a
    # cache: the same words, six times slower.
    config.use_cache = True
    set_seed(seed)
    return AutoModelForSeq2SeqLM.from_config(config).to(device)
