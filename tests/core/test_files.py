"""A file's lines come back as they are, and a file that cannot be read is named with the line."""

import gzip
import lzma

import pytest
from hypothesis import given, strategies as st

from nspec_hf.core import CorpusError, read_lines, read_raw_lines

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def test_lines_end_at_newlines_only_and_empty_ones_keep_their_place(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("a\u2028b\x85c\r\n\n c \n\n".encode())
    assert read_lines(path) == ["a\u2028b\x85c", "", " c ", ""]


def test_a_byte_order_mark_belongs_to_no_line_but_one_inside_the_text_does(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffa\n\ufeffb".encode())
    assert read_lines(path) == ["a", "\ufeffb"]


def test_an_empty_file_has_no_lines(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"")
    assert read_lines(path) == []


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\ufeff"))),
    st.sampled_from(list(PACK)),
)
def test_what_is_written_is_read_back(tmp_path_factory, lines, ending):
    path = tmp_path_factory.mktemp("lines") / f"text{ending}"
    path.write_bytes(PACK[ending]("".join(f"{line}\n" for line in lines).encode()))
    assert read_lines(path) == lines


def test_bad_utf8_is_named_with_its_line_and_can_be_read_as_bytes(tmp_path):
    path = tmp_path / "train.en"
    path.write_bytes(b"good\nb\xffd\n")
    with pytest.raises(CorpusError, match=r"train\.en, line 2: not UTF-8"):
        read_lines(path)
    assert read_raw_lines(path) == [b"good", b"b\xffd"]


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_a_packed_file_that_is_cut_off_or_not_packed_is_refused(tmp_path, ending):
    path = tmp_path / f"train.en{ending}"
    path.write_bytes(PACK[ending](bytes(range(256)) * 20)[:-10])
    with pytest.raises(CorpusError, match=r"train\.en.* cannot be read"):
        read_lines(path)
    path.write_bytes(b"plain text\n")
    with pytest.raises(CorpusError, match=r"train\.en.* cannot be read"):
        read_lines(path)
    with pytest.raises(CorpusError, match="absent cannot be read"):
        read_lines(tmp_path / "absent")
