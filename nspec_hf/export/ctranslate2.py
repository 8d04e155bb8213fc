"""Convert a model in memory to CTranslate2, and decode with it as with the model.

CTranslate2 reads the width of every layer from its weights, so it takes pruned models as they are. It is an
optional extra: `pip install nspec-hf[export]`. Its converter for each family is looked up in a private table
(`_MODEL_LOADERS`); vocabulary, start token and what configs of transformers 5 lack are passed from here.
"""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.core import ConfigError, ExportError, UnsupportedModelError, read_json

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
# The converter asks configs for it, which say it no more: layer norms before (mBART) or after (BART) a block.
_NORM_BEFORE = {"mbart": True, "bart": False}


def convert(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    quantization: str = "float32",
    start: int | None = None,
) -> None:
    """Write a model as CTranslate2 reads it.

    Args:
        model: The model; its weights may have any widths.
        tokenizer: Its tokenizer, whose tokens become the vocabulary.
        folder: Where to write; made if it is not there.
        quantization: Type of the weights: one of `QUANTIZATIONS`.
        start: Token id that every translation starts from; None: the first of its prefix.

    Raises:
        ConfigError: If ctranslate2 is not installed, or the quantization is unknown.
        UnsupportedModelError: If CTranslate2 knows no such model, or it has a vocabulary for each side.
        ExportError: If CTranslate2 cannot convert it.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization is one of {', '.join(QUANTIZATIONS)}, got {quantization!r}")
    require_ctranslate2()
    from ctranslate2.converters import transformers as converters

    name, size = type(model.config).__name__, _rows(model.get_input_embeddings())
    loader = converters._MODEL_LOADERS.get(name)
    if loader is None:
        known = ", ".join(sorted(converters._MODEL_LOADERS))
        raise UnsupportedModelError(f"CTranslate2 converts no model with a {name}; it converts: {known}")
    if _rows(model.get_output_embeddings()) != size:
        raise UnsupportedModelError(
            f"this {name} has a vocabulary for each side, which is not converted; export it as 'pruned'"
        )
    model = copy.copy(model)
    model.config = copy.deepcopy(model.config)  # the loaders write settings of their own into it
    if model.config.model_type in _NORM_BEFORE and not hasattr(model.config, "normalize_before"):
        model.config.normalize_before = _NORM_BEFORE[model.config.model_type]
    try:
        specification = _specification(loader, model, tokenizer, size, start, quantization)
        folder.mkdir(parents=True, exist_ok=True)
        specification.save(str(folder))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise ExportError(
            f"CTranslate2 cannot convert this {name}: {error}; export it as 'pruned'"
        ) from error


def _rows(module: nn.Module | None) -> int:
    """Return how many tokens embeddings or an output projection have."""
    weight = getattr(module, "weight", None)
    return 0 if weight is None else weight.shape[0]


def _specification(
    loader: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    start: int | None,
    quantization: str,
) -> Any:
    names = vocabulary(tokenizer, size)
    # CTranslate2 starts Marian from zeros, and so takes the padding out, the last row whichever that is.
    loader, padding = copy.copy(loader), model.config.pad_token_id
    has_padding = not hasattr(loader, "_remove_pad_weights")
    loader._remove_pad_weights = lambda specification: None
    with torch.no_grad():
        specification = loader.get_model_spec(model)
    loader.set_config(specification.config, model, tokenizer)
    for name in ("bos_token", "unk_token"):  # which mBART-50 and others may lack; CTranslate2 reads no null
        if getattr(specification.config, name) is None:
            setattr(specification.config, name, names[model.config.eos_token_id])
    if not has_padding:
        _remove_row(specification, padding, size)
        names = [*names[:padding], *names[padding + 1 :]]
    else:
        specification.config.decoder_start_token = None if start is None else names[start]
    loader.set_vocabulary(specification, names)
    specification.validate()
    for variable in specification.variables().values():
        # Quantization scales weights in their place, which is the model's: let it scale a copy of each.
        variable.numpy = partial(lambda read: read().copy(), variable.numpy)
    specification.optimize(quantization=quantization)
    return specification


def _remove_row(specification: Any, row: int, size: int) -> None:
    """Take a token out of embeddings and output projection, which may share their weights."""
    kept = [index for index in range(size) if index != row]
    for part in (specification.encoder.embeddings[0], specification.decoder.embeddings):
        part.weight = part.weight[kept]
    projection = specification.decoder.projection
    projection.weight = projection.weight[kept]
    if projection.has_bias():
        projection.bias = projection.bias[kept]


def vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> list[str]:
    """Return the tokens of the first ids, as the tokenizer writes them; ids without one get other names."""
    names: dict[str, int] = {}
    for number in range(size):
        try:
            token = tokenizer.convert_ids_to_tokens(number)
        except (IndexError, KeyError, ValueError, OverflowError):
            token = None
        # M2M-100 has unused rows behind its tags, which the tokenizer takes for unknown words.
        names[token if isinstance(token, str) and token not in names else f"madeupword{number}"] = number
    return list(names)


class Decoder:
    """A converted model, loaded once.

    Args:
        folder: What `convert` wrote.
        tokenizer: The tokenizer that it was converted with.
        threads: Threads of one translation; 0: what CTranslate2 takes by itself.

    Raises:
        ConfigError: If ctranslate2 is not installed.
        ExportError: If CTranslate2 cannot read the folder.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, threads: int = 1) -> None:
        library = require_ctranslate2()
        self.folder = folder
        # One id more, for padding that was taken out.
        names = vocabulary(tokenizer, 1 + max(map(len, _vocabularies(folder)), default=0))
        self._names, self._id_of = names, {name: number for number, name in enumerate(names)}
        start = read_json(folder / "config.json").get("decoder_start_token")
        self.start: int | None = None if start is None else self._id_of.get(start)
        """Token id that every translation starts from; None: the first of its prefix."""
        padding = tokenizer.pad_token
        known = padding is not None and any(padding in each for each in _vocabularies(folder))
        self._suppressed = [[padding]] if known else None
        try:
            self.translator = library.Translator(str(folder), device="cpu", intra_threads=threads)
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"CTranslate2 cannot translate with {folder}: {error}") from error

    def decode(
        self,
        sources: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]],
        max_tokens: int,
        **options: Any,
    ) -> list[list[int]]:
        """Return the token ids of the translations, greedy ones if `options` do not say otherwise.

        Args:
            sources: Token ids of the sentences.
            prefixes: Token ids that each translation begins with, without the start token; of one length.
            max_tokens: Longest translation, the prefix not counted.
            options: More for `ctranslate2.Translator.translate_batch`.

        Returns:
            Without prefix; without the end of sentence too, unless `return_end_token` is among the options.

        Raises:
            ExportError: If CTranslate2 cannot follow them.
        """
        starts = [[self._names[number] for number in prefix] for prefix in prefixes]
        # Without a start token, translations start from the first of the prefix, then no part of them.
        skipped = len(starts[0]) - (self.start is None) if starts else 0
        try:
            found = self.translator.translate_batch(
                [[self._names[number] for number in source] for source in sources],
                target_prefix=starts if any(starts) else None,
                max_decoding_length=max_tokens + skipped,
                max_input_length=0,
                suppress_sequences=self._suppressed,
                **{"beam_size": 1, **options},
            )
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"CTranslate2 cannot translate with {self.folder}: {error}") from error
        return [[self._id_of[token] for token in each.hypotheses[0][skipped:]] for each in found]


def _vocabularies(folder: Path) -> list[list[str]]:
    return [read_json(path) for path in sorted(folder.glob("*vocabulary.json"))]


def require_ctranslate2() -> ModuleType:
    """Return the library.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import ctranslate2  # an extra
    except ImportError:
        raise ConfigError("CTranslate2 models need `pip install nspec-hf[export]`") from None
    return ctranslate2
