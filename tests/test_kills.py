"""kill -9 in mid-command: what is run again gives what an uninterrupted run gives, or refuses in words."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats
from tests.helpers import killed, tiny_text

PAIRS = "en-de,de-en"
SETTINGS = (
    "{max_steps: 6, learning_rate: 0.01, warmup_steps: 1, save_steps: 2, eval_steps: 2, logging_steps: 2}"
)
COMMANDS = {
    "record": f"record --model base --pairs {PAIRS} --corpus.path data --max_tokens 60 --max_length 60",
    "select": "select --select.coverage 0.8",
    "train": "train --model base --masks masks --corpus.path data --output run "
    "--train.batches.max_tokens 60 --train.batches.max_length 60 --train.arguments",
    "compare": "compare --baseline one --system two --corpus.path data --n_samples 200 --n_jobs 1 "
    "--output c.json",
    "export": "export --model base --masks masks --pairs en-de --output exported --export.max_new_tokens 4",
}

pytestmark = pytest.mark.skipif(not hasattr(sys, "platform") or sys.platform == "win32", reason="needs fork")


def line(name):
    return [*COMMANDS[name].split(), *([SETTINGS] if name == "train" else [])]


def begin(folder: Path) -> None:
    """Write what the first command needs."""
    tiny_text.write_text(folder / "data", train=16, valid=8, test=6)
    tiny_text.model().save_pretrained(folder / "base")
    tiny_text.tokenizer().save_pretrained(folder / "base")
    for system in ("one", "two"):
        (folder / system).mkdir()
        for pair in PAIRS.split(","):
            text = (folder / "data" / f"test.{pair[3:]}").read_text(encoding="utf-8")
            (folder / system / f"{pair}.txt").write_text(text.replace("e", system[0]), encoding="utf-8")


def results(folder: Path) -> dict[str, object]:
    """Return what all commands left, in a form that can be compared."""
    weights = {name: load_file(folder / name / "model.safetensors") for name in ("run/model", "exported")}
    return {
        "stats": ActivationStats.load(folder / "nspec_stats.safetensors").counts,
        "masks": NeuronMasks.from_pretrained(folder / "masks").fingerprint(),
        "compare": json.loads((folder / "c.json").read_text(encoding="utf-8")),
        **weights,
    }


def same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What the commands leave that nothing kills, and how long each takes."""
    folder, seconds = tmp_path_factory.mktemp("uninterrupted"), {}
    begin(folder)
    for name in COMMANDS:
        since = time.monotonic()
        assert killed.run(folder, line(name)) == 0, (folder / "said.txt").read_text(encoding="utf-8")
        seconds[name] = time.monotonic() - since
    return results(folder), seconds


def survive(folder: Path, seconds: dict[str, float], seed: int, kills: int) -> dict[str, int]:
    """Run all commands, each killed `kills` times; return how often that happened before it had ended."""
    begin(folder)
    tally = dict.fromkeys(COMMANDS, 0)
    for number, name in enumerate(COMMANDS):
        for moment in killed.moments(seed * 100 + number, kills, seconds[name], renames=6):
            status = killed.run(folder, line(name), **moment)
            assert status in (0, 2, -9), (folder / "said.txt").read_text(encoding="utf-8")
            tally[name] += status == -9
        status = killed.run(folder, line(name))
        said = (folder / "said.txt").read_text(encoding="utf-8")
        assert status == 0 or (status == 2 and name == "export" and "there already" in said), said
        assert "Traceback" not in said
    return tally


def test_what_was_killed_and_is_run_again_leaves_what_an_uninterrupted_run_leaves(uninterrupted, tmp_path):
    expected, seconds = uninterrupted
    tally = survive(tmp_path, seconds, seed=1, kills=3)
    assert sum(tally.values()) > 0
    assert same(results(tmp_path), expected)


@pytest.mark.slow
def test_a_hundred_kills(uninterrupted, tmp_path, capsys):
    expected, seconds = uninterrupted
    total, seed = dict.fromkeys(COMMANDS, 0), 1
    while sum(total.values()) < 100:
        seed += 1
        folder = tmp_path / str(seed)
        folder.mkdir()
        for name, count in survive(folder, seconds, seed, kills=6).items():
            total[name] += count
        assert same(results(folder), expected)
    with capsys.disabled():
        sys.stdout.write(f"\nkilled and run again, all good: {total}, {sum(total.values())} in all\n")
