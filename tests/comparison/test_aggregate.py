"""The comparison's numbers against sums by hand: spreads, differences, verdicts, blocks, tiers, costs."""

import dataclasses
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nspec_hf.comparison import compare_rows, comparison_tables, markdown, planned_rows
from nspec_hf.comparison.costs import costs_table, printed_costs
from nspec_hf.comparison.table_data import Spread, blocks_of, tiers_of
from nspec_hf.comparison.tables import (
    averages_table,
    directions_table,
    interference_table,
    missing_runs,
    tiers_table,
    zero_shot_table,
)
from nspec_hf.core import ConfigError, plain
from nspec_hf.data import CorpusConfig
from nspec_hf.evaluation import compare, score
from nspec_hf.systems import SYSTEMS, DataConfig, RowPlan, make_system
from tests.helpers.finished_runs import TRIALS, experiment, finish

TRAINED = ["en-de", "en-fr", "de-en", "fr-en"]
ZERO = ["de-fr", "fr-de"]
PLAN = {
    "baseline": RowPlan(seeds=[1]),
    "finetune": RowPlan(),
    "ns": RowPlan(system="neuron_specialization"),
    "random": RowPlan(),
    "individual": RowPlan(seeds=[1]),
}
NS = RowPlan(system="neuron_specialization")
SHARES = {"baseline": 0.4, "finetune": 0.35, "ns": 0.15, "individual": 0.2}
TIERS = {"de": "high", "fr": "low"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Rows of which `random` has one of two seeds, and the individual models no zero-shot directions."""
    folder = tmp_path_factory.mktemp("comparison")
    config = experiment(folder, PLAN, tiers=TIERS)
    rows = planned_rows(config)
    outputs = {}
    for row in rows:
        for run in row.runs:
            if row.name in SHARES:
                facts = (
                    {
                        "extraction": {"seconds": 2.0 * run.seed},
                        "extra_bytes": 512,
                        "decoding_seconds": 2.0 + 2.0 * run.seed,
                    }
                    if row.name == "ns"
                    else {}
                )
                facts |= {"extra_parameters": 1024} if row.name == "individual" else {}
                facts |= {"pretraining": {"training_seconds": 100.0}} if row.name == "individual" else {}
                pairs = TRAINED if row.name == "individual" else None
                outputs[run.name] = finish(run, SHARES[row.name], pairs, **facts)
    base = Path(config.results) / f"{config.name}.base.json"
    base.write_text(json.dumps({"parameters": 4096}), encoding="utf-8")
    references = {text.pair: text.targets for text in config.data.read("test", config.data.tested_pairs())}
    return config, rows, compare_rows(config, rows, ["FILE.yaml"]), outputs, references


def by_hand(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def bleu(outputs, references, pair, metric="bleu"):
    return score(outputs[pair], references[pair], metric).value


@pytest.mark.parametrize("metric", ["bleu", "chrf++"])
def test_scores_are_means_and_sample_deviations_over_seeds(made, metric):
    _, _, comparison, outputs, references = made
    row = comparison.row("ns")
    for pair in [*TRAINED, *ZERO]:
        values = [bleu(outputs[f"ns s{seed}"], references, pair, metric) for seed in (1, 2)]
        assert values[0] != values[1]
        found = row.mean(metric, [pair])
        assert found.values == pytest.approx(values)
        assert (found.mean, found.sd) == pytest.approx(by_hand(values))
    averages = [
        sum(bleu(outputs[f"ns s{seed}"], references, pair, metric) for pair in TRAINED) / 4 for seed in (1, 2)
    ]
    found = row.mean(metric, comparison.blocks["trained"])
    assert (found.mean, found.sd) == pytest.approx(by_hand(averages))
    assert comparison.row("baseline").mean(metric, comparison.blocks["trained"]).sd is None


def test_differences_are_taken_seed_by_seed(made):
    _, _, comparison, outputs, references = made
    row = comparison.row("ns")
    for name, other in (("baseline", ["baseline s1"] * 2), ("finetune", ["finetune s1", "finetune s2"])):
        for pair in ("en-de", "de-fr"):
            gaps = [
                bleu(outputs[f"ns s{seed}"], references, pair) - bleu(outputs[theirs], references, pair)
                for seed, theirs in zip((1, 2), other, strict=True)
            ]
            found = row.against[name].difference("bleu", [pair])
            assert (found.mean, found.sd) == pytest.approx(by_hand(gaps))
    assert not comparison.row("baseline").against
    assert list(comparison.row("finetune").against) == ["baseline"]


def test_verdicts_are_those_of_the_paired_tests_on_the_same_files(made):
    _, _, comparison, outputs, references = made
    for reference, other in (("baseline", "baseline s1"), ("finetune", None)):
        counts = {"trained": [0, 0, 0], "zero-shot": [0, 0, 0]}
        for seed in (1, 2):
            theirs = other or f"finetune s{seed}"
            found = compare(
                {"them": outputs[theirs], "us": outputs[f"ns s{seed}"]},
                references,
                "them",
                ["bleu"],
                n_samples=TRIALS,
                n_jobs=1,
            )
            for row in found.rows:
                place = ("better", "worse", "not significant").index(row.verdict)
                counts["zero-shot" if row.pair in ZERO else "trained"][place] += 1
                own = comparison.row("ns").against[reference]
                assert own.tests[seed - 1]["bleu"][row.pair].verdict == row.verdict
                assert own.tests[seed - 1]["bleu"][row.pair].p_value == row.p_value
        for block, wanted in counts.items():
            counted = comparison.row("ns").against[reference].verdicts("bleu", comparison.blocks[block])
            assert [counted[verdict] for verdict in ("better", "worse", "not significant")] == wanted
    # Different verdicts occur, so the counts could be wrong.
    trained = comparison.blocks["trained"]
    assert comparison.row("ns").against["finetune"].verdicts("bleu", trained)["better"] > 0
    assert comparison.row("finetune").against["baseline"].verdicts("bleu", trained)["not significant"] > 0


def test_a_system_without_a_direction_has_no_average_of_its_block(made):
    _, _, comparison, _, _ = made
    row = comparison.row("individual")
    means = {block: row.mean("bleu", pairs) for block, pairs in comparison.blocks.items()}
    assert {block for block, mean in means.items() if mean} == {"one-to-many", "many-to-one", "trained"}
    assert row.against["baseline"].verdicts("bleu", comparison.blocks["zero-shot"]) is None
    assert {pair for pair in comparison.pairs if row.mean("bleu", [pair])} == set(TRAINED)


def cells(table, name):
    return dict(zip(table.columns, next(row for row in table.rows if row[0] == name), strict=True))


def test_the_table_shows_what_was_computed_and_what_was_not_run(made):
    _, _, comparison, outputs, references = made
    table = averages_table(comparison, "bleu")
    row = cells(table, "ns")
    averages = [
        sum(bleu(outputs[f"ns s{seed}"], references, pair) for pair in TRAINED) / 4 for seed in (1, 2)
    ]
    assert row["trained"] == "{:.2f} ± {:.2f}".format(*by_hand(averages))
    base = sum(bleu(outputs["baseline s1"], references, pair) for pair in TRAINED) / 4
    assert row["Δ baseline"] == "{:+.2f} ± {:.2f}".format(*by_hand([each - base for each in averages]))
    counted = comparison.row("ns").against["finetune"].verdicts("bleu", comparison.blocks["trained"])
    wanted = [counted[verdict] for verdict in ("better", "worse", "not significant")]
    assert row["vs finetune: b / w / n"] == " / ".join(map(str, wanted))
    assert sum(wanted) == 8
    assert table.rows[3] == ("random", "not run", *[None] * 8)
    command = "python recipes/specialize.py FILE.yaml --system random --row random --seed"
    assert missing_runs(comparison) == {f"random, seed {seed}": f"{command} {seed}" for seed in (1, 2)}
    page = markdown(comparison, "python recipes/compare.py FILE.yaml")
    for text in (
        "| random | not run | – |",
        "## Not run",
        "--row random --seed 2`",
        "nrefs:1",
        "num_beams=5",
    ):
        assert text in page


def test_a_row_with_some_of_its_seeds_says_so(made):
    config, rows, _, _, _ = made
    finish(rows[3].runs[1], 0.3)
    try:
        comparison = compare_rows(config, rows)
    finally:
        rows[3].runs[1].result_file.unlink()
    assert cells(averages_table(comparison, "bleu"), "random")["seeds"] == "1 of 2"
    assert list(missing_runs(comparison)) == ["random, seed 1"]
    # Seed 2 is compared with seed 2.
    one = comparison.row("random").mean("bleu", ["en-de"]).mean
    two = comparison.row("finetune").mean("bleu", ["en-de"]).values[1]
    found = comparison.row("random").against["finetune"].difference("bleu", ["en-de"])
    assert found.mean == pytest.approx(one - two)


def test_zero_shot_directions_have_a_table_with_counts(made):
    _, _, comparison, outputs, references = made
    row = cells(zero_shot_table(comparison, "bleu"), "ns")
    means = [sum(bleu(outputs[f"ns s{seed}"], references, pair) for seed in (1, 2)) / 2 for pair in ZERO]
    assert row["≥ 5"] == sum(mean >= 5 for mean in means)
    assert row["≥ 10"] == sum(mean >= 10 for mean in means)
    assert cells(zero_shot_table(comparison, "bleu"), "individual")["mean"] is None
    assert "≥ 5" not in zero_shot_table(comparison, "chrf++").columns


def test_tiers_show_the_base_and_differences_from_it(made):
    _, _, comparison, _, _ = made
    table = tiers_table(comparison, "bleu")
    assert table.columns[2:] == (
        *("one-to-many high", "one-to-many low", "many-to-one high", "many-to-one low"),
        *("zero-shot high-low", "zero-shot low-high"),
    )
    base = comparison.row("baseline").mean("bleu", ["en-de"]).mean
    assert cells(table, "baseline")["one-to-many high"] == f"{base:.2f}"
    gap = comparison.row("ns").mean("bleu", ["en-de"]).mean - base
    assert cells(table, "ns")["one-to-many high"].startswith(f"{gap:+.2f} ±")


def test_interference_and_synergy_are_losses_and_gains_against_individual_models(made):
    _, _, comparison, _, _ = made
    table = interference_table(comparison, "bleu")
    assert [row[0] for row in table.rows] == ["baseline", "finetune", "ns"]
    own = comparison.row("individual")
    for name in ("baseline", "ns"):
        means = [[row.mean("bleu", [pair]).mean for pair in TRAINED] for row in (comparison.row(name), own)]
        gaps = [one - other for one, other in zip(*means, strict=True)]
        row = cells(table, name)
        assert row["all"] == f"{sum(gaps) / 4:+.2f}"
        assert row["all +/−"] == f"{sum(g > 0 for g in gaps)} / {sum(g < 0 for g in gaps)}"
        assert row["many-to-one low"] == f"{gaps[3]:+.2f}"


def test_costs_are_those_of_the_results_beside_the_papers(made):
    _, _, comparison, _, _ = made
    table = costs_table(comparison)
    assert cells(table, "ns") == {
        "system": "ns",
        "extra parameters": 0,
        "Δθ": "+0 %",
        "extra memory KiB": 0.5,
        "extraction s": "3.0 ± 1.4",
        "training s": "15.0 ± 7.1",
        "decoding s": "5.0 ± 1.4",
        "updates": 3,
        "in the papers": "0 %; +5 minutes; 3e-3 GB",
    }
    # Parameters of four bytes, 1,024 of the base's 4,096; training from scratch counts.
    row = cells(table, "individual")
    assert (row["Δθ"], row["extra memory KiB"], row["training s"]) == ("+25 %", 4.0, "110.0")
    assert row["decoding s"] is None
    assert cells(table, "random") == dict.fromkeys(table.columns) | {
        "system": "random",
        "extra parameters": "not run",
        "in the papers": "0 %",
    }


def test_a_row_on_a_model_of_another_shape_is_measured_by_that_model(tmp_path):
    plan = {
        "shallow": RowPlan(seeds=[1]),
        "ns": RowPlan(system="neuron_specialization", base="shallow", seeds=[1]),
    }
    config = experiment(tmp_path, plan)
    rows = planned_rows(config)
    finish(rows[0].runs[0], 0.3, extra_parameters=-1024)
    finish(rows[1].runs[0], 0.3, extra_parameters=1024)
    base = Path(config.results) / f"{config.name}.base.json"
    assert cells(costs_table(compare_rows(config, rows)), "ns")["Δθ"] is None
    base.write_text(json.dumps({"parameters": 4096}), encoding="utf-8")
    table = costs_table(compare_rows(config, rows))
    assert [cells(table, name)["Δθ"] for name in ("shallow", "ns")] == ["-25 %", "+33 %"]


@pytest.mark.parametrize(
    ("name", "settings", "printed"),
    # Tan et al. 2024, Tables 1, 5, 9 and 11; Xie et al. 2021, Para of Table 1 over that of Multilingual.
    [
        ("pair_adapters", {}, "+87 % (EC30), +67 % (IWSLT); n/a; 1.42 GB"),
        ("pair_adapters", {"per_layer": 1}, f"+{77.43 / 64.69 - 1:.0%}"),
        ("target_attention", {}, f"+{121.42 / 64.69 - 1:.0%}"),
        ("individual", {}, f"+{466.4 / 64.69 - 1:.0%}"),
        ("expansion", {}, f"+{102.14 / 90.42 - 1:.0%}"),
        ("lass", {}, "0 %; +33 hours on 4 GPUs; 9.84 GB"),
        ("differentiation", {}, "+100 %"),
        ("differentiation", {"upper_bound": 0.51}, "+51 %"),
        ("differentiation", {"upper_bound": None}, "+252 %"),
        ("wide", {}, "+23 %"),
        ("deep", {}, "+40 %"),
    ],
)
def test_what_the_papers_print_is_theirs(name, settings, printed):
    assert printed_costs(make_system(name, settings)).startswith(
        printed.replace("%", " %").replace("  ", " ")
    )


def test_what_the_papers_do_not_print_is_left_out():
    names = {*SYSTEMS} - {
        "baseline",
        "gelu",
        "shared",
        "swapped",
        "sampled",
        "elastic",
    }
    assert {name for name in SYSTEMS if printed_costs(make_system(name, {}))} == names


def test_every_direction_has_a_line_and_every_row_that_was_run_a_column(made):
    _, _, comparison, _, _ = made
    table = directions_table(comparison, "bleu")
    assert table.columns == ("direction", "baseline", "finetune", "ns", "individual")
    assert [row[0] for row in table.rows] == ["en-de", "de-en", "en-fr", "fr-en", *ZERO]
    assert table.rows[-1][-1] is None


def test_the_same_runs_give_the_same_tables_and_no_test_is_repeated(made, monkeypatch):
    config, rows, comparison, _, _ = made
    monkeypatch.setattr("nspec_hf.comparison.runs.compare", None)
    again = compare_rows(config, rows, ["FILE.yaml"])
    assert json.dumps(plain(again)) == json.dumps(plain(comparison))
    assert markdown(again, "x") == markdown(comparison, "x")
    assert len(comparison_tables(comparison)) == 11


def test_a_changed_translation_is_tested_anew(made, monkeypatch):
    config, rows, _, _, _ = made
    monkeypatch.setattr("nspec_hf.comparison.runs.compare", None)
    path = rows[2].runs[0].folder / "outputs" / "en-de.txt"
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept.replace("eins", "zwei"), encoding="utf-8")
    try:
        with pytest.raises(TypeError):
            compare_rows(config, rows)
    finally:
        path.write_text(kept, encoding="utf-8")


def test_without_translations_there_are_scores_but_no_verdicts(made, tmp_path):
    config, _, comparison, _, _ = made
    moved = experiment(tmp_path, PLAN, tiers=TIERS)
    moved = planned_rows(type(config)(**{**vars(config), "work": moved.work}))
    found = compare_rows(moved[0].runs[0].config, moved)
    assert found.row("ns").results == comparison.row("ns").results
    assert cells(averages_table(found, "bleu"), "ns")["vs baseline: b / w / n"] is None
    assert found.row("ns").against["baseline"].results == comparison.row("ns").against["baseline"].results


def test_verdicts_outlive_the_translations_but_not_the_scores(made, tmp_path):
    config, _, comparison, _, _ = made
    kept = json.loads(json.dumps(plain(comparison.content())))
    elsewhere = planned_rows(dataclasses.replace(config, work=str(tmp_path / "elsewhere")))
    again = compare_rows(elsewhere[0].runs[0].config, elsewhere, ["FILE.yaml"], kept=kept)
    assert markdown(again, "x") == markdown(comparison, "x")
    assert again.content() == comparison.content()
    # Another run's scores: what was tested is not what is there now.
    for name in ("ns s1 against finetune s1", "ns s2 against finetune s2"):
        kept["tests"][name]["bleu"]["en-de"][0] += 0.01
    changed = compare_rows(elsewhere[0].runs[0].config, elsewhere, kept=kept).row("ns").against["finetune"]
    assert not any("en-de" in tests["bleu"] for tests in changed.tests)
    kept_tests = [tests["chrf++"] for tests in changed.tests]
    assert kept_tests == [tests["chrf++"] for tests in comparison.row("ns").against["finetune"].tests]


def test_verdicts_whose_translations_are_gone_keep_the_number_of_their_own_trials(tmp_path):
    config = experiment(tmp_path, {"baseline": RowPlan(seeds=[1]), "finetune": RowPlan(), "ns_x": NS})
    rows = planned_rows(config)
    for row, share in zip(rows, (0.4, 0.35, 0.15), strict=True):
        for run in row.runs:
            finish(run, share)
    kept = json.loads(json.dumps(plain(compare_rows(config, rows).content())))
    # Only one run has lost its translations when more trials are asked for, and it keeps that through tables.
    shutil.rmtree(rows[2].runs[1].folder)
    gone = {f"ns_x s2 against {name}" for name in ("baseline s1", "finetune s2")}
    for trials in (TRIALS + 100, TRIALS + 200, TRIALS):
        more = replace(config, compare=replace(config.compare, n_samples=trials))
        again = compare_rows(more, planned_rows(more), kept=kept)
        assert again.trials == ({} if trials == TRIALS else dict.fromkeys(gone, TRIALS))
        notes = averages_table(again, "bleu").notes
        assert f"paired randomization, {trials} trials" in notes[0]
        told = {note.partition(":")[0] for note in notes if f": {TRIALS} trials" in note}
        assert told == again.trials.keys()
        kept = json.loads(json.dumps(plain(again.content())))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:50],
        lambda text: "[]",
        lambda text: text.replace('"decoding"', '"coding"'),
        lambda text: text.replace('"en-de": ', '"ende": ', 1).replace('"scores": {', '"scores": {"x": 1,'),
        lambda text: "[" * 100_000,
    ],
    ids=["cut", "a list", "without decoding", "other scores", "deep"],
)
def test_a_result_of_another_shape_is_refused_with_its_name(damage, tmp_path):
    config = experiment(tmp_path, {"finetune": RowPlan(seeds=[1])})
    rows = planned_rows(config)
    finish(rows[0].runs[0], 0.2)
    path = rows[0].runs[0].result_file
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(path.name)):
        compare_rows(config, rows)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"key": 1}', '{"key": KEY, "tests": {"bleu": {"en-de": [1]}}}']
)
def test_tests_that_are_damaged_are_made_again(content, made):
    config, rows, comparison, _, _ = made
    run = rows[2].runs[0]
    path = run.folder / "significance" / "finetune.s1.json"
    kept = path.read_text(encoding="utf-8")
    path.write_text(content.replace("KEY", json.dumps(json.loads(kept)["key"])), encoding="utf-8")
    assert compare_rows(config, rows).row("ns") == comparison.row("ns")
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(kept)


def test_a_row_of_other_training_is_compared_with_fine_tuning_of_that_training(tmp_path):
    slow = {"learning_rate": 1e-5}
    plan = {
        "finetune": RowPlan(seeds=[1]),
        "finetune_slow": RowPlan(system="finetune", train=slow, seeds=[1]),
        "ns_slow": RowPlan(system="neuron_specialization", train=slow, seeds=[1]),
        "ns_long": RowPlan(system="neuron_specialization", train={"max_steps": 9}, seeds=[1]),
    }
    config = experiment(tmp_path, plan)
    rows = planned_rows(config)
    for row in rows:
        finish(row.runs[0], 0.2)
    comparison = compare_rows(config, rows)
    assert comparison.row("ns_slow").against["finetune"].reference == "finetune_slow"
    assert comparison.row("ns_long").against["finetune"].reference == "finetune"
    assert not comparison.row("finetune_slow").against
    notes = averages_table(comparison, "bleu").notes
    assert any("ns_long: its own training (max_steps=9), compared with finetune" in note for note in notes)


def test_a_row_on_a_base_of_another_shape_is_compared_with_that_shape(tmp_path):
    plan = {
        "baseline": RowPlan(seeds=[1]),
        "finetune": RowPlan(seeds=[1]),
        "shallow": RowPlan(seeds=[1]),
        "shallow_base": RowPlan(system="baseline", base="shallow", seeds=[1]),
        "ns_shallow": RowPlan(system="neuron_specialization", base="shallow", seeds=[1]),
        "deep": RowPlan(seeds=[1]),
        "ns_deep": RowPlan(system="neuron_specialization", base="deep", seeds=[1]),
    }
    config = experiment(tmp_path, plan)
    rows = planned_rows(config)
    for row in rows:
        finish(row.runs[0], 0.2)
    comparison = compare_rows(config, rows)
    references = {
        row.name: {system: against.reference for system, against in row.against.items()}
        for row in comparison.rows
    }
    # `shallow` has been trained further, as fine-tuning is.
    assert references["ns_shallow"] == {"baseline": "shallow_base", "finetune": "shallow"}
    assert references["ns_deep"] == {"baseline": "baseline", "finetune": "deep"}
    assert references["shallow"] == {"baseline": "baseline", "finetune": "finetune"}


def test_a_row_on_the_experiment_s_base_is_compared_with_that_in_whatever_order_rows_stand(tmp_path):
    plan = {
        "shallow": RowPlan(seeds=[1]),
        "shallow_base": RowPlan(system="baseline", base="shallow", seeds=[1]),
        "shallow_tuned": RowPlan(system="finetune", base="shallow", seeds=[1]),
        "baseline": RowPlan(seeds=[1]),
        "finetune": RowPlan(seeds=[1]),
        "ns": RowPlan(system="neuron_specialization", seeds=[1]),
        "ns_shallow": RowPlan(system="neuron_specialization", base="shallow", seeds=[1]),
    }
    config = experiment(tmp_path, plan)
    rows = planned_rows(config)
    for row in rows:
        finish(row.runs[0], 0.2)
    against = {row.name: row.against for row in compare_rows(config, rows).rows}
    references = {name: [each.reference for each in own.values()] for name, own in against.items()}
    assert references["ns"] == ["baseline", "finetune"]
    assert references["finetune"] == ["baseline"]
    assert references["ns_shallow"][0] == "shallow_base"
    assert references["ns_shallow"][1] in ("shallow", "shallow_tuned")


def test_a_plan_of_which_nothing_was_run_has_a_table(tmp_path):
    config = experiment(tmp_path, PLAN)
    comparison = compare_rows(config, planned_rows(config))
    assert [row[1] for row in averages_table(comparison, "bleu").rows] == ["not run"] * 5
    assert "## Not run" in markdown(comparison, "x")


def test_a_trained_direction_without_the_pivot_is_not_called_zero_shot():
    def data(**changes):
        return DataConfig(corpus=CorpusConfig(path="x"), languages=["en", "de", "fr"], **changes)

    assert list(blocks_of(data())) == ["one-to-many", "many-to-one", "trained", "zero-shot"]
    every = [*TRAINED, *ZERO]
    blocks = blocks_of(data(pairs=every, tiers=TIERS))
    assert blocks == {
        "one-to-many": ("en-de", "en-fr"),
        "many-to-one": ("de-en", "fr-en"),
        "between others": ("de-fr", "fr-de"),
        "trained": tuple(every),
    }
    assert tiers_of(data()) == {}
    assert tiers_of(data(pairs=every, tiers=TIERS))["between others low-high"] == ("fr-de",)


def test_a_spread_of_one_has_no_deviation_and_of_none_is_none():
    assert Spread.over([2.0]) == Spread(mean=2.0, sd=None, values=(2.0,))
    assert Spread.over([None, None]) is None
    assert Spread.over([1.0, None, 4.0]) == Spread(mean=2.5, sd=pytest.approx(2.1213203), values=(1.0, 4.0))
