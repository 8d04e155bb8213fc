"""Measurement of a pair exported to CTranslate2, beside the whole model exported likewise."""

import importlib
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nspec_hf.export import ExportConfig, convert, pruned
from nspec_hf.recording import find_sites
from recipes.bench.clock import Measured, ratios, time_rounds
from recipes.bench.measurements import DENSITY, Bench, Found
from recipes.bench.workload import Shape, make_batch, make_masks, make_model, pairs_of

KEYS = ("ct2_pruned_vs_dense",)


def exported(bench: Bench) -> Found:
    """Greedy and beam-5 decoding of one pair's pruned model against the dense one, each in its own engine.

    Raises:
        ImportError: If ctranslate2 is not installed.
    """
    library = importlib.import_module("ctranslate2")  # an extra
    device = "cuda" if bench.device.type == "cuda" and library.get_cuda_device_count() else "cpu"
    types = ("float16", "int8_float16") if device == "cuda" else ("float32", "int8")
    shape = next(iter(bench.plan.models))
    # CTranslate2 makes its own types from float32.
    model = make_model(shape, torch.device("cpu"), torch.float32)
    masks = make_masks(find_sites(model), pairs_of(1), DENSITY)
    multiple_of = bench.multiple_of or ExportConfig().multiple_of
    small, _ = pruned(model, masks, masks.pairs[0], multiple_of=multiple_of)
    tokenizer = word_tokenizer(shape.vocabulary)
    for number, quantization in enumerate(types):
        with tempfile.TemporaryDirectory() as folder:
            folders = {name: Path(folder) / name for name in ("dense", "pruned")}
            for name, each in (("dense", model), ("pruned", small)):
                start = each.config.decoder_start_token_id
                convert(each, tokenizer, folders[name], quantization, start=start)
            threads = {"inter_threads": 1, "intra_threads": torch.get_num_threads()}
            engines = {
                name: library.Translator(str(path), device=device, compute_type=quantization, **threads)
                for name, path in folders.items()
            }
            sizes = {name: (path / "model.bin").stat().st_size for name, path in folders.items()}
        setting = {"device": device, "dtype": quantization, "multiple_of": multiple_of, "bytes": sizes}
        suffix = f".{quantization}" if number else ""
        yield from _decoding(bench, engines, shape, suffix, setting)


def _decoding(
    bench: Bench, engines: dict[str, Any], shape: Shape, suffix: str, setting: dict[str, Any]
) -> Found:
    rows, source, new_tokens = bench.plan.decode
    ids = make_batch(shape, rows, source, 1, torch.device("cpu"))["input_ids"]
    sources = [[f"w{number}" for number in row] for row in ids.tolist()]
    for beams in (1, 5):

        def work(name: str, beams: int = beams) -> None:
            engines[name].translate_batch(
                sources,
                beam_size=beams,
                min_decoding_length=new_tokens,
                max_decoding_length=new_tokens,
                max_input_length=0,
            )

        works = {name: lambda _, name=name: work(name) for name in engines}
        times = time_rounds(works, bench.plan.rounds, bench.watch)
        least = shape.decoding_weights(new_tokens, DENSITY) / shape.decoding_weights(new_tokens)
        found = Measured.of(
            ratios(times["pruned"], times["dense"]),
            **bench.setting(
                shape=str(shape),
                density=DENSITY,
                tokens=f"{rows}×{source} source, {new_tokens} generated",
                beams=beams,
                dense_seconds=statistics.median(times["dense"]),
                floor={"bytes": least},
            )
            | setting
            | {"pairs": 1},
        )
        yield KEYS[0] + suffix + ("" if beams == 1 else f".beam{beams}"), found


def word_tokenizer(size: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer of that many made-up words, for models with random weights."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), *(f"w{number}" for number in range(len(special), size))]
    model = WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)
