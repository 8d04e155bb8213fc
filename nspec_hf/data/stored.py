"""Text of one pair, in memory or on disk: there as Arrow files, which the `datasets` library maps.

Shape letters: N = sentence pairs.

Text that memory does not hold is read once, line by line, into a file of Arrow's stream format, and encoded
once, by several processes, into files of token ids. Both are named by what they were made of, the content of
the text and of the tokenizer, so a second start finds them, and text or a tokenizer that has changed is read
anew. What an earlier version of the text has left may be deleted at any time.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from nspec_hf.core import CorpusError, Pair, atomic_write, digest, optional, read_json, write_json

if TYPE_CHECKING:  # the settings of a corpus are shown by commands that load no tokenizers
    from nspec_hf.data.language_tags import LanguageTags

_AT_ONCE = 10_000  # sentences that are written, and encoded, at a time
_FORMAT = 1  # of the files; another number makes them anew


@dataclass(frozen=True)
class PairText:
    """The sentences of one pair, aligned line by line."""

    pair: Pair
    sources: Sequence[str]
    targets: Sequence[str]

    def __len__(self) -> int:
        """Return the number of sentence pairs."""
        return len(self.sources)


@dataclass(frozen=True)
class StoredText(PairText):
    """The same on disk: a sentence is read when it is asked for."""

    dataset: Any
    """The `datasets.Dataset` with the columns `source` and `target`."""
    folder: Path
    """Where it lies, and where its token ids go."""
    key: str
    """Stands for its content."""
    num_proc: int
    """Processes that encode it."""


def stored_text(
    pair: Pair, rows: Iterator[tuple[str, str]], told: list[str], folder: Path, key: str, num_proc: int
) -> tuple[StoredText, list[str]]:
    """Return a pair's text on disk, and what there was to say of it when it was read.

    `key` stands for the content of the text and for how it is read: where its file is there, `rows` (source
    and target of each line) are not looked at. Going through them fills `told`.
    """
    arrow, datasets = extra("pyarrow"), extra("datasets")
    path = folder / f"text.{digest(_FORMAT, key)}.arrow"
    about = path.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        schema = arrow.schema([(name, arrow.large_string()) for name in ("source", "target")])
        with atomic_write(path) as file, arrow.ipc.new_stream(file, schema) as writer:
            while part := list(islice(rows, _AT_ONCE)):
                columns = [arrow.array(list(side), arrow.large_string()) for side in zip(*part, strict=True)]
                writer.write_batch(arrow.record_batch(columns, schema=schema))
        write_json(about, {"pair": str(pair), "told": told})
    dataset = datasets.Dataset.from_file(str(path))
    text = StoredText(pair, dataset["source"], dataset["target"], dataset, folder, path.stem, num_proc)
    return text, read_json(about)["told"]


@dataclass(frozen=True)
class Rows:
    """Rows of token ids, one after the other: int32 [tokens], and where each begins, integers [rows + 1]."""

    tokens: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Rows":
        """Return lists of ids as rows."""
        bounds = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)), out=bounds[1:])
        return cls(np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=bounds[-1]), bounds)

    @property
    def lengths(self) -> np.ndarray:
        """Number of ids in each row."""
        return np.diff(self.bounds)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> list[int]:
        """Return the ids of a row."""
        return self.tokens[self.bounds[index] : self.bounds[index + 1]].tolist()


def encoded_chunks(
    text: StoredText, tags: "LanguageTags", tokenizer: str, max_length: int, progress: bool
) -> Iterator[tuple[Rows, Rows]]:
    """Yield a pair's token ids as they lie on disk, source and target, some thousand sentences at a time.

    Encodes text where that has not been done; `tokenizer` is the tags' `tokenizer_key`. Sentence pairs with a
    side longer than `max_length` tokens are left out. A bar needs a terminal at standard error.
    """
    datasets = extra("datasets")
    ids = datasets.List(datasets.Value("int32"))
    key = _ids_key(text, tokenizer, max_length)
    hidden = not (progress and sys.stderr.isatty())
    arguments = dict(
        batched=True,
        batch_size=_AT_ONCE,
        writer_batch_size=_AT_ONCE,
        num_proc=text.num_proc if text.num_proc > 1 else None,
        remove_columns=["source", "target"],
        features=datasets.Features({"input_ids": ids, "labels": ids}),
        cache_file_name=str(text.folder / f"ids.{key}.arrow"),
        load_from_cache_file=True,
        new_fingerprint=key,
        desc=f"encode {text.pair}",
    )
    with _bars(datasets, hidden):
        found = text.dataset.map(partial(_encoded, tags, text.pair, max_length), **arguments)
    sides = [found.data.column(name).chunks for name in ("input_ids", "labels")]
    for chunks in zip(*sides, strict=True):
        if len(chunks[0]):
            # Arrow's list arrays are rows already, so nothing is copied.
            source, target = ((one.values.to_numpy(), one.offsets.to_numpy()) for one in chunks)
            yield Rows(*source), Rows(*target)


@contextmanager
def _bars(datasets: ModuleType, hidden: bool) -> Iterator[None]:
    """Hide the library's bars for a while, or leave them as they are."""
    if not hidden or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def is_encoded(text: StoredText, tokenizer: str, max_length: int) -> bool:
    """Return whether token ids of the text are there, some of them at least."""
    return any(text.folder.glob(f"ids.{_ids_key(text, tokenizer, max_length)}*.arrow"))


def tokenizer_key(tags: "LanguageTags") -> str:
    """Return what stands for all that decides the ids of a text: the tokenizer's files and the codes."""
    with tempfile.TemporaryDirectory() as folder:
        tags.tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        parts = [part for path in files for part in (path.name, path.read_bytes())]
    return digest(type(tags.tokenizer).__name__, dict(tags.codes), iter(parts))


def extra(module: str) -> Any:
    """Import what must be installed only where such a corpus is read."""
    return optional(module, "this corpus", CorpusError)


def _ids_key(text: StoredText, tokenizer: str, max_length: int) -> str:
    return digest(_FORMAT, text.key, str(text.pair), tokenizer, max_length)


def within_length(
    sources: list[list[int]], targets: list[list[int]], max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return both sides without the sentence pairs of which one is longer."""
    if all(len(ids) <= max_length for side in (sources, targets) for ids in side):
        return sources, targets
    kept = [row for row in zip(sources, targets, strict=True) if max(map(len, row)) <= max_length]
    return [row[0] for row in kept], [row[1] for row in kept]


def _encoded(tags: "LanguageTags", pair: Pair, max_length: int, rows: dict[str, list[str]]) -> dict[str, Any]:
    """Return the ids of some sentences; runs in a process of its own."""
    sides = tags.encode_source(rows["source"], pair), tags.encode_target(rows["target"], pair)
    return dict(zip(("input_ids", "labels"), within_length(*sides, max_length), strict=True))
