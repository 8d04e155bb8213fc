"""One YAML file is one experiment; the command line overrules any field; what is wrong is refused early."""

import warnings

import pytest
import yaml

from nspec_hf.comparison.table_data import blocks_of
from nspec_hf.core import ConfigError, Pair, check_settings_files
from nspec_hf.data import CorpusConfig
from nspec_hf.systems import DataConfig, ExperimentConfig, read_settings
from nspec_hf.systems.parts.zero_shot import StandIns
from tests.helpers.tiny_experiment import RECIPES
from tests.helpers.tiny_text import write_text


def data(**changes):
    return DataConfig(**{"corpus": CorpusConfig(path="text"), "languages": ["en", "de", "fr"], **changes})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.yaml"
    content = {
        "name": "tiny",
        "data": {"corpus": {"path": "text"}, "languages": ["en", "de"], "tiers": {"de": "low"}},
        "model": {"d_model": 16},
        "pretrain": {"arguments": {"max_steps": 3, "learning_rate": 1e-3}, "patience": 2},
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("named", ["languages", "pairs"])
def test_directions_of_nllb_go_out_of_and_into_its_english(named):
    pairs = ["eng_Latn-deu_Latn", "deu_Latn-eng_Latn", "eng_Latn-fra_Latn", "fra_Latn-eng_Latn"]
    given = {"languages": ["deu_Latn", "eng_Latn", "fra_Latn"], "pairs": ",".join(pairs)}
    config = data(**{"languages": (), named: given[named]})
    assert config.pivot == "eng_Latn"
    assert config.trained_pairs() == pairs
    assert blocks_of(config)["one-to-many"] == (pairs[0], pairs[2])
    stand_ins = StandIns(config.trained_pairs())
    assert [stand_ins.at("deu_Latn-fra_Latn", side) for side in ("encoder", "decoder")] == [1, 2]


def test_a_file_gives_what_it_says_and_defaults_for_the_rest(file):
    config, _ = read_settings(ExperimentConfig, [file])
    assert (config.name, config.model, config.pretrain.patience) == ("tiny", {"d_model": 16}, 2)
    assert config.pretrain.arguments == {"max_steps": 3, "learning_rate": 1e-3}
    assert config.data.tiers == {"de": "low"}
    assert config.select.coverage == 0.95
    assert config.specialize == type(config.specialize)()


def test_a_later_file_changes_the_fields_it_names_and_arguments_as_a_whole(file, tmp_path):
    later = tmp_path / "later.yaml"
    later.write_text("pretrain: {arguments: {bf16: true}}\ndata: {languages: [en, fr]}")
    with pytest.warns(UserWarning, match=r"pretrain\.arguments of .*, and learning_rate, max_steps with it"):
        config, _ = read_settings(ExperimentConfig, [file, "--config", str(later)])
    assert config.pretrain.arguments == {"bf16": True}
    assert (config.pretrain.patience, config.data.languages) == (2, ["en", "fr"])
    one = [file, "--pretrain.arguments.bf16", "true"]
    assert read_settings(ExperimentConfig, one)[0].pretrain.arguments["max_steps"] == 3


CONFIGS = RECIPES / "configs"


@pytest.mark.parametrize(
    "chain",
    [
        *(
            [f"{later.parent.name}.yaml", f"{later.parent.name}/{later.name}"]
            for later in CONFIGS.glob("*/*.yaml")
        ),
        ["multi30k_all.yaml", "multi30k_all/d64.yaml", "multi30k_all/restart.yaml"],
        ["multi30k_all.yaml", "multi30k_all/low.yaml", "multi30k_all/low_english.yaml"],
    ],
    ids=lambda chain: chain[-1],
)
def test_no_file_of_the_recipes_drops_what_the_one_before_it_set(chain):
    there = [str(CONFIGS / name) for name in chain if (CONFIGS / name).exists()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_settings_files([part for path in there for part in ("--config", path)])


def test_the_command_line_overrules_the_file_field_by_field(file):
    config, extra = read_settings(
        ExperimentConfig,
        [
            file,
            *"--data.corpus.path else --pretrain.arguments.max_steps 9 --select.coverage 0.5".split(),
            "--system=b",
        ],
        system={"choices": ("a", "b"), "default": "a"},
    )
    assert config.data.corpus.path == "else"
    assert config.pretrain.arguments == {"max_steps": 9, "learning_rate": 1e-3}
    assert config.select.coverage == 0.5
    assert extra.system == "b"


def test_fields_alone_are_enough():
    config, _ = read_settings(
        ExperimentConfig, ["--data.corpus.path", "text", "--data.languages", "[en, de]"]
    )
    assert config.data.trained_pairs() == ["en-de", "de-en"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--no_such_field", "1"], "no_such_field"),
        (["--select.coverage", "1.5"], "coverage is a share"),
        (["--pretrain.patience", "0"], "patience is a positive number"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_reason(file, capsys, wrong, message):
    with pytest.raises((SystemExit, ConfigError)) as caught:
        read_settings(ExperimentConfig, [file, *wrong])
    assert message in capsys.readouterr().err + str(caught.value)


def test_help_shows_the_string_under_each_field(capsys):
    with pytest.raises(SystemExit):
        read_settings(ExperimentConfig, ["--help"], description="What it does.")
    shown = " ".join(capsys.readouterr().out.split())
    assert "What it does." in shown
    assert "the share of a layer's activations to cover" in shown


def test_languages_mean_all_directions_with_the_pivot():
    assert data().trained_pairs() == ["en-de", "de-en", "en-fr", "fr-en"]
    assert data().zero_shot_pairs() == ["de-fr", "fr-de"]
    assert data().tested_pairs() == ["en-de", "de-en", "en-fr", "fr-en", "de-fr", "fr-de"]
    assert data(pivot="fr").trained_pairs() == ["fr-en", "en-fr", "fr-de", "de-fr"]


def test_pairs_that_are_named_are_meant():
    chosen = data(pairs=["de-fr", "en-de"])
    assert chosen.trained_pairs() == [Pair("de-fr"), Pair("en-de")]
    assert chosen.zero_shot_pairs() == ["fr-de"]
    assert data(zero_shot=["fr-de"]).zero_shot_pairs() == ["fr-de"]
    assert data(zero_shot=[]).zero_shot_pairs() == []


def test_no_direction_at_all_is_refused():
    with pytest.raises(ConfigError, match="data names no directions"):
        data(languages=[]).trained_pairs()


def test_a_split_is_read_for_the_trained_or_for_other_pairs(tmp_path):
    write_text(tmp_path, train=4, test=2)
    there = data(corpus=CorpusConfig(path=str(tmp_path)))
    assert [(text.pair, len(text)) for text in there.read("train")] == [
        (pair, 4) for pair in there.trained_pairs()
    ]
    assert [(text.pair, len(text)) for text in there.read("test", ["de-fr"])] == [("de-fr", 2)]


def test_a_run_may_move_its_text_but_not_change_it():
    def begun(**changes):
        return ExperimentConfig(data=data(**changes)).begun_with("model", "select")

    assert begun() == begun(corpus=CorpusConfig(path="elsewhere"), zero_shot=[], tiers={"de": "x"})
    assert begun() != begun(corpus=CorpusConfig(path="text", max_lines=3))
    assert begun() != begun(languages=["en", "fr", "de"])
    assert begun().keys() == {"text", "model", "select"}


def test_the_base_is_the_one_that_is_named_or_the_one_that_pretraining_leaves():
    assert ExperimentConfig(data=data(), work="w").base_model == "w/base/model"
    assert ExperimentConfig(data=data(), base="facebook/m2m100_418M").base_model == "facebook/m2m100_418M"
