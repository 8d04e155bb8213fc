"""The one place that loads a model: whole, in the precision that its use needs, running no code of its own.

A folder of a PEFT adapter stands for its base with the adapter merged into it: a plain model again.

Transformers fills weights that a checkpoint lacks with random numbers and says so in its log alone, loads
half precision where half precision was saved, and asks on standard input whether it may run a repository's
code. Here each of these is an error or an argument.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    MissingPartError,
    UnsupportedModelError,
    adapters_and_base,
)
from nspec_hf.data import LanguageTags
from nspec_hf.recording.weights import refuse_integers, refuse_unfit

ATTACHED = "_nspec_attachment"
"""Attribute under which a model holds what is attached to it (a gate, adapters …); it has `pairs`."""

OTHER_PARTS = re.compile(r"t2u|vocoder|speech_encoder|vision|visual|image|audio|adapter|lora", re.IGNORECASE)
"""Names of parts that no text token passes through, and of small modules that were added to a model."""

_LFS_POINTER = b"version https://git-lfs"
_LAYERDROP = ("encoder_layerdrop", "decoder_layerdrop")
# Arguments of `from_pretrained` that say where files come from: the config needs them too.
_HUB = {"revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder"}


def load_config(
    name: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    for_training: bool = False,
    trust_remote_code: bool = False,
    **hub: Any,
) -> PreTrainedConfig:
    """Return the config of a model; for arguments see `load_model`.

    Raises:
        ArtifactError: If there is no model, or Git LFS pointers in its place, or a PEFT adapter that does
            not name its base.
        ConfigError: If the config has no such field.
        UnsupportedModelError: If it needs code of its own and `trust_remote_code` is not given.
    """
    _refuse_folder(Path(name))
    _, name = adapters_and_base(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    except Exception as error:  # whatever the library makes of a damaged file
        raise _explained(error, name) from error
    layerdrop = [field for field in _LAYERDROP if hasattr(config, field)] if for_training else []
    changes = dict(changes or {})
    if "attn_implementation" in changes:  # which is no field of a saved config
        config._attn_implementation = changes.pop("attn_implementation")
    unknown = sorted(field for field in changes if not hasattr(config, field))
    if unknown:
        raise ConfigError(f"a {config.model_type} config has no field {', '.join(unknown)}")
    config.update({**dict.fromkeys(layerdrop, 0.0), **changes})
    return config


def load_model(
    name: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
    for_training: bool = False,
    trust_remote_code: bool = False,
    decoder_only: bool = False,
    device: torch.device | str | None = None,
    reshape: Callable[[PreTrainedModel], None] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Return a translation model with all of its weights, in eval mode.

    Args:
        name: Hub id or folder.
        changes: Fields of its config that get another value.
        dtype: Of the weights. By default float32 for training, and otherwise what they were saved in.
        for_training: Whether it is to be trained: see `dtype`; and layers are not dropped at random, where
            the config has that setting, since what is dropped learns nothing, and its pair's neurons are then
            not those of the masks.
        trust_remote_code: Whether code in the repository may run.
        decoder_only: Whether a model without an encoder is accepted.
        device: Where to move it.
        reshape: Changes the new model's shape before its weights are loaded.
        options: More for `from_pretrained`: `revision`, `token`, `cache_dir`, `local_files_only`,
            `device_map`, `attn_implementation` …

    Raises:
        ArtifactError: If there is no model, or its weights are damaged, not finite, or do not fit its config.
        UnsupportedModelError: If it is no translation model, or needs code of its own.
    """
    adapters, name = adapters_and_base(name)
    hub = {key: value for key, value in options.items() if key in _HUB}
    config = load_config(name, changes, for_training=for_training, trust_remote_code=trust_remote_code, **hub)
    if not (config.is_encoder_decoder or decoder_only):
        raise UnsupportedModelError(
            f"{name} has no encoder ({config.model_type}); a model of encoder and decoder is needed"
        )
    family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        plain_class: Any = family._model_mapping[type(config)] if reshape else None
        loader = _reshaped(plain_class, reshape) if plain_class and reshape else family
        with _by_every_process():
            loaded: Any = loader.from_pretrained(
                name,
                config=config,
                dtype=dtype or (torch.float32 if for_training else "auto"),
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # they are refused below, with their names
                output_loading_info=True,
                **options,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the library makes of a damaged file
        raise _explained(error, name) from error
    model, info = loaded
    if plain_class:
        model.__class__ = plain_class
    refuse_unfit(model, name, **info)
    refuse_integers(model, name, variant=options.get("variant"), **hub)
    model = model.to(device) if device is not None else model
    return reduce(_merged, reversed(adapters), model)


def empty_model(name: str | Path) -> PreTrainedModel:
    """Return a translation model without weights: only the config is read. Raises what `load_config` does."""
    config = load_config(name)
    try:
        with torch.device("meta"):
            return AutoModelForSeq2SeqLM.from_config(config)
    except Exception as error:  # whatever the library makes of a damaged file
        raise _explained(error, name) from error


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and back into the mode that each was in, come what may."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def decoder_start_token(model: nn.Module) -> int:
    """Return the token that the decoder starts from.

    Raises:
        ConfigError: If neither the generation config nor the config says it.
    """
    for settings in ("generation_config", "config"):
        start = getattr(getattr(model, settings, None), "decoder_start_token_id", None)
        if isinstance(start, int):
            return start
    raise ConfigError(
        "the model says no decoder_start_token_id; set model.generation_config.decoder_start_token_id"
    )


def decoder_prompt(model: nn.Module, tags: LanguageTags, pair: str) -> list[int]:
    """Return what the decoder is given before it writes: its start token, the target's tag, or both.

    Raises:
        ConfigError: If it starts from a token that the model does not say (mBART-25 starts from the tag).
        UnsupportedModelError: If the model has no encoder.
    """
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", True):
        raise UnsupportedModelError(
            f"a {getattr(config, 'model_type', type(model).__name__)} has no encoder; text of pairs is "
            "translated by models of encoder and decoder. Call its own generate, with a prompt of yours"
        )
    with_any_start, with_another = (tags.decoder_prefix(pair, start) for start in (-1, -2))
    if with_any_start == with_another:
        return with_any_start
    return tags.decoder_prefix(pair, decoder_start_token(model))


def check_decoder_inputs_given(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Check that a call gives the decoder something to read, or labels to make that of.

    The trap: BART, mBART, LED and PLBart take the source in its place, and with a loss function that gets the
    labels to itself, as the Trainer's `compute_loss_func` does, they train on it without a word.

    Raises:
        ConfigError: If a model of encoder and decoder gets none of these.
    """
    two_sided = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    names = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
    if two_sided and all(arguments.get(name) is None for name in names):
        raise ConfigError(
            "the batch has neither decoder_input_ids nor labels that the model sees (the Trainer takes labels"
            " out for compute_loss_func), so its decoder would read the source or nothing; use "
            "PairCollator(tokenizer, pairs), or add decoder_input_ids: the labels moved one to the right"
        )


@contextmanager
def _by_every_process() -> Iterator[None]:
    """Load all weights in each process: FSDP may leave some to the first, and the others could not record."""
    asked = os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
    try:
        yield
    finally:
        os.environ |= {} if asked is None else {"FSDP_CPU_RAM_EFFICIENT_LOADING": asked}


def _reshaped(
    plain_class: type[PreTrainedModel], reshape: Callable[[PreTrainedModel], None]
) -> type[PreTrainedModel]:
    """Return the class for the time of loading, so that `from_pretrained` does all that it does else."""

    def make(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        plain_class.__init__(self, *args, **kwargs)
        reshape(self)

    return type(plain_class.__name__, (plain_class,), {"__init__": make})


def position_limit(model: nn.Module, side: str | None = None) -> int | None:
    """Return how many tokens fit a model's tables of positions; None where these grow or there are none.

    Args:
        model: The plain model.
        side: `encoder` or `decoder`; None: both. The table of a model that names neither is the decoder's.
    """
    tables = [
        module.num_embeddings - getattr(module, "offset", 0)
        for name, module in model.named_modules()
        if "position" in name.rpartition(".")[2]
        and isinstance(module, nn.Embedding)  # M2M-100's is none, and grows
        and side in (None, "encoder" if "encoder" in name else "decoder")
        and not OTHER_PARTS.search(name)
    ]
    return min(tables, default=None)


def longest_text(model: nn.Module, side: str | None = None) -> int | None:
    """Return how many tokens a model was made for: what its tables hold, and what its config says.

    M2M-100 and NLLB compute those beyond, untrained. None where distances are counted instead (T5).
    """
    said = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return min(filter(None, (said, position_limit(model, side))), default=None)


def _refuse_folder(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(_LFS_POINTER):
            raise ArtifactError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull`")


def _merged(base: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Return the base with an adapter merged into its weights; what PEFT wrapped is taken off again."""
    if importlib.util.find_spec("peft") is None:
        raise MissingPartError(f"{folder} is a PEFT adapter, and peft is not installed: pip install peft")
    peft: Any = importlib.import_module("peft")
    try:
        wrapped = peft.PeftModel.from_pretrained(base, str(folder))
        wanted = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        missing = sorted(wanted - set(peft.load_peft_weights(str(folder), device="cpu")))
    except Exception as error:
        raise ArtifactError(f"the PEFT adapter in {folder} does not go onto its base: {error}") from error
    if missing:
        raise ArtifactError(
            f"the PEFT adapter in {folder} lacks {len(missing)} of its {len(wanted)} weights "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}); loaded as it is, these layers "
            "would be the base's or random: save it again with save_pretrained of the wrapped model"
        )
    if wrapped.active_peft_config.is_prompt_learning:
        raise UnsupportedModelError(
            f"the PEFT adapter in {folder} tunes a prompt, which cannot be merged into weights; call the "
            "wrapper's own generate"
        )
    model: PreTrainedModel = wrapped.merge_and_unload()
    model.name_or_path = str(folder)
    refuse_unfit(model, folder)
    refuse_integers(model, folder)
    return model.eval()


def _explained(error: Exception, name: str | Path) -> Exception:
    if "trust_remote_code" in str(error):
        return UnsupportedModelError(
            f"{name} brings code of its own, which is not run unless trust_remote_code=True says so"
        )
    if "Unrecognized configuration class" in str(error):
        return UnsupportedModelError(f"{name} is no translation model of encoder and decoder: {error}")
    if isinstance(error, OSError):
        return ArtifactError(f"{name} is no model's folder, nor was it found on the Hub: {error}")
    return ArtifactError(f"the model in {name} cannot be loaded, its files are damaged: {error}")
