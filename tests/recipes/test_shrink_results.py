"""The converter of results: an older file's numbers, signatures and verdicts are all there afterwards."""

import json

import pytest

from nspec_hf.core import ConfigError, Pair
from nspec_hf.evaluation import compare, score_system
from nspec_hf.systems import RunResult
from tests.helpers.tiny_experiment import recipe

REFERENCES = {"en-de": ["eins zwei drei vier", "fünf sechs sieben"], "de-en": ["one two three", "four five"]}
OUTPUTS = {"en-de": ["eins zwei drei fünf", "fünf sechs sieben"], "de-en": ["one two two", "four five"]}
CONFIG = {"name": "tiny", "base": "/home/me/work/base/model", "work": "/home/me/work", "results": "out"}
CONFIG |= {"compare": {"rows": {}}, "data": {"corpus": {"path": "/home/me/text", "streaming": False}}}


def convert(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    recipe("shrink_results")([str(path)])
    text = path.read_text(encoding="utf-8")
    recipe("shrink_results")([str(path)])
    assert path.read_text(encoding="utf-8") == text, "a second conversion changes nothing"
    return json.loads(text)


def test_a_run_s_scores_costs_and_settings_stay_and_its_places_go(tmp_path):
    scores = score_system("ns", OUTPUTS, REFERENCES, ("bleu", "chrf++"), generation={"num_beams": 5})
    facts = {"name": "ns", "updates": 7, "extraction": {"seconds": 2.5, "mask_recipe": {"tokens": [1, 2]}}}
    recipe_of = {"config": CONFIG, "versions": {"torch": "2"}}
    path = tmp_path / "tiny.ns.s1.json"
    content = convert(path, {**facts, "scores": json.loads(scores.to_json()), "recipe": recipe_of})
    assert content["extraction"] == {"seconds": 2.5}
    assert (content["updates"], content["decoding"]) == (7, {"num_beams": 5})
    assert "/home" not in json.dumps(content)
    assert content["recipe"]["config"]["base"] == "work/base/model"
    result = RunResult.read(path)
    for pair in OUTPUTS:
        for metric in ("bleu", "chrf++"):
            assert result.scores[Pair(pair)][metric] == scores.value(pair, metric)
            assert f"{metric}: {scores.scores[Pair(pair)][metric].signature}" in result.notes


def test_verdicts_of_a_comparison_stay_seed_by_seed(tmp_path):
    values = {"en-de": {"mean": 1.5, "sd": 0.7, "values": [1.0, 2.0]}}
    against = {"reference": "base", "pairs": {"bleu": values}, "doubtful": []}
    against |= {
        "verdicts": {"bleu": {"en-de": ["better", "worse"]}},
        "p_values": {"bleu": {"en-de": [0.01, 0.02]}},
    }
    rows = [
        {"name": "base", "seeds": [1], "missing": {}, "against": {}},
        {"name": "ns", "seeds": [1, 2], "missing": {}, "against": {"baseline": against}},
    ]
    old = {"name": "tiny", "blocks": {}, "rows": rows, "n_samples": 100, "notes": []}
    content = convert(tmp_path / "tiny.comparison.json", old)
    assert content["seeds"] == {"base": [1], "ns": [1, 2]}
    assert content["tests"] == {
        "ns s1 against base s1": {"bleu": {"en-de": [1.0, 0.01, "better"]}},
        "ns s2 against base s1": {"bleu": {"en-de": [2.0, 0.02, "worse"]}},
    }


@pytest.mark.filterwarnings("ignore:.*trials", "ignore:do not trust")
def test_paired_tests_stay_with_their_signatures(tmp_path):
    found = compare({"a": REFERENCES, "b": OUTPUTS}, REFERENCES, "a", ["bleu"], n_samples=50, n_jobs=1)
    content = convert(tmp_path / "tiny.significance.json", json.loads(found.to_json()))
    ((name, by_metric),) = content["tests"].items()
    assert name == "b against a"
    for row in found.rows:
        kept = by_metric[f"{row.metric} {row.signature}"][str(row.pair)]
        assert kept == [row.delta, row.p_value, row.verdict, row.verdict_holm]


def test_a_result_of_the_older_layout_is_refused_with_the_converter_s_name(tmp_path):
    scores = score_system("ns", OUTPUTS, REFERENCES, ("bleu",))
    path = tmp_path / "tiny.ns.s1.json"
    path.write_text(json.dumps({"name": "ns", "scores": json.loads(scores.to_json())}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"shrink_results\.py"):
        RunResult.read(path)
