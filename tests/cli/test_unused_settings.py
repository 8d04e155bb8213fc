"""Every flag of every command and every field of every configuration: read in all cases, or told where not.

The tables say which are always read, and show for each other one a case in which nothing reads it. A new flag
or field fails here until it stands in one of them.
"""

import dataclasses
import importlib
import inspect
import shlex
from types import SimpleNamespace

import pytest

from nspec_hf.adding import AddConfig
from nspec_hf.cli.main import COMMANDS, main
from nspec_hf.comparison import planned_rows
from nspec_hf.core import ConfigError
from nspec_hf.data import BatchConfig, CorpusConfig, VocabularyConfig
from nspec_hf.evaluation import TranslateConfig
from nspec_hf.export import ExportConfig
from nspec_hf.gating import GateConfig
from nspec_hf.masks import BY_METHOD, SelectConfig
from nspec_hf.recording import RecordConfig
from nspec_hf.serving import BatchingConfig, ServeConfig
from nspec_hf.systems import SYSTEMS, ExperimentConfig, Run, make_system
from nspec_hf.systems.experiment import DataConfig
from nspec_hf.systems.plan import ComparisonPlan, RowPlan
from nspec_hf.systems.whole_run import run_to_report
from nspec_hf.training import TrainConfig
from tests.helpers import tiny_text

# ---- commands ----------------------------------------------------------------------------------------------

READ_BY_COMMANDS = {
    "run": "model output max_steps learning_rate batch_tokens seed coverage control system settings results",
    "record": "model pairs corpus output split record codes trust_remote_code max_tokens max_length",
    "select": "stats output coverage select levels",
    "train": "model corpus output masks pairs max_steps learning_rate batch_tokens seed train train_split "
    "valid_split codes trust_remote_code",
    "translate": "model pair masks input output corpus translate coverage codes trust_remote_code added",
    "inspect": "path kinds",
    "serve": "model masks revision subfolder serve batching translate gate coverage codes device "
    "trust_remote_code",
    "add-pair": "model pairs corpus output add train way old_pairs added masks train_split valid_split codes "
    "trust_remote_code",
    "export": "model pairs output masks trim_vocabulary export corpus coverage codes trust_remote_code",
    "evaluate": "hypotheses references corpus name metric pivot tiers off_target_languages style output "
    "comet_out comet_in",
    "compare": "baseline system references corpus baseline_ending system_ending metric test n_samples seed "
    "n_jobs style output",
    "analyze": "output by_setting figures",
    "doctor": "model masks corpus pairs train valid_split plain_trainer codes trust_remote_code",
    "probe": "masks model corpus output stats erase sizes coverages generals codes trust_remote_code figures",
    "publish": "run repo model base subfolder scores comparison stats families private revision message",
    "report": "output title",
    "demo": "output seed families languages sentences updates more_updates test_sentences trials "
    "random_masks",
}
OF_FILES = {"metric", "baseline", "tiers"}  # of what `nspec analyze` and `report` share

LINES = {
    "train --gate": "train --model no --output o --corpus.path no --pairs en-de --gate.silence weights",
    "translate --split": "translate --model no --pair en-de --input no --split valid",
    "translate --gate": "translate --model no --pair en-de --input no --gate.silence weights",
    "serve --base": "serve --model no --masks no --base other",
    "add-pair --old_corpus": "add-pair --model no --pairs en-de --corpus.path no --output o "
    "--old_corpus.path no",
    "add-pair --gate": "add-pair --model no --pairs en-de --corpus.path no --output o --gate.silence weights",
    "add-pair --translate": "add-pair --model no --pairs en-de --corpus.path no --output o "
    "--translate.num_beams 2",
    "export --split": "export --model no --pairs en-de --output o --split valid",
    "export --count_split": "export --model no --pairs en-de --output o --corpus.path no --count_split valid",
    "export --export.min_count": "export --model no --pairs en-de --output o --export.min_count 2",
    "export --export.silence": "export --model no --pairs en-de --output o --export.silence weights",
    "export --export.group": "export --model no --pairs en-de,de-en --output o --export.group union",
    "evaluate --split": "evaluate --hypotheses no --references no --split valid",
    "evaluate --sources": "evaluate --hypotheses no --corpus.path no --sources no",
    "evaluate --tiers_from": "evaluate --hypotheses no --corpus.path no --tiers '{de: low}' "
    "--tiers_from train",
    "evaluate --comet_model": "evaluate --hypotheses no --corpus.path no --comet_model mine",
    "compare --split": "compare --baseline no --system no --references no --split valid",
    "compare --references_ending": "compare --baseline no --system no --corpus.path no "
    "--references_ending txt",
    "analyze --metric": "analyze --masks no --metric chrf",
    "analyze --baseline": "analyze --masks no --baseline one",
    "analyze --tiers": "analyze --masks no --tiers '{de: low}'",
    "report --metric": "report --masks no --metric chrf",
    "report --baseline": "report --masks no --baseline one",
    "report --tiers": "report --masks no --tiers '{de: low}'",
    "doctor --test_split": "doctor --model no --test_split test",
    "doctor --train_split": "doctor --model no --train_split mine",
    "probe --erase_of": "probe --masks no --model no --corpus.path no --erase false --erase_of [en-de]",
    "publish --model_revision": "publish --run no --repo me/mine --model_revision main",
    "publish --dataset": "publish --run no --repo me/mine --dataset mine",
    **{
        f"probe --{name}": f"probe --masks no --model no --corpus.path no --erase false --{value}"
        for name, value in {
            "test_split": "test_split mine",
            "lines": "lines 7",
            "metric": "metric chrf",
            "translate": "translate.num_beams 2",
        }.items()
    },
    **{
        f"probe --{name}": f"probe --masks no --model no --corpus.path no --sizes [] --{name} {value}"
        for name, value in {"split": "mine", "seeds": "[7]"}.items()
    },
    **{
        f"add-pair --add.{name}": f"add-pair --model no --pairs en-de --corpus.path no --output o --way free "
        f"--add.{name} {value}"
        for name, value in {"width": 1, "lora": 2, "copies": "[norms]", "pieces": "new", "seed": 7}.items()
    },
}


def function_of(command):
    module = importlib.import_module(f"nspec_hf.{COMMANDS[command][0]}")
    return getattr(module, command.replace("-", "_"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_always_read_or_has_a_rule_and_a_case(command):
    parameters = inspect.signature(function_of(command)).parameters.values()
    flags = {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
    rules = set(getattr(function_of(command), "needs", {}))
    shared = OF_FILES if command in ("analyze", "report") else set()
    always = set(READ_BY_COMMANDS[command].split())
    assert flags | shared == always | {name for name in rules if "." not in name}
    assert not always & rules
    assert {f"{command} --{name}" for name in rules} == {case for case in LINES if case.split()[0] == command}


@pytest.mark.parametrize("case", LINES)
def test_a_flag_that_nothing_reads_is_told(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = case.split()[1]
    with pytest.warns(UserWarning, match=rf"^{name} has no effect with(out)? .*; leave it out"):
        assert main(shlex.split(LINES[case])) in (1, 2)  # what is given beside it is not there


def test_kinds_have_no_effect_on_what_holds_its_own(tmp_path):
    tiny_text.masks(tiny_text.model()).save_pretrained(tmp_path / "masks")
    with pytest.warns(UserWarning, match="--kinds has no effect"):
        assert main(["inspect", str(tmp_path / "masks"), "--kinds", "[attention]"]) == 0


# ---- configurations ----------------------------------------------------------------------------------------

READ = {
    SelectConfig: "method sides",
    GateConfig: "mode zero_shot",
    RecordConfig: "count kinds active_on av te max_sentences progress",
    CorpusConfig: "path dataset streaming bad_lines max_lines lines_by_language store",
    BatchConfig: "max_tokens mixed temperature max_length seed",
    ExportConfig: "format silence group quantization min_count sample max_new_tokens agreement",
    TranslateConfig: "num_beams max_tokens length_ratio length_extra max_source progress",
    AddConfig: "width lora copies pieces kin languages seed",
    BatchingConfig: "max_batch max_wait max_waiting mix_pairs max_source",
    ServeConfig: "host port max_body max_texts max_characters stop_seconds",
    VocabularyConfig: "size kind target_on_source moses coverage",
    TrainConfig: "arguments batches patience elastic teacher",
    DataConfig: "corpus languages pairs pivot zero_shot codes train_split valid_split test_split tiers "
    "families",
    ExperimentConfig: "data work results name base model record select gate specialize translate metrics",
    ComparisonPlan: "n_samples",
    RowPlan: "system settings seeds base train sweep",
}
"""Read in every case, or refused where not (`streaming`, `quantization`); some by rules of a command."""

CASES = {
    (SelectConfig, "coverage"): {"method": "te", "coverage": 0.5},
    (SelectConfig, "coverage_decoder"): {"method": "random", "coverage_decoder": 0.5},
    (SelectConfig, "general"): {"general": 0.5},
    (SelectConfig, "threshold"): {"method": "random", "threshold": 0.5},
    (SelectConfig, "by"): {"method": "random", "by": "source"},
    (SelectConfig, "density"): {"method": "av", "density": 0.5},
    (SelectConfig, "seed"): {"seed": 2},
    (SelectConfig, "temperature"): {"method": "te", "temperature": 0.3},
    (GateConfig, "silence"): {"mode": "gradient", "silence": "weights"},
    (GateConfig, "multiple_of"): {"multiple_of": 8},
    (GateConfig, "cache_bytes"): {"mode": "gradient", "cache_bytes": 1},
    (GateConfig, "pivot"): {"pivot": "de"},
    (RecordConfig, "label_smoothing"): {"av": True, "label_smoothing": 0.1},
    (CorpusConfig, "dataset_name"): {"path": "data", "dataset_name": "{a}-{b}"},
    (CorpusConfig, "num_proc"): {"path": "data", "num_proc": 2},
    (ExportConfig, "multiple_of"): {"multiple_of": 8},
    (ExportConfig, "quantized_agreement"): {"format": "ctranslate2", "quantized_agreement": 0.5},
    (TranslateConfig, "length_penalty"): {"num_beams": 1, "length_penalty": 0.5},
}
WHOLE_RUN = {  # see below
    ExperimentConfig: {"vocabulary", "pretrain", "compare"},
    ComparisonPlan: {"rows", "seeds", "table"},
}


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.__name__)
def test_every_field_is_always_read_or_has_a_case(kind):
    cases = {name for one, name in CASES if one is kind}
    fields = {field.name for field in dataclasses.fields(kind)}
    assert set(READ[kind].split()) | cases | WHOLE_RUN.get(kind, set()) == fields
    assert kind is not SelectConfig or cases == set(BY_METHOD)


@pytest.mark.parametrize(
    ("kind", "name"),
    [case for case in CASES if case[0] is not SelectConfig],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_field_that_nothing_reads_is_told(kind, name):
    with pytest.warns(UserWarning, match=rf"(^|[.-]){name} has no effect with(out)? .*; leave it out"):
        kind(**CASES[kind, name])


@pytest.mark.parametrize("name", [name for kind, name in CASES if kind is SelectConfig])
def test_a_field_that_the_method_does_not_read_is_told_by_the_command(name, tmp_path, monkeypatch):
    """Not by the class: an experiment may set it for several systems."""
    monkeypatch.chdir(tmp_path)
    given = [f"--select.{each}={value}" for each, value in CASES[SelectConfig, name].items()]
    with pytest.warns(UserWarning, match=rf"^--select\.{name} has no effect with --select\.method"):
        assert main(["select", "--stats", "no", *given]) == 2


def test_a_field_that_is_read_is_not_told(recwarn):
    GateConfig(mode="slice", multiple_of=8, zero_shot="compose", pivot="de")
    RecordConfig(te=True, label_smoothing=0.1)
    CorpusConfig(path="data", store="kept", num_proc=2)
    CorpusConfig(dataset="opus", dataset_name="{a}-{b}")
    ExportConfig(format="pruned", multiple_of=8)
    ExportConfig(format="ctranslate2", quantization="int8", quantized_agreement=0.5)
    TranslateConfig(length_penalty=0.5)
    SelectConfig(general=0.5, density=0.5)
    assert not recwarn.list


# ---- experiments and systems -------------------------------------------------------------------------------


def experiment(**more):
    return ExperimentConfig(data=DataConfig(corpus=CorpusConfig(path="no"), languages=["de"]), **more)


def checked(system, settings=None, **more):
    config = experiment(**more)
    run = SimpleNamespace(
        config=config, pairs=config.data.trained_pairs(), budget=lambda phase: TrainConfig()
    )
    make_system(system, settings).check(run)


@pytest.mark.parametrize(
    ("method", "system", "right"),
    [
        ("te", "neuron_specialization", "allocation_te"),
        ("av", "allocation_te", "allocation_av"),
        ("random", "shared", "random"),
        ("te", "swapped", "allocation_te"),
        ("av", "random", "allocation_av"),
    ],
)
def test_a_method_that_is_not_the_system_s_is_told_with_the_system_that_has_it(method, system, right):
    with pytest.warns(UserWarning, match=rf"select\.method is '{method}', but {system} .*: {right}$"):
        checked(system, select=SelectConfig(method=method))


def test_a_method_that_is_the_system_s_is_not_told(recwarn):
    for method, system in {"te": "allocation_te", "av": "allocation_av", "random": "random"}.items():
        checked(system, select=SelectConfig(method=method))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("system", "settings", "more", "told"),
    [
        ("random", {"density": 0.5, "coverage": 0.8}, {}, "settings.coverage has no effect with settings.d"),
        ("random", {"density": 0.5, "count": "sentences"}, {}, "settings.count"),
        ("allocation_te", {}, {"record": RecordConfig(kinds=("ffn_out",))}, "record.kinds has no effect"),
        ("individual", {"small_vocabulary": 100}, {}, "data.tiers has no language 'low'"),
    ],
)
def test_a_setting_that_a_system_does_not_read_is_told(system, settings, more, told):
    with pytest.warns(UserWarning, match=told):
        checked(system, settings, **more)


def test_a_system_that_counts_neurons_wants_validation_text_before_any_work():
    data = DataConfig(corpus=CorpusConfig(path="no"), languages=["de"], valid_split="")
    run = SimpleNamespace(config=ExperimentConfig(data=data), pairs=data.trained_pairs())
    for system in ("neuron_specialization", "allocation_te", "random"):
        with pytest.raises(ConfigError, match=rf"{system} counts .* data\.valid_split"):
            make_system(system).check(run)
    make_system("finetune").check(run)


def test_the_seed_of_the_file_is_that_of_the_run_unless_one_is_named():
    for place in ({"arguments": {"seed": 7}}, {"batches": BatchConfig(seed=7)}):
        config = experiment(specialize=TrainConfig(**place))
        assert Run.of(config, "finetune").seed == 7
        assert Run.of(config, "finetune", 3).budget().arguments["seed"] == 3
    assert Run.of(experiment(), "finetune").seed == 1


def test_two_pivots_are_refused():
    with pytest.raises(ConfigError, match=r"gate\.pivot is 'de', but .* data\.pivot, 'en'"):
        experiment(gate=GateConfig(zero_shot="compose", pivot="de"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"base": "no", "pretrain": TrainConfig(arguments={"max_steps": 3})},
            "pretrain has no effect with b",
        ),
        ({"base": "no", "vocabulary": VocabularyConfig(size=100)}, "vocabulary has no effect with base"),
        ({"select": SelectConfig(general=0.5)}, "select.general has no effect with select.method coverage"),
        ({"compare": ComparisonPlan(rows={"ns": RowPlan()})}, "compare.rows are for recipes/compare.py"),
    ],
)
def test_a_whole_run_tells_what_it_does_not_read(more, told, tmp_path):
    config = experiment(work=str(tmp_path / "work"), results=str(tmp_path / "results"), **more)
    with pytest.warns(UserWarning, match=told), pytest.raises(Exception, match="no"):
        run_to_report(config, make_system("neuron_specialization"))


def test_every_system_is_known_to_the_file_of_these_tests():
    """A new one: does it read all of its settings, and of the experiment's, in every case?"""
    assert sorted(SYSTEMS) == sorted(
        "allocation_av allocation_te baseline deep differentiation elastic expansion "
        "family_adapters finetune gelu individual lass neuron_specialization pair_adapters "
        "random sampled shallow shared swapped target_attention wide".split()
    )


@pytest.mark.parametrize("system", ["baseline", "gelu", "individual", "target_attention"])
def test_a_dropout_of_the_continued_training_is_refused_where_none_goes_on_from_the_base(system):
    with pytest.raises(ConfigError, match=f"continued_dropout is for systems that go on .*, and {system}"):
        make_system(system, {"continued_dropout": 0.2})


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_a_dropout_of_the_continued_training_is_what_the_model_has(system):
    """The base is asked for with it, whatever else a system does to the base."""
    if not SYSTEMS[system].trains or make_system(system).from_scratch:
        return
    made, asked = tiny_text.model(), []
    run = SimpleNamespace(base=lambda **changes: asked.append(changes) or made, pairs=tiny_text.PAIRS, seed=1)
    make_system(system, {"continued_dropout": 0.2}).model(run)
    assert asked == [{"dropout": 0.2}]


def test_what_a_row_of_a_plan_gives_a_system_that_trains_nothing_is_told():
    rows = {"baseline": RowPlan(train={"learning_rate": 0.1})}
    with pytest.warns(UserWarning, match="row 'baseline': train has no effect, since baseline trains"):
        planned_rows(experiment(compare=ComparisonPlan(rows=rows)))
    rows = {"finetune": RowPlan(train={"seed": 7})}
    with pytest.raises(ConfigError, match=r"row 'finetune': a row's seeds are named by `seeds`"):
        planned_rows(experiment(compare=ComparisonPlan(rows=rows)))
