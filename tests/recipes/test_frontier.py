"""The frontier of quality and computed neurons, read from results and drawn."""

import json
import statistics

import pytest

from nspec_hf.core import ConfigError
from recipes import frontier


def result(folder, row, seed, system, kept, bleu, **more):
    """Write a result of two trained directions and one that was not trained."""
    # Chinese, say, has a tokenization of its own, and so a signature.
    scores = {"bleu": {"13a": {"en-de": bleu - 1, "de-fr": 0.0}, "zh": {"de-en": bleu + 1}}}
    data = {"pairs": [], "languages": ["en", "de"], "pivot": "en"}
    budget = {"arguments": {"max_steps": more.pop("max_steps", 300)}}
    config = {"data": data, "specialize": budget}
    content = {"system": system, "settings": {}, "scores": scores, "recipe": {"config": config}}
    # Patience ends each seed at another update.
    content["updates"] = 100 + 10 * seed
    if kept:
        content["extraction"] = {"density": {"encoder": kept - 0.1, "decoder": kept + 0.1}}
    path = folder / f"tiny.{row}.s{seed}{'.dial' if 'levels' in more else ''}.json"
    path.write_text(json.dumps({**content, **more}), encoding="utf-8")
    return scores


@pytest.fixture
def folder(tmp_path):
    for seed, bleu in ((1, 20.0), (2, 22.0)):
        result(tmp_path, "finetune", seed, "finetune", 0, bleu)
        result(tmp_path, "ns_06", seed, "neuron_specialization", 0.4, bleu + 0.5)
    scores = result(tmp_path, "ns_08", 1, "neuron_specialization", 0.6, 25.0)
    result(tmp_path, "finetune_d03", 1, "finetune", 0, 9.0, settings={"continued_dropout": 0.3})
    result(tmp_path, "finetune_600", 1, "finetune", 0, 23.0, max_steps=600)
    result(tmp_path, "adapters", 1, "pair_adapters", 0, 9.0)
    result(tmp_path, "elastic", 1, "elastic", 0.4, 9.0)
    levels = [{"density": density, "scores": scores} for density in (1.0, 0.3)]
    result(tmp_path, "elastic", 1, "elastic", 0.4, 9.0, levels=levels)
    taught = {"settings": {"teacher": 0.5}, "levels": levels[1:]}
    result(tmp_path, "taught", 1, "elastic", 0.4, 9.0, **taught)
    (tmp_path / "tiny.comparison.json").write_text("{}")
    return tmp_path


def test_a_point_is_a_row_s_mean_over_seeds_and_trained_directions(folder):
    panel = frontier.panel(frontier.read_points(folder, "tiny", "bleu"), "tiny", "bleu")
    drawn = {
        series.label: sorted(zip(series.x, series.y, series.spread, strict=True)) for series in panel.series
    }
    deviation = statistics.stdev([20.0, 22.0])
    assert drawn == {
        "fine-tuning": [(1.0, 21.0, deviation)],
        "fine-tuning with more updates": [(1.0, 23.0, 0.0)],
        "each pair's own neurons": [
            (pytest.approx(0.4), 21.5, deviation),
            (pytest.approx(0.6), 25.0, 0.0),
        ],
        "one model, many coverages": [(0.3, 25.0, 0.0), (1.0, 25.0, 0.0)],
        "the same, with a teacher": [(0.3, 25.0, 0.0)],
    }
    assert panel.rule == 21.0


def test_the_picture_and_its_numbers_come_from_one_command(folder, capsys):
    frontier.main(["tiny=A small one", "--results", str(folder), "--output", str(folder / "out" / "picture")])
    assert (folder / "out" / "picture.png").stat().st_size > 10_000
    assert "tiny: each pair's own neurons, 0.60 kept: 25.00 ± 0.00" in capsys.readouterr().out


def test_a_name_without_results_is_refused(folder):
    with pytest.raises(ConfigError, match="no results of other"):
        frontier.read_points(folder, "other", "bleu")
