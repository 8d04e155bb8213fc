"""The commands in one flow on tiny files, each compared with what the functions behind it return."""

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from nspec_hf import ActivationStats, LanguageTags, NeuronMasks, Translator, encode_corpus
from nspec_hf.analysis import recordings, stability as stability_of
from nspec_hf.cli.evaluate import _names
from nspec_hf.cli.main import main
from nspec_hf.data import CorpusConfig, PairCollator, load_tokenizer, read_corpus
from nspec_hf.evaluation import score
from nspec_hf.recording import RecordConfig, load_model, record
from tests.helpers import tiny_text

PAIRS = [str(pair) for pair in tiny_text.PAIRS]
TEST = "data/test.de"
SHORT = ["--translate.num_beams", "2", "--translate.length_ratio", "0.5", "--translate.length_extra", "6"]


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A folder in which every command has run, one after the other, and what each printed."""
    folder = tmp_path_factory.mktemp("flow")
    tiny_text.write_text(folder / "data", train=40, valid=16, test=10)
    tiny_text.model().save_pretrained(folder / "base")
    tiny_text.tokenizer().save_pretrained(folder / "base")
    said = {}

    def nspec(*arguments, key=None):
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr("sys.stdout", printed)
            assert main([str(argument) for argument in arguments]) == 0
        said[key or arguments[0]] = printed.getvalue()

    text = ["--corpus.path", "data"]
    nspec("record", "--model", "base", "--pairs", ",".join(PAIRS), *text, "--max_tokens", 60)
    nspec("select", "--coverage", 0.8)
    run = ["--max-steps", 3, "--learning-rate", 0.01, "--batch-tokens", 60, "--train.warmup-steps", 1]
    run += ["--train.logging_steps", 1, "--train.eval_steps", 3, "--train.arguments.save_steps", 3]
    nspec("train", "--model", "base", "--masks", "masks", *text, "--output", "ours", *run)
    nspec(
        "train", "--model", "base", "--pairs", ",".join(PAIRS), *text, "--output", "dense", *run, key="dense"
    )
    for pair in PAIRS:
        source = folder / "data" / f"test.{pair.split('-')[0]}"
        for system, masks in (("ours", ["--masks", "masks"]), ("dense", [])):
            (folder / f"{system}_out").mkdir(exist_ok=True)
            files = ["--input", source, "--output", f"{system}_out/{pair}.txt"]
            nspec("translate", "--model", f"{system}/model", *masks, "--pair", pair, *files, *SHORT)
    for path in ("masks", "nspec_stats.safetensors", "base"):
        nspec("inspect", "--path", path, key=path)
    for system in ("dense", "ours"):
        nspec(
            "evaluate", "--hypotheses", f"{system}_out", *text, "--output", f"{system}.json", "--name", system
        )
    against = ["--baseline", "dense_out", "--system", "ours_out", "--n_samples", 100, "--n_jobs", 1]
    nspec("compare", *against, *text, "--output", "comparison.json")
    about = ["--masks", "masks", "--stats", "nspec_stats.safetensors", "--scores", "[dense.json,ours.json]"]
    nspec("analyze", *about, "--output", "analysis", "--figures", "false")
    nspec("report", *about, "--comparison", "comparison.json", "--title", "Ours & theirs")
    return folder, said


def test_record_counts_what_the_function_counts(flow):
    folder, said = flow
    network = AutoModelForSeq2SeqLM.from_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    corpus = encode_corpus(tiny_text.texts(16, seed=1), LanguageTags(tokenizer), progress=False)
    collate = PairCollator(tokenizer, corpus.pairs, network.config.decoder_start_token_id)
    expected = record(network, [collate([row]) for row in corpus], corpus.pairs)
    stats = ActivationStats.load(folder / "nspec_stats.safetensors")
    assert list(stats.pairs) == PAIRS
    for site in expected.sites:
        assert (stats.counts[site.name] == expected.counts[site.name]).all()
    assert "4 pairs at 4 sites" in said["record"]


def test_select_writes_the_masks_of_its_rule_and_prints_their_density(flow):
    folder, said = flow
    masks = NeuronMasks.from_pretrained(folder / "masks")
    assert masks == NeuronMasks.from_coverage(ActivationStats.load(folder / "nspec_stats.safetensors"), 0.8)
    for pair in PAIRS:
        row = next(line for line in said["select"].splitlines() if line.split()[:1] == [pair])
        assert float(row.split()[-1]) == pytest.approx(masks.density(pair), abs=5e-4)


def test_train_changes_the_weights_and_leaves_the_silenced_rows_of_all_pairs_alone(flow):
    folder, said = flow
    before = AutoModelForSeq2SeqLM.from_pretrained(folder / "base").state_dict()
    after = AutoModelForSeq2SeqLM.from_pretrained(folder / "ours" / "model").state_dict()
    assert before.keys() == after.keys()
    masks = NeuronMasks.from_pretrained(folder / "masks")
    dead = {site.name: ~masks.keep[site.name].any(dim=0) for site in masks.sites}
    assert any(rows.any() for rows in dead.values())
    for name, rows in dead.items():
        weight = f"{name}.weight"
        assert (before[weight][rows] == after[weight][rows]).all()
        assert not (before[weight][~rows] == after[weight][~rows]).all()
    assert "3 updates" in said["train"]


def test_translate_writes_what_the_translator_returns(flow):
    folder, _ = flow
    network = AutoModelForSeq2SeqLM.from_pretrained(folder / "ours" / "model")
    masks = NeuronMasks.from_pretrained(folder / "masks")
    translator = Translator(network, AutoTokenizer.from_pretrained(folder / "base"), masks)
    sources = (folder / "data" / "test.de").read_text(encoding="utf-8").splitlines()
    settings = {"num_beams": 2, "max_new_tokens": 4}
    expected = translator.translate(sources, "de-en", **settings)
    from_file = main_output(
        folder, "translate", "--model", "ours/model", "--masks", "masks", "--pair", "de-en",
        "--input", "data/test.de", "--translate.num_beams", "2",
        "--translate.length_ratio", "0.0001", "--translate.length_extra", "4",
    )  # fmt: skip
    assert from_file.splitlines() == expected


def test_a_level_of_one_folder_runs_the_neurons_that_are_selected_for_it_alone(flow, monkeypatch):
    folder, _ = flow
    stats = ["select", "--stats", "nspec_stats.safetensors", "--coverage"]
    main_output(folder, *stats, "sparse", "--levels", "[0.2]", "--output", "dial")
    main_output(folder, *stats, "0.2", "--output", "sparse")
    alone = {name: NeuronMasks.from_pretrained(folder / name).fingerprint() for name in ("dial", "sparse")}
    assert alone["dial"] != alone["sparse"]
    counted = ActivationStats.load(folder / "nspec_stats.safetensors")
    assert alone["dial"] == NeuronMasks.from_coverage(counted, 0.6).fingerprint()
    monkeypatch.setattr(Translator, "translate", lambda self, *_: [self.gate.masks.fingerprint()])
    text = ["translate", "--model", "ours/model", "--pair", "de-en", "--input", "data/test.de"]
    asked = {"dial": ["dial"], "sparse": ["dial", "--coverage", "0.2"]}
    for name, masks in asked.items():
        assert main_output(folder, *text, "--masks", *masks).strip() == alone[name]
    assert "coverage 0.2 keeps" in main_output(folder, "inspect", "--path", "dial")


def test_a_dial_is_trained_from_the_levels_of_one_folder(flow):
    """Neurons that only the dense level runs are trained, though the masks themselves silence them."""
    folder, _ = flow
    select = ["select", "--stats", "nspec_stats.safetensors", "--output", "levels", "--coverage", "0.3"]
    main_output(folder, *select, "--levels", "[0.95]")
    run = ["train", "--model", "base", "--masks", "levels", "--corpus.path", "data", "--max-steps", "4"]
    run += ["--batch-tokens", "60", "--learning-rate", "0.01", "--train.warmup-steps", "1"]
    run += ["--train.arguments.save_steps", "4", "--train.arguments.eval_steps", "4", "--output", "elastic"]
    elastic = ["--train.elastic", "true", "--train.teacher", "0.5"]
    assert "4 updates" in main_output(folder, *run, *elastic)
    masks = NeuronMasks.from_pretrained(folder / "levels")
    before = AutoModelForSeq2SeqLM.from_pretrained(folder / "base").state_dict()
    after = AutoModelForSeq2SeqLM.from_pretrained(folder / "elastic" / "model").state_dict()
    for name, keep in masks.keep.items():
        dense = masks.at(0.95).keep[name].any(dim=0)
        weight, only_dense = f"{name}.weight", dense & ~keep.any(dim=0)
        assert only_dense.any()
        assert not (before[weight][only_dense] == after[weight][only_dense]).all()
        assert (before[weight][~dense] == after[weight][~dense]).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(run) == 2  # the folder holds an elastic run
        assert main([*run[:-1], "other", *elastic, "--masks", "masks"]) == 2  # one coverage alone
    assert not (folder / "other").exists()


def main_output(folder, *arguments):
    printed = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="utf-8", write_through=True))
        assert main(list(arguments)) == 0
        return printed.getvalue().decode()


def test_translate_reads_standard_input(flow, monkeypatch):
    folder, _ = flow
    text = (folder / "data" / "test.en").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), encoding="cp1252"))
    said = main_output(folder, "translate", "--model", "dense/model", "--pair", "en-fr", *SHORT)
    assert said == (folder / "dense_out" / "en-fr.txt").read_text(encoding="utf-8")


def test_inspect_tells_masks_statistics_and_models_apart(flow):
    _, said = flow
    assert "Share of neurons kept" in said["masks"]
    assert "fingerprint: " in said["masks"]
    assert "counting tokens" in said["nspec_stats.safetensors"]
    assert "model.encoder.layers.0.fc1" in said["base"]
    assert "24" in said["base"]


def test_inspect_names_every_site_of_a_layer(tmp_path, capsys):
    names = [f"model.decoder.layers.0.{name}" for name in ("self_attn.q_proj", "encoder_attn.q_proj", "fc1")]
    kept = torch.tensor([[True, False, False, False], [True, True, True, False]])
    NeuronMasks(["en-de", "de-en"], {name: kept for name in names}).save_pretrained(tmp_path)
    main(["inspect", str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert "pair dec 0 self_attn.q_proj dec 0 encoder_attn.q_proj dec 0 all" in said


def test_evaluate_writes_the_scores_that_the_function_gives(flow):
    folder, said = flow
    scores = json.loads((folder / "ours.json").read_text(encoding="utf-8"))["scores"]
    for pair in PAIRS:
        hypotheses = (folder / "ours_out" / f"{pair}.txt").read_text(encoding="utf-8").split("\n")[:-1]
        references = (folder / "data" / f"test.{pair.split('-')[1]}").read_text(encoding="utf-8").splitlines()
        assert scores[pair]["chrf++"]["value"] == pytest.approx(score(hypotheses, references, "chrf++").value)
    assert "nrefs:1" in said["evaluate"]


def test_metrics_may_be_one_name_or_several_and_options_have_hyphens(flow):
    folder, _ = flow
    about = ["evaluate", "--hypotheses", "ours_out", "--corpus.path", "data"]
    text = main_output(folder, *about, "--metric", "chrf", "--comet-out", "comet")
    assert "chrf: nrefs:1" in text
    assert "--comet-in comet" in text
    assert (folder / "comet" / "comet.sh").is_file()
    several = main_output(folder, *about, "--metric=bleu:none,ter", "--style", "json")
    listed = main_output(folder, *about, "--metric", "[bleu:none,ter]", "--style", "json")
    assert several == listed
    assert "tok:none" in several


def test_tiers_may_come_from_the_sizes_of_the_training_text(flow):
    folder, _ = flow
    (folder / "sized").mkdir()
    for code, lines in (("de", 40), ("fr", 4)):
        for side in ("en", code):
            text = (folder / "data" / f"train.{side}").read_text(encoding="utf-8").splitlines()[:lines]
            (folder / "sized" / f"train.en-{code}.{side}").write_text(
                "\n".join(text) + "\n", encoding="utf-8"
            )
            test = (folder / "data" / f"test.{side}").read_text(encoding="utf-8")
            (folder / "sized" / f"test.{side}").write_text(test, encoding="utf-8")
    about = ["evaluate", "--hypotheses", "ours_out", "--corpus.path", "sized", "--tiers-from", "train"]
    text = main_output(folder, *about, "--metric", "bleu", "--output", "tiers.json")
    assert json.loads((folder / "tiers.json").read_text(encoding="utf-8"))["tiers"] == {
        "de": "high",
        "fr": "low",
    }
    assert "one-to-many low" in " ".join(text.split())


def test_comet_scores_join_the_others_and_keep_how_they_were_made(flow, monkeypatch, capsys):
    folder, _ = flow
    about = ["evaluate", "--hypotheses", "ours_out", "--corpus.path", "data", "--metric", "bleu"]
    main_output(folder, *about, "--comet-out", "comet2")
    for pair in PAIRS:
        lines = (folder / "comet2" / f"{pair}.hyp").read_text(encoding="utf-8").splitlines()
        segments = [{"mt": line, "COMET": 0.5} for line in lines]
        (folder / "comet2" / f"{pair}.scores.json").write_text(json.dumps({"x": segments}), encoding="utf-8")
    main_output(folder, *about, "--comet-in", "comet2", "--output", "comet.json")
    scores = json.loads((folder / "comet.json").read_text(encoding="utf-8"))["scores"]
    assert all(scores[pair]["comet"]["value"] == pytest.approx(50.0) for pair in PAIRS)
    assert all("bleu" in scores[pair] for pair in PAIRS)
    shutil.copytree(folder / "ours_out", folder / "newer_out")
    (folder / "newer_out" / f"{PAIRS[0]}.txt").write_text("anew\n" * len(lines), encoding="utf-8")
    monkeypatch.chdir(folder)
    assert main(["evaluate", "--hypotheses", "newer_out", *about[3:], "--comet-in", "comet2"]) == 2
    assert f"{PAIRS[0]}: comet2 is of other translations" in capsys.readouterr().err


def test_probe_asks_the_model_about_ablation_stability_and_other_settings(flow):
    folder, _ = flow
    about = [
        "probe",
        "--masks",
        "masks",
        "--model",
        "ours/model",
        "--corpus.path",
        "data",
        "--metric",
        "chrf",
    ]
    about += ["--stats", "nspec_stats.safetensors", "--coverages", "[0.5,0.9]", "--lines", "4"]
    about += ["--sizes", "[6]", "--seeds", "[1]", "--erase-of", "[en-de]", "--translate.length_ratio", "0.5"]
    text = main_output(folder, *about, "--figures", "false", "--output", "asked")
    ablation = json.loads((folder / "asked" / "ablation.json").read_text(encoding="utf-8"))
    assert ablation["kinds"] == ["nothing", "general", "own", "of en-de"]
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    change = ablation["change"][1]
    assert float(rows["general"][2]) == pytest.approx(sum(change) / len(change), abs=0.005)
    stability = json.loads((folder / "asked" / "stability.json").read_text(encoding="utf-8"))
    assert stability["recordings"] == ["6", "all", "6, seed 1"]
    assert stability["coverage"] == 0.8
    # Masks say how they were counted, where no statistics do.
    sentences = NeuronMasks.from_pretrained(folder / "masks")
    how = {**sentences.recipe.settings, "count": "sentences"}
    sentences.recipe = dataclasses.replace(sentences.recipe, settings=how)
    sentences.save_pretrained(folder / "by_sentences")
    about = ["probe", "--masks", "by_sentences", *about[3:7], "--sizes", "[6]", "--seeds", "[1]"]
    main_output(folder, *about, "--erase", "false", "--figures", "false", "--output", "again")
    network = load_model(folder / "ours" / "model")
    tags = LanguageTags(load_tokenizer(folder / "ours" / "model"))
    text = read_corpus(CorpusConfig(path=str(folder / "data")), sentences.pairs, "valid")
    encoded = encode_corpus(text, tags)
    samples = recordings(network, tags, encoded, [6], [1], RecordConfig(count="sentences"))
    wanted = stability_of(samples, 0.8).to_dict()["iou"]
    found = json.loads((folder / "again" / "stability.json").read_text(encoding="utf-8"))["iou"]
    assert found == wanted != stability["iou"]
    untrained = (folder / "asked" / "gains_against_coverage_k_without_training.json").read_text(
        encoding="utf-8"
    )
    assert json.loads(untrained)["values"] == [0.5, 0.9]


@pytest.mark.parametrize(
    "settings", ["{coverage k: {0.8: ours.json}}", '{"coverage k": {"0.8": "ours.json"}}']
)
def test_analyze_takes_scores_of_models_trained_with_other_settings(flow, settings):
    folder, _ = flow
    scores = ["--scores", "[dense.json,ours.json]", "--by-setting", settings]
    main_output(folder, "analyze", "--masks", "masks", *scores, "--figures", "false", "--output", "settings")
    trained = json.loads((folder / "settings" / "gains_against_coverage_k.json").read_text(encoding="utf-8"))
    gains = json.loads((folder / "settings" / "gains.json").read_text(encoding="utf-8"))
    assert trained["mean"][0][-1] == pytest.approx(sum(gains["change"][0]) / len(PAIRS))


def test_compare_gives_a_verdict_for_every_pair_and_metric(flow):
    folder, said = flow
    rows = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["rows"]
    assert {(row["pair"], row["metric"]) for row in rows} == {
        (p, m) for p in PAIRS for m in ("bleu", "chrf++")
    }
    assert "Against dense_out" in said["compare"]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a/outputs", "b/outputs"], ["a", "b"]),
        (["x/a", "x/b"], ["a", "b"]),
        (["1/a/o", "2/a/o", "2/b/o"], ["1/a", "2/a", "2/b"]),
        (["same", "same"], ["same.one", "same.two"]),
    ],
)
def test_systems_are_named_by_what_tells_their_folders_apart(folders, names):
    assert _names(folders, ["one", "two", "three"][: len(folders)]) == names


def test_analyze_and_report_write_tables_and_a_page(flow):
    folder, said = flow
    overview = json.loads((folder / "analysis" / "overview.json").read_text(encoding="utf-8"))
    assert overview["masks"] == NeuronMasks.from_pretrained(folder / "masks").fingerprint()
    assert (folder / "analysis" / "gains.csv").is_file()
    assert "Ours &amp; theirs" in (folder / "report.html").read_text(encoding="utf-8")
    assert said["report"].startswith("report.html: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["record", "--model", "base", "--pairs", "en-xx", "--corpus.path", "data"], "en-xx"),
        (["select", "--stats", "nothing.safetensors"], "nothing.safetensors"),
        (["train", "--model", "base", "--corpus.path", "data", "--output", "x"], "give masks"),
        (["translate", "--model", "base", "--masks", "masks", "--pair", "de-fr", "--input", TEST], "de-fr"),
        (["translate", "--model", "nowhere", "--pair", "de-en", "--input", TEST], "nowhere"),
        (["inspect", "--path", "data"], "data"),
        (["evaluate", "--hypotheses", "nowhere", "--corpus.path", "data"], "nowhere"),
        (["evaluate", "--hypotheses", "ours_out"], "--references DIR"),
        (["analyze", "--masks", "nowhere"], "nowhere"),
        (["analyze", "--masks", "masks", "--by_setting", "{k: {high: ours.json}}"], "'high'"),
        (["analyze", "--masks", "masks", "--scores", "[ours.json,dense.json,ours.json]"], "called ours;"),
        (["report", "--masks", "masks", "--scores", "[ours.json,ours.json]"], "called ours;"),
        (["probe", "--masks", "masks", "--model", "nowhere", "--corpus.path", "data"], "nowhere"),
        (["probe", "--masks", "masks", "--model", "base", "--corpus.path", "data", "--coverages", "[1]"],
         "--stats FILE"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_words_with_status_2(flow, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(flow[0])
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"nspec {arguments[0]}: " in said
    assert message in said


FOREIGN = {"english": "en", "german": "de"}
CODES = ["--codes", json.dumps(FOREIGN)]


@pytest.fixture(scope="module")
def foreign(flow):
    """The same text and masks under codes that the tokenizer has no tags for."""
    folder, _ = flow
    for own, code in FOREIGN.items():
        for path in (folder / "data").glob(f"*.{code}"):
            target = folder / "foreign" / f"{path.stem}.{own}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    record = ["record", "--corpus.path", "foreign", "--model", "base", "--output", "foreign.safetensors"]
    main_output(folder, *record, "--pairs", "english-german,german-english", "--max_tokens", "60", *CODES)
    select = ["select", "--stats", "foreign.safetensors", "--output", "foreign_masks"]
    main_output(folder, *select, "--select.coverage", "0.8")
    return folder


def test_record_takes_codes_that_are_not_the_tokenizers(foreign):
    stats = ActivationStats.load(foreign / "foreign.safetensors")
    own = ActivationStats.load(foreign / "nspec_stats.safetensors")
    assert list(stats.pairs) == ["english-german", "german-english"]
    for pair, same in (("english-german", "en-de"), ("german-english", "de-en")):
        assert all((stats[pair][site.name] == own[same][site.name]).all() for site in own.sites)


def test_train_takes_codes_that_are_not_the_tokenizers(foreign):
    def trained(output, data, pairs, *codes):
        about = ["train", "--model", "base", "--corpus.path", data, "--pairs", pairs, "--output", output]
        about += ["--train.arguments", "{max_steps: 2, learning_rate: 0.01, warmup_steps: 1}"]
        batches = ["--train.batches.max_tokens", "60", "--train.batches.max_length", "60"]
        main_output(foreign, *about, *batches, *codes)
        return AutoModelForSeq2SeqLM.from_pretrained(foreign / output / "model")

    expected = trained("codes_own", "data", "en-de,de-en")
    given = trained("codes_foreign", "foreign", "english-german,german-english", *CODES)
    assert tiny_text.same_weights(given, expected)
    assert not tiny_text.same_weights(given, AutoModelForSeq2SeqLM.from_pretrained(foreign / "base"))


def test_translate_takes_codes_that_are_not_the_tokenizers(foreign):
    about = ["translate", "--model", "ours/model", "--input", TEST, *SHORT]
    expected = main_output(foreign, *about, "--masks", "masks", "--pair", "de-en")
    given = main_output(foreign, *about, "--masks", "foreign_masks", "--pair", "german-english", *CODES)
    assert given == expected


def test_export_takes_codes_that_are_not_the_tokenizers(foreign):
    about = ["export", "--model", "ours/model", "--export.max_new_tokens", "5"]
    main_output(foreign, *about, "--masks", "masks", "--pairs", "en-de", "--output", "own_export")
    text = ["--corpus.path", "foreign", *CODES]
    ours = ["--masks", "foreign_masks", "--pairs", "english-german", "--output", "foreign_export"]
    assert "100.0% of 8 sample sentences" in main_output(foreign, *about, *ours, *text)
    models = [
        AutoModelForSeq2SeqLM.from_pretrained(foreign / f"{name}_export") for name in ("own", "foreign")
    ]
    assert tiny_text.same_weights(*models)


def test_probe_takes_codes_that_are_not_the_tokenizers(foreign):
    about = ["probe", "--model", "ours/model", "--metric", "chrf", "--lines", "4", "--sizes", "[6]"]
    about += ["--seeds", "[1]", "--figures", "false", "--translate.length_ratio", "0.5"]
    ours = ["--masks", "foreign_masks", "--corpus.path", "foreign", "--output", "foreign_probe", *CODES]
    main_output(foreign, *about, *ours)
    ablation = json.loads((foreign / "foreign_probe" / "ablation.json").read_text(encoding="utf-8"))
    assert ablation["pairs"] == ["english-german", "german-english"]


def test_the_doctor_takes_codes_that_are_not_the_tokenizers(foreign, capsys, monkeypatch):
    monkeypatch.chdir(foreign)
    capsys.readouterr()

    def says(masks, data, pairs, *codes):
        about = ["doctor", "--model", "base", "--masks", masks, "--corpus.path", data, "--pairs", pairs]
        return main([*about, "--valid_split", "valid", *codes]), capsys.readouterr().out

    names = "english-german,german-english"
    expected, given = says("masks", "data", "en-de,de-en"), says("foreign_masks", "foreign", names, *CODES)
    assert given[1].replace("foreign_masks", "masks").replace("foreign", "data") == (
        expected[1].replace("en-de", "english-german").replace("de-en", "german-english")
    )
    assert given[0] == expected[0]
    status, said = says("foreign_masks", "foreign", names)
    assert status == 1
    assert "no tag for language 'english'" in said


def test_serve_takes_codes_that_are_not_the_tokenizers(foreign, monkeypatch):
    served = []
    counts = SimpleNamespace(state=SimpleNamespace(counts=SimpleNamespace(requests=0, answered=0)))
    monkeypatch.setattr("nspec_hf.serving.make_app", lambda loaded, *_: served.append(loaded) or counts)
    monkeypatch.setattr("nspec_hf.serving.run_server", lambda *_: None)
    for masks, codes in (("masks", ()), ("foreign_masks", CODES)):
        places = "--model", "ours/model", "--masks", masks, "--serve.port", "0"
        main_output(foreign, "serve", *places, *SHORT, *codes)
    own, given = served
    texts = tiny_text.sentences(6)["de"]
    assert given.translate(texts, "german-english") == own.translate(texts, "de-en")
    assert given.translate(texts[0], "german-english")


@pytest.mark.medium
def test_add_pair_takes_codes_that_are_not_the_tokenizers(foreign):
    for path in (foreign / "data").glob("*.fr"):
        (foreign / "foreign" / f"{path.stem}.french").write_bytes(path.read_bytes())
    about = ["add-pair", "--model", "base", "--add.width", "0.5", "--train.batches.max_tokens", "60"]
    about += ["--train.batches.max_length", "60"]
    about += ["--train.arguments", "{max_steps: 2, learning_rate: 0.01, warmup_steps: 1}"]
    main_output(foreign, *about, "--pairs", "en-fr,fr-en", "--corpus.path", "data", "--output", "fr")
    ours = ["--pairs", "english-french,french-english", "--output", "french"]
    codes = json.dumps({**FOREIGN, "french": "fr"})
    main_output(foreign, *about, *ours, "--corpus.path", "foreign", "--codes", codes)
    own, given = (
        load_file(next((foreign / name).rglob("nspec_added*.safetensors"))) for name in ("fr", "french")
    )
    assert own.keys() == given.keys()
    assert all(torch.equal(given[name], own[name]) for name in own if name != "sha256")


ODD = ["one\u2028two", "three\x85four", "five\x0csix", "seven \ufeff eight", "one"]


def translated(folder, monkeypatch, content, *arguments):
    """Return what `nspec translate` writes to standard output, and what the translator was asked."""
    asked = []

    def translate(self, texts, pair, **generation):
        asked.extend(texts)
        return [f"vier\u2028{number}" for number in range(len(texts))]

    monkeypatch.setattr("nspec_hf.evaluation.Translator.translate", translate)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="cp1252"))
    monkeypatch.chdir(folder)
    assert main(["translate", "--model", "base", "--pair", "en-de", *arguments]) == 0
    return printed.getvalue(), asked


def test_translate_reads_and_writes_utf_8_lines_whatever_the_locale(flow, monkeypatch):
    content = "\ufeff" + "\r\n".join(ODD)
    printed, asked = translated(flow[0], monkeypatch, content.encode())
    assert asked == ODD
    assert printed.decode() == "".join(f"vier\u2028{number}\n" for number in range(5))


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_translate_unpacks_and_packs_files_as_their_names_end(flow, monkeypatch, tmp_path, ending, pack):
    source, target = tmp_path / f"in.txt{ending}", tmp_path / f"out.txt{ending}"
    source.write_bytes(pack("\n".join(ODD).encode()))
    _, asked = translated(flow[0], monkeypatch, b"", "--input", str(source), "--output", str(target))
    assert asked == ODD
    unpack = {".gz": gzip, ".xz": lzma, ".bz2": bz2}[ending].decompress
    assert unpack(target.read_bytes()).decode().split("\n")[:-1] == [f"vier\u2028{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [("zwölf".encode("cp1252"), "line 1: not UTF-8"), ("zwölf".encode("utf-16"), "UTF-16")],
)
def test_translate_names_input_that_is_not_utf_8(flow, monkeypatch, capsys, content, message):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    monkeypatch.chdir(flow[0])
    assert main(["translate", "--model", "base", "--pair", "en-de"]) == 2
    assert message in capsys.readouterr().err


def test_a_translation_that_holds_a_line_break_stays_one_line(flow, monkeypatch, capsysbinary):
    monkeypatch.setattr(
        "nspec_hf.evaluation.Translator.translate", lambda *_: ["vier\nfünf\r\nsechs", "acht"]
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"four\neight\n")))
    monkeypatch.chdir(flow[0])
    assert main(["translate", "--model", "base", "--pair", "en-de"]) == 0
    assert capsysbinary.readouterr().out.decode() == "vier fünf sechs\nacht\n"
