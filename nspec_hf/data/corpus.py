"""Parallel text: read from files or from the `datasets` library, checked line by line.

Files may be plain, `.gz`, `.xz` or `.bz2`. For a split such as `train` and a pair `en-de`, a folder may hold,
and the first of these that is there is read:
- two files of the pair: `train.en-de.en` and `train.en-de.de` (or `train.de-en.…`);
- one file a language, aligned across all of them: `train.en`, `train.de`, `train.fr` (multi-way text);
- one table of the pair or of all: `train.en-de.tsv`, `train.tsv` (with a header; no quotes), `.jsonl` or
  `.parquet`, with a column a language, or a column `translation` that holds one entry a language. Further
  columns are not looked at.

A bad line (on a side empty, of characters without width alone, or not UTF-8) is an error that names file and
line, or, with `bad_lines="skip"`, left out and counted in a warning. Files of different length are an error,
as far as they are read: no further than the number of lines that is asked for.

With `store` text goes to disk while it is read, and stays there: see `stored.py`.
"""

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, cast

from nspec_hf.core import (
    PACKED,
    CorpusError,
    Pair,
    decode_line,
    digest,
    file_digest,
    languages_of,
    raw_lines,
    translation_pairs,
    warn,
)
from nspec_hf.data.config import CorpusConfig
from nspec_hf.data.stored import PairText, extra, stored_text


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
        ConfigError: If a pair is named twice, or goes from a language into itself.
    """
    pairs = translation_pairs(pairs)
    reader = _DatasetReader if config.dataset else _FileReader
    read = reader(config, pairs, split)
    return [_text(pair, read(pair), config) for pair in pairs]


@dataclass(frozen=True)
class _Column:
    """The lines of one language; None stands for a line that is not UTF-8."""

    lines: Iterable[str | None]
    place: str
    first: int = 1
    """Number of the first line in the file, for errors."""
    content: Callable[[], str] = str
    """Returns what stands for the lines' content."""


class _Again:
    """What can be gone through again and again, made anew each time."""

    def __init__(self, make: Callable[[], Iterable[Any]], most: int | None) -> None:
        self.make, self.most = make, most

    def __iter__(self) -> Iterator[Any]:
        return islice(self.make(), self.most)


class _Table:
    """Rows with one entry a language (None: a row that is not UTF-8); a column is made when asked for."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any] | None],
        place: str,
        first: int,
        content: Callable[[], str],
        lazy: bool,
    ) -> None:
        self._rows, self._place, self._first = rows if lazy else list(rows), place, first
        self._content, self._lazy = content, lazy
        self._columns: dict[str, _Column] = {}

    def column(self, code: str) -> _Column:
        """Return the lines of a language."""
        if code not in self._columns:
            if not any(code in row for row in self._rows if row is not None):
                have = ", ".join(sorted({name for row in self._rows for name in row or ()})) or "nothing"
                raise CorpusError(f"{self._place} has no language {code!r}; it has: {have}")
            lines = _Again(partial(self._lines, code), None)
            lines = lines if self._lazy else list(lines)
            content = lambda: f"{self._content()} {code}"  # noqa: E731
            self._columns[code] = _Column(lines, self._place, self._first, content)
        return self._columns[code]

    def _lines(self, code: str) -> Iterator[str | None]:
        for number, row in enumerate(self._rows):
            yield None if row is None else self._sentence(row.get(code), code, number)

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

    def __init__(self, config: CorpusConfig, pairs: Sequence[Pair], split: str) -> None:
        self.folder, self.split = Path(config.path), split
        self._most, self._lazy = config.most(pairs), bool(config.store)
        if not self.folder.is_dir():
            raise CorpusError(f"there is no folder {config.path}")
        self._contents: dict[Path, str] = {}
        self._columns: dict[Path, _Column] = {}
        self._tables: dict[Path, _Table] = {}

    def __call__(self, pair: Pair) -> _Sides:
        """Return both sides of a pair."""
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
            lines = _Again(partial(_text_lines, path), self._most)
            content = partial(self._content, path)
            self._columns[path] = _Column(lines if self._lazy else list(lines), str(path), content=content)
        return self._columns[path]

    def _table(self, path: Path, kind: str) -> _Table:
        if path not in self._tables:
            rows, first = _Again(partial(_TABLES[kind], path), self._most), 2 if kind == ".tsv" else 1
            content = partial(self._content, path)
            self._tables[path] = _Table(rows, str(path), first, content, self._lazy)
        return self._tables[path]

    def _content(self, path: Path) -> str:
        if path not in self._contents:
            self._contents[path] = file_digest(path)
        return self._contents[path]


class _DatasetReader:
    """Reads pairs from the `datasets` library, each configuration once for all of its pairs."""

    def __init__(self, config: CorpusConfig, pairs: Sequence[Pair], split: str) -> None:
        self.config, self.split = config, split
        self._tables: dict[str | None, _Table] = {}
        for name in dict.fromkeys(map(self._name, pairs)):
            self._tables[name] = self._read(name, [pair for pair in pairs if self._name(pair) == name])

    def __call__(self, pair: Pair) -> _Sides:
        """Return both sides of a pair."""
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
        most, lazy = self.config.most(pairs), bool(self.config.store)
        codes = set(languages_of(pairs))
        place = f"dataset {self.config.dataset}"
        library = extra("datasets")
        try:
            reads = library.load_dataset_builder(self.config.dataset, name).config
            # Else the words "NA", "None" and "null" of a CSV file would be read as nothing.
            options = {"keep_default_na": False} if hasattr(reads, "keep_default_na") else {}
            rows = library.load_dataset(
                self.config.dataset, name, split=self.split, streaming=self.config.streaming, **options
            )
            made = [self.config.dataset, name, self.split, self.config.streaming, options]
            stands_for = partial(digest, getattr(rows, "_fingerprint", ""), made)
            wanted = _Again(lambda: (_wanted(row, codes, place) for row in rows), most)
            return _Table(wanted, place, 1, stands_for, lazy)
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


def _wanted(row: Any, codes: set[str], place: str) -> dict[str, Any]:
    """Return the entries of some languages alone, since a data set can have many more."""
    entries = _entries(row, place)
    return {code: entries[code] for code in codes & entries.keys()}


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= each <= "\udfff" for each in text)


def _entries(row: Any, place: str) -> Mapping[str, Any]:
    row = row.get("translation", row) if isinstance(row, dict) else row
    if not isinstance(row, dict):
        raise CorpusError(f"{place}: expected an object with one entry a language, got {row!r:.200}")
    return row


def _text_lines(path: Path) -> Iterator[str | None]:
    for raw in raw_lines(path):
        line = decode_line(raw)
        yield line and _clean_line(line)


def _tsv_rows(path: Path) -> Iterator[Mapping[str, str] | None]:
    lines = map(decode_line, raw_lines(path))
    names = [name.strip() for name in (next(lines, "") or "").split("\t")]
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
    for number, raw in enumerate(raw_lines(path), start=1):
        line, place = decode_line(raw), f"{path}, line {number}"
        try:
            yield None if line is None else _entries(json.loads(line.strip() or "{}"), place)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CorpusError(f"{place}: not JSON ({error})") from None


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        for batch in extra("pyarrow.parquet").ParquetFile(path).iter_batches():
            yield from (_entries(row, str(path)) for row in batch.to_pylist())
    except CorpusError:
        raise
    except (ValueError, OSError, NotImplementedError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from None


_TABLES = {".tsv": _tsv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}


def _text(pair: Pair, sides: _Sides, config: CorpusConfig) -> PairText:
    """Return a pair's good lines, in memory or on disk."""
    told: list[str] = []
    rows = _good_rows(pair, sides, config, told.append)
    if config.store:
        contents = (side.content() for side in sides)
        key = digest(str(pair), *contents, config.limit(pair), config.bad_lines)
        text, told = stored_text(pair, rows, told, Path(config.store), key, config.num_proc)
    else:
        good = list(rows)
        text = PairText(pair, [row[0] for row in good], [row[1] for row in good])
    for message in told:
        warn(message)
    return text


def _good_rows(
    pair: Pair, sides: _Sides, config: CorpusConfig, tell: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Check a pair's lines one by one, and leave the bad ones out where that is wanted."""
    nothing, number, bad, undecoded, first = object(), -1, 0, 0, ""
    lines = zip_longest(*(side.lines for side in sides), fillvalue=nothing)
    for number, row in enumerate(islice(lines, config.limit(pair))):
        if row[0] is nothing or row[1] is nothing:
            counts = [f"{side.place} has {sum(1 for _ in side.lines)} lines" for side in sides]
            raise CorpusError(f"{pair} is not parallel: {', '.join(counts)}")
        if row[0] and row[1]:
            yield cast("tuple[str, str]", row)
            continue
        bad, undecoded = bad + 1, undecoded + (None in row)
        if not first:
            column, text = next((side, text) for side, text in zip(sides, row, strict=True) if not text)
            wrong = "not UTF-8" if text is None else "empty"
            first = f"{column.place}, line {column.first + number}: {wrong}"
            if config.bad_lines == "error":
                raise CorpusError(f"{first}; mend the text, or leave such lines out with bad_lines='skip'")
    if bad:
        tell(
            f"{pair}: left out {bad} of {number + 1} lines, {undecoded} not UTF-8 and {bad - undecoded} "
            f"empty on a side; the first is {first}"
        )
    if bad == number + 1:
        raise CorpusError(f"{pair}: no line is left of {sides[0].place}")
