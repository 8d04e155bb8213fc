"""Convert a model in memory to CTranslate2, and decode with it as with the model.

CTranslate2 reads the width of every layer from its weights, so it takes pruned models as they are. It is an
optional extra: `pip install nspec-hf[export]`.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.core import ConfigError, UnsupportedModelError

QUANTIZATIONS = (
    "float32",
    "float16",
    "bfloat16",
    "int16",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
)


def convert(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, quantization: str = "float32"
) -> None:
    """Write a model as CTranslate2 reads it.

    Args:
        model: The model; its weights may have any widths.
        tokenizer: Its tokenizer, whose tokens become the vocabulary.
        folder: Where to write; made if it is not there.
        quantization: Type of the weights: one of `QUANTIZATIONS`.

    Raises:
        ConfigError: If ctranslate2 is not installed, or the quantization is unknown.
        UnsupportedModelError: If CTranslate2 knows no such model.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization is one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    _load_library()
    from ctranslate2.converters import transformers as converters

    name = type(model.config).__name__
    loader = converters._MODEL_LOADERS.get(name)
    if loader is None:
        known = ", ".join(sorted(converters._MODEL_LOADERS))
        raise UnsupportedModelError(f"CTranslate2 converts no model with a {name}; it converts: {known}")
    # A shallow copy: the loaders write settings of their own into the config.
    model = copy.copy(model)
    model.config = copy.deepcopy(model.config)
    with torch.no_grad():
        specification = loader(model, tokenizer)
    specification.validate()
    specification.optimize(quantization=quantization)
    folder.mkdir(parents=True, exist_ok=True)
    specification.save(str(folder))


def decode(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    prefix: Sequence[int],
    max_tokens: int,
    threads: int = 1,
) -> list[list[int]]:
    """Decode greedily with a converted model.

    Args:
        folder: What `convert` wrote.
        tokenizer: The tokenizer that it was converted with.
        sources: Token ids of the sentences.
        prefix: Token ids that every translation begins with, without the decoder's start token.
        max_tokens: Longest translation, the prefix not counted.
        threads: Threads of one translation.

    Returns:
        Token ids of the translations, without prefix and end of sentence.
    """
    library = _load_library()
    translator = library.Translator(str(folder), device="cpu", intra_threads=threads)
    start = tokenizer.convert_ids_to_tokens(list(prefix))
    found = translator.translate_batch(
        [tokenizer.convert_ids_to_tokens(list(source)) for source in sources],
        target_prefix=[start] * len(sources) if start else None,
        beam_size=1,
        max_decoding_length=max_tokens + len(start),
        max_input_length=0,
    )
    hypotheses = [tokenizer.convert_tokens_to_ids(each.hypotheses[0]) for each in found]
    return [list(ids[len(start) :]) for ids in hypotheses]


def _load_library() -> ModuleType:
    try:
        import ctranslate2  # an extra
    except ImportError:
        raise ConfigError("CTranslate2 models need `pip install nspec-hf[export]`") from None
    return ctranslate2
