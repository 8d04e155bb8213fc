"""A saved file is whole and as written, or it is refused by name; bits come out as they went in."""

import os

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from nspec_hf.core import ArtifactError, artifact, pack, packed_width, read_artifact, unpack, write_artifact
from nspec_hf.recording import ActivationStats
from tests.recording.test_stats import FC1, equal, made_up

rows = st.integers(1, 3)
widths = st.integers(1, 41)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "stats.safetensors"
    ActivationStats(["en-de"], {FC1: 3}).save(path)
    return path.read_bytes()


def test_a_file_that_is_cut_at_any_byte_is_refused(saved, tmp_path):
    path = tmp_path / "cut"
    for end in range(len(saved)):
        path.write_bytes(saved[:end])
        with pytest.raises(ArtifactError):
            ActivationStats.load(path)


def test_a_file_with_any_byte_changed_is_refused(saved, tmp_path):
    path = tmp_path / "flipped"
    for place in range(len(saved)):
        # 32 swaps upper and lower case and 1 neighbouring digits, which leaves a header that still parses.
        bits = (1, 32, 255)[place % 3]
        path.write_bytes(saved[:place] + bytes([saved[place] ^ bits]) + saved[place + 1 :])
        with pytest.raises(ArtifactError):
            ActivationStats.load(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_other_file_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "other"
    for data in (content, len(content).to_bytes(8, "little") + content):
        path.write_bytes(data)
        with pytest.raises(ArtifactError):
            read_artifact(path, "nspec_stats")


def test_bytes_after_the_end_are_refused(saved, tmp_path):
    (tmp_path / "longer").write_bytes(saved + b"\0" * 8)
    with pytest.raises(ArtifactError, match="SHA-256"):
        ActivationStats.load(tmp_path / "longer")


def test_a_file_of_another_kind_or_origin_is_refused_with_what_to_do(tmp_path):
    write_artifact(tmp_path / "masks", {"x": torch.ones(2)}, {}, "nspec_masks")
    with pytest.raises(ArtifactError, match=r"holds nspec_masks, but nspec_stats is needed"):
        ActivationStats.load(tmp_path / "masks")
    save_file({"x": torch.ones(2)}, tmp_path / "weights", {"format": "pt"})
    with pytest.raises(ArtifactError, match="not written by nspec_hf"):
        ActivationStats.load(tmp_path / "weights")
    torch.save({"x": torch.ones(2)}, tmp_path / "pickle")
    with pytest.raises(ArtifactError, match="safetensors"):
        ActivationStats.load(tmp_path / "pickle")
    write_artifact(tmp_path / "empty", {"x": torch.ones(2)}, {"pairs": ["en-de"]}, "nspec_stats")
    with pytest.raises(ArtifactError, match="describe"):
        ActivationStats.load(tmp_path / "empty")


def test_a_newer_format_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "FORMAT", artifact.FORMAT + 1)
    made_up().save(tmp_path / "newer")
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="install a newer nspec_hf"):
        ActivationStats.load(tmp_path / "newer")


def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "stats.safetensors"
    made_up(1).save(path)

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        made_up(2).save(path)
    monkeypatch.undo()
    assert equal(ActivationStats.load(path), made_up(1))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4),
    dtype=st.sampled_from([torch.float64, torch.int64, torch.float32, torch.uint8, torch.bool]),
    text=st.text(),
)
def test_any_tensors_and_any_text_come_back(tmp_path_factory, shapes, dtype, text):
    path = tmp_path_factory.getbasetemp() / "any"
    tensors = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, shape in enumerate(shapes)}
    write_artifact(path, tensors, {"text": text}, "nspec_stats")
    back, metadata = read_artifact(path, "nspec_stats")
    assert metadata == {"text": text}
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) and back[name].dtype == dtype for name in tensors)


def test_a_file_of_the_first_format_is_refused_with_what_to_do(tmp_path):
    about = {"kind": "nspec_stats", "format": "1", "content": '{"pairs": ["en-de"]}'}
    save_file({"x": torch.ones(2)}, tmp_path / "first", about)
    with pytest.raises(ArtifactError, match=r"format 1, which this version no longer reads; make it again"):
        ActivationStats.load(tmp_path / "first")


def random_booleans(rows, width, seed):
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5


@given(rows=rows, width=widths, seed=st.integers(0, 1000))
def test_packing_and_unpacking_give_the_same_booleans(rows, width, seed):
    keep_PF = random_booleans(rows, width, seed)
    packed = pack(keep_PF)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_width(width))
    assert torch.equal(unpack(packed, width), keep_PF)


def test_neuron_i_is_bit_i_mod_8_of_byte_i_div_8():
    keep_F = torch.zeros(20, dtype=torch.bool)
    keep_F[[0, 3, 9, 19]] = True
    assert pack(keep_F).tolist() == [0b00001001, 0b00000010, 0b00001000]


@given(width=widths.filter(lambda width: width % 8), data=st.data())
def test_a_set_bit_behind_the_last_neuron_is_refused(width, data):
    packed = pack(random_booleans(2, width, 0))
    bit = data.draw(st.integers(width % 8, 7))
    packed[1, -1] |= 1 << bit
    with pytest.raises(ArtifactError, match="behind the last"):
        unpack(packed, width)


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(2, 3, dtype=torch.uint8),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.tensor(0, dtype=torch.uint8),
    ],
)
def test_bytes_of_another_width_or_type_are_refused(packed):
    with pytest.raises(ArtifactError, match=r"uint8 of shape \[\.\.\., 2\]"):
        unpack(packed, 12)


def test_only_booleans_are_packed():
    with pytest.raises(TypeError, match="int64"):
        pack(torch.ones(8, dtype=torch.int64))
