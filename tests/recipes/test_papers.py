"""Recipes that claim a paper, against values copied from it, and the list of all that both papers show.

Tan et al. 2024: §5, A.1, A.2, Tables 7 and 8. Xie et al. 2021: §4.1 to §4.3, and the released run.sh.
"""

import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM

from nspec_hf.cli.main import COMMANDS
from nspec_hf.comparison import planned_rows
from nspec_hf.comparison.table_data import tiers_of
from nspec_hf.systems import ExperimentConfig, read_settings
from nspec_hf.training import training_arguments

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# Table 7, column by column.
EC30 = {
    "high": "de nl fr es ru cs hi bn ar he",
    "med": "sv da it pt pl bg kn mr mt ha",
    "low": "af lb ro oc uk sr sd gu ti am",
}
FAMILIES = {
    "Germanic": "de nl sv da af lb",
    "Romance": "fr es it pt ro oc",
    "Slavic": "ru cs pl bg uk sr",
    "Indo-Aryan": "hi bn kn mr sd gu",
    "Afro-Asiatic": "ar he mt ha ti am",
}


def read(name):
    return read_settings(ExperimentConfig, [str(RECIPES / "configs" / f"{name}.yaml")])[0]


def rows(name):
    return {row.name: row for row in planned_rows(read(name))}


def shape(config):
    model = config.model
    sides = [
        tuple(model[f"{side}_{size}"] for size in ("layers", "attention_heads", "ffn_dim"))
        for side in ("encoder", "decoder")
    ]
    assert sides[0] == sides[1]
    return model["d_model"], *sides[0], model["dropout"]


def script(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "expected"),
    # d, layers, heads, d_ff, dropout: Table 8; Xie et al. as Vaswani et al. 2017.
    [
        ("iwslt14", (512, 6, 8, 1024, 0.1)),
        ("ec30", (1024, 6, 16, 4096, 0.1)),
        ("iwslt17", (512, 6, 8, 2048, 0.1)),
        ("europarl", (512, 6, 8, 2048, 0.1)),
    ],
)
def test_models_have_the_printed_shapes(name, expected):
    assert shape(read(name)) == expected


@pytest.mark.parametrize(
    ("name", "changes", "subwords", "printed"),
    # Millions. Tan et al., Table 8: encoder and decoder have embeddings of their own, so one matrix more. Xie
    # et al., Tables 1 and 2: Marian's positions, 2 × 1,024, are no parameters there.
    [
        ("ec30", {}, 128_000, 439),
        ("ec30", {"ffn_dim": 8192}, 128_000, 540),
        ("ec30", {"layers": 12}, 128_000, 615),
        ("iwslt14", {"layers": 3}, 30_000, 47),
        ("iwslt17", {}, 40_000, 64.69),
        ("europarl", {}, 90_000, 90.42),
        ("europarl", {"ffn_dim": 3000}, 90_000, 102.14),
    ],
)
def test_models_have_the_printed_numbers_of_parameters(name, changes, subwords, printed):
    settings = dict(read(name).model)
    kind = CONFIG_MAPPING[settings.pop("model_type", "m2m_100")]
    changed = {f"{side}_{what}": value for what, value in changes.items() for side in ("encoder", "decoder")}
    config = kind(vocab_size=subwords, pad_token_id=1, decoder_start_token_id=2, **{**settings, **changed})
    with torch.device("meta"):
        found = AutoModelForSeq2SeqLM.from_config(config).num_parameters()
    more = -2 * 1024 * config.d_model if kind.model_type == "marian" else subwords * config.d_model
    assert (found + more) / 1e6 == pytest.approx(printed, rel=0.012)


def test_directions_are_those_of_the_papers():
    europarl = "cs fi el hu lt lv pl pt sk sl sv es".split()
    assert {str(pair) for pair in read("europarl").data.trained_pairs()} == {
        f"en-{code}" for code in europarl
    }
    couples = [("it", "en"), ("ro", "en"), ("nl", "en"), ("it", "ro")]
    both = {f"{one}-{other}" for couple in couples for one, other in (couple, couple[::-1])}
    assert {str(pair) for pair in read("iwslt17").data.trained_pairs()} == both
    assert not read("europarl").data.zero_shot_pairs()
    assert not read("iwslt17").data.zero_shot_pairs()
    iwslt = "fa pl ar he nl de it es".split()
    for name, codes in (("iwslt14", iwslt), ("ec30", " ".join(EC30.values()).split())):
        expected = {pair for code in codes for pair in (f"en-{code}", f"{code}-en")}
        assert {str(pair) for pair in read(name).data.trained_pairs()} == expected
    assert len(read("ec30").data.zero_shot_pairs()) == 870


def test_ec30_has_the_sizes_tiers_and_families_of_table_7():
    data = read("ec30").data
    assert data.tiers == {code: tier for tier, codes in EC30.items() for code in codes.split()}
    assert data.families == {code: family for family, codes in FAMILIES.items() for code in codes.split()}
    lines = {"high": 5_000_000, "med": 1_000_000, "low": 100_000}
    expected = {code: lines[tier] for tier, codes in EC30.items() for code in codes.split()} | {"ha": 334_000}
    assert data.corpus.lines_by_language == expected
    # "61 million", each once for both directions.
    assert sum(expected.values()) == 60_334_000


def test_ec30_has_tables_by_tier_and_the_nine_blocks_of_table_15():
    blocks = tiers_of(read("ec30").data)
    zero_shot = {
        name.removeprefix("zero-shot "): len(pairs) for name, pairs in blocks.items() if "zero" in name
    }
    tiers = ("high", "med", "low")
    expected = {f"{one}-{other}": 90 if one == other else 100 for one in tiers for other in tiers}
    assert zero_shot == expected
    assert {f"{group} {tier}" for group in ("one-to-many", "many-to-one") for tier in tiers} <= blocks.keys()


def test_tan_et_al_train_as_their_appendix_says(tmp_path):
    # A.2.1: Adam, 5e-4, 4,000 updates of warm-up, smoothing 0.1, patience 20; the same again to continue.
    for name, tokens, accumulation, temperature, size in (
        ("iwslt14", 2560, 4, 2, 30_000),
        ("ec30", 7680, 21, 5, 128_000),
    ):
        config = read(name)
        for training in (config.pretrain, config.specialize):
            arguments = training.arguments
            assert (training.patience, training.batches.temperature) == (20, temperature)
            assert (training.batches.max_tokens, arguments["gradient_accumulation_steps"]) == (
                tokens,
                accumulation,
            )
            assert (arguments["learning_rate"], arguments["warmup_steps"]) == (5e-4, 4000)
            made = training_arguments(dataclasses.replace(training, patience=None, arguments={}), tmp_path)
            assert (made.adam_beta1, made.adam_beta2, made.adam_epsilon) == (0.9, 0.98, 1e-9)
            assert made.label_smoothing_factor == 0.1
            assert not {"label_smoothing_factor", "adam_beta2", "adam_epsilon"} & arguments.keys()
        assert (config.vocabulary.kind, config.vocabulary.size) == ("unigram", size)
        assert (config.select.method, config.select.coverage) == ("coverage", 0.95)
        assert config.model.get("model_type", "m2m_100") == "m2m_100", "pre-norm"


def test_xie_et_al_prepare_train_and_decode_as_they_say():
    for name, size, moses, tokens, splits in (
        ("iwslt17", 40_000, "tokenize", 2048, ("test2016", "test2017")),
        ("europarl", 90_000, "truecase", 4096, ("dev2006", "devtest2006")),
    ):
        config = read(name)
        vocabulary = config.vocabulary
        assert (vocabulary.kind, vocabulary.size, vocabulary.moses) == ("bpe", size, moses)
        assert vocabulary.target_on_source
        assert (config.data.valid_split, config.data.test_split) == splits
        assert config.model["model_type"] == "marian", "post-norm"
        assert config.pretrain.batches.max_tokens == config.specialize.batches.max_tokens == tokens
        # run.sh: --lr 0.0001 --warmup-updates 4000 after --reset-optimizer.
        arguments = config.specialize.arguments
        assert (arguments["learning_rate"], arguments["warmup_steps"]) == (1e-4, 4000)
        assert (config.select.method, config.select.general, config.select.threshold) == ("te", 0.9, 0.7)
        assert set(config.record.kinds) == {"ffn", "attention", "ffn_out"}
        assert (config.translate.num_beams, config.translate.length_penalty) == (4, 0.6)
        released = rows(name)["allocation_te_released"].system
        assert (released.general, released.threshold) == (0.7, 0.9)
    assert read("europarl").data.corpus.max_lines == 600_000


def test_compared_systems_have_the_papers_settings():
    iwslt14, ec30 = rows("iwslt14"), rows("ec30")
    assert (iwslt14["lass"].system.pruned, iwslt14["lass"].system.dropout) == (0.7, 0.3)
    assert (ec30["lass"].system.pruned, ec30["lass"].system.dropout) == (0.7, 0.1)
    assert (ec30["pair_adapters"].system.bottleneck, ec30["family_adapters"].system.bottleneck) == (128, 512)
    assert ec30["random_30"].system.density == 0.7
    assert iwslt14["differentiation"].system.upper_bound == 1.0
    shallow = [iwslt14[f"differentiation_shallow_{bound}"] for bound in ("0.51", "none")]
    assert [row.system.upper_bound for row in shallow] == [0.51, None]
    assert {row.plan.base for row in (*shallow, iwslt14["ns_shallow"])} == {"shallow"}
    assert [run.seed for run in iwslt14["ns"].runs] == [222, 111]
    assert [run.seed for run in ec30["ns"].runs] == [222, 111, 42]
    assert {ec30[f"ns_{name}"].plan.base for name in ("gelu", "wide", "deep")} == {"gelu", "wide", "deep"}
    # A.2.2 and, for batches, Table 8.
    individual = ec30["individual"].system
    low = individual.small
    assert (low["d_model"], low["encoder_ffn_dim"], low["encoder_attention_heads"]) == (512, 512, 2)
    assert (low["dropout"], individual.max_tokens) == (0.3, 2560)
    assert individual.arguments == {"gradient_accumulation_steps": 10}
    assert individual.small_arguments == {"gradient_accumulation_steps": 1}
    for plan in (iwslt14, ec30):
        assert (plan["ns_sentences"].system.count, plan["ns_weights"].system.silence) == (
            "sentences",
            "weights",
        )
    for name in ("iwslt17", "europarl"):
        assert rows(name)["pair_adapters"].system.per_layer == 1
    expansion = rows("europarl")["expansion_te"]
    assert (expansion.system.name, expansion.plan.base) == ("allocation_te", "expansion")
    assert rows("europarl")["expansion"].system.width * 2048 == 3000
    # §5.3: tokenized BLEU for IWSLT, sacreBLEU for EC30; A.6: chrF++.
    assert set(read("iwslt14").metrics) >= {"bleu:none"}
    assert set(read("ec30").metrics) == {"bleu", "chrf++"}


def test_swept_settings_span_what_the_figures_span():
    def swept(name, row, setting):
        return {
            getattr(own.system, setting) for other, own in rows(name).items() if other.startswith(f"{row}_")
        }

    # Tan et al., Fig. 5; Xie et al., Fig. 4, Table 3 and Fig. 6.
    assert (min(swept("ec30", "ns_k", "coverage")), max(swept("ec30", "ns_k", "coverage"))) == (0.5, 0.97)
    for row in ("allocation_te_k", "allocation_av_k"):
        values = swept("iwslt17", row, "threshold")
        assert (min(values), max(values), 0.7 in values) == (0, 1, False)
    assert swept("iwslt17", "allocation_te_rho", "general") == {0.8, 0.95}
    assert swept("iwslt17", "allocation_te_by", "by") == {"source", "target", "separate"}


def test_every_table_and_figure_of_both_papers_is_in_the_list():
    content = yaml.safe_load((RECIPES / "papers.yaml").read_text(encoding="utf-8"))

    def named(paper, kind):
        items = [entry["item"] for entry in content[paper] if re.match(kind, entry["item"])]
        return {int(number) for item in items for number in re.findall(r"\d+", item)}

    assert named("tan", "Table") == set(range(1, 17))
    assert named("tan", "Fig") == set(range(1, 11))
    assert named("xie", "Table") == {1, 2, 3}
    assert named("xie", "Fig") == {1, 2, 3, 4, 5, 6}


def test_rows_and_files_of_the_list_are_there():
    content = yaml.safe_load((RECIPES / "papers.yaml").read_text(encoding="utf-8"))
    minutes = ["recipes/configs/multi30k_all.yaml", "--config", "recipes/configs/multi30k_all/minutes.yaml"]
    paths = [str(RECIPES.parent / word) if word.startswith("recipes") else word for word in minutes]
    here = {row.name for row in planned_rows(read_settings(ExperimentConfig, paths)[0])}
    plans = {name: set(rows(name)) for name in ("iwslt14", "ec30", "iwslt17", "europarl")}
    for entry in content["tan"] + content["xie"]:
        for plan in entry.get("printed", "").split(", ") if "rows" in entry else ():
            for row in entry["rows"]:
                pattern = re.compile(row.replace("*", ".*"))
                assert any(pattern.fullmatch(name) for name in plans[plan]), (plan, row)
        for row in entry.get("here_rows", entry.get("rows", [])):
            pattern = re.compile(row.replace("*", ".*"))
            assert any(pattern.fullmatch(name) for name in here), row


def test_commands_of_the_list_are_commands_and_their_options_are_options():
    content = yaml.safe_load((RECIPES / "papers.yaml").read_text(encoding="utf-8"))
    lines = [entry["command"] for entry in content["tan"] + content["xie"] if "command" in entry]
    for program, name, rest in (re.match(r"(\S+\.py|nspec (\w+))(.*)", line).groups() for line in lines):
        for option in re.findall(r"--([\w-]+)", rest.partition(", then nspec")[0]):
            if name:
                room, _ = COMMANDS[name]
                function = getattr(importlib.import_module(f"nspec_hf.{room}"), name)
                assert option in inspect.signature(function).parameters, (program, option)
            else:
                spelled = option.replace("-", "_")
                source = (RECIPES / program).read_text(encoding="utf-8")
                assert re.search(rf"(\"{spelled}\": {{|\b{spelled}={{)", source), (program, option)


def test_the_table_names_results_or_says_why_there_are_none(tmp_path):
    papers = script("papers")
    (tmp_path / "m30k_minutes.ns.s1.json").write_text("{}")
    table = papers.overview(tmp_path)
    results = {(row[1], row[2]): row[5] for row in table.rows}
    assert results["Table 1", "Ours"] == "m30k_minutes.ns.s1.json"
    assert results["Table 1", "LaSS"].startswith("not run, because")
    assert results["Table 15", "zero-shot by tiers"].startswith("not run, because Multi30k has no tiers")
    assert results["Fig. 5", "k 0.5 to 0.97"] == papers.PLANNED
    assert all(row[5] for row in table.rows)
