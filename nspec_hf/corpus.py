"""Parallel text: read from files or from `datasets`, checked line by line.

Files may be plain, `.gz` or `.xz`. One folder may hold, for a split such as `train`:
- one file a language, aligned across all of them: `train.en`, `train.de`, `train.fr` (multi-way text);
- two files a pair, where pairs differ in their text: `train.en-de.en`, `train.en-de.de`;
- one table whose columns are language codes: `train.tsv` (with a header), `train.jsonl` or `train.parquet`.

What is wrong with a line (empty on one side, not UTF-8) is an error that names file and line, or, with
`bad_lines="skip"`, left out and counted in a warning. Files of different length are always an error.
"""

import gzip
import json
import lzma
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nspec_hf.errors import ConfigError, CorpusError
from nspec_hf.pairs import Pair, as_pairs

_OPENERS = {"": open, ".gz": gzip.open, ".xz": lzma.open}
_TABLES = (".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Where parallel text lies and what to do with bad lines."""

    path: str = ""
    """Folder of text files, or empty where `dataset` is given."""

    dataset: str = ""
    """A dataset on the Hub (or a local one) with a `translation` column, or with one column a language."""

    dataset_name: str | None = None
    """Configuration of that dataset, such as `de-en`."""

    streaming: bool = False
    """Read the dataset without downloading all of it first; needs `max_lines`."""

    bad_lines: Literal["error", "skip"] = "error"
    """What to do with a line that is empty on one side or not UTF-8."""

    max_lines: int | None = None
    """Take at most this many lines of each pair; None takes all."""

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

    def limit(self, pair: Pair) -> int | None:
        """Return the most lines that a pair takes."""
        limits = [
            self.lines_by_language.get(pair.source),
            self.lines_by_language.get(pair.target),
            self.max_lines,
        ]
        return min((limit for limit in limits if limit is not None), default=None)


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
        One `PairText` a pair, in the order given.

    Raises:
        CorpusError: If a file is missing, two files differ in length, or a line is bad and not to be skipped.
    """
    read = _DatasetReader(config, split) if config.dataset else _FileReader(config, split)
    return [_clean(read(pair), config) for pair in as_pairs(pairs)]


@dataclass(frozen=True)
class _Column:
    """The lines of one language and how to name one of them in an error; None stands for a line of bad
    UTF-8."""

    lines: Sequence[str | None]
    place: str


class _FileReader:
    """Reads pairs from a folder, each file once, since a pivot language is part of many pairs."""

    def __init__(self, config: CorpusConfig, split: str) -> None:
        self.folder, self.split = Path(config.path), split
        if not self.folder.is_dir():
            raise CorpusError(f"there is no folder {config.path}")
        self.columns: dict[str, _Column] = {}
        self.table = self._find(f"{split}", _TABLES)

    def __call__(self, pair: Pair) -> tuple[Pair, _Column, _Column]:
        if self.table:
            return pair, self._from_table(pair.source), self._from_table(pair.target)
        for stem in (f"{self.split}.{pair}", f"{self.split}.{pair.reverse}", self.split):
            if self._find(f"{stem}.{pair.source}") and self._find(f"{stem}.{pair.target}"):
                return (
                    pair,
                    self._from_text(f"{stem}.{pair.source}"),
                    self._from_text(f"{stem}.{pair.target}"),
                )
        have = ", ".join(sorted(path.name for path in self.folder.glob(f"{self.split}.*"))[:12]) or "nothing"
        raise CorpusError(
            f"no {self.split} text of {pair} in {self.folder}: expected {self.split}.{pair.source} and "
            f"{self.split}.{pair.target} (or .gz, .xz); of this split there is: {have}"
        )

    def _find(self, stem: str, suffixes: Sequence[str] = ("",)) -> Path | None:
        candidates = (self.folder / f"{stem}{suffix}{packed}" for suffix in suffixes for packed in _OPENERS)
        return next((path for path in candidates if path.is_file()), None)

    def _from_text(self, stem: str) -> _Column:
        if stem not in self.columns:
            path = self._find(stem)
            self.columns[stem] = _Column(_read_lines(path), str(path))
        return self.columns[stem]

    def _from_table(self, language: str) -> _Column:
        if not self.columns:
            self.columns = _read_table(self.table)
        if language not in self.columns:
            raise CorpusError(
                f"{self.table} has no column {language!r}; it has: {', '.join(sorted(self.columns))}"
            )
        return self.columns[language]


class _DatasetReader:
    """Reads pairs from the `datasets` library."""

    def __init__(self, config: CorpusConfig, split: str) -> None:
        self.config = config
        self.rows = _load_dataset(config, split)

    def __call__(self, pair: Pair) -> tuple[Pair, _Column, _Column]:
        sides: tuple[list[str | None], list[str | None]] = ([], [])
        limit = self.config.limit(pair)
        for number, row in enumerate(self.rows):
            if limit is not None and number >= limit:
                break
            row = row.get("translation", row)
            for side, language in zip(sides, (pair.source, pair.target), strict=True):
                if language not in row:
                    raise CorpusError(
                        f"dataset {self.config.dataset} has no language {language!r}; it has: {', '.join(row)}"
                    )
                side.append(row[language])
        return pair, *(_Column(side, self.config.dataset) for side in sides)


def _load_dataset(config: CorpusConfig, split: str) -> Iterable[Mapping[str, object]]:
    try:
        import datasets  # an extra, and slow to import: only whoever names a dataset pays for it
    except ImportError:
        raise CorpusError("reading a dataset needs `pip install nspec-hf[data]`") from None
    return datasets.load_dataset(config.dataset, config.dataset_name, split=split, streaming=config.streaming)


def _read_lines(path: Path) -> list[str | None]:
    """Return a file's lines; split at newlines only, since `str.splitlines` also splits at U+2028 and
    others."""
    with _OPENERS.get(path.suffix, open)(path, "rb") as file:
        raw = file.read()
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
    lines = raw.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    return [_decode(line) for line in lines]


def _decode(line: bytes) -> str | None:
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError:
        return None


def _read_table(path: Path) -> dict[str, _Column]:
    rows = list(_table_rows(path))
    names = list(rows[0]) if rows else []
    return {name: _Column([row.get(name) for row in rows], str(path)) for name in names}


def _table_rows(path: Path) -> Iterator[Mapping[str, str | None]]:
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".parquet"):
        yield from _load_parquet(path)
        return
    lines = _read_lines(path)
    if name.endswith(".tsv"):
        header = (lines[0] or "").split("\t") if lines else []
        for number, line in enumerate(lines[1:], start=2):
            cells = (line or "").split("\t")
            if line is not None and len(cells) != len(header):
                raise CorpusError(f"{path}, line {number}: {len(cells)} cells under {len(header)} headings")
            yield dict(zip(header, [None] * len(header) if line is None else cells, strict=True))
        return
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line or "")
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not a JSON object ({error})") from None
        yield row.get("translation", row)


def _load_parquet(path: Path) -> Iterable[Mapping[str, str | None]]:
    import pyarrow.parquet  # comes with datasets, the same extra

    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [row.get("translation", row) for row in rows]


def _clean(read: tuple[Pair, _Column, _Column], config: CorpusConfig) -> PairText:
    pair, source, target = read
    if len(source.lines) != len(target.lines):
        raise CorpusError(
            f"{pair} is not parallel: {source.place} has {len(source.lines)} lines, "
            f"{target.place} has {len(target.lines)}"
        )
    limit = config.limit(pair)
    rows = list(zip(source.lines[:limit], target.lines[:limit], strict=True))
    bad = [number for number, row in enumerate(rows) if not all(row)]
    if bad and config.bad_lines == "error":
        raise CorpusError(_bad_line(rows[bad[0]], bad[0], source, target))
    if bad:
        warnings.warn(
            f"{pair}: left out {len(bad)} of {len(rows)} lines of {source.place} that are empty on one side or not "
            f"UTF-8 (the first is line {bad[0] + 1})",
            stacklevel=3,
        )
        unwanted = set(bad)
        rows = [row for number, row in enumerate(rows) if number not in unwanted]
    return PairText(pair, [row[0] for row in rows], [row[1] for row in rows])


def _bad_line(row: tuple[str | None, str | None], number: int, source: _Column, target: _Column) -> str:
    column, text = (source, row[0]) if not row[0] else (target, row[1])
    what = "not UTF-8" if text is None else "empty"
    return f"{column.place}, line {number + 1}: {what}; mend the file, or leave such lines out with bad_lines='skip'"
