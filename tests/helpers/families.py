"""Tiny models of more families than tests/models.py needs, for the tests that go through all of them."""

import torch
import transformers as hf
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

from tests.helpers.models import _SHAPE, SIX_ARCHITECTURES, VOCABULARY, _make, tiny_pegasus, tiny_t5

_LLM = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_SEAMLESS = {
    **{
        name: value
        for name, value in _SHAPE.items()
        if name not in ("d_model", "init_std", "forced_eos_token_id")
    },
    "hidden_size": 16,
}


def tiny_plbart(seed=0):
    return _make(hf.PLBartForConditionalGeneration, hf.PLBartConfig(**_SHAPE), seed)


def tiny_blenderbot(seed=0):
    return _make(hf.BlenderbotForConditionalGeneration, hf.BlenderbotConfig(**_SHAPE), seed)


def tiny_umt5(seed=0):
    config = hf.UMT5Config(**_T5, pad_token_id=1, decoder_start_token_id=1, dropout_rate=0.0)
    return _make(hf.UMT5ForConditionalGeneration, config, seed)


def tiny_t5gemma(seed=0):
    half = T5GemmaModuleConfig(**_LLM, sliding_window=64, layer_types=["full_attention"] * 2)
    config = hf.T5GemmaConfig(
        encoder=half, decoder=half, vocab_size=VOCABULARY, attention_dropout=0.0, dropout_rate=0.0
    )
    return _make(hf.T5GemmaForConditionalGeneration, config, seed)


def tiny_t5gemma2(seed=0):
    """A model that looks at pictures too, by a tower with a table of four positions."""
    text = {**_LLM, "layer_types": ["full_attention"] * 2}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = {"text_config": text, "vision_config": {**vision, "image_size": 28, "patch_size": 14}}
    config = hf.T5Gemma2Config(
        encoder={**encoder, "mm_tokens_per_image": 4}, decoder=text, image_token_index=47
    )
    return _make(hf.T5Gemma2ForConditionalGeneration, config, seed)


def tiny_led(seed=0, **changes):
    """A model that fills its source up to a multiple of its window; its sides have other positions."""
    sizes = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 32}
    config = hf.LEDConfig(**{**_SHAPE, "attention_window": 8, **sizes, **changes})
    return _make(hf.LEDForConditionalGeneration, config, seed)


def tiny_seamless(seed=0):
    return _make(hf.SeamlessM4TForTextToText, hf.SeamlessM4TConfig(**_SEAMLESS), seed)


def tiny_whisper(seed=0):
    shape = {**_SHAPE, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
    config = hf.WhisperConfig(**shape, suppress_tokens=None, begin_suppress_tokens=None)
    return _make(hf.WhisperForConditionalGeneration, config, seed)


def tiny_llama(seed=0):
    return _make(hf.LlamaForCausalLM, hf.LlamaConfig(**_LLM), seed)


def tiny_gemma(seed=0):
    return _make(hf.GemmaForCausalLM, hf.GemmaConfig(**_LLM), seed)


def tiny_qwen(seed=0):
    return _make(hf.Qwen2ForCausalLM, hf.Qwen2Config(**_LLM), seed)


def tiny_opt(seed=0):
    shape = {
        name: _LLM[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    }
    config = hf.OPTConfig(
        **shape, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=64, dropout=0.0, pad_token_id=1
    )
    return _make(hf.OPTForCausalLM, config, seed)


def tiny_nllb_moe(sparse_step):
    config = hf.NllbMoeConfig(
        **_SHAPE,
        num_experts=4,
        encoder_sparse_step=sparse_step,
        decoder_sparse_step=sparse_step,
        router_z_loss_coef=0.0,
    )
    return hf.NllbMoeForConditionalGeneration(config).eval()


def tiny_fsmt():
    shape = {
        name: value for name, value in _SHAPE.items() if name not in ("vocab_size", "max_position_embeddings")
    }
    config = hf.FSMTConfig(
        **shape, langs=["en", "de"], src_vocab_size=48, tgt_vocab_size=48, max_position_embeddings=64
    )
    return hf.FSMTForConditionalGeneration(config).eval()


TWO_SIDED = {
    **SIX_ARCHITECTURES,
    "pegasus": tiny_pegasus,
    "plbart": tiny_plbart,
    "blenderbot": tiny_blenderbot,
    "umt5": tiny_umt5,
    "t5gemma": tiny_t5gemma,
    "seamless": tiny_seamless,
    "flan-t5": lambda seed=0: tiny_t5(seed, gated=True, tie_word_embeddings=False),
}
"""Text to text; all take what `random_batch` makes."""

DECODERS = {"llama": tiny_llama, "gemma": tiny_gemma, "qwen": tiny_qwen, "opt": tiny_opt}
"""Decoder-only."""


def audio_batch(rows=3, seed=0):
    """Return a padded float64 batch for Whisper: 32 frames, of which the last row has fewer."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, VOCABULARY, (rows, 5), generator=generator)
    labels[1, 3:] = -100
    frames = torch.full((rows,), 32)
    frames[-1] = 19
    return {
        "input_features": torch.randn(rows, 8, 32, generator=generator, dtype=torch.float64),
        "attention_mask": (torch.arange(32) < frames[:, None]).long(),
        "labels": labels,
        "decoder_input_ids": torch.where(labels == -100, 1, labels).roll(1, 1),
        "pair_ids": torch.arange(rows) % 2,
    }
