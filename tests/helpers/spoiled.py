"""A folder in which every command could run, and beside it everything that can be wrong with its files."""

import gzip
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from nspec_hf.cli.main import main
from tests.helpers import tiny_text
from tests.helpers.tiny_experiment import experiment

PAIRS = "en-de,de-en,en-fr,fr-en"


def whole(folder: Path) -> None:
    """Write a model, text, statistics, masks, translations, scores and an experiment that are right."""
    tiny_text.write_text(folder / "data", train=24, valid=12, test=6)
    tiny_text.model().save_pretrained(folder / "base")
    tiny_text.tokenizer().save_pretrained(folder / "base")
    record = ["record", "--model", "base", "--pairs", PAIRS, "--corpus.path", "data"]
    assert main([*record, "--max_tokens", "64", "--max_length", "60"]) == 0
    assert main(["select"]) == 0
    for system in ("one", "two"):
        (folder / system).mkdir()
        for pair in PAIRS.split(","):
            text = (folder / "data" / f"test.{pair.split('-')[1]}").read_text(encoding="utf-8")
            (folder / system / f"{pair}.txt").write_text(text.replace("e", system[0]), encoding="utf-8")
    about = ["--corpus.path", "data", "--output"]
    assert main(["evaluate", "--hypotheses", "one", *about, "scores.json"]) == 0
    compare = ["compare", "--baseline", "one", "--system", "two", "--n_samples", "20", "--n_jobs", "1"]
    assert main([*compare, *about, "comparison.json"]) == 0
    experiment(folder / "lab")


def spoiled(folder: Path) -> None:
    """Write beside the right files what is damaged, foreign or of another shape."""
    _texts(folder)
    _models(folder)
    masks, stats = folder / "masks" / "nspec_masks.safetensors", folder / "nspec_stats.safetensors"
    for name, content in _damaged(masks.read_bytes()).items():
        (folder / f"masks_{name}").mkdir()
        (folder / f"masks_{name}" / masks.name).write_bytes(content)
    for name, content in _damaged(stats.read_bytes()).items():
        (folder / f"stats_{name}.safetensors").write_bytes(content)
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine\n", encoding="utf-8")
    files = {
        "list.json": "[1, 2]",
        "deep.json": "[" * 100_000,
        "cut.json": '{"scores": {"en-de"',
        "other.json": '{"a": 1}',
        "number.json": "3",
        "latin.json": '{"name": "é"}',
    }
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    (folder / "latin.yaml").write_bytes("model: é\n".encode("latin-1"))
    (folder / "list.yaml").write_text("- a\n- b\n", encoding="utf-8")
    (folder / "broken.yaml").write_text("model: [a\n", encoding="utf-8")


def _texts(folder: Path) -> None:
    def corpus(name: str, **files: bytes | str) -> None:
        (folder / name).mkdir()
        for file, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            (folder / name / file.replace("_", ".")).write_bytes(content)

    corpus("text_uneven", valid_en="one\ntwo\n", valid_de="eins\n")
    corpus("text_empty", valid_en="", valid_de="")
    corpus("text_gap", valid_en="one\n\n", valid_de="eins\nzwei\n")
    corpus("text_latin", valid_en="one\n", valid_de="fünf\n".encode("latin-1"))
    corpus("text_utf16", valid_en="one\n", valid_de="eins\n".encode("utf-16"))
    corpus("text_cells", valid_tsv="en\tde\none\teins\tun\n")
    corpus("text_columns", valid_tsv="en\tfr\none\tun\n")
    corpus("text_json", valid_jsonl='{"en": "one", "de": "eins"}\n{"en": \n')
    corpus("text_number", valid_jsonl='{"en": "one", "de": 1}\n')
    corpus("text_scalar", valid_jsonl="3\n")
    corpus("text_deep", valid_jsonl="[" * 100_000 + "\n")
    corpus("text_parquet", valid_parquet=b"PAR1 no such thing")
    packed = bytearray(gzip.compress(b"one\n" * 500))
    packed[12:20] = b"\xff" * 8
    corpus("text_gz")
    (folder / "text_gz" / "valid.en.gz").write_bytes(bytes(packed))
    (folder / "text_gz" / "valid.de").write_text("eins\n" * 500, encoding="utf-8")


def _models(folder: Path) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(folder / "base", folder / name)
        return folder / name

    def edit(path: Path, **fields: object) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, **fields}), encoding="utf-8")

    weights = folder / "base" / "model.safetensors"
    (copy("model_cut") / weights.name).write_bytes(weights.read_bytes()[:900])
    (copy("model_pointer") / weights.name).write_text(
        "version https://git-lfs.github.com/spec/v1\n", encoding="utf-8"
    )
    state = load_file(weights)
    layers = {name: weight for name, weight in state.items() if "decoder.layers.1.fc1" not in name}
    save_file(layers, copy("model_holes") / weights.name, {"format": "pt"})
    nan = {
        name: weight * float("nan") if "encoder.layers.0.fc1" in name else weight
        for name, weight in state.items()
    }
    save_file(nan, copy("model_nan") / weights.name, {"format": "pt"})
    integers = {
        name: (weight * 50).round().to(torch.int8) if "fc1.weight" in name else weight
        for name, weight in state.items()
    }
    save_file(integers, copy("model_integers") / weights.name, {"format": "pt"})
    edit(copy("model_wide") / "config.json", encoder_ffn_dim=40)
    edit(copy("model_unknown") / "config.json", model_type="nothing_known")
    edit(copy("model_code") / "config.json", auto_map={"AutoConfig": "mine.Config"}, model_type="of_mine")
    (copy("model_json") / "config.json").write_text("{", encoding="utf-8")
    (copy("model_weightless") / weights.name).unlink()
    for file in copy("model_speechless").glob("tokenizer*"):
        file.unlink()
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")


def _damaged(content: bytes) -> dict[str, bytes]:
    """Return a safetensors file cut off, with a byte changed, empty, and something else."""
    middle = len(content) - 9
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {
        "cut": content[: len(content) // 2],
        "flipped": flipped,
        "none": b"",
        "foreign": b"PK\x03\x04" * 40,
    }
