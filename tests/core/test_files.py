"""A file's lines come back as they are, and a file that cannot be read is named with the line."""

import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

import nspec_hf
from nspec_hf.core import (
    ConfigError,
    CorpusError,
    as_line,
    atomic_write,
    check_settings_files,
    digest,
    files as core_files,
    raw_lines,
    read_json,
    read_lines,
    write_json,
    write_lines,
    write_text,
)

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
UNPACK = {"": bytes, ".gz": gzip.decompress, ".xz": lzma.decompress, ".bz2": bz2.decompress}


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
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r\ufeff"))),
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
    assert list(raw_lines(path)) == [b"good", b"b\xffd"]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".bz2"])
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


@pytest.mark.parametrize("ending", list(UNPACK))
def test_lines_are_written_one_each_packed_as_the_name_says(tmp_path, ending):
    path = tmp_path / f"text{ending}"
    write_lines(path, ["a\u2028b\x85", "", "c"])
    assert UNPACK[ending](path.read_bytes()) == "a\u2028b\x85\n\nc\n".encode()


def test_damage_in_the_middle_of_a_gzip_file_is_named(tmp_path):
    path = tmp_path / "train.en.gz"
    content = bytearray(gzip.compress(bytes(range(256)) * 20))
    content[20:40] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"train\.en\.gz cannot be read"):
        read_lines(path)


@pytest.mark.parametrize("name", ["result", "n" * 255, "ö" * 127])
def test_a_file_of_any_name_is_whole_or_as_it_was(tmp_path, name):
    path = tmp_path / name
    write_text(path, "old\n")

    def fails():
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert path.read_bytes() == b"old\n"
    write_text(path, "new\r\n")
    assert path.read_bytes() == b"new\r\n"
    assert os.listdir(tmp_path) == [name]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    write_text(tmp_path / "result", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\): .*result'"):
        write_text(tmp_path / "result", "new")
    assert (tmp_path / "result").read_text() == "old"
    assert os.listdir(tmp_path) == ["result"]


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), atomic_write(tmp_path / "result"):
        (tmp_path / "absent").read_bytes()


def test_permissions_are_those_of_a_plain_open_and_links_are_followed(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    os.chmod(tmp_path / "ours", 0o640)
    (tmp_path / "link").symlink_to("ours")
    write_text(tmp_path / "link", "y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "ours").read_text() == "y"
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o640
    write_text(os.devnull, "x")


def test_json_that_cannot_be_read_is_named(tmp_path):
    write_json(tmp_path / "fine", {"a": [1, float("nan")], "b": "ö"})
    assert read_json(tmp_path / "fine") == {"a": [1, None], "b": "ö"}
    for content in (b"", b"{", b"\xff\xff\xff", b"[" * 200_000):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ConfigError, match="bad is no readable JSON"):
            read_json(tmp_path / "bad")


def test_a_digest_is_that_of_the_parts_one_after_the_other():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = "ö".encode() + b"\x00" + values.tobytes() + b'{"a": 1}' + b"x"
    assert digest("ö", b"\x00", values, {"a": 1}, iter("x")) == hashlib.sha256(content).hexdigest()[:16]


def test_reading_and_writing_files_needs_no_torch():
    code = "import nspec_hf.core.folders, nspec_hf.core.files, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_json_is_the_same_content_as_the_library_s_with_short_parts_on_a_line(tmp_path):
    value = {"a": [1, 2.5, None], "é": {"long": ["x" * 60, "y" * 60, []], "empty": {}}, "b": "zwei\nZeilen"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert ' "a": [1, 2.5, null],\n' in text
    assert all(len(line) <= 111 for line in text.splitlines())


def test_only_one_file_of_the_package_cuts_text_into_lines_or_writes_it():
    package = Path(nspec_hf.__file__).parent
    cutting = re.compile(r"\.splitlines\(|\.readlines\(|\.write_text\(|\.write_bytes\(")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if cutting.search(path.read_text(encoding="utf-8"))
    }
    # The first shows the end of a job's log, the second reads what Linux says of the processor.
    assert found - {"core/files.py"} <= {"comparison/jobs.py", "core/provenance.py"}


def test_an_open_file_is_read_and_written_as_bytes_packed_or_not():
    content = "ä\u2028b\r\n\nc".encode()
    for packed in (content, *(pack(content) for pack in PACK.values())):
        assert read_lines(io.BytesIO(packed)) == ["ä\u2028b", "", "c"]
    with pytest.raises(CorpusError, match="standard input, line 2: not UTF-8"):
        read_lines(io.BytesIO(b"a\n\xff\n"))
    stream = io.BytesIO()
    write_lines(stream, ["ä\u2028b", ""])
    assert stream.getvalue() == "ä\u2028b\n\n".encode()


@pytest.mark.parametrize("line", ["a\nb", "a\rb", "a\0b", "a\ud800"])
def test_what_could_not_be_read_back_as_one_line_is_not_written(tmp_path, line):
    with pytest.raises(CorpusError, match="en-de, sentence 2 holds"):
        write_lines(tmp_path / "text", ["fine", line], "en-de")
    assert as_line("a\r\n\nb") == "a b"
    assert os.listdir(tmp_path) == []


def test_settings_that_stand_for_billions_of_values_are_refused_at_once(tmp_path):
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    bomb = "\n".join(["a0: &a0 [x, x]", *levels])
    for content, message in (
        (bomb.encode(), "through its aliases"),
        (b"a: &a [*a]", "through its aliases"),
        (b"a: \xff", "no readable YAML in UTF-8"),
        (b"a: [", "no readable YAML in UTF-8"),
        (b"[" * 20_000, "no readable YAML in UTF-8"),
    ):
        (tmp_path / "bad.yaml").write_bytes(content)
        for arguments in (["--config", str(tmp_path / "bad.yaml")], [f"--config={tmp_path / 'bad.yaml'}"]):
            with pytest.raises(ConfigError, match=message):
                check_settings_files(arguments)
    (tmp_path / "fine.yaml").write_text("a: &a {b: 1}\nc: *a\n")
    check_settings_files(["--seed", "1", "--config", str(tmp_path / "fine.yaml")])


def test_a_file_that_drops_what_an_earlier_one_set_is_told(tmp_path):
    """`arguments` and `model` are taken whole, as `test_a_later_file_*` of the experiment shows."""
    files = {
        "one": "train: {arguments: &all {max_steps: 9, seed: 1}}\nmodel: {d_model: 8}\nb: {arguments: *all}",
        "two": "train: {arguments: {bf16: true}}\nmodel: name",
        "all": "train: {arguments: {<<: {seed: 1}, max_steps: 5, bf16: true}}\nmodel: {d_model: 4, bias: 0}",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    one, two, whole = (str(tmp_path / f"{name}.yaml") for name in files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_settings_files(["--config", one, f"--config={whole}", "--seed", "1"])
        check_settings_files(["--config", two])
        assert check_settings_files([]) == check_settings_files(["--seed"]) == set()
    said = rf"^train\.arguments of {two} takes the place of that of {one}, and max_steps, seed with it: "
    for arguments in (["--config", one, "--config", two], [f"--config={one}", "--config", two]):
        with pytest.warns(UserWarning, match=said):
            check_settings_files(arguments)


READING = r"splitlines\(|\bopen\(|\.(read_text|write_text|write_bytes)\(|sys\.stdin\.read|json\.dump\("
ALLOWED = {
    "core/files.py": "the one place",
    "core/folders.py": "locks",
    "core/lazy.py": "reads the package's own source",
    "core/provenance.py": "reads /proc/cpuinfo",
    "export/memory.py": "reads /proc/self/pagemap",
    "core/tables.py": "cuts what rich printed",
    "core/invocation.py": "turns a closed pipe into nothing",
    "comparison/jobs.py": "a job's lock, and the log that its processes write into",
}


def test_no_other_file_of_the_package_reads_or_writes_lines_or_files_by_itself():
    package = Path(core_files.__file__).parents[1]
    found = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        uses = [line for line in path.read_text("utf-8").split("\n") if re.search(READING, line)]
        uses = [line for line in uses if not re.search(r"safe_open\(|popen|Image\.open", line, re.I)]
        if uses and name not in ALLOWED:
            found[name] = uses
    assert not found


def test_a_digest_of_every_second_value_is_that_of_these_values():
    values = np.arange(12, dtype=np.float32)
    assert digest(values[::2]) == hashlib.sha256(values[::2].copy().tobytes()).hexdigest()[:16]
    assert digest(values.reshape(3, 4).T) == digest(values.reshape(3, 4).T.copy())
    assert digest(values[::2]) != digest(values)
