"""A pair's own model: its masks baked in, proved on a sample, and only then put in its place.

Four forms. `zeroed` has the shapes of the plain model and needs no code of ours to load; neither does
`padded`, whose layers are as narrow as the widest of their side; `pruned` is smaller still and is loaded by
`load_pruned`, since `from_pretrained` refuses layers of different widths; `ctranslate2` is pruned and runs in
CTranslate2, in 8 bits where wanted. Each may have a vocabulary that is trimmed to what its pairs need.
Several pairs share one, and each still runs its own neurons: see `group.py`.

Each is written to a folder beside the one asked for and read back from there; where its greedy translations
of the sample differ from the gate's, it is refused; a quantized one is compared with itself in float32, and
refused where too little is the same.
"""

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.core import (
    ConfigError,
    ExportError,
    Pair,
    as_pairs,
    atomic_folder,
)
from nspec_hf.data import LanguageTags, PairText
from nspec_hf.export.config import ExportConfig
from nspec_hf.export.ctranslate2 import convert, require_ctranslate2
from nspec_hf.export.group import Sharing, kept_levels, renumbered, sharing_of
from nspec_hf.export.memory import a_side_at_a_time, let_go, page_out
from nspec_hf.export.prune import baked, give_up, plain_copy, refuse_unwritable
from nspec_hf.export.reading import exported_tokens
from nspec_hf.export.report import ExportReport
from nspec_hf.export.trim import Trimmed, expected_tokens, measure, trim
from nspec_hf.export.verify import Tokens, gated_tokens, prompts, samples, within_positions
from nspec_hf.export.vocabulary import cut_vocabulary
from nspec_hf.masks import MASKS_FILE, NeuronMasks
from nspec_hf.recording import find_sites, longest_text, plain_model, refuse_unfit


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

    Each of several pairs translates with its own neurons (`config.group`).

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
        UnsupportedModelError: If the model cannot be baked, trimmed or converted, has adapters of PEFT or
            added pairs on it, or was cut before and is not to be `pruned`.
        ArtifactError: If a weight is not finite.
        ConfigError: If the folder is not empty, or texts cannot be used; before the work.
    """
    model, tags = plain_model(model), LanguageTags(tokenizer, codes)
    refuse_unwritable(model, config.format)
    refuse_unfit(model, type(model).__name__, checked=page_out if release else None)
    if config.format == "ctranslate2":
        require_ctranslate2()
    pairs = as_pairs([pairs] if isinstance(pairs, str) else pairs)
    known = _of_pairs(held_out, pairs) if held_out else []
    if texts is None and (known or counted):
        texts = {text.pair: text.sources[: config.sample] for text in known or counted or []}
    config = within_positions(config, model, tags, pairs)
    work = _Work(model, tags, pairs, masks, config)
    with (
        atomic_folder(folder) as partial,
        # By its name no content of the folder, should this process be killed.
        tempfile.TemporaryDirectory(".partial", ".", partial.parent) as unquantized,
    ):
        tokenizer.save_pretrained(partial)
        counted = None if counted is None else _of_pairs(counted, pairs)
        trimmed = None if counted is None else trim(model, tags, counted, config.min_count, partial)
        with a_side_at_a_time(model) if release else nullcontext():
            proof = work.proof(texts, trimmed)
        parameters_dense = model.num_parameters()
        bytes_dense = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        plain = Path(unquantized) if config.quantized else None
        last, widths, parameters = work.write(trimmed, partial, plain, release)
        report = ExportReport(
            folder=str(folder),
            config=config,
            pairs=tuple(map(str, pairs)),
            sharing=work.sharing,
            masks=work.chosen.fingerprint() if work.chosen else "",
            widths=widths,
            density=float(work.chosen.density()) if work.chosen else 1.0,
            parameters=parameters,
            bytes=_weight_bytes(partial),
            parameters_dense=parameters_dense,
            bytes_dense=bytes_dense,
            sentences=sum(map(len, proof.sample.values())),
            same=0.0,
            alone=proof.alone,
            levels=tuple(coverage for _, coverage in proof.expected if coverage is not None),
            positions=longest_text(model),
        )
        report.write(partial)  # `load_pruned` reads the widths from it
        if release:
            let_go(*last.parameters())
            give_up(last)
        report, found = _proved(report, last, trimmed.after if trimmed else tags, proof, partial, plain)
        if trimmed:
            vocabulary = measure(trimmed, counted or [], known, config.sample, found, proof.written)
            report = dataclasses.replace(report, vocabulary=vocabulary)
        report.write(partial)
    return report


_Way = tuple[bool, float | None]
"""How an exported model runs: whether with masks that lie with it, and at which further coverage of them."""
_AS_EXPORTED: _Way = True, None


@dataclass(frozen=True)
class _Proof:
    sample: Tokens
    """The sentences, as the exported model reads them."""
    expected: Mapping[_Way, Tokens]
    """What it must write in each way in which it may run."""
    written: Tokens
    """What the gate writes, as the whole tokenizer spells it."""
    alone: float
    """Share of the sample that all pairs' neurons together and each pair's own translate in the same way."""


class _Work:
    """What is exported: a model, the masks of its pairs, and how the pairs share what is written."""

    def __init__(
        self,
        model: PreTrainedModel,
        tags: LanguageTags,
        pairs: Sequence[Pair],
        masks: NeuronMasks | None,
        config: ExportConfig,
    ) -> None:
        self.model, self.tags, self.pairs, self.config = model, tags, pairs, config
        self.own = own = None if masks is None else masks.subset(pairs)
        self.chosen = own.union("all") if own is not None and len(pairs) > 1 else own
        self.sharing: Sharing = sharing_of(own, config)

    def proof(self, texts: Mapping[str, Sequence[str]] | None, trimmed: Trimmed | None) -> _Proof:
        """Return what the exported model must write."""
        own, chosen, config = self.own, self.chosen, self.config

        def decode(masks: NeuronMasks | None, rows: Tokens, forbidden: Sequence[int] = ()) -> Tokens:
            longest = config.max_new_tokens
            return gated_tokens(self.model, self.tags, masks, rows, config.silence, longest, forbidden)

        def small(masks: NeuronMasks | None, said: Tokens) -> Tokens:
            """Return what becomes of what the gate said, in the ids of the trimmed vocabulary."""
            if trimmed is None:
                return said
            rows, gone = {pair: trimmed.old(each) for pair, each in sample.items()}, trimmed.removed
            expected = expected_tokens(trimmed, rows, before, said, lambda some: decode(masks, some, gone))
            return {pair: trimmed.new(each) for pair, each in expected.items()}

        most = longest_text(self.model, "encoder")
        before = samples(self.tags, self.pairs, texts, config.sample, most)
        sample = samples(trimmed.after, self.pairs, texts, config.sample, most) if trimmed else before
        acting = own if self.sharing in ("gated", "apart") else chosen
        other = None if own is chosen else (chosen if acting is own else own)
        written = decode(acting, before)
        others = decode(other, before) if other else written
        equal = _equal(others, written)
        expected: dict[_Way, Tokens] = {_AS_EXPORTED: small(acting, written)}
        if own is not None and chosen is not None and self.sharing == "gated":
            expected[False, None] = small(other, others)
            for level in kept_levels(own, chosen):
                expected[True, level] = small(own.at(level), decode(own.at(level), before))
        return _Proof(sample, expected, written, alone=sum(equal) / len(equal))

    def write(
        self, trimmed: Trimmed | None, folder: Path, unquantized: Path | None, release: bool
    ) -> tuple[PreTrainedModel, dict[str, int], int]:
        """Cut the model, or one for each pair, and write what is left, in float32 too where it is quantized.

        Returns:
            The exported model, that of the last pair where each has one; the widths of its sites, where it is
            one and its config does not say them; how many parameters there are.
        """
        own, chosen, config = self.own, self.chosen, self.config
        parts: list[tuple[NeuronMasks | None, Sequence[Pair], Path]] = [(chosen, self.pairs, folder)]
        if own is not None and self.sharing == "apart":
            parts = [(own.subset([pair]), [pair], folder / pair.file_name) for pair in self.pairs]
        tags, parameters = trimmed.after if trimmed else self.tags, 0
        for number, (masks, pairs, place) in enumerate(parts, 1):
            last = release and number == len(parts)
            if masks is None:
                made, widths = plain_copy(self.model), {}
                if config.format == "pruned":
                    widths = {site.name: site.width for site in find_sites(made)}
                if last:
                    give_up(self.model)
            else:
                how = config.format, config.silence, config.multiple_of
                made, widths = baked(self.model, masks, masks.pairs[0], *how, release=last)
            if trimmed:
                cut_vocabulary(made, trimmed.kept, release=last)
            if unquantized is not None:
                _write(made, tags, pairs, config.format, "float32", unquantized / place.relative_to(folder))
            _write(made, tags, pairs, config.format, config.quantization, place)
            parameters += made.num_parameters()
        if own is not None and chosen is not None and self.sharing == "gated":
            renumbered(own, chosen, made).save(folder / MASKS_FILE)
        return made, widths if len(parts) == 1 else {}, parameters


def _proved(
    report: ExportReport,
    model: PreTrainedModel,
    tags: LanguageTags,
    proof: _Proof,
    folder: Path,
    unquantized: Path | None,
) -> tuple[ExportReport, Tokens]:
    """Return the report with what of the sample is the same, and what the exported model writes.

    The model may have given up its weights; `unquantized` is where it lies in float32, if it is quantized.

    Raises:
        ExportError: If too little is the same.
    """
    found: dict[_Way, Tokens] = {}
    same: dict[_Way, float] = {}
    for way, expected in proof.expected.items():
        found[way] = exported_tokens(folder, model, tags, proof.sample, report.config, *way)
        same[way] = _agreement(found[way], expected, report)
    written, quantized = found[_AS_EXPORTED], None
    if unquantized is not None:
        in_float32 = exported_tokens(unquantized, model, tags, proof.sample, report.config)
        quantized = _agreement(written, in_float32, report, with_float32=True)
    return dataclasses.replace(report, same=same[_AS_EXPORTED], quantized=quantized), written


def _of_pairs(texts: Sequence[PairText], pairs: Sequence[Pair]) -> list[PairText]:
    """Return the text of each pair, in their order.

    Raises:
        ConfigError: If there is none of one of them, or of one twice.
    """
    some = [text for text in texts if len(text)]
    found = dict(zip(as_pairs(text.pair for text in some), some, strict=True))
    missing = [str(pair) for pair in pairs if pair not in found]
    if missing:
        raise ConfigError(f"no text for {', '.join(missing)}, which trimming a vocabulary needs")
    return [found[pair] for pair in pairs]


def _write(
    model: PreTrainedModel,
    tags: LanguageTags,
    pairs: Sequence[Pair],
    form: str,
    quantization: str,
    folder: Path,
) -> None:
    """Write the weights beside the tokenizer."""
    try:
        if form == "ctranslate2":
            start, _ = prompts(model, tags, pairs)
            convert(model, tags.tokenizer, folder, quantization, start)
        else:
            model.save_pretrained(folder)
    except ValueError as error:
        raise ExportError(f"{type(model).__name__} cannot be saved: {error}") from error


def _equal(found: Tokens, expected: Tokens) -> list[bool]:
    """Return of each sentence, pair after pair, whether all its tokens are as expected."""
    return [a == b for pair in expected for a, b in zip(found[pair], expected[pair], strict=True)]


def _agreement(found: Tokens, expected: Tokens, report: ExportReport, with_float32: bool = False) -> float:
    """Return the share of sentences with the tokens that the gate writes, or the same model in float32."""
    config, equal = report.config, _equal(found, expected)
    least, setting, other, hint = config.agreement, "agreement", "gate", ""
    if least is None:
        least = 0.0 if config.quantized else 1.0
    if with_float32:
        least, setting, other = config.quantized_agreement, "quantized_agreement", "same model in float32"
        hint = "; 8 bits may come nearer with CT2_USE_MKL=1 in the environment"
    same = sum(equal) / len(equal)
    if same < least:
        raise ExportError(
            f"the {config.format} model for {', '.join(report.pairs)} translates {sum(equal)} of "
            f"{len(equal)} sample sentences as the {other} does, first other: number "
            f"{equal.index(False) + 1}; {least:.0%} are required ({setting}), so it was not written{hint}"
        )
    return same


def _weight_bytes(folder: Path) -> int:
    files = [*folder.rglob("*.safetensors"), *folder.rglob("model.bin")]
    return sum(file.stat().st_size for file in files)
