"""What a model of a few pairs is worth: size, time to load, speed and BLEU beside the one it was made from.

    python recipes/smaller.py --model work/m30k_low/ns_06/s1/model --masks work/m30k_low/ns_06/s1/masks \
        --dense work/m30k_low/finetune/s1/model --data data/multi30k --pairs en-de,de-en --json smaller.json

For each form (Hugging Face, CTranslate2 in float32 and in int8) four models: `dense`, with all neurons and
all subwords; `neurons`, only the pairs' neurons; `vocabulary`, only the subwords of their training text;
`both`. Several pairs translate with their own neurons each, from one model or, in CTranslate2, from a model a
pair; in the forms with `union` from one model with the neurons of all. Each is exported and proved as `nspec
export` does it, loaded by `nspec_hf.load`, and translates the split with beams. `dense` and `vocabulary` are
made of `--dense` where it is given, such as a fine-tuned model.

Speed is tokens of the whole vocabulary written a second of processor time, the best of interleaved rounds, so
that other programs on the machine count little.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nspec_hf.core import Pair, Table, as_pairs, exit_status, require_writable, write_result
from nspec_hf.data import CorpusConfig, LanguageTags, PairText, load_tokenizer, read_corpus
from nspec_hf.evaluation import TranslateConfig, score
from nspec_hf.export import ExportConfig, ExportReport, export_model
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import load_model
from nspec_hf.serving import load

_INT8 = {"quantization": "int8", "quantized_agreement": 0.0}  # which is measured here
FORMS: dict[str, dict[str, Any]] = {
    "zeroed": {"format": "zeroed"},
    "padded": {"format": "padded"},
    "pruned": {"format": "pruned"},
    "pruned.union": {"format": "pruned", "group": "union"},
    "ctranslate2": {"format": "ctranslate2"},
    "ctranslate2.int8": {"format": "ctranslate2", **_INT8},
    "ctranslate2.union": {"format": "ctranslate2", "group": "union"},
    "ctranslate2.union.int8": {"format": "ctranslate2", "group": "union", **_INT8},
}
"""Name in the result → settings of `ExportConfig`."""

MODELS = {
    "dense": (False, False),
    "neurons": (True, False),
    "vocabulary": (False, True),
    "both": (True, True),
}
"""Name in the result → whether it has only the pairs' neurons, and only their subwords."""


def main(argv: Sequence[str] | None = None) -> int:
    """Export, load, translate, score, write; return the exit status."""
    options = read_options(argv)
    if options.json:
        require_writable(options.json)
    torch.set_num_threads(options.threads)
    pairs = as_pairs(options.pairs.split(","))
    texts = read_corpus(CorpusConfig(path=options.data), pairs, options.split)
    texts = [first(text, options.sentences) for text in texts]
    counted = read_corpus(CorpusConfig(path=options.data), pairs, options.count_split)
    counted = [first(text, options.counted) for text in counted]
    masks = NeuronMasks.from_pretrained(options.masks)
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in options.forms:
            made = {}
            for name, (own_neurons, own_subwords) in MODELS.items():
                place = Path(folder) / f"{form}.{name}"
                source = options.model if own_neurons else options.dense or options.model
                made[name] = _exported(
                    source,
                    masks if own_neurons else None,
                    pairs,
                    place,
                    config_of(form, options),
                    counted if own_subwords else None,
                    texts,
                )
            result[form] = _measured(Path(folder), form, made, texts, options)
            print(table(form, result[form]), flush=True)
    if options.json:
        names = {name: Path(getattr(options, name)).name for name in ("model", "masks", "data")}
        settings = {name: each for name, each in vars(options).items() if name not in ("json", "dense")}
        write_result(options.json, result, {**settings, **names, "fingerprint": masks.fingerprint()})
    return 0


def first(text: PairText, count: int | None) -> PairText:
    """Return the first sentences of a text; None: all."""
    return PairText(text.pair, text.sources[:count], text.targets[:count])


def config_of(form: str, options: argparse.Namespace) -> ExportConfig:
    """Return the settings of an export."""
    return ExportConfig(
        **FORMS[form],
        sample=options.sample,
        min_count=options.min_count,
        max_new_tokens=options.max_new_tokens,
    )


def _exported(
    source: str,
    masks: NeuronMasks | None,
    pairs: Sequence[Pair],
    folder: Path,
    config: ExportConfig,
    counted: Sequence[PairText] | None,
    texts: Sequence[PairText],
) -> ExportReport:
    if masks is None and config.format in (
        "pruned",
        "padded",
    ):  # nothing to cut, so that all would be the same
        config = dataclasses.replace(config, format="zeroed")
    model, tokenizer = load_model(source, dtype=torch.float32), load_tokenizer(source)
    more: dict[str, Any] = {"counted": counted, "held_out": texts, "release": True}
    return export_model(model, tokenizer, masks, pairs, folder, config, **more)


def _measured(
    folder: Path,
    form: str,
    made: Mapping[str, ExportReport],
    texts: Sequence[PairText],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Load each model of a form, translate with it, and say what it is worth beside the dense one."""
    loads, speeds, loaded = {}, dict.fromkeys(made, 0.0), {}
    config = TranslateConfig(num_beams=options.beams, progress=False)
    for name in made:
        start = time.process_time()
        loaded[name] = load(folder / f"{form}.{name}", translate=config)
        loads[name] = time.process_time() - start
    timed = [first(text, options.timed) for text in texts]
    tags = LanguageTags(loaded["dense"].tokenizer)
    for _ in range(options.rounds):
        for name, each in loaded.items():
            start = time.process_time()
            translations = [each.translate(text.sources, text.pair) for text in timed]
            seconds = time.process_time() - start
            written = [
                row
                for text, lines in zip(timed, translations, strict=True)
                for row in tags.encode_target(lines, text.pair)
            ]
            speeds[name] = max(speeds[name], sum(map(len, written)) / seconds)
    found = {}
    for name, report in made.items():
        scores = {
            str(text.pair): score(
                loaded[name].translate(text.sources, text.pair), text.targets, "bleu", text.pair
            )
            for text in texts
        }
        found[name] = {
            "density": report.density,
            "tokens": report.vocabulary.tokens if report.vocabulary else None,
            "parameters": report.parameters,
            "bytes": report.bytes,
            "load_seconds": loads[name],
            "tokens_per_second": speeds[name],
            "bleu": {pair: each.value for pair, each in scores.items()},
            "mean_bleu": sum(each.value for each in scores.values()) / len(scores),
            "signature": next(each.signature for each in scores.values()),
            "proof_sentences": report.sentences,
            "proof_same": report.same,
            "same_as_float32": report.quantized,
            "resegmented": report.vocabulary.resegmented if report.vocabulary else 0.0,
        }
    return found


def table(form: str, found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return one form's models, sizes and speeds as ratios to the dense one."""
    dense = found["dense"]
    rows = tuple(
        (
            name,
            each["tokens"],
            each["parameters"],
            each["bytes"],
            each["bytes"] / dense["bytes"],
            each["load_seconds"],
            each["tokens_per_second"],
            each["tokens_per_second"] / dense["tokens_per_second"],
            each["mean_bleu"],
        )
        for name, each in found.items()
    )
    columns = (
        "model",
        "subwords",
        "parameters",
        "bytes",
        "of dense",
        "loads in s",
        "tokens/s",
        "of dense",
        "BLEU",
    )
    return Table(title=form, columns=columns, rows=rows, notes=(dense["signature"],))


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub id of the specialized model")
    add("--masks", required=True, help="folder or Hub id of its masks")
    add("--dense", help="folder or Hub id of the model to compare with; default: --model with all neurons")
    add("--data", required=True, help="folder of parallel text")
    add("--pairs", default="en-de", help="which pairs, with commas between them; default: %(default)s")
    add("--split", default="test_2016_flickr", help="text to translate; default: %(default)s")
    add("--count-split", default="train", help="text whose subwords are counted; default: %(default)s")
    add("--counted", type=int, help="how many of its sentences; default: all")
    add("--min-count", type=int, default=1, help="how often a subword must occur in it")
    add("--forms", nargs="+", choices=FORMS, default=["pruned", "ctranslate2", "ctranslate2.int8"])
    add("--beams", type=int, default=5)
    add("--sentences", type=int, help="how many sentences a pair are translated; default: all")
    add("--timed", type=int, default=100, help="how many of them a pair are timed")
    add("--rounds", type=int, default=3, help="how often")
    add("--sample", type=int, default=200, help="sentences to prove an export on")
    add("--max-new-tokens", type=int, default=64, help="longest translation, in tokens")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--json", help="file for the result, with versions and hardware")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_status("smaller.py", main))
