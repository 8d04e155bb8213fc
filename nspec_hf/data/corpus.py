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
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice, product, zip_longest
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
    read = (_dataset_reader if config.dataset else _file_reader)(config, pairs, split)
    return [_text(pair, read(pair), config) for pair in pairs]


def _first(make: Callable[[], Iterable[Any]], most: int | None, lazy: bool) -> Callable[[], Iterable[Any]]:
    """Return what gives the first items of what is made, from memory or made anew each time."""
    if lazy:
        return lambda: islice(make(), most)
    items = list(islice(make(), most))
    return lambda: items


@dataclass(frozen=True)
class _Column:
    """The lines of one language; None stands for a line that is not UTF-8."""

    lines: Callable[[], Iterable[str | None]]
    place: str
    first: int
    """Number of the first line in the file, for errors."""
    content: Callable[[], str]
    """Returns what stands for the lines' content."""


@dataclass(frozen=True, eq=False)
class _Table:
    """Rows with one entry a language (None: a row that is not UTF-8)."""

    rows: Callable[[], Iterable[Mapping[str, Any] | None]]
    place: str
    first: int
    content: Callable[[], str]
    lazy: bool
    """Whether rows and columns are made anew each time that they are gone through."""

    def column(self, code: str) -> _Column:
        """Return the lines of a language."""
        if not any(code in row for row in self.rows() if row is not None):
            have = ", ".join(sorted({name for row in self.rows() for name in row or ()})) or "nothing"
            raise CorpusError(f"{self.place} has no language {code!r}; it has: {have}")
        lines = _first(partial(self._lines, code), None, self.lazy)
        return _Column(lines, self.place, self.first, lambda: f"{self.content()} {code}")

    def _lines(self, code: str) -> Iterator[str | None]:
        for number, row in enumerate(self.rows(), start=self.first):
            value = None if row is None else row.get(code)
            if value is None:
                yield None if row is None else ""
            elif not isinstance(value, str):
                raise CorpusError(f"{self.place}, line {number}: expected text, got {value!r} for {code!r}")
            else:
                # JSON can spell half of a character ("\\ud800"), which no UTF-8 can.
                yield None if re.search("[\ud800-\udfff]", value) else _clean_line(value)


_Sides = tuple[_Column, _Column]


def _file_reader(config: CorpusConfig, pairs: Sequence[Pair], split: str) -> Callable[[Pair], _Sides]:
    """Return what reads a pair from a folder, each file once, since a pivot is part of many pairs."""
    folder, most, lazy = Path(config.path), config.most(pairs), bool(config.store)
    if not folder.is_dir():
        raise CorpusError(f"there is no folder {config.path}")
    content, column = cache(file_digest), cache(_Table.column)

    def find(name: str) -> Path | None:
        candidates = (folder / f"{name}{packed}" for packed in ("", *PACKED))
        return next((path for path in candidates if path.is_file()), None)

    @cache
    def text(path: Path) -> _Column:
        lines = _first(partial(_text_lines, path), most, lazy)
        return _Column(lines, str(path), 1, partial(content, path))

    @cache
    def table(path: Path, kind: str) -> _Table:
        rows = _first(partial(_TABLES[kind], path), most, lazy)
        return _Table(rows, str(path), 2 if kind == ".tsv" else 1, partial(content, path), lazy)

    def read(pair: Pair) -> _Sides:
        names = dict.fromkeys([pair, pair.file_name, pair.reverse, pair.reverse.file_name])
        stems = [*(f"{split}.{name}" for name in names), split]
        for stem in stems:
            source, target = (find(f"{stem}.{code}") for code in (pair.source, pair.target))
            if source and target:
                return text(source), text(target)
        for stem, kind in product(stems, _TABLES):
            if path := find(f"{stem}{kind}"):
                return column(table(path, kind), pair.source), column(table(path, kind), pair.target)
        have = ", ".join(sorted(path.name for path in folder.glob(f"{split}.*"))[:12])
        raise CorpusError(
            f"no {split} text of {pair} in {folder}: expected {split}.{pair.source} and "
            f"{split}.{pair.target} (or {', '.join(PACKED)}); of this split there is: {have or 'nothing'}"
        )

    return read


def _dataset_reader(config: CorpusConfig, pairs: Sequence[Pair], split: str) -> Callable[[Pair], _Sides]:
    """Return what reads a pair by the `datasets` library, each configuration once for all of its pairs."""
    names = {pair: _configuration(config.dataset_name, pair) for pair in pairs}
    tables = {
        name: _dataset(config, name, [pair for pair in pairs if names[pair] == name], split)
        for name in dict.fromkeys(names.values())
    }
    column = cache(_Table.column)
    return lambda pair: (column(tables[names[pair]], pair.source), column(tables[names[pair]], pair.target))


def _configuration(name: str | None, pair: Pair) -> str | None:
    first, second = sorted([pair.source, pair.target])
    codes = {"{source}": pair.source, "{target}": pair.target, "{a}": first, "{b}": second}
    for placeholder, code in codes.items():
        name = name and name.replace(placeholder, code)
    return name


def _dataset(config: CorpusConfig, name: str | None, pairs: Sequence[Pair], split: str) -> _Table:
    place, codes = f"dataset {config.dataset}", set(languages_of(pairs))
    library = extra("datasets")
    try:
        reads = library.load_dataset_builder(config.dataset, name).config
        # Else the words "NA", "None" and "null" of a CSV file would be read as nothing.
        options = {"keep_default_na": False} if hasattr(reads, "keep_default_na") else {}
        rows = library.load_dataset(config.dataset, name, split=split, streaming=config.streaming, **options)
        made = [config.dataset, name, split, config.streaming, options]
        stands_for = partial(digest, getattr(rows, "_fingerprint", ""), made)

        def wanted() -> Iterator[dict[str, Any]]:
            # These languages' entries alone, since a data set can have many more.
            for row in rows:
                entries = _entries(row, place)
                yield {code: entries[code] for code in codes & entries.keys()}

        lazy = bool(config.store)
        return _Table(_first(wanted, config.most(pairs), lazy), place, 1, stands_for, lazy)
    except CorpusError:
        raise
    except Exception as error:  # a broken file comes as whatever its reader raised
        reason = error.__cause__ or error
        raise CorpusError(f"{place} ({name or 'no name'}, {split}) cannot be read: {reason}") from error


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: there is none, or spaces and characters without width alone."""
    text = text.strip()
    shown = text[:1].isalnum() or any(unicodedata.category(each) not in ("Cf", "Cc", "Zs") for each in text)
    return not shown


def _clean_line(line: str) -> str:
    """Return a line without space at its ends; one that shows nothing is empty."""
    return "" if is_blank(line) else line.strip()


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
    if len(set(names)) != len(names):
        raise CorpusError(f"{path}: two columns have the same heading: {', '.join(names)}; rename one")
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
    lines = zip_longest(*(side.lines() for side in sides), fillvalue=nothing)
    for number, row in enumerate(islice(lines, config.limit(pair))):
        if row[0] is nothing or row[1] is nothing:
            counts = [f"{side.place} has {sum(1 for _ in side.lines())} lines" for side in sides]
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
