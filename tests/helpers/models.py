"""Tiny sequence-to-sequence models with random weights, built in memory in a few milliseconds."""

import copy
import functools
from collections.abc import Callable

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 48

_SHAPE = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "init_std": 0.3,
}


def _make(model_class: type, config: object, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = model_class(config).eval()
    # Fresh biases are zero, which would hide the difference between the two meanings of silence.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
            if name in (getattr(model, "_keys_to_ignore_on_save", None) or ()):
                parameter.requires_grad_(False)  # Marian's positions: transformers 5.24 leaves them on
    return model


def copied(make: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """Give out copies of each model that was made, in half the time; random numbers go on as after making."""
    made: dict[str, tuple[PreTrainedModel, torch.Tensor]] = {}

    @functools.wraps(make)
    def give(*arguments: object, **changes: object) -> PreTrainedModel:
        asked = repr((arguments, changes))
        if asked not in made:
            made[asked] = make(*arguments, **changes), torch.get_rng_state()
        model, random_state = made[asked]
        torch.set_rng_state(random_state)
        return copy.deepcopy(model)

    return give


@copied
def tiny_m2m100(seed: int = 0, **changes: object) -> PreTrainedModel:
    return _make(M2M100ForConditionalGeneration, M2M100Config(**{**_SHAPE, **changes}), seed)


@copied
def tiny_mbart(seed: int = 0, **changes: object) -> PreTrainedModel:
    return _make(MBartForConditionalGeneration, MBartConfig(**{**_SHAPE, **changes}), seed)


@copied
def tiny_bart(seed: int = 0, **changes: object) -> PreTrainedModel:
    return _make(BartForConditionalGeneration, BartConfig(**{**_SHAPE, **changes}), seed)


@copied
def tiny_marian(seed: int = 0, **changes: object) -> PreTrainedModel:
    shape = {**_SHAPE, "decoder_vocab_size": VOCABULARY, **changes}
    return _make(MarianMTModel, MarianConfig(**shape), seed)


def tiny_pegasus(seed: int = 0, **changes: object) -> PreTrainedModel:
    return _make(PegasusForConditionalGeneration, PegasusConfig(**{**_SHAPE, **changes}), seed)


@copied
def tiny_t5(seed: int = 0, gated: bool = False, **changes: object) -> PreTrainedModel:
    shape = {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "initializer_factor": 1.0,
        **changes,
    }
    return _make(T5ForConditionalGeneration, T5Config(**shape), seed)


SIX_ARCHITECTURES = {
    "m2m100": tiny_m2m100,
    "mbart": tiny_mbart,
    "bart": tiny_bart,
    "marian": tiny_marian,
    "t5": tiny_t5,
    "mt5": lambda seed=0, **changes: tiny_t5(seed, gated=True, **changes),
}


def random_batch(
    pairs: int = 3, rows: int = 4, source_length: int = 7, target_length: int = 6, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return a padded batch of random ids with a pair for every row; rows differ in length."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randint(2, source_length + 1, (rows,), generator=generator)
    targets = torch.randint(2, target_length + 1, (rows,), generator=generator)
    sources[0], targets[0] = source_length, target_length
    input_ids = torch.randint(3, VOCABULARY, (rows, source_length), generator=generator)
    labels = torch.randint(3, VOCABULARY, (rows, target_length), generator=generator)
    attention_mask = (torch.arange(source_length) < sources[:, None]).long()
    labels[torch.arange(target_length) >= targets[:, None]] = -100
    decoder_input_ids = torch.full_like(labels, 2)
    decoder_input_ids[:, 1:] = labels[:, :-1].clamp(min=0)
    decoder_input_ids[:, 1:][labels[:, :-1] == -100] = 1
    input_ids[attention_mask == 0] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "decoder_input_ids": decoder_input_ids,
        "pair_ids": torch.arange(rows) % pairs,
    }
