"""Plans of comparisons: rows and sweeps, what is refused before anything runs, and which results count."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from nspec_hf.comparison import chosen_runs, planned_rows
from nspec_hf.core import ConfigError, write_result
from nspec_hf.data import CorpusConfig
from nspec_hf.systems import DataConfig, ExperimentConfig, RowPlan, read_settings
from nspec_hf.systems.masked import NeuronSpecialization
from nspec_hf.systems.plan import ComparisonPlan
from nspec_hf.training import TrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"


def experiment(folder=Path("nowhere"), rows=None, **changes):
    plan = ComparisonPlan(rows=rows or {"finetune": RowPlan()}, seeds=(1, 2))
    return ExperimentConfig(
        **{
            "name": "tiny",
            "work": str(folder / "work"),
            "results": str(folder / "results"),
            "data": DataConfig(corpus=CorpusConfig(path=str(folder / "text")), languages=["en", "de"]),
            "specialize": TrainConfig(arguments={"max_steps": 3}),
            "compare": plan,
            **changes,
        }
    )


def test_rows_take_the_plans_seeds_and_their_own_names():
    plan = ComparisonPlan(rows={"finetune": RowPlan(), "ns": RowPlan(system="x", seeds=[7])}, seeds=(1, 2))
    rows = plan.expanded()
    assert (rows["finetune"].system, rows["finetune"].seeds) == ("finetune", (1, 2))
    assert (rows["ns"].system, rows["ns"].seeds) == ("x", (7,))


@pytest.mark.parametrize("table", ["", "../elsewhere", "two words", ".hidden"])
def test_a_tables_name_that_is_no_part_of_a_files_name_is_refused(table):
    with pytest.raises(ConfigError, match="part of a file's name"):
        ComparisonPlan(table=table)


def test_a_sweep_makes_a_row_of_each_combination():
    row = RowPlan(
        system="a",
        settings={"by": "pair"},
        train={"warmup_steps": 1},
        sweep={"k": [0.5, None], "train.learning_rate": [1e-4, 2e-4], "sides": [["encoder", "decoder"]]},
    )
    rows = ComparisonPlan(rows={"one": row}).expanded()
    assert list(rows) == [
        "one_0.5_0.0001_encoder-decoder",
        "one_0.5_0.0002_encoder-decoder",
        "one_none_0.0001_encoder-decoder",
        "one_none_0.0002_encoder-decoder",
    ]
    last = rows["one_none_0.0002_encoder-decoder"]
    assert last.settings == {"by": "pair", "k": None, "sides": ["encoder", "decoder"]}
    assert last.train == {"warmup_steps": 1, "learning_rate": 2e-4}
    assert not last.sweep


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a/b": RowPlan()}, "cannot be a row's name"),
        ({"base": RowPlan()}, "cannot be a row's name"),
        ({"a": RowPlan(seeds=[1, 1])}, "different numbers"),
        ({"a": RowPlan(sweep={"k": []})}, "list of values"),
        ({"a": RowPlan(sweep={"k": "0.5"})}, "list of values"),
        ({"a": RowPlan(settings={"k": 1}, sweep={"k": [1, 2]})}, "both given and swept"),
        ({"a": RowPlan(train={"k": 1}, sweep={"train.k": [1, 2]})}, "both given and swept"),
        ({"a": RowPlan(sweep={"k": [1]}), "a_1": RowPlan()}, "two rows are called 'a_1'"),
    ],
)
def test_plans_that_cannot_be_are_refused(rows, message):
    with pytest.raises(ConfigError, match=message):
        ComparisonPlan(rows=rows).expanded()


def test_all_that_is_wrong_with_a_plan_is_said_before_anything_runs():
    rows = {
        "finetune": RowPlan(),
        "magic": RowPlan(),
        "ns": RowPlan(system="neuron_specialization", settings={"covrage": 0.5}),
        "slow": RowPlan(system="finetune", train={"learning_rat": 1e-4}),
    }
    with pytest.raises(ConfigError) as error:
        planned_rows(experiment(rows=rows))
    for name, wrong in (("magic", "'magic'"), ("ns", "covrage"), ("slow", "learning_rat")):
        assert any(name in line and wrong in line for line in str(error.value).splitlines())
    assert "finetune'" not in str(error.value).split("there are")[0]
    with pytest.raises(ConfigError, match="no comparison"):
        planned_rows(experiment(compare=ComparisonPlan()))
    data = DataConfig(corpus=CorpusConfig(path="x"), languages=["en", "de"], test_split="")
    with pytest.raises(ConfigError, match="no test text"):
        planned_rows(experiment(data=data))


def test_runs_are_chosen_by_row_pattern_and_seed_first_seeds_first():
    rows = planned_rows(
        experiment(rows={name: RowPlan(system="finetune") for name in ("ns", "ns_k", "finetune")})
    )
    assert [run.name for run in chosen_runs(rows)] == [
        *("ns s1", "ns_k s1", "finetune s1", "ns s2", "ns_k s2", "finetune s2")
    ]
    assert [run.name for run in chosen_runs(rows, ["ns*"], [2])] == ["ns s2", "ns_k s2"]
    with pytest.raises(ConfigError, match=r"'nz'.*ns_k"):
        chosen_runs(rows, ["ns", "nz"])
    with pytest.raises(ConfigError, match="seed 9"):
        chosen_runs(rows, None, [1, 9])


def test_a_command_tells_specialize_exactly_what_the_plan_says(tmp_path):
    """The command line is read back by the parser that specialize.py has."""
    row = RowPlan(
        system="neuron_specialization",
        settings={"coverage": 0.8, "sides": ["encoder"], "silence": None},
        train={"learning_rate": 5e-05, "lr_scheduler_type": "linear", "patience": 3},
    )
    config = tmp_path / "tiny.json"
    config.write_text(
        json.dumps(
            {
                "data": {"corpus": {"path": "x"}, "languages": ["en", "de"]},
                "specialize": {"arguments": {"max_steps": 3}},
                "compare": {"rows": {"ns": dataclasses.asdict(row)}},
            }
        )
    )
    planned, _ = read_settings(ExperimentConfig, [str(config)])
    run = planned_rows(planned)[0].runs[0]
    words = shlex.split(run.command([str(config)]))
    assert words[:3] == ["python", "recipes/specialize.py", str(config)]
    told, extra = read_settings(
        ExperimentConfig,
        words[2:],
        system={},
        row={},
        seed={"type": int},
        settings={"type": dict, "default": {}},
    )
    assert (extra.system, extra.row, extra.seed) == ("neuron_specialization", "ns", 1)
    assert NeuronSpecialization(**extra.settings) == run.system
    assert told.specialize == run.config.specialize
    assert told.specialize.patience == 3
    assert told.specialize.arguments == {
        "max_steps": 3,
        "learning_rate": 5e-05,
        "lr_scheduler_type": "linear",
    }


def finish(run, **changes):
    """Write the result that specialize.py would write, but for the numbers."""
    budget = dataclasses.replace(
        run.config.specialize,
        batches=dataclasses.replace(run.config.specialize.batches, seed=run.seed),
        arguments={**run.config.specialize.arguments, "seed": run.seed},
    )
    result = {
        "name": run.row,
        "system": run.system.name,
        "settings": dataclasses.asdict(run.system),
        "seed": run.seed,
        "scores": {"bleu": {"nrefs:1": {"en-de": 1.0}}},
        "decoding": {},
        **changes,
    }
    write_result(run.result_file, result, dataclasses.replace(run.config, specialize=budget))


def test_a_result_counts_only_for_the_settings_that_made_it(tmp_path):
    def run(**changes):
        rows = {"ns": RowPlan(system="neuron_specialization", **changes.pop("row", {}))}
        return planned_rows(experiment(tmp_path, rows=rows, **changes))[0].runs[1]

    assert "no result" in run().why_not_done()
    assert run().outcome() is None
    finish(run(), scores=None)
    assert "no scores" in run().why_not_done()
    finish(run())
    assert run().why_not_done() == ""
    assert run().outcome().facts["seed"] == 2
    different = {
        "specialize.arguments": {"specialize": TrainConfig(arguments={"max_steps": 4})},
        "settings.coverage": {"row": {"settings": {"coverage": 0.5}}},
        "model": {"model": {"d_model": 8}},
        "metrics": {"metrics": ["bleu"]},
        "data.test_split": {"data": dataclasses.replace(run().config.data, test_split="other")},
    }
    for name, changes in different.items():
        assert f"other settings: {name}" in run(**changes).why_not_done()
        assert run(**changes).outcome() is None


def test_places_and_settings_that_came_later_do_not_unmake_a_result(tmp_path):
    run = planned_rows(experiment(tmp_path))[0].runs[0]
    finish(run)
    moved = dataclasses.replace(run.config.data, corpus=CorpusConfig(path="elsewhere"))
    later = dataclasses.replace(run, config=dataclasses.replace(run.config, work="other", data=moved))
    assert later.why_not_done() == ""
    content = json.loads(run.result_file.read_text())
    del content["recipe"]["config"]["gate"]["multiple_of"]
    run.result_file.write_text(json.dumps(content))
    assert run.why_not_done() == ""


def test_translations_are_found_in_one_folder_or_in_one_for_each_model(tmp_path):
    run = planned_rows(experiment(tmp_path))[0].runs[0]
    assert run.outputs() is None
    for folder in (run.folder / "outputs", run.folder / "de-en" / "outputs"):
        folder.mkdir(parents=True)
    (run.folder / "outputs" / "en-de.txt").write_text("a\n")
    (run.folder / "de-en" / "outputs" / "de-en.txt").write_text("b\n")
    assert run.outputs() == {"en-de": ["a"], "de-en": ["b"]}


@pytest.mark.parametrize("name", ["multi30k", "multi30k_all", "bible"])
def test_the_plans_of_the_configs_can_be_run(name):
    config, _ = read_settings(ExperimentConfig, [str(CONFIGS / f"{name}.yaml")])
    rows = planned_rows(config)
    systems = {row.system.name for row in rows}
    assert {"baseline", "finetune", "random", "neuron_specialization", "allocation_te"} <= systems
    # Fine-tuning is compared with itself at every seed that another row has.
    seeds = {row.name: {run.seed for run in row.runs} for row in rows}
    assert all(own <= seeds["finetune"] for own in seeds.values())
    least = 3 if name == "multi30k" else 2
    assert all(len(seeds[row]) >= least for row in ("finetune", "random", "ns", "allocation_te"))


def test_a_row_may_go_on_from_the_model_of_another_shape():
    rows = {
        "shallow": RowPlan(seeds=[3]),
        "ns": RowPlan(system="neuron_specialization", base="shallow", seeds=[1, 2]),
    }
    whole = experiment(rows=rows, model={"encoder_layers": 2, "attn_implementation": "eager"})
    run = planned_rows(whole)[1].runs[1]
    # The first seed's model before its continuation, whose saved config says its shape.
    assert run.config.base_model == "nowhere/work/shallow/s3/pretraining/model"
    assert run.config.model == {"attn_implementation": "eager"}
    told, _ = read_settings(
        ExperimentConfig,
        ["--data.corpus.path", "x", "--model.encoder_layers", "2", *run.arguments()],
        **{name: {} for name in ("system", "row", "seed", "settings")},
    )
    assert (told.base, told.model) == ("@shallow/s3", {"attn_implementation": "eager"})
    # Of a base that is none, or that knows more than its shape, nothing could be gone on from.
    for base in ("nothing", "ns", "target_attention"):
        wrong = {**rows, "target_attention": RowPlan(), "late": RowPlan(system="finetune", base=base)}
        with pytest.raises(
            ConfigError, match=f"'late': its base '{base}' is no row of another shape; .*shallow"
        ):
            planned_rows(experiment(rows=wrong))
