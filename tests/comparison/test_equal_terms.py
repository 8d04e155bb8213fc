"""Rows that are not compared on equal terms are told, and none takes a reference by its place in the plan."""

from dataclasses import replace

from nspec_hf.comparison import compare_rows, planned_rows
from nspec_hf.comparison.tables import averages_table
from nspec_hf.systems import RowPlan
from tests.helpers.finished_runs import experiment, finish

PLAN = {"finetune": RowPlan(seeds=[1]), "ns": RowPlan(system="neuron_specialization", seeds=[1])}


def finished(folder, plan, facts=None):
    config = experiment(folder, plan)
    rows = planned_rows(config)
    outputs = {row.name: finish(row.runs[0], 0.2, **(facts or {}).get(row.name, {})) for row in rows}
    return config, rows, outputs


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
