"""How small a trimmed M2M-100-418M or NLLB-200-600M is, and the memory that `nspec export` takes for it.

    python recipes/smaller_shapes.py --data data/bible --work work/sizes --json sizes.json

Only shapes are real: weights are random, and the vocabulary, as large as the real one, is BPE trained on the
text of `--data`. So what stays of it says how many subwords text of that size and kind needs, not which.
Each export is a process of its own, whose peak of resident memory the system tells; half of each pair's
neurons are kept, chosen at random.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    NllbTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.convert_slow_tokenizer import import_protobuf

from nspec_hf.core import (
    exit_status,
    read_json,
    read_lines,
    require,
    require_writable,
    write_json,
    write_result,
)
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites

SHAPES: dict[str, dict[str, int]] = {
    "m2m100_418M": {"tokens": 128_004, "rows": 128_112, "layers": 12, "width": 4096},
    "nllb_600M": {"tokens": 256_001, "rows": 256_206, "layers": 12, "width": 4096},
}
"""Subwords, rows of the embeddings, layers of a side, and neurons of a layer."""

NLLB = dict(
    zip(
        "en de es pt da no sv pl cs sl hr he zh".split(),
        "eng deu spa por dan nob swe pol ces slv hrv heb zho".split(),
        strict=True,
    )
)
SCRIPTS = {"he": "Hebr", "zh": "Hans"}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the models, export them, write what it took; return the exit status."""
    options = read_options(argv)
    require(Path(options.data).is_dir(), f"there is no folder {options.data} of text")
    if options.json:
        require_writable(options.json)
    found: dict[str, Any] = {}
    imports = _peak(
        ["-c", "import nspec_hf.export.export, nspec_hf.cli.pipeline; nspec_hf.export.export_model"]
    )
    for name in options.shapes:
        folder = Path(options.work) / name
        if not (folder / "masks").is_dir():
            # In a process of its own: a child's peak counts what its parent had when it was started.
            context = multiprocessing.get_context("spawn")
            arguments = (name, folder, Path(options.data), options.languages)
            made = context.Process(target=make, args=arguments)
            made.start()
            made.join()
            require(made.exitcode == 0, f"{name} was not made")
        for count in options.counts:
            found[f"{name}.{count}"] = exported(name, folder, options, count, imports)
            print(f"{name}, {count} languages: {found[f'{name}.{count}']}", flush=True)
    if options.json:
        write_result(
            options.json, found, {**vars(options), "data": Path(options.data).name, "work": "", "json": ""}
        )
    return 0


def make(name: str, folder: Path, data: Path, languages: Sequence[str]) -> None:
    """Write tokenizer, random model and random masks."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    tokenizer(name, shape["tokens"], data, folder).save_pretrained(folder / "model")
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", shape["layers"]), ("ffn_dim", shape["width"]))
    }
    torch.manual_seed(1)
    model = M2M100ForConditionalGeneration(M2M100Config(vocab_size=shape["rows"], d_model=1024, **sides))
    model.generation_config.max_length = 200
    sites = {site.name: site.width for site in find_sites(model)}
    model.save_pretrained(folder / "model")
    del model
    masks = NeuronMasks.random(sites=sites, pairs=directions(languages), density=0.5, seed=1)
    masks.save_pretrained(folder / "masks")


def tokenizer(name: str, size: int, data: Path, folder: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer of that many subwords, of the class that the real one has."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    lines = (line for path in sorted(data.glob("train.*.xz")) for line in read_lines(path))
    bpe.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL)))
    bpe.save(str(folder / "bpe.json"))
    model = read_json(folder / "bpe.json")["model"]
    for number in range(size - len(model["vocab"])):  # text may not have so many
        model["vocab"][f"▁unused{number}"] = len(model["vocab"])
    if name.startswith("nllb"):
        merges = [tuple(merge) for merge in model["merges"]]
        return NllbTokenizer(model["vocab"], merges, src_lang="eng_Latn", tgt_lang="deu_Latn")
    protobuf: Any = import_protobuf()
    proto = protobuf.ModelProto()
    proto.trainer_spec.model_type = 2
    proto.normalizer_spec.add_dummy_prefix = True
    for token, number in model["vocab"].items():
        if token == "<pad>":
            continue
        kind = {"<unk>": 2, "<s>": 3, "</s>": 3}.get(token, 1)
        proto.pieces.add(piece=token, score=-float(number), type=kind)
    (folder / "spm.model").write_bytes(proto.SerializeToString())
    write_json(folder / "vocab.json", model["vocab"])
    return M2M100Tokenizer(
        str(folder / "vocab.json"), str(folder / "spm.model"), src_lang="en", tgt_lang="de"
    )


def directions(languages: Sequence[str]) -> list[str]:
    """Return the pairs from and to the first of the languages."""
    first, *others = languages
    return [pair for other in others for pair in (f"{first}-{other}", f"{other}-{first}")]


def exported(
    name: str, folder: Path, options: argparse.Namespace, count: int, imports: float
) -> dict[str, Any]:
    """Export for some languages in a process of its own, and return sizes and its peak of memory."""
    output = folder / f"out{count}"
    codes = {code: f"{long}_{SCRIPTS.get(code, 'Latn')}" for code, long in NLLB.items()}
    arguments = ["--model", folder / "model", "--pairs", ",".join(directions(options.languages[:count]))]
    arguments += ["--masks", folder / "masks", "--output", output, "--trim-vocabulary"]
    arguments += ["--corpus.path", options.data, "--split", "test", "--export.format", options.form]
    arguments += ["--corpus.max_lines", options.lines, "--export.sample", "1", "--export.max_new_tokens", "4"]
    if name.startswith("nllb"):
        arguments += ["--codes", str(codes)]
    peak = _peak(["-m", "nspec_hf", "export", *map(str, arguments)])
    report = read_json(output / "nspec_export.json")
    dense = report["bytes_dense"] / 2**20
    return {
        "tokens": report["vocabulary"]["tokens"],
        "tokens_dense": report["vocabulary"]["tokens_dense"],
        "parameters": report["parameters"],
        "parameters_dense": report["parameters_dense"],
        "mebibytes": report["bytes"] / 2**20,
        "mebibytes_dense": dense,
        "resegmented": report["vocabulary"]["resegmented"],
        "peak_mebibytes": peak,
        "peak_of_imports_mebibytes": imports,
        "peak_of_dense": peak / dense,
        "peak_of_dense_without_imports": (peak - imports) / dense,
        "same": report["same"],
    }


def _peak(command: Sequence[str]) -> float:
    """Run Python in a process of its own; return its peak of resident memory in MiB."""
    process = subprocess.Popen([sys.executable, *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:3]} ended with status {process.returncode}")
    return usage.ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="folder of text, train.en.xz …")
    add("--work", required=True, help="folder for models; some GB")
    add("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    add(
        "--languages",
        nargs="+",
        default="en de es pt da no sv pl cs he".split(),
        help="the first in every pair",
    )
    add("--counts", nargs="+", type=int, default=[2, 10], help="how many of them are exported together")
    add("--lines", type=int, default=5000, help="sentences a pair whose subwords are counted")
    add("--form", default="pruned", help="form of the export; default: %(default)s")
    add("--json", help="file for the result")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_status("smaller_shapes.py", main))
