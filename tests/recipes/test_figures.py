"""figures.py on runs of seconds: which figures come out, of which numbers."""

import json

import pytest

from nspec_hf.comparison import planned_rows
from nspec_hf.core import ConfigError
from nspec_hf.systems import ExperimentConfig, read_settings
from tests.helpers.finished_runs import finish
from tests.helpers.tiny_experiment import recipe, result

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")
ROWS = {
    "baseline": {},
    "ns": {"system": "neuron_specialization", "settings": {"coverage": 0.8}},
    "ns_k": {"system": "neuron_specialization", "sweep": {"coverage": [0.5]}},
    "ns_encoder": {"system": "neuron_specialization", "settings": {"coverage": 0.8, "sides": ["encoder"]}},
    "late": {"system": "neuron_specialization", "settings": {"coverage": 0.6}},
    "allocation_te": {},
}


@pytest.mark.medium
def test_figures_of_both_papers_come_from_the_runs(based, capsys):
    folder, file = based
    plan = ["--compare.rows", json.dumps(ROWS)]
    # One run is a real one; of the others, gains are drawn from what they leave.
    recipe("specialize")([file, "--system", "allocation_te"])
    rows = {row.name: row for row in planned_rows(read_settings(ExperimentConfig, [file, *plan])[0])}
    for name, share in {"baseline": 0.5, "ns": 0.3, "ns_k_0.5": 0.4, "ns_encoder": 0.2}.items():
        finish(rows[name].runs[0], share)
    recipe("figures")([file, *plan, "--row", "ns"])
    recipe("figures")([file, *plan, "--row", "allocation_te", "--lines", "2"])
    drawn = {path.name.removeprefix("tiny.") for path in (folder / "results").glob("*.png")}
    assert {
        f"ns.{name}.png" for name in ("coverage_sweep", "sparsity", "progression", "zero_shot_ns")
    } <= drawn
    assert {f"allocation_te.{name}.png" for name in ("specific", "ablation", "gains_by_group")} <= drawn
    assert any(name.startswith("allocation_te.importance_") for name in drawn)
    # Gain against k: of the rows that differ in k alone and have been run, over the baseline.
    gains = json.loads((folder / "work/figures/ns/gains_against_coverage.json").read_text())
    scores = {name: result(folder, name)["scores"]["bleu"] for name in ("baseline", "ns", "ns_k_0.5")}
    means = {name: next(iter(by.values())) for name, by in scores.items()}
    mean = {name: sum(by.values()) / len(by) for name, by in means.items()}
    assert gains["values"] == [0.5, 0.8]
    expected = [mean[name] - mean["baseline"] for name in ("ns_k_0.5", "ns")]
    assert [row[-1] for row in gains["mean"]] == pytest.approx(expected)
    assert "tiny.ns.sparsity.png" in capsys.readouterr().out


def test_a_row_that_was_not_run_shows_what_its_masks_say(based, capsys):
    folder, file = based
    recipe("figures")([file, "--compare.rows", json.dumps(ROWS), "--row", "late", "--lines", "2"])
    said = capsys.readouterr().out
    assert "late s1 has not been trained: neurons are erased from the base" in said
    assert "tiny.late.sparsity.png" in said
    assert "zero_shot" not in said, "without scores"
    assert (folder / "results/tiny.late.ablation.png").is_file()


def test_rows_that_cannot_be_drawn_are_named(based):
    _, file = based
    plan = ["--compare.rows", json.dumps(ROWS)]
    with pytest.raises(ConfigError, match=r"no row 'nothing'; it has: baseline, ns"):
        recipe("figures")([file, *plan, "--row", "nothing"])
    with pytest.raises(ConfigError, match=r"row 'baseline' is baseline, which has no masks to draw"):
        recipe("figures")([file, *plan, "--row", "baseline"])
