"""Rows that are not compared on equal terms are told, and none takes a reference by its place in the plan."""

from dataclasses import replace

from nspec_hf.comparison import compare_rows, planned_rows
from nspec_hf.comparison.tables import averages_table
from nspec_hf.core import plain, write_lines
from nspec_hf.evaluation import score
from nspec_hf.systems import RowPlan
from tests.helpers.finished_runs import experiment, finish, spoil

PLAN = {"finetune": RowPlan(seeds=[1]), "ns": RowPlan(system="neuron_specialization", seeds=[1])}


def finished(folder, plan, facts=None):
    config = experiment(folder, plan)
    rows = planned_rows(config)
    outputs = {row.name: finish(row.runs[0], 0.2, **(facts or {}).get(row.name, {})) for row in rows}
    return config, rows, outputs


def test_a_verdict_is_of_the_translations_that_were_scored(tmp_path):
    config, rows, outputs = finished(tmp_path, PLAN)
    kept = plain(compare_rows(config, rows).content())
    # The fine-tuning was trained anew elsewhere, and its translations, but not its result, lie here now.
    texts = config.data.read("test", config.data.tested_pairs())
    for text in texts:
        other = outputs["finetune"][text.pair]
        if text.pair.target == "de":
            other = spoil(text.targets, 0.9, f"anew {text.pair}", text.pair.target)
            assert score(other, text.targets).value < score(outputs["ns"][text.pair], text.targets).value - 5
        write_lines(rows[0].runs[0].folder / "outputs" / f"{text.pair.file_name}.txt", other)
    comparison = compare_rows(config, rows)
    (tests,) = comparison.row("ns").against["finetune"].tests
    assert set(tests["bleu"]) == {text.pair for text in texts if text.pair.target != "de"}
    for pair, test in tests["bleu"].items():
        ours, theirs = (comparison.row(name).results[1].scores[pair]["bleu"] for name in ("ns", "finetune"))
        assert abs(test.delta - (ours - theirs)) < 1e-6
    notes = averages_table(comparison, "bleu").notes
    assert any("not those that were scored: ns s1 against finetune s1" in note for note in notes)
    # Where none of them was scored, tests of an earlier comparison that hold stand in their place.
    for text in texts:
        other = spoil(text.targets, 0.9, f"anew {text.pair}", text.pair.target)
        write_lines(rows[0].runs[0].folder / "outputs" / f"{text.pair.file_name}.txt", other)
    again = compare_rows(config, rows, kept=kept)
    assert plain(again.content())["tests"] == kept["tests"]


def test_rows_of_different_bases_are_told_and_rows_that_have_none_of_it_are_not(tmp_path):
    plan = {**PLAN, "individual": RowPlan(seeds=[1]), "random": RowPlan(seeds=[1])}
    facts = {name: {"base_weights": name} for name in ("finetune", "ns", "individual")}
    config, rows, _ = finished(tmp_path, plan, facts)
    notes = averages_table(compare_rows(config, rows), "bleu").notes
    assert [note for note in notes if "different weights" in note] == [
        "runs of seed 1 go on from different weights of the base, which differ too "
        "(finetune: finetune s1; ns: ns s1)"
    ]
    same = {name: {"base_weights": "one"} for name in plan}
    config, rows, _ = finished(tmp_path / "same", plan, same)
    assert not compare_rows(config, rows).doubts


def test_seeds_may_have_bases_of_their_own_as_long_as_what_is_compared_has_one(tmp_path):
    plan = {
        "baseline": RowPlan(seeds=[1]),
        "finetune": RowPlan(seeds=[1, 2]),
        "ns": RowPlan(system="neuron_specialization", seeds=[1, 2]),
    }
    config = experiment(tmp_path, plan)
    rows = planned_rows(config)
    for row in rows[1:]:
        for run in row.runs:
            finish(run, 0.2, base_weights=f"base{run.seed}")
    assert compare_rows(config, rows).doubts == (
        "seeds go on from bases of their own (seed 1: base1, seed 2: base2)",
    )
    finish(rows[0].runs[0], 0.2, base_weights="base1")  # and seed 2 is set beside it too
    (told,) = compare_rows(config, rows).doubts
    assert told == (
        "runs of seed 2 go on from different weights of the base, which differ too "
        "(base1: baseline s1; base2: finetune s2, ns s2)"
    )


def test_a_row_is_compared_with_fine_tuning_of_its_own_dropout_in_whatever_order_rows_stand(tmp_path):
    without = {"continued_dropout": 0.0}
    plan = {
        "finetune_d0": RowPlan(system="finetune", settings=without, seeds=[1]),
        **PLAN,
        "ns_d0": RowPlan(system="neuron_specialization", settings=without, seeds=[1]),
    }
    config, rows, _ = finished(tmp_path, plan)
    for each in (rows, rows[::-1]):
        comparison = compare_rows(replace(config), each)
        references = {row.name: row.against["finetune"].reference for row in comparison.rows if row.against}
        assert references == {"ns": "finetune", "ns_d0": "finetune_d0"}
        notes = averages_table(comparison, "bleu").notes
        told = "ns_d0: its own training (continued_dropout=0.0), compared with finetune_d0"
        assert told in notes


def test_of_a_row_that_was_not_run_nothing_is_told(tmp_path):
    config = experiment(
        tmp_path, {**PLAN, "finetune_d0": RowPlan(system="finetune", settings={"continued_dropout": 0.0})}
    )
    rows = planned_rows(config)
    for row in rows[:2]:
        finish(row.runs[0], 0.2)
    assert not [
        note for note in averages_table(compare_rows(config, rows), "bleu").notes if "finetune_d0" in note
    ]


def test_several_seeds_that_have_one_reference_are_told(tmp_path):
    plan = {**PLAN, "ns": replace(PLAN["ns"], seeds=[1, 2]), "random": RowPlan(seeds=[1])}
    config, rows, _ = finished(tmp_path, plan)
    finish(rows[1].runs[1], 0.3)
    comparison = compare_rows(config, rows)
    assert [theirs.facts["seed"] for _, theirs in comparison.row("ns").against["finetune"].results] == [1, 1]
    notes = averages_table(comparison, "bleu").notes
    told = [note for note in notes if "all its seeds" in note]
    assert told == ["ns: all its seeds are compared with the only one of finetune"]


def test_earlier_tests_that_no_row_asks_for_are_kept_as_long_as_they_hold(tmp_path):
    without = RowPlan(system="neuron_specialization", settings={"continued_dropout": 0.0}, seeds=[1])
    config, rows, _ = finished(tmp_path, {**PLAN, "ns_d0": without})
    kept = plain(compare_rows(config, rows).content())
    assert "ns_d0 s1 against finetune s1" in kept["tests"]
    # Now the plan has fine-tuning of that dropout, which the row is compared with; a row has left the plan.
    own = RowPlan(system="finetune", settings={"continued_dropout": 0.0}, seeds=[1])
    config = experiment(tmp_path, {"finetune": PLAN["finetune"], "ns_d0": without, "finetune_d0": own})
    rows = planned_rows(config)
    finish(rows[2].runs[0], 0.1)
    comparison = compare_rows(config, rows, kept=kept)
    assert comparison.row("ns_d0").against["finetune"].reference == "finetune_d0"
    found = plain(comparison.content())["tests"]
    assert {name: found[name] for name in kept["tests"]} == kept["tests"]
    assert found.keys() - kept["tests"].keys() == {"ns_d0 s1 against finetune_d0 s1"}
    assert list(comparison.tests) == ["ns_d0 s1 against finetune_d0 s1"]
    # The fine-tuning is another one: what was tested against the old one is no more.
    finish(rows[0].runs[0], 0.9)
    found = plain(compare_rows(config, rows, kept=kept).content())["tests"]
    assert "ns_d0 s1 against finetune s1" not in found
