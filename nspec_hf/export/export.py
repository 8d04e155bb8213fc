"""A pair's own model: its masks baked in, proved on a sample, and only then put in its place.

Three forms. `zeroed` has the shapes of the plain model and needs no code of ours to load; `pruned` is
physically smaller and is loaded by `load_pruned`, since `from_pretrained` refuses layers of different
widths; `ctranslate2` is pruned and runs in CTranslate2, in 8 bits where wanted.

Each is written to a folder beside the one asked for and read back from there; where its greedy translations
of the sample differ from the gate's, it is refused (a quantized one is only measured).
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.core import ArtifactError, ConfigError, ExportError, as_pairs, versions, write_json
from nspec_hf.data import LanguageTags
from nspec_hf.export.config import ExportConfig
from nspec_hf.export.ctranslate2 import convert, decode
from nspec_hf.export.prune import narrow, pruned, zeroed
from nspec_hf.export.verify import Tokens, gated_tokens, greedy, samples, until_end
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import decoder_start_token, load_config, load_model, plain_model

REPORT_FILE = "nspec_export.json"
"""What was exported, in every exported folder."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was exported and how it compares with the model that it was made from."""

    folder: str
    config: ExportConfig
    pairs: tuple[str, ...]
    """Pairs whose neurons, together, the model has."""
    masks: str
    """Fingerprint of their masks."""
    widths: Mapping[str, int]
    """Feed-forward sites that were cut: name → neurons left. Empty for `zeroed`."""
    density: float
    """Share of neurons kept."""
    parameters: int
    """How many numbers the model has …"""
    parameters_dense: int
    """… and how many the one that it was made from."""
    bytes: int
    """Size of the weights' files …"""
    bytes_dense: int
    """… and of the weights that they were made from, as they are in memory."""
    sentences: int
    """Size of the sample."""
    same: float
    """Share of it whose greedy translations equal the gate's, token by token."""

    def __str__(self) -> str:
        """Say it in two lines."""
        parameters, size = self.parameters / self.parameters_dense, self.bytes / self.bytes_dense
        return (
            f"{self.folder}: {self.config.format} for {', '.join(self.pairs)}; {parameters:.1%} of the "
            f"parameters ({self.parameters:,} of {self.parameters_dense:,}), {size:.1%} of the bytes "
            f"({self.bytes / 2**20:.1f} of {self.bytes_dense / 2**20:.1f} MiB)\n"
            f"{self.same:.1%} of {self.sentences} sample sentences have the gate's tokens"
        )


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    masks: NeuronMasks,
    pairs: str | Sequence[str],
    folder: str | os.PathLike,
    config: ExportConfig = ExportConfig(),
    texts: Mapping[str, Sequence[str]] | None = None,
    codes: Mapping[str, str] | None = None,
) -> ExportReport:
    """Write a model that has only the neurons of one pair, or of several together.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer, saved along.
        masks: Which neurons each pair keeps.
        pairs: The pair or pairs to serve.
        folder: Where to write; must not hold anything yet.
        config: Form, meaning of silence, proof.
        texts: Sentences in each pair's source language to prove it on; made-up ones where it is not given.
        codes: Your language codes → the tokenizer's, where they differ.

    Raises:
        ExportError: If the written model does not translate the sample as the gate does.
        UnknownPairError: If masks hold no such pair.
        UnsupportedModelError: If the model cannot be baked or converted.
        ConfigError: If the folder is not empty.
    """
    folder, model = Path(folder), plain_model(model)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already; export to a new folder")
    pairs = as_pairs([pairs] if isinstance(pairs, str) else pairs)
    own = masks.subset(pairs)
    own = own if len(pairs) == 1 else own.union("all")
    tags = LanguageTags(tokenizer, codes)
    sample = samples(tags, pairs, texts, config.sample)
    expected = gated_tokens(model, tags, own, sample, config.silence, config.max_new_tokens)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        twin, widths = _baked(model, own, config)
        if config.format == "ctranslate2":
            convert(twin, tokenizer, partial, config.quantization)
        else:
            twin.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        report = ExportReport(
            folder=str(folder),
            config=config,
            pairs=tuple(map(str, pairs)),
            masks=own.fingerprint(),
            widths=widths,
            density=float(own.density()),
            parameters=_count(twin),
            parameters_dense=_count(model),
            bytes=_weight_bytes(partial),
            bytes_dense=sum(each.numel() * each.element_size() for each in model.parameters()),
            sentences=sum(map(len, sample.values())),
            same=0.0,
        )
        _write_report(partial, report)
        report = _proved(report, _written_tokens(partial, model, tags, sample, config), expected)
        _write_report(partial, report)
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def load_pruned(folder: str | os.PathLike, **settings: Any) -> PreTrainedModel:
    """Load a model that was exported as `pruned`; it is of the plain model's class.

    Args:
        folder: What `export_model` wrote.
        settings: Passed on to `from_pretrained`: dtype, device_map …

    Raises:
        ArtifactError: If the folder holds no pruned model.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{folder} holds no readable {REPORT_FILE}: {error}") from error
    if content.get("config", {}).get("format") != "pruned":
        raise ArtifactError(
            f"{folder} was not exported as 'pruned'; {REPORT_FILE} says: {content.get('config')}"
        )
    model_class = getattr(transformers, load_config(folder).architectures[0])

    def make(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        narrow(self, content["widths"])

    # A subclass for the time of loading, so that from_pretrained does all that it does for a plain model.
    model = type(model_class.__name__, (model_class,), {"__init__": make}).from_pretrained(folder, **settings)
    model.__class__ = model_class
    return model


def _baked(
    model: PreTrainedModel, masks: NeuronMasks, config: ExportConfig
) -> tuple[PreTrainedModel, dict[str, int]]:
    pair = masks.pairs[0]
    if config.format == "zeroed":
        return zeroed(model, masks, pair, config.silence), {}
    return pruned(model, masks, pair, config.silence, config.multiple_of)


def _written_tokens(
    folder: Path, model: PreTrainedModel, tags: LanguageTags, sample: Tokens, config: ExportConfig
) -> Tokens:
    if config.format == "ctranslate2":
        start = decoder_start_token(model)
        found = {}
        for pair, rows in sample.items():
            prefix = tags.decoder_prefix(pair, start)
            prefix = prefix[1:] if prefix[0] == start else prefix
            ids = decode(folder, tags.tokenizer, rows, prefix, config.max_new_tokens)
            found[pair] = [until_end(row, tags.tokenizer) for row in ids]
        return found
    load = load_pruned if config.format == "pruned" else load_model
    loaded = load(folder, dtype=model.dtype)
    loaded = loaded.to(model.device).eval()
    return {pair: greedy(loaded, tags, pair, rows, config.max_new_tokens) for pair, rows in sample.items()}


def _proved(report: ExportReport, found: Tokens, expected: Tokens) -> ExportReport:
    equal = [
        mine == theirs for pair in expected for mine, theirs in zip(found[pair], expected[pair], strict=True)
    ]
    same = sum(equal) / len(equal)
    if same < report.config.required:
        raise ExportError(
            f"the {report.config.format} model for {', '.join(report.pairs)} translates {sum(equal)} of "
            f"{len(equal)} sample sentences as the gate does, first other: number {equal.index(False) + 1}; "
            f"{report.config.required:.0%} are required (agreement), so it was not written"
        )
    return dataclasses.replace(report, same=same)


def _count(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _weight_bytes(folder: Path) -> int:
    files = [*folder.glob("*.safetensors"), *folder.glob("model.bin")]
    return sum(file.stat().st_size for file in files)


def _write_report(folder: Path, report: ExportReport) -> None:
    content = {"format_number": 1, **dataclasses.asdict(report), "versions": versions()}
    write_json(folder / REPORT_FILE, content)
