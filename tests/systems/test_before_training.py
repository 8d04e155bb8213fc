"""Masks before training: their loss is that of a plain loop, and a plan is looked at in parts."""

import json

import pytest
import torch

from nspec_hf.core import ConfigError
from nspec_hf.gating import NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.systems import (
    SYSTEMS,
    ExperimentConfig,
    Run,
    make_system,
    read_settings,
    untrained,
    untrained_table,
)
from tests.helpers.tiny_experiment import recipe


def bench(based, folder):
    config, _ = read_settings(ExperimentConfig, [based[1]])
    return Run(config=config, folder=folder, row="base", seed=1)


def slow_loss(own, masks=None):
    """The mean of -log p over the text's tokens, sentence by sentence, each with its pair's masks."""
    model, total, tokens = own.base().eval(), 0.0, 0
    gate = NeuronGate(model, masks).attach() if masks else None
    for row in range(len(own.validation)):
        pair = own.validation.pairs[int(own.validation.pair_ids[row])]
        source, (tag, *labels) = (own.validation[row][name] for name in ("input_ids", "labels"))
        given = [model.config.decoder_start_token_id, tag, *labels[:-1]]
        if gate:
            gate.use(pair)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([list(source)]), decoder_input_ids=torch.tensor([given])
            ).logits
        log_p = logits[0, 1:].log_softmax(-1)
        total -= sum(log_p[place, token].item() for place, token in enumerate(labels))
        tokens += len(labels)
    return total / tokens


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("neuron_specialization", {"coverage": 0.5}),
        ("random", {"density": 0.4}),
        ("allocation_te", {"general": 0.2, "threshold": 0.9}),
    ],
)
def test_the_loss_is_that_of_a_plain_loop(based, tmp_path, name, settings):
    own, system = bench(based, tmp_path), make_system(SYSTEMS[name], settings)
    found = untrained(own, system)
    masks = NeuronMasks.from_pretrained(tmp_path / "masks")
    assert found["loss"] == pytest.approx(slow_loss(own, masks), abs=1e-5)
    assert found["loss"] != pytest.approx(slow_loss(own), abs=3e-5)
    for side in ("encoder", "decoder"):
        bits = [
            bit
            for site in masks.sites
            if site.side == side
            for bit in masks.keep[site.name].flatten().tolist()
        ]
        assert found["density"][side] == pytest.approx(sum(bits) / len(bits))
    assert found["masks"] == masks.fingerprint()


def test_the_base_stands_for_what_is_no_masks(based, tmp_path):
    own = bench(based, tmp_path)
    found = untrained(own, make_system("finetune"))
    assert found == {"name": "base", "seed": 1, "seconds": 0.0, "loss": found["loss"]}
    assert found["loss"] == pytest.approx(slow_loss(own), abs=1e-5)


def test_the_table_has_the_least_loss_first_and_the_difference_from_the_base():
    rows = [{"name": "ns", "seed": 1, "loss": 2.5, "masks": "m", "density": {"decoder": 0.5}, "seconds": 1.0}]
    rows += [{"name": "base", "seed": 1, "loss": 2.0}]
    table = untrained_table(rows, "text")
    assert [(row[0], row[3], row[4], row[5]) for row in table.rows] == [
        ("base", 0.0, None, None),
        ("ns", 0.5, None, 0.5),
    ]


def test_the_recipe_looks_at_the_masks_of_a_plan_and_at_the_base_once(based, tmp_path, capsys, monkeypatch):
    folder, file = based
    plan = tmp_path / "plan.yaml"
    rows = "{finetune: {}, baseline: {}, ns: {system: neuron_specialization, sweep: {coverage: [0.5, 0.9]}}}"
    plan.write_text(f"compare: {{seeds: [1], rows: {rows}}}\n")
    base = ["--base", str(folder / "work" / "base" / "model")]
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"), *base]
    recipe("untrained")([file, "--config", str(plan), *places])
    found = json.loads((tmp_path / "results" / "tiny.untrained.json").read_text())["rows"]
    assert [each["name"] for each in found] == ["base", "ns_0.5", "ns_0.9"]
    assert found[1]["density"]["encoder"] < found[2]["density"]["encoder"]
    shown = capsys.readouterr().out
    assert "before any training" in shown
    ordered = [each["name"] for each in sorted(found, key=lambda each: each["loss"])]
    first = [(line.split() or [""])[0] for line in shown.splitlines()]
    assert [name for name in first if name in ordered] == ordered
    # What was looked at is not looked at again, and stays in the table.
    monkeypatch.setattr("nspec_hf.training.run.record", None)
    recipe("untrained")([file, "--config", str(plan), *places, "--rows", "ns*0.9"])
    assert json.loads((tmp_path / "results" / "tiny.untrained.json").read_text())["rows"] == found
    with pytest.raises(ConfigError, match=r"gate\.silence"):
        recipe("untrained")([file, "--config", str(plan), *places, "--gate.silence", "weights"])
