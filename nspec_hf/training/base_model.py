"""The base model: its subwords and weights made from scratch."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from nspec_hf.core import ConfigError, atomic_folder
from nspec_hf.data import PairText, VocabularyConfig, load_tokenizer, train_vocabulary
from nspec_hf.recording import load_config

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
        everything = (sentence for own in sentences.values() for sentence in own)
        tokenizer = train_vocabulary(everything, list(sentences), settings)
        with atomic_folder(folder) as unfinished:
            tokenizer.save_pretrained(unfinished)
    return load_tokenizer(folder)


def make_model(
    tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any], seed: int
) -> M2M100ForConditionalGeneration:
    """Return a fresh model of the M2M-100 architecture (pre-norm, tied embeddings), without layer dropout.

    Args:
        tokenizer: Says how many subwords there are, and which are special.
        settings: Any field of `M2M100Config`.
        seed: Seed of the weights.
    """
    check_model_settings(settings)
    set_seed(seed)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    ids |= {"eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.eos_token_id}
    dropout = dict.fromkeys(_NO_DROPOUT, 0.0)
    return M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=len(tokenizer), **{**dropout, **ids, **settings})
    )


def check_model_settings(settings: Mapping[str, Any]) -> None:
    """Check the names of a fresh model's settings; the config would take any, and change nothing by it.

    Raises:
        ConfigError: If `M2M100Config` has no such field.
    """
    known = M2M100Config()
    unknown = [name for name in settings if not hasattr(known, name) and name != "attn_implementation"]
    if unknown:
        near = get_close_matches(unknown[0], list(known.to_dict()), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"an M2M-100 model has no setting {', '.join(unknown)}{hint}")


def fresh_model(
    name: str, settings: Mapping[str, Any], seed: int, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Return an untrained model of a trained one's shape, but for what `settings` say of its config.

    Args:
        name: Hub id or folder of the trained one.
        settings: Fields of its config.
        seed: Seed of the weights.
        device: Where it is moved.
    """
    config = load_config(name, settings, for_training=True)
    set_seed(seed)
    return AutoModelForSeq2SeqLM.from_config(config).to(device)
