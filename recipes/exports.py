"""What one pair's exported models are worth: their size, how many translations are the gate's, and BLEU.

    python recipes/exports.py --model work/multi30k/neuron_specialization/s1/model \
        --masks work/multi30k/neuron_specialization/s1/masks --data data/multi30k --json exports.json

The pair is exported in every form as `nspec export` does it, proved on the first sentences of the split. Then
each form is loaded as a user would load it and translates the whole split greedily: `zeroed` by a plain
`AutoModelForSeq2SeqLM.from_pretrained`, `pruned` by `load_pruned`, the others by CTranslate2.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nspec_hf.core import exit_status, require_writable, write_result
from nspec_hf.data import CorpusConfig, LanguageTags, PairText, load_tokenizer, read_corpus
from nspec_hf.evaluation import score
from nspec_hf.export import ExportConfig, ExportReport, export_model, exported_tokens, gated_tokens
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import load_model

FORMS = {
    "zeroed": {"format": "zeroed"},
    "pruned": {"format": "pruned"},
    "ctranslate2": {"format": "ctranslate2"},
    "ctranslate2.int8": {"format": "ctranslate2", "quantization": "int8", "quantized_agreement": 0.0},
}
"""Name in the result → settings of `ExportConfig`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Export, translate, score, write; return the exit status."""
    options = read_options(argv)
    if options.json:
        require_writable(options.json)
    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_model(options.model, dtype=torch.float32)
    tokenizer = load_tokenizer(options.model)
    masks = NeuronMasks.from_pretrained(options.masks)
    (text,) = read_corpus(CorpusConfig(path=options.data), [options.pair], options.split)
    tags = LanguageTags(tokenizer)
    sources = tags.encode_source(text.sources, text.pair)
    own, longest = masks.subset([text.pair]), options.max_new_tokens
    expected = gated_tokens(model, tags, own, {text.pair: sources}, "neuron", longest)[text.pair]
    found = {"gate": bleu(expected, tags, text)}
    print(f"gate: {found['gate']}", flush=True)
    for name, form in FORMS.items():
        config = ExportConfig(**form, sample=options.sample, max_new_tokens=longest)
        sample = {text.pair: text.sources[: config.sample]}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            report = export_model(model, tokenizer, masks, text.pair, path, config, sample)
            tokens = exported_tokens(path, model, tags, {text.pair: sources}, config)[text.pair]
        same = sum(mine == theirs for mine, theirs in zip(tokens, expected, strict=True))
        found[name] = {**sizes(report), "same": same, "sentences": len(expected), **bleu(tokens, tags, text)}
        print(f"{name}: {found[name]}", flush=True)
    if options.json:
        names = {name: Path(getattr(options, name)).name for name in ("model", "masks", "data")}
        settings = {name: each for name, each in vars(options).items() if name != "json"}
        write_result(options.json, found, {**settings, **names, "fingerprint": masks.fingerprint()})
    return 0


def bleu(tokens: list[list[int]], tags: LanguageTags, text: PairText) -> dict[str, Any]:
    """Return BLEU of translated tokens, with its signature."""
    hypotheses = tags.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    found = score(hypotheses, text.targets, "bleu", text.pair)
    return {"bleu": found.value, "signature": found.signature}


def sizes(report: ExportReport) -> dict[str, Any]:
    """Return how large the exported model is beside the one that it was made from, and its proof."""
    return {
        "density": report.density,
        "parameters": report.parameters,
        "parameters_dense": report.parameters_dense,
        "bytes": report.bytes,
        "bytes_dense": report.bytes_dense,
        "proof_sentences": report.sentences,
        "proof_same": report.same,
    }


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of the specialized model")
    parser.add_argument("--masks", required=True, help="folder or Hub id of its masks")
    parser.add_argument("--data", required=True, help="folder of parallel text")
    parser.add_argument("--pair", default="en-de", help="which pair; default: %(default)s")
    parser.add_argument("--split", default="test_2016_flickr", help="text; default: %(default)s")
    parser.add_argument("--sample", type=int, default=200, help="sentences to prove an export on")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest translation, in tokens")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's choice")
    parser.add_argument("--json", help="file for the result, with versions and hardware")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_status("exports.py", main))
