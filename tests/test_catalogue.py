"""A catalogue of bad inputs, over every command, every recipe and the public names.

Each must be answered by name, with what to do, by exit status 2 without a traceback, and nothing may be
written. What is right of each is held by the tests of its room.
"""

import hashlib
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch

import nspec_hf
from nspec_hf import (
    ActivationStats,
    BatchConfig,
    CorpusConfig,
    ExportConfig,
    GateConfig,
    LanguageTags,
    NeuronGate,
    NeuronMasks,
    Pair,
    PairCollator,
    RecordConfig,
    SelectConfig,
    TranslateConfig,
    Translator,
    encode_corpus,
    find_sites,
    read_corpus,
    record,
    select_by_coverage,
)
from nspec_hf.cli.main import COMMANDS, main
from nspec_hf.core import NspecError, exit_status
from nspec_hf.data import VocabularyConfig
from nspec_hf.evaluation import score
from nspec_hf.training import TrainConfig
from tests.helpers import tiny_text
from tests.helpers.spoiled import spoiled, whole
from tests.helpers.tiny_experiment import RECIPES, recipe

RECORD = "record --pairs en-de --corpus.path data --output new.safetensors"
TRAIN = "train --model base --corpus.path data --output new"
SENTENCE = "translate --pair en-de --input data/test.en --output new.txt"
ADD = "add-pair --model base --pairs en-fr --corpus.path data --output new"
EXPORT = "export --model base --masks masks --pairs en-de --output new"
EVALUATE = "evaluate --hypotheses one --output new.json"
COMPARE = "compare --baseline one --system two --corpus.path data --n_jobs 1 --output new.json"
PROBE = "probe --masks masks --model base --corpus.path data --output new"

BAD_MODELS = {
    "nowhere": "nowhere",
    "data": "data",
    "empty": "empty",
    "adapter": "PEFT",
    "model_cut": "model_cut",
    "model_pointer": "git lfs pull",
    "model_holes": "decoder.layers.1.fc1",
    "model_nan": "not finite",
    "model_wide": "fc1",
    "model_integers": "saved as int8",
    "model_unknown": "model_unknown",
    "model_code": "code of its own",
    "model_json": "model_json",
    "model_weightless": "model_weightless",
    "model_speechless": "model_speechless",
}
BAD_TEXTS = {
    "nowhere": "no folder nowhere",
    "empty": "no valid text of en-de",
    "text_uneven": "2 lines",
    "text_empty": "no line",
    "text_gap": "line 2: empty",
    "text_latin": "line 1: not UTF-8",
    "text_utf16": "UTF-16",
    "text_cells": "3 cells under 2 headings",
    "text_columns": "no language 'de'",
    "text_json": "line 2",
    "text_number": "expected text, got 1",
    "text_scalar": "line 1",
    "text_deep": "line 1",
    "text_parquet": "text_parquet",
    "text_gz": "valid.en.gz",
}

COMMAND_LINES = {
    # command line → what its answer must hold
    "reccord": "record, select",
    "--modell base": "commands are",
    **{f"{RECORD} --model {model}": said for model, said in BAD_MODELS.items()},
    **{f"record --model base --pairs en-de --output new --corpus.path {text}": said for text, said in BAD_TEXTS.items()},
    f"{RECORD} --model base --max_tokens 0": "max_tokens",
    f"{RECORD} --model base --max_length 0": "max_length",
    f"{RECORD} --model base --max_tokens nan": "max_tokens",
    f"{RECORD} --model base --split nothing": "no nothing text",
    f"{RECORD} --model base --record.count words": "words",
    f"{RECORD} --model base --record.kinds [ffm]": "ffm",
    f"{RECORD} --model base --record.max_sentences 0": "max_sentences",
    f"{RECORD} --model base --corpus.max_lines -1": "positive",
    f"{RECORD} --model base --corpus.bad_lines drop": "drop",
    f"{RECORD} --model base --codes 3": "codes",
    f"{RECORD} --model base --codes {{en:xx_XX}}": "xx_XX",
    "record --model base --pairs en-xx --output new --corpus.path data": "xx",
    "record --model base --pairs ende --output new --corpus.path data": "ende",
    "record --model base --pairs en-de,en-de --output new --corpus.path data": "en-de",
    "record --model base --pairs en-en --output new --corpus.path data": "into itself",
    "translate --model base --pair en-en --corpus.path data --output new": "into itself",
    "run lab/tiny.yaml --data.pairs [en-en]": "into itself",
    "record --model base --pairs ../x-de --output new --corpus.path data": "../x",
    "record --model base --pairs en-de --output new": "path",
    "record --model base --pairs en-de --corpus.path data --corpus.dataset x --output new": "not both",
    "record --pairs en-de --corpus.path data": "model",
    "run": "data",
    "run nowhere.yaml": "nowhere.yaml",
    "run broken.yaml": "broken.yaml",
    "run lab/tiny.yaml --system finetune": "recipes/specialize.py",
    "run lab/tiny.yaml --system nothing": "nothing",
    "run lab/tiny.yaml --coverage 1.5": "(0, 1]",
    "run lab/tiny.yaml --system allocation_te --coverage 0.9": "not of allocation_te",
    "run lab/tiny.yaml --max_steps 1.5": "max_steps",
    "run lab/tiny.yaml --batch_tokens 0": "batch_tokens",
    "run lab/tiny.yaml --seed -1": "seed",
    "run lab/tiny.yaml --model nowhere": "nowhere",
    "run lab/tiny.yaml --data.test_split nothing": "no nothing text",
    "run lab/tiny.yaml --specialize.optim adamm": "adamm",
    "run lab/tiny.yaml --specialize.nothing 3": "nothing",
    "run lab/tiny.yaml --pretrain.metric_for_best_model eval_loss_xx": "eval_loss_xx",
    "record --config nowhere.yaml": "nowhere.yaml",
    "record --config latin.yaml": "latin.yaml",
    "record --config list.yaml": "list.yaml",
    "record --config broken.yaml": "broken.yaml",
    "select --stats nowhere.safetensors --output new": "nowhere.safetensors",
    "select --stats data --output new": "data",
    "select --stats scores.json --output new": "scores.json",
    "select --stats stats_cut.safetensors --output new": "stats_cut",
    "select --stats stats_flipped.safetensors --output new": "stats_flipped",
    "select --stats stats_none.safetensors --output new": "stats_none",
    "select --stats stats_foreign.safetensors --output new": "stats_foreign",
    "select --stats masks/nspec_masks.safetensors --output new": "masks",
    "select --output new --select.coverage 0": "(0, 1]",
    "select --output new --coverage 2": "(0, 1]",
    "select --output new --select.method random --coverage 0.5": "random has no coverage",
    "select --output new --select.coverage 1.5": "(0, 1]",
    "select --output new --select.coverage nan": "coverage",
    "select --output new --select.method best": "best",
    "select --output new --select.method te": "te",
    "select --output new --select.method random --select.density 0": "density",
    "select --output new --select.method random --select.seed -3": "seed",
    "select --output new --select.sides middle": "middle",
    "select --output new --select.by nothing": "nothing",
    f"{TRAIN}": "give masks",
    f"{TRAIN} --masks masks --pairs en-de": "give masks",
    f"{TRAIN} --masks nowhere": "nowhere",
    f"{TRAIN} --masks masks_cut": "masks_cut",
    f"{TRAIN} --masks masks_flipped": "masks_flipped",
    f"{TRAIN} --masks masks --train.arguments {{max_steps:1.5}}": "max_steps",
    f"{TRAIN} --masks masks --train.arguments {{max_step:3}}": "max_step",
    f"{TRAIN} --masks masks --train.arguments {{optim:adamm}}": "adamm",
    f"{TRAIN} --masks masks --train.arguments {{report_to:nobody}}": "nobody",
    f"{TRAIN} --masks masks --train.arguments {{lr_scheduler_type:fast}}": "fast",
    f"{TRAIN} --masks masks --train.arguments {{output_dir:x}}": "output_dir",
    f"{TRAIN} --masks masks --train.arguments {{eval_strategy:often}}": "often",
    f"{TRAIN} --masks masks --train.arguments {{learning_rate:fast}}": "learning_rate",
    f"{TRAIN} --masks masks --train.arguments {{deepspeed:nowhere.json}}": "deepspeed",
    f"{TRAIN} --masks masks --train.arguments {{load_best_model_at_end:true,save_steps:3,eval_steps:2}}": "saving steps",
    f"{TRAIN} --masks masks --train.arguments {{data_seed:3}}": "data_seed",
    f"{TRAIN} --masks masks --train.batches.max_tokens 0": "max_tokens",
    f"{TRAIN} --masks masks --batch_tokens 0": "batch_tokens",
    f"{TRAIN} --masks masks --seed -1": "seed",
    f"{TRAIN} --masks masks --train.max_step 3": "max_step",
    f"{TRAIN} --masks masks --train.metric_for_best_model eval_loss_en-xx": "eval_loss_en-xx",
    f"{TRAIN} --masks masks --train.batches.temperature 0.5": "temperature",
    f"{TRAIN} --masks masks --train.batches.seed -1": "seed",
    f"{TRAIN} --masks masks --train.patience 0": "patience",
    f"{TRAIN} --masks masks --gate.mode fast": "fast",
    f"{TRAIN} --masks masks --gate.silence loud": "loud",
    f"{TRAIN} --masks masks --train_split nothing": "no nothing text",
    **{f"{SENTENCE} --model {model}": said for model, said in BAD_MODELS.items() if model != "model_wide"},
    f"{SENTENCE} --model base --input nowhere.txt": "nowhere.txt",
    f"{SENTENCE} --model base --input data": "data",
    f"{SENTENCE} --model base --input text_utf16/valid.de": "UTF-16",
    f"{SENTENCE} --model base --masks masks --pair de-fr": "de-fr",
    f"{SENTENCE} --model base --pair en-sv": "sv",
    f"{SENTENCE} --model base --translate.num_beams 0": "num_beams",
    f"{SENTENCE} --model base --translate.max_tokens 0": "max_tokens",
    f"{SENTENCE} --model base --translate.length_ratio nan": "length_ratio",
    f"{SENTENCE} --model base --translate.length_penalty nan": "length_penalty",
    f"{SENTENCE} --model base --masks masks_foreign": "masks_foreign",
    "translate --model base --input data/test.en --output new.txt": "give --pair en-de",
    "translate --model base --corpus.path data --output new": "name the pairs",
    "translate --model base --pair en-de --corpus.path nowhere --output new": "nowhere",
    "translate --model base --pair en-de --corpus.path data --input data/test.en --output new": "not both",
    "translate --model nowhere --pair en-de --corpus.path data --output new": "nowhere",
    "inspect --path nowhere": "nowhere",
    "inspect --path data": "data",
    "inspect --path masks_none": "masks_none",
    "inspect --path stats_cut.safetensors": "stats_cut",
    "inspect --path base --kinds [nothing]": "nothing",
    f"{ADD} --add.width wide": "width",
    f"{ADD} --add.width -1": "width",
    f"{ADD} --add.lora -1": "lora",
    f"{ADD} --add.copies [everything]": "everything",
    f"{ADD} --add.kin xx": "xx",
    f"{ADD} --add.languages [xx]": "xx",
    f"{ADD} --added nowhere": "nowhere",
    f"{ADD} --added masks": "nspec_added",
    f"{ADD} --masks nowhere": "nowhere",
    f"{ADD} --way replay": "old-pairs",
    f"{ADD} --way free --added masks": "--way free",
    f"{ADD} --train.arguments {{max_step:3}}": "max_step",
    f"{SENTENCE} --model base --added nowhere": "nowhere",
    f"{EXPORT} --export.format zip": "zip",
    f"{EXPORT} --export.sample 0": "sample",
    f"{EXPORT} --export.agreement 2": "agreement",
    f"{EXPORT} --export.quantization int8": "quantizes",
    f"{EXPORT} --export.format ctranslate2 --export.quantization int7": "int7",
    f"{EXPORT} --pairs de-fr": "de-fr",
    f"{EXPORT} --masks masks_cut": "masks_cut",
    f"{EXPORT} --model model_wide": "fc1",
    "export --model base --masks masks --pairs en-de --output full": "full",
    f"{EVALUATE}": "--references DIR",
    f"{EVALUATE} --corpus.path data --references two": "not both",
    f"{EVALUATE} --corpus.path data --metric nothing": "nothing",
    f"{EVALUATE} --corpus.path data --metric evaluate:nowhere": "nowhere",
    f"{EVALUATE} --corpus.path data --style loud": "loud",
    f"{EVALUATE} --corpus.path data --split train": "sentences",
    f"{EVALUATE} --references empty": "empty",
    f"{EVALUATE} --references two --tiers_from train": "corpus",
    f"{EVALUATE} --references two --comet_out new": "sources",
    f"{EVALUATE} --references two --comet_in nowhere": "nowhere",
    f"{EVALUATE} --corpus.path data --pivot xx": "xx",
    "evaluate --hypotheses nowhere --corpus.path data": "nowhere",
    f"{COMPARE} --n_samples 0": "n_samples",
    f"{COMPARE} --seed -1": "seed",
    f"{COMPARE} --test magic": "magic",
    f"{COMPARE} --metric nothing": "nothing",
    f"{COMPARE} --n_jobs -2": "n_jobs",
    f"{COMPARE} --system nowhere": "nowhere",
    f"{COMPARE} --baseline_ending ref": "ref",
    **{f"analyze --masks masks --output new --scores [{file}.json]": file for file in ("list", "deep", "cut", "other", "number")},
    **{f"report --masks masks --output new.html --comparison {file}.json": file for file in ("list", "deep", "cut", "other", "latin")},
    "analyze --masks nowhere --output new": "nowhere",
    "analyze --masks masks_cut --output new": "masks_cut",
    "analyze --masks masks --output new --stats nowhere": "nowhere",
    "analyze --masks masks --output new --pivot xx": "xx",
    "analyze --masks masks --output new --model_width -1": "model_width",
    "analyze --masks masks --output new --seconds nan": "seconds",
    "analyze --masks masks --output new --scores [scores.json] --baseline nothing": "nothing",
    "analyze --masks masks --output new --scores [scores.json] --metric ter": "ter",
    "analyze --masks masks --output new --by_setting {k:{high:scores.json}}": "'high'",
    "report --masks masks --output full": "full",
    f"{PROBE} --coverages [0.5]": "--stats FILE",
    f"{PROBE} --lines 0": "lines",
    f"{PROBE} --lines -1": "lines",
    f"{PROBE} --sizes [0]": "sizes",
    f"{PROBE} --seeds [-1] --erase false": "seed",
    f"{PROBE} --erase_of [de-fr] --sizes []": "de-fr",
    f"{PROBE} --metric nothing --sizes []": "nothing",
    f"{PROBE} --test_split nothing": "no nothing text",
    "demo --families 1 --output new": "2 families",
    "demo --languages 99 --output new": "languages",
    "demo --sentences 0 --output new": "sentences",
    "demo --updates 0 --output new": "updates",
    "demo --seed -1 --output new": "seed",
    "demo --trials 0 --output new": "trials",
    "publish nowhere --repo me/masks": "nowhere",
    "publish base --repo me/masks": "no masks to publish",
    "publish masks --repo me/masks --scores [list.json]": "list.json",
    "publish masks --repo me/masks --scores [scores.json]": "dataset",
    "publish masks --repo me/masks --comparison number.json": "number.json",
    "publish masks --repo me/masks --stats nowhere": "nowhere",
    "serve nowhere": "nowhere",
    "serve empty": "neither masks",
    "serve masks_cut": "masks_cut",
    "serve base --masks nowhere": "nowhere",
    "serve base --gate.mode mask": "no masks that a gate could apply",
    "serve masks --base adapter": "PEFT",
    "serve masks --serve.port 99999": "port",
    "serve masks --serve.max_body 0": "max_body",
    "serve masks --batching.max_batch 0": "max_batch",
    "serve masks --batching.max_wait 60": "max_wait",
    "doctor base --pairs ende": "ende",
    "doctor base --train.batches.max_tokens 0": "max_tokens",
}  # fmt: skip

LAB = "lab/tiny.yaml"
RECIPE_LINES = {
    "pretrain nowhere.yaml": "nowhere.yaml",
    "pretrain broken.yaml": "broken.yaml",
    "pretrain latin.yaml": "latin.yaml",
    "pretrain list.yaml": "list.yaml",
    f"pretrain {LAB} --data.corpus.path nowhere": "nowhere",
    f"pretrain {LAB} --vocabulary.size 0": "size",
    f"pretrain {LAB} --pretrain.arguments {{optim:adamm}}": "adamm",
    f"pretrain {LAB} --model {{d_modell:3}}": "d_modell",
    f"pretrain {LAB} --data.languages []": "languages",
    f"specialize {LAB} --system nothing": "nothing",
    f"specialize {LAB} --seed -1": "seed",
    f"specialize {LAB} --specialize.arguments {{optim:adamm}}": "adamm",
    f"specialize {LAB} --specialize.arguments {{save_steps:3,eval_steps:2,load_best_model_at_end:true}}": "saving steps",
    f"specialize {LAB} --settings {{nothing:1}}": "nothing",
    f"specialize {LAB}": "base",
    f"specialize {LAB} --system finetune --push me/masks": "--push",
    f"compare {LAB} --rows nothing": "compare:",
    f"compare {LAB} --jobs 0": "compare:",
    f"untrained {LAB} --rows nothing": "compare:",
    f"figures {LAB} --row nothing": "compare:",
    "papers --results nowhere": "nowhere",
    "dial nowhere.yaml": "nowhere.yaml",
    "lab --rows [nothing] --results new.json": "no row nothing",
    "lab_diagram nowhere.json": "nowhere.json",
    "frontier nothing --results empty --output new": "nothing",
    "serve_load --model nowhere --data data --pairs en-de --split test": "nowhere",
    "serve_load --model masks --data nowhere --pairs en-de": "nowhere",
    "exports --model nowhere --masks masks --data data": "nowhere",
    "exports --model base --masks nowhere --data data": "nowhere",
    "exports --model base --masks masks --data nowhere": "nowhere",
    "smaller --model nowhere --masks masks --dense base --data data --pairs en-de --split test": "nowhere",
    "smaller_shapes --data nowhere --work new --shapes m2m100_418M": "nowhere",
    "add_language nowhere.yaml": "nowhere.yaml",
    "disjoint_english nowhere new": "nowhere",
    "disjoint_english data new --lines 0": "lines",
}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder of right and wrong files, made once; every case looks whether it is as it was."""
    folder = tmp_path_factory.mktemp("catalogue")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole(folder)
    spoiled(folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Return path → digest of every file in a folder; a lock says nothing, and so does an empty folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def split(line: str) -> list[str]:
    """Return the words of a line; `{a:b}` is YAML without spaces."""
    return [word.replace(":", ": ") if word.startswith(("{", "[")) else word for word in line.split()]


def refused(call, folder, capsys, monkeypatch):
    """Return what a call says that must refuse its input and write nothing."""
    before = contents(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", None)  # a question to the user would end in an error of another kind
    capsys.readouterr()
    try:
        status = call()
    except SystemExit as left:
        status = left.code
    said, after = capsys.readouterr().err, contents(folder)
    for path in after.keys() - before.keys():  # the next case begins as this one did
        (folder / path).unlink()
    shutil.rmtree(folder / "new", ignore_errors=True)
    assert "Traceback" not in said
    assert status == 2, said
    assert after == before
    return said


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_names_what_is_wrong_and_writes_nothing(line, there, capsys, monkeypatch):
    said = refused(lambda: main(split(line)), there, capsys, monkeypatch)
    assert COMMAND_LINES[line] in said


@pytest.mark.parametrize("line", RECIPE_LINES)
def test_a_recipe_names_what_is_wrong_and_writes_nothing(line, there, capsys, monkeypatch):
    name, *rest = split(line)
    monkeypatch.setattr("sys.argv", [str(RECIPES / f"{name}.py"), *rest])
    said = refused(lambda: exit_status(f"{name}.py", recipe(name)), there, capsys, monkeypatch)
    assert RECIPE_LINES[line] in said


def test_every_command_and_recipe_is_in_the_catalogue():
    assert {line.split()[0] for line in COMMAND_LINES} >= set(COMMANDS)
    scripts = {path.stem for path in RECIPES.glob("*.py")}
    assert {line.split()[0] for line in RECIPE_LINES} == scripts


def test_the_catalogue_is_large():
    assert len(COMMAND_LINES) + len(RECIPE_LINES) + len(CALLS) >= 120
    assert "nspec_hf" in sys.modules


def model():
    return tiny_text.model()


def masks():
    return tiny_text.masks(model())


def batch():
    collate = PairCollator(tiny_text.tokenizer(), tiny_text.PAIRS)
    corpus = tiny_text.corpus(4)
    return collate([corpus[0], corpus[1]])


CALLS = {
    "a pair without a dash": (lambda: Pair("ende"), "ende"),
    "a pair with a path in it": (lambda: Pair("../x", "de"), "../x"),
    "a pair with a line break": (lambda: Pair("en", "x\n"), "x"),
    "no such kind of site": (lambda: find_sites(model(), ("nothing",)), "nothing"),
    "sites of a model that has none": (lambda: find_sites(torch.nn.Linear(2, 2)), "Linear"),
    "counts under zero": (lambda: select_by_coverage(torch.tensor([-1.0, 2.0]), 0.5), "negative"),
    "counts that are not finite": (lambda: select_by_coverage(torch.tensor([float("nan"), 2.0]), 0.5), "finite"),
    "a coverage of zero": (lambda: select_by_coverage(torch.tensor([1.0, 2.0]), 0.0), "(0, 1]"),
    "no batches": (lambda: record(model(), [], ["en-de"]), "en-de"),
    "no pairs": (lambda: record(model(), [batch()], []), "pair"),
    "pair ids beyond the pairs": (lambda: record(model(), [{**batch(), "pair_ids": torch.tensor([0, 9])}], ["en-de"]), "9"),
    "negative pair ids": (lambda: record(model(), [{**batch(), "pair_ids": torch.tensor([0, -1])}], ["en-de"]), "-1"),
    "a batch without pairs": (lambda: record(model(), [{k: v for k, v in batch().items() if k != "pair_ids"}], ["en-de"]), "pair_ids"),
    "statistics that are not there": (lambda: ActivationStats.load("nowhere"), "nowhere"),
    "masks that are not there": (lambda: NeuronMasks.from_pretrained("nowhere"), "nowhere"),
    "a repository's address": (lambda: NeuronMasks.from_pretrained("me/masks.git"), "me/masks.git"),
    "random masks of no pairs": (lambda: NeuronMasks.random({"model.encoder.layers.0.fc1": 8}, []), "pair"),
    "random masks of no neurons": (lambda: NeuronMasks.random({"model.encoder.layers.0.fc1": 0}, ["en-de"]), "model.encoder.layers.0.fc1"),
    "a density over one": (lambda: NeuronMasks.random({"model.encoder.layers.0.fc1": 8}, ["en-de"], density=2), "density"),
    "a pair without a mask": (lambda: masks()["de-fr"], "de-fr"),
    "a composition without a pivot": (lambda: masks().compose("de-fr", pivot="xx"), "xx"),
    "a union of nothing": (lambda: masks().subset([]), "pair"),
    "masks of another model": (lambda: NeuronGate(tiny_text.model(encoder_ffn_dim=40), masks()), "fc1"),
    "a gate's mode": (lambda: GateConfig(mode="fast"), "fast"),
    "a gate's multiple": (lambda: GateConfig(multiple_of=0), "multiple_of"),
    "use of a pair without a mask": (lambda: NeuronGate(model(), masks()).use("de-fr"), "de-fr"),
    "a token budget of zero": (lambda: BatchConfig(max_tokens=0), "max_tokens"),
    "a token budget that is no number": (lambda: BatchConfig(max_tokens=float("nan")), "max_tokens"),
    "a corpus without a place": (CorpusConfig, "path"),
    "a corpus of no lines": (lambda: CorpusConfig(path="x", max_lines=0), "positive"),
    "a corpus of a language's no lines": (lambda: CorpusConfig(path="x", lines_by_language={"de": -1}), "de"),
    "text that is not there": (lambda: read_corpus(CorpusConfig(path="nowhere"), ["en-de"], "train"), "nowhere"),
    "a language without a tag": (lambda: encode_corpus(tiny_text.texts(2), LanguageTags(tiny_text.tokenizer(), {"de": "xx"})), "xx"),
    "a vocabulary of nothing": (lambda: VocabularyConfig(size=0), "size"),
    "a vocabulary's kind": (lambda: VocabularyConfig(kind="words"), "words"),
    "a recording of nothing": (lambda: RecordConfig(max_sentences=0), "max_sentences"),
    "a selection's seed": (lambda: SelectConfig(method="random", seed=-3), "seed"),
    "beams": (lambda: TranslateConfig(num_beams=0), "num_beams"),
    "beams that are no number": (lambda: TranslateConfig(max_tokens=float("nan")), "max_tokens"),
    "an export's sample": (lambda: ExportConfig(sample=0), "sample"),
    "patience": (lambda: TrainConfig(patience=0), "patience"),
    "a translator of something": (lambda: Translator(model(), tiny_text.tokenizer(), "masks"), "NeuronMasks"),
    "a translation of fewer pairs": (lambda: Translator(model(), tiny_text.tokenizer()).translate(["a", "b"], ["en-de"]), "2"),
    "a translation into nothing": (lambda: Translator(model(), tiny_text.tokenizer()).translate(["a"], "en-xx"), "xx"),
    "scores of fewer sentences": (lambda: score(["a"], ["a", "b"], "bleu"), "1"),
    "scores of nothing": (lambda: score([], [], "bleu"), "no"),
    "a metric of nothing": (lambda: score(["a"], ["a"], "nothing"), "nothing"),
}  # fmt: skip
"""What is wrong → a call of public names, and what its answer must hold."""


@pytest.mark.parametrize("what", CALLS)
def test_a_call_names_what_is_wrong(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = CALLS[what]
    with pytest.raises((NspecError, ValueError, FileNotFoundError)) as raised:
        call()
    # Ours, or the builtin that the docstring promises; not what a library below raises.
    assert isinstance(raised.value, NspecError) or type(raised.value) in (ValueError, FileNotFoundError)
    assert said in str(raised.value)
    assert len(str(raised.value)) > 20
    assert not list(tmp_path.iterdir())
    assert nspec_hf.__version__
