"""Memory of big models: the script, on a tiny one. What it measures at full size stands in the speed page."""

import json

import pytest
import torch

from nspec_hf.recording import record
from recipes.bench import big_model

TINY = ["--shape", "tiny", "--device", "cpu", "--sentences", "12", "--tokens", "5", "--rows", "4"]


def run(folder, *arguments):
    path = folder / "big.json"
    assert big_model.main([*TINY, *arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_model_is_recorded_and_trained_and_its_memory_is_told_beside_its_weights(tmp_path):
    found = run(tmp_path)
    parameters = big_model.make_big_model("tiny", torch.bfloat16, torch.device("cpu")).num_parameters()
    assert found["weights_mb"] == round(2 * parameters / 1e6)
    assert found["recorded"]["of_weights"] >= 1
    assert found["trained"]["loss"] > 0
    assert found["made"]["process_peak_mb"] > 100  # PyTorch alone takes that
    assert found["recipe"]["config"]["dtype"] == "bfloat16"


def test_all_weights_are_made_and_the_tied_ones_are_one():
    model = big_model.make_big_model("tiny", torch.float32, torch.device("cpu"))
    assert not any(weight.is_meta for weight in [*model.parameters(), *model.buffers()])
    assert model.lm_head.weight is model.model.encoder.embed_tokens.weight is model.model.shared.weight
    rows = big_model.Sentences(8, 5, 2_000)
    stats = record(model, [big_model.collate([rows[row] for row in range(8)])], big_model.PAIRS)
    assert [stats.sentences(pair) for pair in big_model.PAIRS] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "states"),
    [
        (["--dtype", "bfloat16"], "torch.bfloat16"),
        (["--dtype", "float32"], "torch.float32"),
        (["--dtype", "float32", "--optim", "sgd"], "none"),
    ],
)
def test_the_optimizer_s_states_are_of_the_weights_type_or_as_the_trainer_s_argument_says(
    arguments, states, tmp_path, capsys
):
    run(tmp_path, "--only", "train", *arguments)
    assert f"optimizer's states: {states}\n" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["mask", "slice"])
def test_activation_checkpointing_changes_memory_and_no_loss(mode, tmp_path):
    plain = run(tmp_path, "--only", "train", "--dtype", "float32", "--mode", mode)
    again = run(
        tmp_path, "--only", "train", "--dtype", "float32", "--mode", mode, "--activation-checkpointing"
    )
    assert again["recipe"]["config"]["activation_checkpointing"] is True
    assert again["trained"]["loss"] == plain["trained"]["loss"]
