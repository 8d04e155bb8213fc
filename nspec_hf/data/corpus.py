"""Parallel text: read from files or from `datasets`, checked line by line.

Files may be plain, `.gz`, `.xz` or `.bz2`. For a split such as `train` and a pair `en-de`, a folder may hold,
and the first of these that is there is read:
- two files of the pair: `train.en-de.en` and `train.en-de.de` (or `train.de-en.…`);
- one file a language, aligned across all of them: `train.en`, `train.de`, `train.fr` (multi-way text);
- one table of the pair or of all: `train.en-de.tsv`, `train.tsv` (with a header; no quotes), `.jsonl` or
  `.parquet`, with a column a language, or a column `translation` that holds one entry a language. Further
  columns are not looked at.

A bad line (on a side empty, of characters without width alone, or not UTF-8) is an error that names file and
line, or, with `bad_lines="skip"`, left out and counted in a warning. Files of different length are always an
error.
"""

import importlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from nspec_hf.core import (
    PACKED,
    ConfigError,
    CorpusError,
    Pair,
    as_pairs,
    decode_line,
    read_raw_lines,
    require_count,
    warn,
)


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
        for name, limit in {"max_lines": self.max_lines, **self.lines_by_language}.items():
            if limit is not None:
                require_count(f"the number of lines ({name})", limit)

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


class _Table:
    """Rows with one entry a language (None: a row that is not UTF-8); a column is made when asked for."""

    def __init__(self, rows: Iterable[Mapping[str, Any] | None], place: str, first: int = 1) -> None:
        self._rows, self._place, self._first = list(rows), place, first
        self._columns: dict[str, _Column] = {}

    def column(self, code: str) -> _Column:
        """Return the lines of a language."""
        if code not in self._columns:
            if not any(code in row for row in self._rows if row is not None):
                have = ", ".join(sorted({name for row in self._rows for name in row or ()})) or "nothing"
                raise CorpusError(f"{self._place} has no language {code!r}; it has: {have}")
            lines = [
                None if row is None else self._sentence(row.get(code), code, number)
                for number, row in enumerate(self._rows)
            ]
            self._columns[code] = _Column(lines, self._place, self._first)
        return self._columns[code]

    def _sentence(self, value: Any, code: str, number: int) -> str | None:
        if value is None:
            return ""
        if not isinstance(value, str):
            place = f"{self._place}, line {number + self._first}"
            raise CorpusError(f"{place}: expected text, got {value!r} for {code!r}")
        # JSON can spell half of a character ("\\ud800"), which no UTF-8 can.
        return _clean_line(value) if value.isascii() or _is_utf8(value) else None


_Sides = tuple[_Column, _Column]


class _FileReader:
    """Reads pairs from a folder, each file once, since a pivot language is part of many pairs."""

    def __init__(self, config: CorpusConfig, split: str) -> None:
        self.folder, self.split = Path(config.path), split
        if not self.folder.is_dir():
            raise CorpusError(f"there is no folder {config.path}")
        self._columns: dict[Path, _Column] = {}
        self._tables: dict[Path, _Table] = {}

    def __call__(self, pair: Pair) -> _Sides:
        names = dict.fromkeys([pair, pair.file_name, pair.reverse, pair.reverse.file_name])
        stems = [*(f"{self.split}.{name}" for name in names), self.split]
        for stem in stems:
            source, target = (self._find(f"{stem}.{code}") for code in (pair.source, pair.target))
            if source and target:
                return self._text(source), self._text(target)
        for stem in stems:
            for kind in _TABLES:
                if path := self._find(f"{stem}{kind}"):
                    table = self._table(path, kind)
                    return table.column(pair.source), table.column(pair.target)
        have = ", ".join(sorted(path.name for path in self.folder.glob(f"{self.split}.*"))[:12])
        raise CorpusError(
            f"no {self.split} text of {pair} in {self.folder}: expected {self.split}.{pair.source} and "
            f"{self.split}.{pair.target} (or {', '.join(PACKED)}); of this split there is: "
            f"{have or 'nothing'}"
        )

    def _find(self, name: str) -> Path | None:
        candidates = (self.folder / f"{name}{packed}" for packed in ("", *PACKED))
        return next((path for path in candidates if path.is_file()), None)

    def _text(self, path: Path) -> _Column:
        if path not in self._columns:
            lines = [decode_line(line) for line in read_raw_lines(path)]
            self._columns[path] = _Column([line and _clean_line(line) for line in lines], str(path))
        return self._columns[path]

    def _table(self, path: Path, kind: str) -> _Table:
        if path not in self._tables:
            first = 2 if kind == ".tsv" else 1
            self._tables[path] = _Table(_TABLES[kind](path), str(path), first)
        return self._tables[path]


class _DatasetReader:
    """Reads pairs from the `datasets` library, each configuration once for all of its pairs."""

    def __init__(self, config: CorpusConfig, pairs: Sequence[Pair], split: str) -> None:
        self.config, self.split = config, split
        self._tables: dict[str | None, _Table] = {}
        for name in dict.fromkeys(map(self._name, pairs)):
            self._tables[name] = self._read(name, [pair for pair in pairs if self._name(pair) == name])

    def __call__(self, pair: Pair) -> _Sides:
        table = self._tables[self._name(pair)]
        return table.column(pair.source), table.column(pair.target)

    def _name(self, pair: Pair) -> str | None:
        name = self.config.dataset_name
        first, second = sorted([pair.source, pair.target])
        codes = {"{source}": pair.source, "{target}": pair.target, "{a}": first, "{b}": second}
        for placeholder, code in codes.items():
            name = name and name.replace(placeholder, code)
        return name

    def _read(self, name: str | None, pairs: Sequence[Pair]) -> _Table:
        limits = [self.config.limit(pair) for pair in pairs]
        most = max(limit or 0 for limit in limits) if None not in limits else None
        codes = {code for pair in pairs for code in (pair.source, pair.target)}
        place = f"dataset {self.config.dataset}"
        # Else the words "NA", "None" and "null" of a CSV file would be read as nothing.
        is_csv = any(path.suffix in (".csv", ".tsv") for path in Path(self.config.dataset).glob("**/*"))
        options: dict[str, Any] = {"keep_default_na": False} if is_csv else {}
        library = _extra("datasets")
        try:
            rows = library.load_dataset(
                self.config.dataset, name, split=self.split, streaming=self.config.streaming, **options
            )
            entries = (_entries(row, place) for row in islice(rows, most))
            # Copies of what is wanted alone, since a data set can have much more.
            return _Table([{code: row[code] for code in codes & row.keys()} for row in entries], place)
        except CorpusError:
            raise
        except Exception as error:  # a broken file comes as whatever its reader raised
            reason = error.__cause__ or error
            raise CorpusError(
                f"{place} ({name or 'no name'}, {self.split}) cannot be read: {reason}"
            ) from error


def _clean_line(line: str) -> str:
    """Return a line without space at its ends; one that shows nothing (zero-width characters) is empty."""
    line = line.strip()
    shown = line[:1].isalnum() or any(unicodedata.category(each) not in ("Cf", "Cc", "Zs") for each in line)
    return line if shown else ""


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= each <= "\udfff" for each in text)


def _entries(row: Any, place: str) -> Mapping[str, Any]:
    row = row.get("translation", row) if isinstance(row, dict) else row
    if not isinstance(row, dict):
        raise CorpusError(f"{place}: expected an object with one entry a language, got {row!r:.200}")
    return row


def _tsv_rows(path: Path) -> Iterator[Mapping[str, str] | None]:
    head, *lines = [decode_line(line) for line in read_raw_lines(path)] or [""]
    names = [name.strip() for name in (head or "").split("\t")]
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t") if line else [""] * len(names)
        if len(cells) != len(names):
            raise CorpusError(f"{path}, line {number}: {len(cells)} cells under {len(names)} headings")
        if any(len(cell) > 1 and cell[0] == cell[-1] == '"' and '""' in cell[1:-1] for cell in cells):
            raise CorpusError(
                f"{path}, line {number}: a cell has doubled quotation marks, as CSV writes them; here a tab-"
                "separated file has no quoting: write the text as it is (in pandas: quoting=csv.QUOTE_NONE)"
            )
        yield None if line is None else dict(zip(names, cells, strict=True))


def _json_rows(path: Path) -> Iterator[Mapping[str, Any] | None]:
    for number, raw in enumerate(read_raw_lines(path), start=1):
        line, place = decode_line(raw), f"{path}, line {number}"
        try:
            yield None if line is None else _entries(json.loads(line.strip() or "{}"), place)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CorpusError(f"{place}: not JSON ({error})") from None


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        rows = _extra("pyarrow.parquet").read_table(path).to_pylist()
    except (ValueError, OSError, NotImplementedError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from None
    return (_entries(row, str(path)) for row in rows)


_TABLES = {".tsv": _tsv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}


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
    good = [(one, other) for one, other in rows if one and other]
    if len(good) < len(rows):
        number = next(index for index, row in enumerate(rows) if not all(row))
        column, text = next((side, text) for side, text in zip(sides, rows[number], strict=True) if not text)
        first = f"{column.place}, line {column.first + number}: {'not UTF-8' if text is None else 'empty'}"
        if config.bad_lines == "error":
            raise CorpusError(f"{first}; mend the text, or leave such lines out with bad_lines='skip'")
        undecoded = sum(None in row for row in rows)
        warn(
            f"{pair}: left out {len(rows) - len(good)} of {len(rows)} lines, {undecoded} not UTF-8 and "
            f"{len(rows) - len(good) - undecoded} empty on a side; the first is {first}"
        )
    if not good:
        raise CorpusError(f"{pair}: no line is left of {source.place}")
    return PairText(pair, [row[0] for row in good], [row[1] for row in good])
