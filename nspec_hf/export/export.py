"""A pair's own model: its masks baked in, proved on a sample, and only then put in its place.

Four forms. `zeroed` has the shapes of the plain model and needs no code of ours to load; neither does
`padded`, whose layers are as narrow as the widest of their side; `pruned` is smaller still and is loaded by
`load_pruned`, since `from_pretrained` refuses layers of different widths; `ctranslate2` is pruned and runs in
CTranslate2, in 8 bits where wanted. Each may have a vocabulary that is trimmed to what its pairs need.

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
    ConfigError,
    ExportError,
    Pair,
    as_pairs,
    atomic_folder,
    read_json,
    versions,
    write_json,
)
from nspec_hf.data import LanguageTags, PairText
from nspec_hf.export.config import ExportConfig
from nspec_hf.export.ctranslate2 import convert, decode, require_ctranslate2
from nspec_hf.export.prune import give_up, narrow, padded, pruned, whole, zeroed
from nspec_hf.export.trim import Trimmed, VocabularyReport, expected_tokens, measure, trim
from nspec_hf.export.verify import Tokens, gated_tokens, greedy, samples, until_end
from nspec_hf.export.vocabulary import cut_vocabulary
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
    """Fingerprint of their masks; empty where all neurons stay."""
    widths: Mapping[str, int]
    """Feed-forward sites that were cut: name → neurons left. Empty for `zeroed` and `padded`."""
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
    """Share of it whose greedy translations equal the gate's, token by token; with a trimmed vocabulary those
    that the gate writes for the same tokens when it may not write the others."""
    alone: float
    """Share of it that each pair's own neurons translate in the same way. Less than 1 where several pairs
    share the neurons of all, which a model that was trained with each pair's own may not be used to."""
    vocabulary: VocabularyReport | None = None
    """What the trimmed vocabulary does to text; None where it was not trimmed."""

    def __str__(self) -> str:
        """Say it in a few lines."""
        parameters, size = self.parameters / self.parameters_dense, self.bytes / self.bytes_dense
        return (
            f"{self.folder}: {self.config.format} for {', '.join(self.pairs)}; {parameters:.1%} of the "
            f"parameters ({self.parameters:,} of {self.parameters_dense:,}), {size:.1%} of the bytes "
            f"({self.bytes / 2**20:.1f} of {self.bytes_dense / 2**20:.1f} MiB)\n"
            f"{self.same:.1%} of {self.sentences} sample sentences have the gate's tokens"
            + (f", {self.alone:.1%} those of their pair's own neurons" if len(self.pairs) > 1 else "")
            + (f"\n{self.vocabulary}" if self.vocabulary else "")
        )


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    masks: NeuronMasks | None,
    pairs: str | Sequence[str],
    folder: str | os.PathLike,
    config: ExportConfig = ExportConfig(),
    texts: Mapping[str, Sequence[str]] | None = None,
    codes: Mapping[str, str] | None = None,
    *,
    counted: Sequence[PairText] | None = None,
    held_out: Sequence[PairText] = (),
    release: bool = False,
) -> ExportReport:
    """Write a model that has only the neurons of one pair, or of several together, and only their subwords.

    Args:
        model: The trained model.
        tokenizer: Its tokenizer, saved along.
        masks: Which neurons each pair keeps; None: all.
        pairs: The pair or pairs to serve.
        folder: Where to write; must not hold anything yet.
        config: Form, meaning of silence, proof.
        texts: Sentences in each pair's source language to prove it on; made-up ones where it is not given.
            With a trimmed vocabulary, the first held-out or counted sentences are taken.
        codes: Your language codes → the tokenizer's, where they differ.
        counted: Text of the pairs whose subwords the vocabulary is trimmed to; None: it stays whole.
        held_out: Text that was not counted, to measure a trimmed vocabulary on.
        release: Whether to give the model's weights up as they are cut: it is of no use afterwards, and
            neither the smaller model nor its proof need memory beside it.

    Raises:
        ExportError: If the written model does not translate the sample as the gate does, or a trimmed
            tokenizer does not split text as before.
        UnknownPairError: If masks hold no such pair.
        UnsupportedModelError: If the model cannot be baked, trimmed or converted.
        ArtifactError: If a weight is not finite.
        ConfigError: If the folder is not empty, or texts cannot be used; before the work.
    """
    model, tags = plain_model(model), LanguageTags(tokenizer, codes)
    refuse_unfit(model, type(model).__name__)
    if config.format == "ctranslate2":
        require_ctranslate2()
    pairs = as_pairs([pairs] if isinstance(pairs, str) else pairs)
    known = _of_pairs(held_out, pairs) if held_out else []
    if texts is None and (known or counted):
        texts = {text.pair: text.sources[: config.sample] for text in known or counted or []}
    own = None if masks is None else masks.subset(pairs)
    chosen = own.union("all") if own is not None and len(pairs) > 1 else own
    with atomic_folder(folder) as partial:
        tokenizer.save_pretrained(partial)
        counted = None if counted is None else _of_pairs(counted, pairs)
        trimmed = None if counted is None else trim(model, tags, counted, config.min_count, partial)
        proof = _proof(model, tags, pairs, own, chosen, config, texts, trimmed)
        parameters_dense = model.num_parameters()
        bytes_dense = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        baked, widths = _baked(model, chosen, config, release)
        if trimmed:
            cut_vocabulary(baked, trimmed.kept)
        after = trimmed.after if trimmed else tags
        _write(baked, after, pairs, config, partial)
        report = ExportReport(
            folder=str(folder),
            config=config,
            pairs=tuple(map(str, pairs)),
            masks=chosen.fingerprint() if chosen else "",
            widths=widths,
            density=float(chosen.density()) if chosen else 1.0,
            parameters=baked.num_parameters(),
            bytes=_weight_bytes(partial),
            parameters_dense=parameters_dense,
            bytes_dense=bytes_dense,
            sentences=sum(map(len, proof.sample.values())),
            same=0.0,
            alone=proof.alone,
        )
        _write_report(partial, report)  # `load_pruned` reads the widths from it
        if release:
            give_up(baked)
        found = exported_tokens(partial, baked, after, proof.sample, config)
        report = dataclasses.replace(report, same=_agreement(found, proof.expected, report))
        if trimmed:
            vocabulary = measure(trimmed, counted or [], known, config.sample, found, proof.written)
            report = dataclasses.replace(report, vocabulary=vocabulary)
        _write_report(partial, report)
    return report


@dataclass(frozen=True)
class _Proof:
    sample: Tokens
    """The sentences, as the exported model reads them."""
    expected: Tokens
    """What it must write."""
    written: Tokens
    """What the gate writes, as the whole tokenizer spells it."""
    alone: float
    """Share of that which each pair's own neurons write as well."""


def _proof(
    model: PreTrainedModel,
    tags: LanguageTags,
    pairs: Sequence[Pair],
    own: NeuronMasks | None,
    chosen: NeuronMasks | None,
    config: ExportConfig,
    texts: Mapping[str, Sequence[str]] | None,
    trimmed: Trimmed | None,
) -> _Proof:
    def decode(rows: Tokens, forbidden: Sequence[int] = (), masks: NeuronMasks | None = chosen) -> Tokens:
        longest = config.max_new_tokens
        return gated_tokens(model, tags, masks, rows, config.silence, longest, forbidden)

    before = samples(tags, pairs, texts, config.sample)
    written, alone = decode(before), 1.0
    if own is not None and own is not chosen:
        each = [decode({pair: before[pair]}, masks=own.subset([pair]))[pair] for pair in pairs]
        both = zip(each, written.values(), strict=True)
        equal = [mine == ours for rows in both for mine, ours in zip(*rows, strict=True)]
        alone = sum(equal) / len(equal)
    if trimmed is None:
        return _Proof(before, written, written, alone)
    sample = samples(trimmed.after, pairs, texts, config.sample)
    rows, gone = {pair: trimmed.old(each) for pair, each in sample.items()}, trimmed.removed
    expected = expected_tokens(trimmed, rows, before, written, lambda some: decode(some, gone))
    new = {pair: trimmed.new(each) for pair, each in expected.items()}
    return _Proof(sample, new, written, alone)


def _of_pairs(texts: Sequence[PairText], pairs: Sequence[Pair]) -> list[PairText]:
    """Return the text of each pair, in their order.

    Raises:
        ConfigError: If there is none of one of them.
    """
    found = {text.pair: text for text in texts if len(text)}
    missing = [str(pair) for pair in pairs if pair not in found]
    if missing:
        raise ConfigError(f"no text for {', '.join(missing)}, which trimming a vocabulary needs")
    return [found[pair] for pair in pairs]


def _write(
    model: PreTrainedModel, tags: LanguageTags, pairs: Sequence[Pair], config: ExportConfig, folder: Path
) -> None:
    """Write the weights beside the tokenizer."""
    try:
        if config.format == "ctranslate2":
            start, _ = _prompts(model, tags, pairs)
            convert(model, tags.tokenizer, folder, config.quantization, start)
        else:
            model.save_pretrained(folder)
    except ValueError as error:
        raise ExportError(f"{type(model).__name__} cannot be saved: {error}") from error


def _write_report(folder: Path, report: ExportReport) -> None:
    content = {"format_number": 1, **dataclasses.asdict(report), "versions": versions()}
    write_json(folder / REPORT_FILE, content)


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
        device = None if model.device.type == "meta" else model.device  # given up, see `export_model`
        loaded = load(folder, dtype=model.dtype, device=device)
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
    model: PreTrainedModel, masks: NeuronMasks | None, config: ExportConfig, release: bool
) -> tuple[PreTrainedModel, dict[str, int]]:
    if masks is None:
        return whole(model, release), {}
    pair = masks.pairs[0]
    if config.format == "zeroed":
        return zeroed(model, masks, pair, config.silence, release), {}
    if config.format == "padded":
        return padded(model, masks, pair, config.silence, config.multiple_of, release=release), {}
    return pruned(model, masks, pair, config.silence, config.multiple_of, release=release)


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
