"""Translations on disk come back line for line, and what cannot be read is named."""

import gzip
import lzma

import pytest
from hypothesis import given, strategies as st

from nspec_hf.core import CorpusError, Pair, write_lines
from nspec_hf.data import read_outputs, require_parallel


def test_plain_and_packed_files_of_any_ending_are_read(tmp_path):
    (tmp_path / "en-de.txt").write_text("eins\nzwei\n", encoding="utf-8")
    (tmp_path / "test.de-en.hyp.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "en-fr.xz").write_bytes(lzma.compress(b"un\ndeux"))
    (tmp_path / "zh-CN->en").write_text("hello\n", encoding="utf-8")
    found = read_outputs(tmp_path)
    assert found == {
        "de-en": ["one", "two"],
        "en-de": ["eins", "zwei"],
        "en-fr": ["un", "deux"],
        "zh-CN->en": ["hello"],
    }
    assert all(isinstance(pair, Pair) for pair in found)


def test_one_of_several_endings_is_read(tmp_path):
    (tmp_path / "en-de.hyp").write_text("h\n", encoding="utf-8")
    (tmp_path / "en-de.ref.xz").write_bytes(lzma.compress(b"r\n"))
    assert read_outputs(tmp_path, "hyp") == {"en-de": ["h"]}
    assert read_outputs(tmp_path, ".ref") == {"en-de": ["r"]}
    with pytest.raises(CorpusError, match=r"two files of en-de: en-de\.hyp and en-de\.ref\.xz.*ending='ref'"):
        read_outputs(tmp_path)
    with pytest.raises(CorpusError, match="no file of a pair with the ending 'src'"):
        read_outputs(tmp_path, "src")


def test_empty_lines_keep_their_place(tmp_path):
    (tmp_path / "en-de.txt").write_bytes("a\u2028b\r\n\n c \n\n".encode())
    assert read_outputs(tmp_path) == {"en-de": ["a\u2028b", "", " c ", ""]}


def test_files_that_name_no_pair_are_left_out_with_a_warning(tmp_path):
    (tmp_path / "en-de.txt").write_text("a\n", encoding="utf-8")
    (tmp_path / "scores.csv").write_text("x\n", encoding="utf-8")
    (tmp_path / ".hidden-file").write_text("x\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"name no pair: scores\.csv$"):
        assert set(read_outputs(tmp_path)) == {"en-de"}


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CorpusError, match="no folder"):
        read_outputs(tmp_path / "absent")
    with pytest.raises(CorpusError, match="no file of a pair"):
        read_outputs(tmp_path)
    (tmp_path / "en-de.txt").write_bytes(b"good\n\xff\n")
    with pytest.raises(CorpusError, match=r"en-de\.txt, line 2: not UTF-8"):
        read_outputs(tmp_path)
    (tmp_path / "en-de.txt").unlink()
    (tmp_path / "en-de.xz").write_bytes(lzma.compress(b"text" * 100)[:-10])
    with pytest.raises(CorpusError, match=r"en-de\.xz cannot be read"):
        read_outputs(tmp_path)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r")), max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory, sentences):
    folder = tmp_path_factory.mktemp("outputs")
    # A byte order mark in front of a file is not part of its first sentence.
    sentences = ["first", *sentences]
    for pair, lines in {"en-de": sentences, "de->en-GB": ["x"]}.items():
        write_lines(folder / f"{Pair(pair).file_name}.txt", lines)
    assert read_outputs(folder) == {"de->en-GB": ["x"], "en-de": sentences}


def test_counts_must_agree():
    require_parallel("en-de", ["a"], ["b"])
    with pytest.raises(CorpusError, match="en-de: base has 1 lines, the references have 2"):
        require_parallel("en-de", ["a"], ["b", "c"], "base")
    with pytest.raises(CorpusError, match="en-de: there is no sentence"):
        require_parallel("en-de", [], [])
    with pytest.raises(CorpusError, match="one string"):
        require_parallel("en-de", "text", ["t", "e", "x", "t"])
