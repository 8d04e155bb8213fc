"""Parallel text comes back aligned from every format; a bad line is named by file and line."""

import gzip
import json
import lzma
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from nspec_hf.core import ConfigError, CorpusError, Pair
from nspec_hf.data import CorpusConfig, read_corpus

EN, DE, FR = (
    ["A dog.", "Two men talk.", "Rain."],
    ["Ein Hund.", "Zwei Männer reden.", "Regen."],
    ["Un.", "Deux.", "Pluie."],
)
ROWS = [dict(zip(("en", "de", "fr"), row, strict=True)) for row in zip(EN, DE, FR, strict=True)]


def lines(sentences):
    return "".join(f"{sentence}\n" for sentence in sentences).encode()


def read(folder, pairs=("en-de", "fr-en"), split="train", **settings):
    return read_corpus(CorpusConfig(path=str(folder), **settings), pairs, split)


def write_plain(folder):
    for code, text in (("en", EN), ("de", DE), ("fr", FR)):
        (folder / f"train.{code}").write_bytes(lines(text))


def write_packed(folder):
    (folder / "train.en.gz").write_bytes(gzip.compress(lines(EN)))
    (folder / "train.de.xz").write_bytes(lzma.compress(lines(DE)))
    (folder / "train.fr").write_bytes(lines(FR))


def write_two_files_a_pair(folder):
    for name, text in (("en-de.en", EN), ("en-de.de", DE), ("en-fr.en", EN), ("en-fr.fr", FR)):
        (folder / f"train.{name}").write_bytes(lines(text))


def write_tsv(folder):
    (folder / "train.tsv").write_bytes(lines(["en\tde\tfr", *("\t".join(row.values()) for row in ROWS)]))


def write_tsv_of_each_pair(folder):
    (folder / "train.en-de.tsv").write_bytes(lines(["en\tde", *map("\t".join, zip(EN, DE, strict=True))]))
    (folder / "train.en-fr.tsv.gz").write_bytes(
        gzip.compress(lines(["fr\ten", *map("\t".join, zip(FR, EN, strict=True))]))
    )


def write_jsonl(folder):
    (folder / "train.jsonl.xz").write_bytes(lzma.compress(lines(map(json.dumps, ROWS))))


def write_jsonl_with_translations(folder):
    (folder / "train.jsonl").write_bytes(lines(json.dumps({"translation": row}) for row in ROWS))


def write_parquet(folder):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "train.parquet")


def write_parquet_with_translations(folder):
    rows = [{"id": i, "translation": row} for i, row in enumerate(ROWS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")


FORMATS = [
    write_plain,
    write_packed,
    write_two_files_a_pair,
    write_tsv,
    write_tsv_of_each_pair,
    write_jsonl,
    write_jsonl_with_translations,
    write_parquet,
    write_parquet_with_translations,
]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_text_in_both_directions(write, tmp_path):
    write(tmp_path)
    forward, backward = read(tmp_path)
    assert (forward.pair, forward.sources, forward.targets) == ("en-de", EN, DE)
    assert (backward.pair, backward.sources, backward.targets) == ("fr-en", FR, EN)
    assert isinstance(forward.pair, Pair)


def test_text_of_the_pair_goes_before_multi_way_text_and_tables(tmp_path):
    write_plain(tmp_path)
    write_tsv(tmp_path)
    (tmp_path / "train.de-en.en").write_bytes(b"Cat.\n")
    (tmp_path / "train.de-en.de").write_bytes(b"Katze.\n")
    assert [text.sources for text in read(tmp_path, ["en-de", "en-fr"])] == [["Cat."], EN]


def test_lines_end_at_newlines_only_and_marks_and_carriage_returns_are_not_text(tmp_path):
    (tmp_path / "train.en").write_bytes("\ufeffa\u2028b\r\nc \r\n".encode())
    (tmp_path / "train.de").write_bytes(b"x\n y")
    (text,) = read(tmp_path, ["en-de"])
    assert (text.sources, text.targets) == (["a\u2028b", "c"], ["x", "y"])


def test_low_resource_languages_take_the_first_lines_only(tmp_path):
    write_plain(tmp_path)
    texts = read(tmp_path, ["en-de", "de-fr", "en-fr"], max_lines=2, lines_by_language={"de": 1, "fr": 3})
    assert [len(text) for text in texts] == [1, 1, 2]
    assert texts[2].targets == FR[:2]


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        (b"a\n\nc\n", b"x\ny\nz\n", r"train\.en, line 2: empty"),
        (b"a\nb\nc\n", b"x\ny\n \t\n", r"train\.de, line 3: empty"),
        (b"a\nb\nc\n", b"x\n\xff\xfe\nz\n", r"train\.de, line 2: not UTF-8"),
        (b"a\n\nc\n", b"x\n\xff\nz\n", r"train\.en, line 2: empty"),
    ],
)
def test_a_bad_line_is_named_or_left_out_and_counted(tmp_path, english, german, message):
    (tmp_path / "train.en").write_bytes(english)
    (tmp_path / "train.de").write_bytes(german)
    with pytest.raises(CorpusError, match=message + r".*bad_lines='skip'"):
        read(tmp_path, ["en-de"])
    with pytest.warns(UserWarning, match=rf"en-de: left out 1 of 3 lines.*{message}"):
        (text,) = read(tmp_path, ["en-de"], bad_lines="skip")
    number = int(message.partition("line ")[2][0]) - 1
    assert list(text.sources) == [line for i, line in enumerate("abc") if i != number]
    assert list(text.targets) == [line for i, line in enumerate("xyz") if i != number]


def test_a_warning_tells_how_many_lines_were_bad_in_which_way(tmp_path):
    (tmp_path / "train.en").write_bytes(b"a\n\xff\n\nd\n")
    (tmp_path / "train.de").write_bytes(b"w\nx\ny\n\n")
    with pytest.warns(UserWarning, match=r"left out 3 of 4 lines, 1 not UTF-8 and 2 empty on a side"):
        read(tmp_path, ["en-de"], bad_lines="skip")


@pytest.mark.parametrize("bad_lines", ["error", "skip"])
def test_files_of_different_length_are_an_error_whatever_the_settings(tmp_path, bad_lines):
    write_plain(tmp_path)
    (tmp_path / "train.de").write_bytes(lines(DE[:2]))
    with pytest.raises(
        CorpusError, match=r"en-de is not parallel: .*train\.en has 3 lines, .*train\.de has 2"
    ):
        read(tmp_path, bad_lines=bad_lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.tsv", b"en\tde\na\tx\nb\n", r"train\.tsv, line 3: 1 cells under 2 headings"),
        ("train.tsv", b"en\tde\na\tx\n\ty\n", r"train\.tsv, line 3: empty"),
        ("train.tsv", b"en\tde\na\tx\n\xff\ty\n", r"train\.tsv, line 3: not UTF-8"),
        ("train.tsv", b"en\tnl\na\tx\n", r"train\.tsv has no language 'de'; it has: en, nl"),
        ("train.jsonl", b'{"en": "a", "de": "x"}\n{"en": "b"}\n', r"train\.jsonl, line 2: empty"),
        ("train.jsonl", b'{"en": "a", "de": "x"}\n{"en": 1, "de": "y"}\n', r"line 2: expected text, got 1"),
        ("train.jsonl", b'{"en": "a", "de": "x"}\n{"en": \n', r"train\.jsonl, line 2: not JSON"),
        ("train.jsonl", b'{"en": "a", "de": "x"}\n\n', r"train\.jsonl, line 2: empty"),
        ("train.jsonl", b'{"en": "a", "de": "x"}\n\xff\n', r"train\.jsonl, line 2: not UTF-8"),
        ("train.jsonl", b'["a", "x"]\n', r"train\.jsonl, line 1: expected an object.*\['a', 'x'\]"),
        ("train.parquet", b"no parquet", r"train\.parquet cannot be read"),
        ("train.en", b"a\n", r"no train text of en-de.*of this split there is: train\.en$"),
        ("train.xz", b"", r"no train text of en-de"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        read(tmp_path, ["en-de"])


def test_bad_rows_of_a_table_can_be_left_out(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"en": "a", "de": "x"}\n\xff\n{"en": null, "de": "y"}\n')
    with pytest.warns(
        UserWarning, match=r"left out 2 of 3 lines, 1 not UTF-8 and 1 empty.*line 2: not UTF-8"
    ):
        (text,) = read(tmp_path, ["en-de"], bad_lines="skip")
    assert (text.sources, text.targets) == (["a"], ["x"])


def test_an_empty_or_missing_corpus_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="there is no folder"):
        read(tmp_path / "absent")
    (tmp_path / "train.en").write_bytes(b"")
    (tmp_path / "train.de").write_bytes(b"")
    with pytest.raises(CorpusError, match="en-de: no line is left"):
        read(tmp_path, ["en-de"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"path": "a", "dataset": "b"},
        {"path": "a", "bad_lines": "drop"},
        {"path": "a", "streaming": True, "max_lines": 5},
        {"dataset": "a", "streaming": True},
        {"path": "a", "max_lines": 0},
        {"path": "a", "lines_by_language": {"da": -1}},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(ConfigError):
        CorpusConfig(**settings)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A folder that `datasets` loads as it loads one of the Hub."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "multiway"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines(json.dumps({"translation": row}) for row in ROWS))
    (folder / "validation.jsonl").write_bytes(lines(json.dumps({"translation": row}) for row in ROWS[:1]))
    return str(folder)


@pytest.mark.parametrize("settings", [{}, {"streaming": True, "max_lines": 2}])
def test_datasets_are_read_whole_or_streamed(dataset, settings):
    forward, backward = read_corpus(CorpusConfig(dataset=dataset, **settings), ["en-de", "fr-en"], "train")
    limit = settings.get("max_lines")
    assert (forward.sources, forward.targets) == (EN[:limit], DE[:limit])
    assert (backward.sources, backward.targets) == (FR[:limit], EN[:limit])


def test_a_dataset_without_the_split_or_the_language_is_refused(dataset):
    with pytest.raises(CorpusError, match=r"dataset .*multiway .*test.* cannot be read"):
        read_corpus(CorpusConfig(dataset=dataset), ["en-de"], "test")
    with pytest.raises(CorpusError, match="multiway has no language 'cs'"):
        read_corpus(CorpusConfig(dataset=dataset), ["en-cs"], "train")


class _Library:
    """Stands for the `datasets` library, and counts how often a configuration is read."""

    def __init__(self):
        self.asked, self.rows = [], 0

    def load_dataset_builder(self, dataset, name):
        return SimpleNamespace(config=SimpleNamespace())

    def load_dataset(self, dataset, name, split, streaming):
        self.asked.append((dataset, name, split, streaming))
        for row in [*ROWS, {"en": "never"}]:
            self.rows += 1
            yield {"translation": row}


@pytest.mark.parametrize(
    ("name", "asked"),
    [("{a}-{b}", ["de-en", "en-fr"]), ("{source}2{target}", ["en2de", "de2en", "fr2en"]), (None, [None])],
)
def test_each_configuration_of_a_dataset_is_read_once_and_no_further_than_needed(monkeypatch, name, asked):
    library = _Library()
    monkeypatch.setattr("importlib.import_module", lambda module: {"datasets": library}[module])
    config = CorpusConfig(dataset="opus-100", dataset_name=name, streaming=True, max_lines=3)
    texts = read_corpus(config, ["en-de", "de-en", "fr-en"], "train")
    assert [text.sources for text in texts] == [EN, DE, FR]
    assert library.asked == [("opus-100", each, "train", True) for each in asked]
    assert library.rows == 3 * len(asked)


def test_words_that_pandas_reads_as_nothing_are_words_in_a_csv_of_the_hub_too(tmp_path, monkeypatch):
    """The library is the real one, but for the place that a repository's files come from."""
    real, words = pytest.importorskip("datasets"), ["NA", "None", "null", "nan", "N/A", "a dog"]
    folder = tmp_path / "downloaded"
    folder.mkdir()
    rows = "".join(f"{word},{word} de\n" for word in words)
    (folder / "train.csv").write_text(f"en,de\n{rows}", encoding="utf-8")
    hub = SimpleNamespace(
        load_dataset_builder=lambda name, *given: real.load_dataset_builder(str(folder), *given),
        load_dataset=lambda name, *given, **more: real.load_dataset(str(folder), *given, **more),
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("nspec_hf.data.corpus.extra", lambda module: hub)
    (text,) = read_corpus(CorpusConfig(dataset="me/words"), ["en-de"], "train")
    assert text.sources == words
    assert text.targets == [f"{word} de" for word in words]


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    def absent(module):
        raise ImportError(module)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(CorpusError, match=r"needs datasets: pip install 'nspec-hf\[data\]'"):
        read_corpus(CorpusConfig(dataset="opus-100"), ["en-de"], "train")


@pytest.mark.data
def test_real_text_is_aligned_over_all_its_languages(shared_data):
    config = CorpusConfig(path=str(shared_data / "multi30k"))
    one, other, zero_shot = read_corpus(config, ["en-de", "cs-en", "de-cs"], "val")
    assert len(one) == 1014
    assert one.sources == other.targets
    assert (zero_shot.sources, zero_shot.targets) == (one.targets, other.sources)
    bible = CorpusConfig(path=str(shared_data / "bible"), lines_by_language={"da": 1250})
    assert len(read_corpus(bible, ["en-da"], "train")[0]) == 1250


def test_a_pair_must_be_asked_for_once():
    with pytest.raises(ConfigError, match="named again: en-de"):
        read_corpus(CorpusConfig(path="."), ["en-de", Pair("en", "de")], "train")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_only_the_columns_that_a_pair_asks_for_are_looked_at(tmp_path, kind):
    rows = [{"id": i, "score": None if i else 0.5, **row} for i, row in enumerate(ROWS)]
    if kind == "jsonl":
        (tmp_path / "train.jsonl").write_bytes(lines(map(json.dumps, rows)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    assert [text.targets for text in read(tmp_path)] == [DE, EN]


def test_half_a_character_makes_a_line_bad_and_nothing_else(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"en": "a", "de": "x"}\n{"en": "b\\ud800", "de": "y"}\n')
    with pytest.raises(CorpusError, match=r"train\.jsonl, line 2: not UTF-8"):
        read(tmp_path, ["en-de"])
    with pytest.warns(UserWarning, match="left out 1 of 2 lines, 1 not UTF-8"):
        (text,) = read(tmp_path, ["en-de"], bad_lines="skip")
    assert text.sources == ["a"]


@pytest.mark.parametrize("nothing", ["\u200b", "\u200b \u2060", "\ufeff"])
def test_a_line_that_shows_nothing_is_empty(tmp_path, nothing):
    (tmp_path / "train.en").write_bytes(lines(["a", nothing]))
    (tmp_path / "train.de").write_bytes(lines(["x", "y"]))
    with pytest.raises(CorpusError, match=r"train\.en, line 2: empty"):
        read(tmp_path, ["en-de"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named_and_not_read_with_gaps(tmp_path, encoding):
    (tmp_path / "train.en").write_bytes("\n".join(EN).encode(encoding))
    (tmp_path / "train.de").write_bytes(lines(DE))
    with pytest.raises(CorpusError, match=r"train\.en is UTF-16 or no text; save it as UTF-8"):
        read(tmp_path, ["en-de"])


def test_quotation_marks_of_csv_in_a_tab_separated_file_are_named(tmp_path):
    (tmp_path / "train.tsv").write_bytes(b'en\tde\n"a ""b"" c"\tx\n')
    with pytest.raises(CorpusError, match=r"train\.tsv, line 2: a cell has doubled quotation marks"):
        read(tmp_path, ["en-de"])


def test_words_that_pandas_takes_for_nothing_stay_words(dataset):
    folder = Path(dataset).parent / "csv"
    folder.mkdir()
    (folder / "train.csv").write_bytes(b"en,de\nNA,keine Angabe\nNone,Keiner\nnull,Null\n")
    (text,) = read_corpus(CorpusConfig(dataset=str(folder)), ["en-de"], "train")
    assert text.sources == ["NA", "None", "null"]


def test_a_broken_data_set_is_one_line(dataset):
    folder = Path(dataset).parent / "broken"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(b'{"en": "a", "de": "x"}\n{"en": \n')
    with pytest.raises(CorpusError, match=r"dataset .*broken .* cannot be read"):
        read_corpus(CorpusConfig(dataset=str(folder)), ["en-de"], "train")


def test_a_line_of_json_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"[" * 200_000 + b"\n")
    with pytest.raises(CorpusError, match=r"train\.jsonl, line 1: not JSON"):
        read(tmp_path, ["en-de"])


@pytest.mark.parametrize("name", ["zh-CN->pt-BR", "zh-CN--pt-BR"])
def test_files_of_a_pair_whose_codes_have_hyphens_are_read_in_both_spellings(tmp_path, name):
    for code, text in (("zh-CN", EN), ("pt-BR", DE)):
        (tmp_path / f"train.{name}.{code}").write_bytes(lines(text))
    (text,) = read(tmp_path, ["zh-CN->pt-BR"])
    assert (text.sources, text.targets) == (EN, DE)


def test_a_table_with_the_same_heading_twice_is_refused(tmp_path):
    (tmp_path / "train.tsv").write_text("en\tde\ten\nA\tB\tC\n")
    with pytest.raises(CorpusError, match="two columns have the same heading: en, de, en"):
        read_corpus(CorpusConfig(path=str(tmp_path)), ["en-de"], "train")
