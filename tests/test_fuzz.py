"""Loaders on damaged files: each reads what is right, or refuses it by an error that it promises.

A file that is right is cut off, has bytes changed, doubled or put in, or is not such a file at all. A few
dozen are tried in the suite, 10,000 a loader in the test that is marked slow.
"""

import gzip
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nspec_hf.core import NspecError, check_settings_files, read_json, read_lines
from nspec_hf.data import CorpusConfig, load_tokenizer, read_corpus, read_outputs
from nspec_hf.evaluation import Comparison, SystemScores
from nspec_hf.export import ExportConfig, export_model, load_pruned
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats, load_model
from tests.helpers import tiny_text
from tests.helpers.spoiled import whole


def corpus(folder: Path) -> object:
    return read_corpus(CorpusConfig(path=str(folder)), ["en-de"], "valid")


LOADERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    # name → the file that is damaged, and what reads it
    "statistics": ("nspec_stats.safetensors", ActivationStats.load),
    "masks": ("masks/nspec_masks.safetensors", lambda path: NeuronMasks.from_pretrained(path.parent)),
    "scores": ("scores.json", SystemScores.load),
    "comparison": ("comparison.json", Comparison.load),
    "pruned weights": ("pruned/model.safetensors", lambda path: load_pruned(path.parent)),
    "pruned report": ("pruned/nspec_export.json", lambda path: load_pruned(path.parent)),
    "weights": ("base/model.safetensors", lambda path: load_model(path.parent)),
    "config": ("base/config.json", lambda path: load_model(path.parent)),
    "tokenizer": ("base/tokenizer.json", lambda path: load_tokenizer(path.parent)),
    "text": ("data/valid.de", lambda path: corpus(path.parent)),
    "table": ("table/valid.tsv", lambda path: corpus(path.parent)),
    "lines of JSON": ("lines/valid.jsonl", lambda path: corpus(path.parent)),
    "packed text": ("packed/valid.de.gz", lambda path: corpus(path.parent)),
    "translations": ("one/en-de.txt", lambda path: read_outputs(path.parent)),
    "lines": ("data/test.en", read_lines),
    "JSON": ("scores.json", read_json),
    "settings": ("lab/tiny.yaml", lambda path: check_settings_files(["--config", str(path)])),
}
SLOW_LOADERS = {"weights", "config", "tokenizer", "pruned weights", "pruned report"}
"""Each file of these takes up to a twentieth of a second."""


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A folder in which every loader reads its file."""
    folder = tmp_path_factory.mktemp("right")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        whole(folder)
    model, masks = load_model(folder / "base"), NeuronMasks.from_pretrained(folder / "masks")
    config = ExportConfig(format="pruned", sample=1, max_new_tokens=2)
    export_model(model, tiny_text.tokenizer(), masks, ["en-de"], folder / "pruned", config)
    rows = list(zip(*tiny_text.sentences(8).values(), strict=True))
    for name in ("table", "lines", "packed"):
        (folder / name).mkdir()
    table = "en\tde\tfr\n" + "".join("\t".join(row) + "\n" for row in rows)
    (folder / "table" / "valid.tsv").write_text(table, encoding="utf-8")
    lines = "".join(f'{{"en": "{row[0]}", "de": "{row[1]}"}}\n' for row in rows)
    (folder / "lines" / "valid.jsonl").write_text(lines, encoding="utf-8")
    (folder / "packed" / "valid.de.gz").write_bytes(
        gzip.compress((folder / "data" / "valid.de").read_bytes())
    )
    shutil.copy(folder / "data" / "valid.en", folder / "packed" / "valid.en")
    return folder


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a file with one thing wrong with it."""
    place = draw.randrange(len(content))
    end = place + draw.randint(1, 40)
    return draw.choice(
        [
            content[:place],
            content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :],
            content[:place] + content[place:end] * draw.randint(2, 9) + content[end:],
            content[:place] + draw.randbytes(draw.randint(1, 30)) + content[place:],
            content[:place] + content[end:],
            content[:place]
            + draw.choice([b"null", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"NaN"])
            + content[end:],
            draw.randbytes(draw.randint(0, 60)),
        ]
    )


def fuzz(right: Path, name: str, count: int, seed: int) -> dict[str, int]:
    """Read `count` damaged files; return how many were read and how many refused."""
    relative, load = LOADERS[name]
    path, draw = right / relative, random.Random(seed)
    content, tally = path.read_bytes(), {"read": 0, "refused": 0}
    load(path)
    try:
        for number in range(count):
            spoiled = damaged(content, draw)
            path.write_bytes(spoiled)
            try:
                load(path)
                tally["read"] += 1
            except (NspecError, FileNotFoundError):
                tally["refused"] += 1
            except BaseException as error:
                raise AssertionError(f"{name}, file {number}: {error!r} for {spoiled[:200]!r}") from error
    finally:
        path.write_bytes(content)
    return tally


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOADERS)
def test_a_damaged_file_is_read_or_refused_by_name(name, right):
    tally = fuzz(right, name, count=6 if name in SLOW_LOADERS else 60, seed=1)
    assert tally["refused"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOADERS)
def test_ten_thousand_damaged_files_are_read_or_refused_by_name(name, right, capsys):
    count = int(os.environ.get("NSPEC_FUZZ", "10000"))
    tally = fuzz(right, name, count, seed=2)
    with capsys.disabled():
        sys.stdout.write(f"\n{name}: {tally}\n")
