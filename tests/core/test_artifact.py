"""A saved file is whole and as written, or it is refused by name; tried on statistics."""

import os

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from nspec_hf.core import ArtefactError, artifact as artefact, read_artefact, write_artefact
from nspec_hf.recording import ActivationStats
from tests.recording.test_stats import FC1, equal, made_up


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "stats.safetensors"
    ActivationStats(["en-de"], {FC1: 3}).save(path)
    return path.read_bytes()


def test_a_file_that_is_cut_at_any_byte_is_refused(saved, tmp_path):
    path = tmp_path / "cut"
    for end in range(len(saved)):
        path.write_bytes(saved[:end])
        with pytest.raises(ArtefactError):
            ActivationStats.load(path)


def test_a_file_with_any_byte_changed_is_refused(saved, tmp_path):
    path = tmp_path / "flipped"
    for place in range(len(saved)):
        # 32 swaps upper and lower case and 1 neighbouring digits, which leaves a header that still parses.
        bits = (1, 32, 255)[place % 3]
        path.write_bytes(saved[:place] + bytes([saved[place] ^ bits]) + saved[place + 1 :])
        with pytest.raises(ArtefactError):
            ActivationStats.load(path)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_other_file_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "other"
    for data in (content, len(content).to_bytes(8, "little") + content):
        path.write_bytes(data)
        with pytest.raises(ArtefactError):
            read_artefact(path, "nspec_stats")


def test_bytes_after_the_end_are_refused(saved, tmp_path):
    (tmp_path / "longer").write_bytes(saved + b"\0" * 8)
    with pytest.raises(ArtefactError, match="SHA-256"):
        ActivationStats.load(tmp_path / "longer")


def test_a_file_of_another_kind_or_origin_is_refused_with_what_to_do(tmp_path):
    write_artefact(tmp_path / "masks", {"x": torch.ones(2)}, {}, "nspec_masks")
    with pytest.raises(ArtefactError, match=r"holds nspec_masks, but nspec_stats is needed"):
        ActivationStats.load(tmp_path / "masks")
    save_file({"x": torch.ones(2)}, tmp_path / "weights", {"format": "pt"})
    with pytest.raises(ArtefactError, match="not written by nspec_hf"):
        ActivationStats.load(tmp_path / "weights")
    torch.save({"x": torch.ones(2)}, tmp_path / "pickle")
    with pytest.raises(ArtefactError, match="safetensors"):
        ActivationStats.load(tmp_path / "pickle")
    write_artefact(tmp_path / "empty", {"x": torch.ones(2)}, {"pairs": ["en-de"]}, "nspec_stats")
    with pytest.raises(ArtefactError, match="describe"):
        ActivationStats.load(tmp_path / "empty")


def test_a_newer_format_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(artefact, "FORMAT", artefact.FORMAT + 1)
    made_up().save(tmp_path / "newer")
    monkeypatch.undo()
    with pytest.raises(ArtefactError, match="install a newer nspec_hf"):
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
    write_artefact(path, tensors, {"text": text}, "nspec_stats")
    back, metadata = read_artefact(path, "nspec_stats")
    assert metadata == {"text": text}
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) and back[name].dtype == dtype for name in tensors)
