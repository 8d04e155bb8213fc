"""Parallel text: read from files or from `datasets`, checked line by line.

Files may be plain, `.gz` or `.xz`. For a split such as `train` and a pair `en-de`, a folder may hold, and the
first of these that is there is read:
- two files of the pair: `train.en-de.en` and `train.en-de.de` (or `train.de-en.…`);
- one file a language, aligned across all of them: `train.en`, `train.de`, `train.fr` (multi-way text);
- one table of the pair or of all: `train.en-de.tsv`, `train.tsv` (with a header; no quotes), `.jsonl` or
  `.parquet`, with a column a language, or a column `translation` that holds one entry a language.

A bad line (empty or not UTF-8 on a side) is an error that names file and line, or, with `bad_lines="skip"`,
left out and counted in a warning. Files of different length are always an error.
"""

import importlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from nspec_hf.core import PACKED, ConfigError, CorpusError, Pair, as_pairs, decode_line, read_raw_lines

_TABLES = (".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where parallel text lies and what to do with bad lines."""

    path: str = ""
    """Folder of text files, or empty where `dataset` is given."""

    dataset: str = ""
    """A dataset on the Hub, or a folder that `datasets` can load, with a `translation` column or with one
    column a language."""

    dataset_name: str | None = None
    """Configuration of that dataset. `{source}` and `{target}` stand for the codes of a pair, `{a}` and `{b}`
    for the same in alphabetical order: OPUS-100 names its configurations `{a}-{b}`."""

    streaming: bool = False
    """Read the dataset without downloading all of it first; needs `max_lines`."""

    bad_lines: Literal["error", "skip"] = "error"
    """What to do with a line that is empty or not UTF-8 on a side."""

    max_lines: int | None = None
    """Take at most the first so many lines of each pair; None takes all."""

    lines_by_language: Mapping[str, int] = field(default_factory=dict)
    """Lines that pairs of a language take, which makes it a low-resource one: `{"da": 1250}`. A pair takes
    the smaller number of its two languages."""

    def __post_init__(self) -> None:
        """Check the values."""
        if bool(self.path) == bool(self.dataset):
            raise ConfigError("give either path (a folder of text files) or dataset (a Hub id), and not both")
        if self.bad_lines not in ("error", "skip"):
            raise ConfigError(f"bad_lines is 'error' or 'skip', got {self.bad_lines!r}")
        if self.streaming and not (self.dataset and self.max_lines):
            raise ConfigError("streaming is for a dataset, and needs max_lines to know when to stop")
        limits = {"max_lines": self.max_lines, **self.lines_by_language}
        for name, limit in limits.items():
            if limit is not None and limit < 1:
                raise ConfigError(f"a number of lines is positive, got {limit} for {name}")

    def limit(self, pair: Pair) -> int | None:
        """Return the most lines that a pair takes."""
        by_language = (self.lines_by_language.get(code) for code in (pair.source, pair.target))
        return min((limit for limit in (*by_language, self.max_lines) if limit is not None), default=None)


@dataclass(frozen=True)
class PairText:
    """The sentences of one pair, aligned line by line."""

    pair: Pair
    sources: Sequence[str]
    targets: Sequence[str]

    def __len__(self) -> int:
        """Return the number of sentence pairs."""
        return len(self.sources)


def read_corpus(config: CorpusConfig, pairs: Iterable[str], split: str) -> list[PairText]:
    """Read one split of every pair.

    Args:
        config: Where the text lies.
        pairs: The directions to read; `de-en` reads what `en-de` reads, turned round.
        split: `train`, `val`, `test_2016_flickr` …: the first part of the files' names, or the dataset's
            split.

    Returns:
        One `PairText` a pair, in the order given; sentences without space at their ends.

    Raises:
        CorpusError: If a file is missing or cannot be read, two files differ in length, a line is bad and
            not to be skipped, or no line is left.
    """
    pairs = as_pairs(pairs)
    read = _DatasetReader(config, pairs, split) if config.dataset else _FileReader(config, split)
    return [_clean(pair, read(pair), config) for pair in pairs]


@dataclass(frozen=True)
class _Column:
    """The lines of one language; None stands for a line that is not UTF-8."""

    lines: Sequence[str | None]
    place: str
    first: int = 1
    """Number of the first line in the file, for errors."""


_Sides = tuple[_Column, _Column]


class _FileReader:
    """Reads pairs from a folder, each file once, since a pivot language is part of many pairs."""

    def __init__(self, config: CorpusConfig, split: str) -> None:
        self.folder, self.split = Path(config.path), split
        if not self.folder.is_dir():
            raise CorpusError(f"there is no folder {config.path}")
        self.texts: dict[Path, _Column] = {}
        self.tables: dict[Path, dict[str, _Column]] = {}

    def __call__(self, pair: Pair) -> _Sides:
        stems = (f"{self.split}.{pair}", f"{self.split}.{pair.reverse}", self.split)
        for stem in stems:
            paths = [self._find(f"{stem}.{code}") for code in (pair.source, pair.target)]
            if all(paths):
                source, target = (self._text(path) for path in paths)
                return source, target
        for table in (self._find(f"{stem}{suffix}") for stem in stems for suffix in _TABLES):
            if table:
                if table not in self.tables:
                    self.tables[table] = _columns(_table_rows(table), str(table))
                return _choose(self.tables[table], pair, str(table))
        have = ", ".join(sorted(path.name for path in self.folder.glob(f"{self.split}.*"))[:12])
        raise CorpusError(
            f"no {self.split} text of {pair} in {self.folder}: expected {self.split}.{pair.source} and "
            f"{self.split}.{pair.target} (or .gz, .xz); of this split there is: {have or 'nothing'}"
        )

    def _find(self, name: str) -> Path | None:
        candidates = (self.folder / f"{name}{packed}" for packed in ("", *PACKED))
        return next((path for path in candidates if path.is_file()), None)

    def _text(self, path: Path) -> _Column:
        if path not in self.texts:
            lines = [decode_line(line) for line in read_raw_lines(path)]
            self.texts[path] = _Column([line and line.strip() for line in lines], str(path))
        return self.texts[path]


class _DatasetReader:
    """Reads pairs from the `datasets` library, each configuration once for all of its pairs."""

    def __init__(self, config: CorpusConfig, pairs: Sequence[Pair], split: str) -> None:
        self.config, self.split = config, split
        self.columns: dict[str | None, dict[str, _Column]] = {}
        for name in dict.fromkeys(map(self._name, pairs)):
            self.columns[name] = self._read(name, [pair for pair in pairs if self._name(pair) == name])

    def __call__(self, pair: Pair) -> _Sides:
        return _choose(self.columns[self._name(pair)], pair, f"dataset {self.config.dataset}")

    def _name(self, pair: Pair) -> str | None:
        name = self.config.dataset_name
        first, second = sorted([pair.source, pair.target])
        codes = {"{source}": pair.source, "{target}": pair.target, "{a}": first, "{b}": second}
        for placeholder, code in codes.items():
            name = name and name.replace(placeholder, code)
        return name

    def _read(self, name: str | None, pairs: Sequence[Pair]) -> dict[str, _Column]:
        limits = [self.config.limit(pair) for pair in pairs]
        codes = {code for pair in pairs for code in (pair.source, pair.target)}
        place = f"dataset {self.config.dataset}"
        try:
            rows = _extra("datasets").load_dataset(
                self.config.dataset, name, split=self.split, streaming=self.config.streaming
            )
            wanted = (
                {code: text for code, text in _entries(row, place).items() if code in codes}
                for row in islice(rows, None if None in limits else max(limits))
            )
            return _columns(wanted, place)
        except CorpusError:
            raise
        except (ValueError, OSError) as error:
            raise CorpusError(
                f"{place} ({name or 'no name'}, {self.split}) cannot be read: {error}"
            ) from error


def _choose(columns: Mapping[str, _Column], pair: Pair, place: str) -> _Sides:
    for code in (pair.source, pair.target):
        if code not in columns:
            have = ", ".join(sorted(columns)) or "nothing"
            raise CorpusError(f"{place} has no language {code!r}; it has: {have}")
    return columns[pair.source], columns[pair.target]


def _columns(rows: Iterable[Mapping[str, Any] | None], place: str) -> dict[str, _Column]:
    """Turn rows into columns; None stands for a row that is not UTF-8."""
    lines: dict[str, list[str | None]] = {}
    first = 2 if Path(place.removesuffix(".gz").removesuffix(".xz")).suffix == ".tsv" else 1
    count = 0
    for row in rows:
        for name in row or ():
            lines.setdefault(name, [""] * count)
        for name, column in lines.items():
            column.append(None if row is None else _sentence(row.get(name), f"{place}, line {count + first}"))
        count += 1
    return {name: _Column(column, place, first) for name, column in lines.items()}


def _sentence(value: Any, place: str) -> str:
    if value is not None and not isinstance(value, str):
        raise CorpusError(f"{place}: expected text, got {value!r}")
    return (value or "").strip()


def _entries(row: Any, place: str) -> Mapping[str, Any]:
    row = row.get("translation", row) if isinstance(row, dict) else row
    if not isinstance(row, dict):
        raise CorpusError(f"{place}: expected an object with one entry a language, got {row!r}")
    return row


def _table_rows(path: Path) -> Iterator[Mapping[str, Any] | None]:
    kind = next(suffix for suffix in _TABLES if suffix in path.suffixes[-2:])
    if kind == ".parquet":
        yield from (_entries(row, str(path)) for row in _parquet_rows(path))
        return
    lines = [decode_line(line) for line in read_raw_lines(path)]
    yield from _tsv_rows(lines, path) if kind == ".tsv" else _json_rows(lines, path)


def _tsv_rows(lines: Sequence[str | None], path: Path) -> Iterator[Mapping[str, str] | None]:
    names = [name.strip() for name in (lines[0] or "").split("\t")] if lines else []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t") if line else [""] * len(names)
        if len(cells) != len(names):
            raise CorpusError(f"{path}, line {number}: {len(cells)} cells under {len(names)} headings")
        yield None if line is None else dict(zip(names, cells, strict=True))


def _json_rows(lines: Sequence[str | None], path: Path) -> Iterator[Mapping[str, Any] | None]:
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        try:
            yield None if line is None else _entries(json.loads(line.strip() or "{}"), place)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{place}: not JSON ({error})") from None


def _parquet_rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        return _extra("pyarrow.parquet").read_table(path).to_pylist()
    except (ValueError, OSError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from None


def _extra(module: str) -> ModuleType:
    """Import what must be installed only where such a corpus is read."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise CorpusError(f"this corpus needs {module}: pip install 'nspec-hf[data]'") from None


def _clean(pair: Pair, sides: _Sides, config: CorpusConfig) -> PairText:
    """Check a pair's lines, and leave the bad ones out where that is wanted."""
    source, target = sides
    if len(source.lines) != len(target.lines):
        raise CorpusError(
            f"{pair} is not parallel: {source.place} has {len(source.lines)} lines, "
            f"{target.place} has {len(target.lines)}"
        )
    limit = config.limit(pair)
    rows = list(zip(source.lines[:limit], target.lines[:limit], strict=True))
    bad = [index for index, row in enumerate(rows) if not all(row)]
    if bad:
        column, text = next((side, text) for side, text in zip(sides, rows[bad[0]], strict=True) if not text)
        first = f"{column.place}, line {column.first + bad[0]}: {'not UTF-8' if text is None else 'empty'}"
        if config.bad_lines == "error":
            raise CorpusError(f"{first}; mend the text, or leave such lines out with bad_lines='skip'")
        undecoded = sum(None in rows[index] for index in bad)
        warnings.warn(
            f"{pair}: left out {len(bad)} of {len(rows)} lines, {undecoded} not UTF-8 and "
            f"{len(bad) - undecoded} empty on a side; the first is {first}",
            stacklevel=4,
        )
        rows = [row for row in rows if all(row)]
    if not rows:
        raise CorpusError(f"{pair}: no line is left of {source.place}")
    return PairText(pair, [row[0] for row in rows], [row[1] for row in rows])
