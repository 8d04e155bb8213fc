"""A pair's own model: its masks baked in, proved on a sample, and only then put in its place.

Three forms. `zeroed` has the shapes of the plain model and needs no code of ours to load; `pruned` is
physically smaller and is loaded by `load_pruned`, since `from_pretrained` refuses layers of different
widths; `ctranslate2` is pruned and runs in CTranslate2, in 8 bits where wanted.

Each is written to a folder beside the one asked for and read back from there; where its greedy translations
of the sample differ from the gate's, it is refused (a quantized one is only measured).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.core import (
    ArtifactError,
    ExportError,
    Pair,
    as_pairs,
    atomic_folder,
    read_json,
    versions,
    write_json,
)
from nspec_hf.data import LanguageTags
from nspec_hf.export.config import ExportConfig
from nspec_hf.export.ctranslate2 import convert, decode, require_ctranslate2
from nspec_hf.export.prune import narrow, pruned, zeroed
from nspec_hf.export.verify import Tokens, gated_tokens, greedy, samples, until_end
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import decoder_prompt, load_model, plain_model, refuse_unfit

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
        ArtifactError: If a weight is not finite.
        ConfigError: If the folder is not empty; before the work.
    """
    model, tags = plain_model(model), LanguageTags(tokenizer, codes)
    refuse_unfit(model, type(model).__name__)
    if config.format == "ctranslate2":
        require_ctranslate2()
    pairs = as_pairs([pairs] if isinstance(pairs, str) else pairs)
    chosen = masks.subset(pairs)
    chosen = chosen if len(pairs) == 1 else chosen.union("all")
    with atomic_folder(folder) as partial:
        sample = samples(tags, pairs, texts, config.sample)
        expected = gated_tokens(model, tags, chosen, sample, config.silence, config.max_new_tokens)
        baked, widths = _baked(model, chosen, config)
        try:
            if config.format == "ctranslate2":
                start, _ = _prompts(model, tags, pairs)
                convert(baked, tokenizer, partial, config.quantization, start)
            else:
                baked.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        except ValueError as error:
            raise ExportError(f"{type(model).__name__} cannot be saved: {error}") from error
        report = ExportReport(
            folder=str(folder),
            config=config,
            pairs=tuple(map(str, pairs)),
            masks=chosen.fingerprint(),
            widths=widths,
            density=float(chosen.density()),
            parameters=baked.num_parameters(),
            parameters_dense=model.num_parameters(),
            bytes=_weight_bytes(partial),
            bytes_dense=sum(weight.numel() * weight.element_size() for weight in model.parameters()),
            sentences=sum(map(len, sample.values())),
            same=0.0,
        )
        content = {"format_number": 1, **dataclasses.asdict(report), "versions": versions()}
        write_json(partial / REPORT_FILE, content)
        same = _agreement(exported_tokens(partial, model, tags, sample, config), expected, report)
        write_json(partial / REPORT_FILE, {**content, "same": same})
    return dataclasses.replace(report, same=same)


def load_pruned(folder: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """Load a model that was exported as `pruned`; it is of the plain model's class.

    Args:
        folder: What `export_model` wrote.
        options: As for `load_model`: dtype, device …

    Raises:
        ArtifactError: If the folder holds no pruned model, or a damaged one.
    """
    folder = Path(folder)
    try:
        content = read_json(folder / REPORT_FILE, ArtifactError)
        form, widths = content["config"]["format"], dict(content["widths"])
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no readable {REPORT_FILE}: {error!r}") from error
    if form != "pruned":
        raise ArtifactError(f"{folder} was not exported as 'pruned'; {REPORT_FILE} says: {form}")
    if not all(isinstance(width, int) for width in widths.values()):
        raise ArtifactError(f"the widths in {folder / REPORT_FILE} are no numbers of neurons: {widths}")
    return load_model(folder, reshape=lambda model: narrow(model, widths), **options)


def exported_tokens(
    folder: Path, model: PreTrainedModel, tags: LanguageTags, sample: Tokens, config: ExportConfig
) -> Tokens:
    """Return the greedy translations of an exported model, loaded as its users load it.

    Args:
        folder: What `export_model` wrote.
        model: The model that it was made from, for its type, device and start token.
        tags: How the tokenizer spells languages.
        sample: Encoded sentences.
        config: What was exported.
    """
    longest = config.max_new_tokens
    if config.format != "ctranslate2":
        load = load_pruned if config.format == "pruned" else load_model
        loaded = load(folder, dtype=model.dtype, device=model.device)
        return {pair: greedy(loaded, tags, pair, rows, longest) for pair, rows in sample.items()}
    _, prefixes = _prompts(model, tags, list(sample))
    return {
        pair: [
            until_end(row, tags.tokenizer)
            for row in decode(folder, tags.tokenizer, rows, prefixes[pair], longest)
        ]
        for pair, rows in sample.items()
    }


def _prompts(
    model: PreTrainedModel, tags: LanguageTags, pairs: Sequence[Pair]
) -> tuple[int | None, dict[Pair, list[int]]]:
    """Return the token that all pairs' translations start from, if there is one, and what follows it.

    mBART-25 starts from the language, so there is none for several of them.
    """
    prompts = {pair: decoder_prompt(model, tags, pair) for pair in pairs}
    starts = {prompt[0] for prompt in prompts.values()}
    if len(starts) > 1:
        return None, prompts
    return starts.pop(), {pair: prompt[1:] for pair, prompt in prompts.items()}


def _baked(
    model: PreTrainedModel, masks: NeuronMasks, config: ExportConfig
) -> tuple[PreTrainedModel, dict[str, int]]:
    pair = masks.pairs[0]
    if config.format == "zeroed":
        return zeroed(model, masks, pair, config.silence), {}
    return pruned(model, masks, pair, config.silence, config.multiple_of)


def _agreement(found: Tokens, expected: Tokens, report: ExportReport) -> float:
    equal = [
        ours == theirs for pair in expected for ours, theirs in zip(found[pair], expected[pair], strict=True)
    ]
    same = sum(equal) / len(equal)
    if same < report.config.required:
        raise ExportError(
            f"the {report.config.format} model for {', '.join(report.pairs)} translates {sum(equal)} of "
            f"{len(equal)} sample sentences as the gate does, first other: number {equal.index(False) + 1}; "
            f"{report.config.required:.0%} are required (agreement), so it was not written"
        )
    return same


def _weight_bytes(folder: Path) -> int:
    files = [*folder.glob("*.safetensors"), *folder.glob("model.bin")]
    return sum(file.stat().st_size for file in files)
