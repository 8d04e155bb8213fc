"""A run that was killed at any moment goes on from a whole checkpoint."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from nspec_hf.core import write_json
from nspec_hf.training import last_checkpoint
from nspec_hf.training.checkpoints import RunClock, what_is_broken

FILES = ("model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-20"
    folder.mkdir()
    save_file({"weight": torch.ones(50)}, folder / "model.safetensors")
    torch.save({"step": torch.ones(50)}, folder / "optimizer.pt")
    torch.save([1, 2, 3], folder / "rng_state.pth")
    write_json(folder / "trainer_state.json", {"global_step": 20, "log_history": ["…"]})
    return folder


def test_a_whole_checkpoint_is_whole(checkpoint):
    assert what_is_broken(checkpoint) is None
    assert last_checkpoint(checkpoint.parent) == str(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_place_is_seen(checkpoint, name):
    whole = (checkpoint / name).read_bytes()
    for end in sorted({0, 1, 8, len(whole) // 2, len(whole) - 3}):
        (checkpoint / name).write_bytes(whole[:end])
        assert what_is_broken(checkpoint) == f"cut off: {name}"


def test_a_checkpoint_without_the_file_that_comes_last_is_not_whole(checkpoint):
    (checkpoint / "trainer_state.json").unlink()
    assert what_is_broken(checkpoint) == "trainer_state.json is missing"


def test_the_newest_whole_one_is_taken_and_the_others_are_named(checkpoint):
    newer = checkpoint.with_name("checkpoint-100")
    shutil.copytree(checkpoint, newer)
    shutil.copytree(checkpoint, checkpoint.with_name("checkpoint-9"))
    (checkpoint.parent / "checkpoint-old").mkdir()
    assert last_checkpoint(checkpoint.parent) == str(newer)
    (newer / "optimizer.pt").write_bytes(b"PK")
    with pytest.warns(UserWarning, match=r"checkpoint-100 is not whole \(cut off: optimizer.pt\)"):
        assert last_checkpoint(checkpoint.parent) == str(checkpoint)


def test_no_folder_and_an_empty_one_have_no_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_a_clock_goes_on_from_its_state():
    first = RunClock(before=100.0)
    again = RunClock(**first.state()["args"])
    assert 100 < first.seconds < 200
    assert 100 < again.seconds < 200
