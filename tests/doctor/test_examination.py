"""Set-ups that are broken on purpose, one thing at a time: the doctor names it, and the exit status tells."""

import importlib.metadata
import random

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from nspec_hf.cli.main import main
from nspec_hf.core import Pair
from nspec_hf.data import CorpusConfig
from nspec_hf.doctor import CHECKS, Finding, Report, Setup, examine
from nspec_hf.masks import NeuronMasks
from nspec_hf.training import TrainConfig
from tests.helpers import tiny_text
from tests.helpers.models import tiny_marian

PAIRS = ("en-de", "de-en")


def save(folder, **changes):
    """Save a model and its tokenizer; return the model."""
    model = tiny_text.model(**{"dropout": 0.1, **changes})
    model.save_pretrained(folder)
    tiny_text.tokenizer().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with a model, its masks, and text without a fault."""
    folder = tmp_path_factory.mktemp("sound")
    tiny_text.masks(save(folder / "model"), PAIRS).save_pretrained(folder / "masks")
    lines = dict.fromkeys(zip(*tiny_text.sentences(80).values(), strict=True))
    columns = dict(zip(tiny_text.LANGUAGES, zip(*lines, strict=True), strict=True))
    (folder / "text").mkdir()
    for code, column in columns.items():
        for split, part in (("train", column[:40]), ("valid", column[40:50]), ("test", column[50:60])):
            (folder / "text" / f"{split}.{code}").write_text("\n".join(part) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def text(sound, tmp_path):
    """A copy of the text, to be spoiled: it returns the lines of a file, and writes those it is given."""

    def edit(name, change):
        path = tmp_path / name
        path.write_text("\n".join(change(path.read_text("utf-8").splitlines())) + "\n", encoding="utf-8")

    for path in (sound / "text").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return edit


def findings(kind, level="wrong", **setup):
    """Return what one check says of a set-up."""
    report = examine(Setup(**setup))
    return [finding.what for finding in report.findings[kind] if finding.level == level]


def only(kind, level="wrong", **setup):
    """Return the one thing that all checks together say."""
    report = examine(Setup(**setup))
    said = {
        key: [each.what for each in found if each.level == level] for key, found in report.findings.items()
    }
    assert [key for key, found in said.items() if found] == [kind]
    assert len(said[kind]) == 1
    return said[kind][0]


def with_text(folder, **setup):
    config = CorpusConfig(path=str(folder))
    splits = {"train": "train", "valid": "valid", "test": "test"}
    return {"corpus": config, "pairs": PAIRS, "splits": splits, **setup}


def test_a_sound_set_up_is_clean(sound):
    about = with_text(sound / "text", model=str(sound / "model"), masks=str(sound / "masks"))
    report = examine(Setup(**about))
    assert [each for found in report.findings.values() for each in found if each.level == "wrong"] == []
    assert not report.unchecked
    assert report.exit_status == 0
    assert "masks: fine" in str(report)


def test_every_finding_says_what_why_and_how_to_mend_it(sound):
    report = examine(
        Setup(model=str(sound / "model"), pairs=("en-sv",), train=TrainConfig(arguments={"fp16": True}))
    )
    found = [finding for kind in CHECKS for finding in report.findings[kind]]
    assert len(found) >= 2
    assert all(len(part) > 10 for each in found for part in (each.what, each.why, each.mend))
    assert all(f"why:  {each.why}" in str(report) for each in found)


def test_half_precision_is_named(tmp_path):
    save(tmp_path).half().save_pretrained(tmp_path)
    assert only("model", model=str(tmp_path)) == "its weights are saved in float16"


def test_layers_that_drop_out_and_no_dropout_are_notes(tmp_path):
    save(tmp_path, encoder_layerdrop=0.05, dropout=0.0)
    said = findings("model", "note", model=str(tmp_path))
    assert said == ["whole layers drop out in training: encoder_layerdrop 0.05", "dropout is 0"]


def test_a_checkpoint_that_lacks_weights_is_wrong_and_what_needs_it_is_not_checked(sound, tmp_path):
    save(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: weight for name, weight in load_file(file).items() if "decoder.layers.1.fc1" not in name}
    save_file(kept, file, {"format": "pt"})
    about = {"model": str(tmp_path), "masks": str(sound / "masks")}
    assert "model.decoder.layers.1.fc1.bias" in only("model", **about)
    report = examine(Setup(**about))
    assert report.unchecked["masks"] == "needs the model, which cannot be loaded"
    assert report.exit_status == 1


def test_a_start_token_that_the_model_has_no_embedding_for_is_wrong(tmp_path):
    """As a Marian config without one has by default: 58100."""
    model = save(tmp_path)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 58100
    model.save_pretrained(tmp_path)
    rows = len(model.get_input_embeddings().weight)
    expected = f"decoding starts from token 58100, but the model has embeddings for {rows}"
    assert findings("model", model=str(tmp_path)) == [expected]


def test_a_start_token_is_looked_for_among_the_decoders_embeddings(tmp_path):
    """Marian may have a vocabulary for each side."""
    sizes = {"vocab_size": 20, "decoder_vocab_size": 40, "share_encoder_decoder_embeddings": False}
    for start, wrong in (
        (39, []),
        (40, ["decoding starts from token 40, but the model has embeddings for 40"]),
    ):
        model = tiny_marian(**sizes, tie_word_embeddings=False, decoder_start_token_id=start, dropout=0.1)
        model.save_pretrained(tmp_path)
        assert findings("model", model=str(tmp_path)) == wrong


def test_several_translations_a_sentence_are_wrong(tmp_path):
    model = save(tmp_path)
    model.generation_config.num_beams = model.generation_config.num_return_sequences = 3
    model.generation_config.save_pretrained(tmp_path)
    assert only("model", model=str(tmp_path)).endswith("returns 3 translations a sentence")


def test_a_model_that_translates_without_a_cache_is_noted(tmp_path):
    save(tmp_path)
    AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(tmp_path, use_cache=False)).save_pretrained(
        tmp_path
    )
    assert findings("model", "note", model=str(tmp_path)) == [
        "its generation config has no cache (use_cache: false)"
    ]


def test_a_language_without_a_tag_is_wrong(sound):
    about = {"model": str(sound / "model"), "pairs": (Pair("en-sv"), Pair("en-de"))}
    assert "no tag for language 'sv'" in only("tokenizer", **about)


def test_a_vocabulary_beyond_the_embeddings_is_wrong(sound, tmp_path):
    save(tmp_path)
    tokenizer = tiny_text.tokenizer()
    size = len(tokenizer)
    model = tiny_text.model(dropout=0.1)
    model.resize_token_embeddings(size - 1)
    model.save_pretrained(tmp_path)
    said = findings("tokenizer", model=str(tmp_path))
    assert f"the tokenizer knows {size} tokens, the model has embeddings for {size - 1}" in said


def test_characters_that_the_vocabulary_lacks_are_wrong(sound, text, tmp_path):
    text("train.de", lambda lines: ["嗨 " * 6 for _ in lines])
    about = with_text(tmp_path, model=str(sound / "model"), pairs=("en-de",), splits={"train": "train"})
    said = findings("tokenizer", **about)
    assert len(said) == 1
    assert "of the tokens of de are unknown" in said[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_steps": 100, "warmup_steps": 4000}, "4000 warm-up updates of 100"),
        ({"metric_for_best_model": "eval_loss_en-de"}, "'eval_loss_en-de', without greater_is_better"),
        (
            {"metric_for_best_model": "eval_loss_en-de", "greater_is_better": True},
            "greater_is_better is true",
        ),
        ({"learning_rat": 1e-3}, "learning_rat"),
        ({"data_seed": 3}, "data_seed"),
    ],
)
def test_settings_that_the_trainer_misreads_are_wrong(sound, arguments, said):
    about = {"model": str(sound / "model"), "train": TrainConfig(arguments={"warmup_steps": 1, **arguments})}
    assert said in only("config", **about)


def test_what_a_plain_trainer_does_wrongly_is_wrong_for_it_alone(sound):
    arguments = {
        "gradient_accumulation_steps": 4,
        "label_smoothing_factor": 0.1,
        "remove_unused_columns": True,
    }
    about = {"model": str(sound / "model"), "train": TrainConfig(arguments={**arguments, "warmup_steps": 1})}
    assert findings("config", **about) == []
    said = " ".join(findings("config", plain_trainer=True, **about))
    assert "4 micro-batches an update" in said
    assert "label_smoothing_factor" in said
    assert "remove_unused_columns" in said


def test_masks_of_another_model_are_wrong(sound, tmp_path):
    tiny_text.masks(tiny_text.model(encoder_ffn_dim=32), PAIRS).save_pretrained(tmp_path)
    said = only("masks", model=str(sound / "model"), masks=str(tmp_path))
    assert "has 24 neurons in the model, 32 in the masks" in said


def test_a_pair_without_a_mask_is_wrong(sound):
    about = {"model": str(sound / "model"), "masks": str(sound / "masks"), "pairs": ("en-de", "en-fr")}
    assert only("masks", **about) == "1 pairs have no mask: en-fr"


def test_a_mask_that_keeps_nothing_is_wrong(sound, tmp_path):
    masks = NeuronMasks.from_pretrained(sound / "masks")
    keep = {name: kept.clone() for name, kept in masks.keep.items()}
    keep["model.encoder.layers.1.fc1"][1] = False
    NeuronMasks(masks.pairs, keep).save_pretrained(tmp_path)
    said = only("masks", model=str(sound / "model"), masks=str(tmp_path))
    assert said == "1 masks keep nothing: de-en at model.encoder.layers.1.fc1"


def test_damaged_masks_are_wrong(sound, tmp_path):
    for path in (sound / "masks").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:200])
    assert "cannot be read" in only("masks", model=str(sound / "model"), masks=str(tmp_path))


def test_lines_that_stand_there_twice_are_counted(sound, text, tmp_path):
    for code in ("en", "de"):
        text(f"train.{code}", lambda lines: lines[:20] * 2)
    about = with_text(tmp_path, model=str(sound / "model"), pairs=("en-de",))
    assert findings("text", "note", **about) == ["50% of the lines of en-de (train) stand there already"]


def test_test_lines_among_the_training_lines_are_wrong_in_either_direction(sound, text, tmp_path):
    for code in ("en", "de"):
        test = (tmp_path / f"test.{code}").read_text("utf-8").splitlines()
        text(f"train.{code}", lambda lines, test=test: [*lines, *test[:4]])
    about = with_text(tmp_path, model=str(sound / "model"), pairs=("de-en",))
    assert only("text", **about) == "40% of the lines of de-en (test) are among the training lines"


def long_text(folder, moved=0, first=0, count=1200):
    """Write lines of 3 to 30 words; from one line on, targets are those of another line."""
    draw = random.Random(5)
    counts = [draw.randint(3, 30) for _ in range(count)]
    places = [number if number < first else (number + moved) % count for number in range(count)]
    for code, numbers in (("en", range(count)), ("de", places)):
        words = tiny_text.WORDS[code]
        lines = (" ".join(draw.choices(words, k=counts[number])) for number in numbers)
        (folder / f"train.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"corpus": CorpusConfig(path=str(folder)), "pairs": PAIRS, "splits": {"train": "train"}}


@pytest.mark.parametrize(
    ("moved", "first", "says"),
    [
        (1, 0, "lines 1 to 200 of en-de (train) have slipped"),
        (-1, 0, "moved by a line up"),
        (1, 0, "moved by a line down"),
        (1, 1000, "lines 1001 to 1200 of en-de (train) have slipped"),
    ],
)
def test_text_whose_lines_have_slipped_is_wrong(sound, tmp_path, moved, first, says):
    said = findings("text", model=str(sound / "model"), **long_text(tmp_path, moved, first))
    assert len(said) == 1
    assert says in said[0]
    assert "the same of 1 more pairs" in said[0]


def test_text_that_is_aligned_has_not_slipped_and_text_of_no_relation_is_not_said_to(sound, tmp_path):
    for moved in (0, 400):
        about = long_text(tmp_path, moved)
        assert not [
            each for each in findings("text", model=str(sound / "model"), **about) if "slipped" in each
        ]


def test_a_language_tag_in_the_text_is_wrong(sound, text, tmp_path):
    text("valid.en", lambda lines: [*lines[:3], f"__en__ {lines[3]}", *lines[4:]])
    about = with_text(tmp_path, model=str(sound / "model"), pairs=("en-de",))
    assert "1 of 10 lines of en-de (valid) hold a language tag" in only("text", **about)


def test_an_empty_line_is_named_with_its_file(sound, text, tmp_path):
    text("train.de", lambda lines: [*lines[:6], "", *lines[7:]])
    about = with_text(tmp_path, model=str(sound / "model"), pairs=("en-de",))
    assert "train.de, line 7: empty" in findings("text", **about)[0]


def test_lines_over_the_budget_are_counted(sound, text, tmp_path):
    text("train.en", lambda lines: [*lines[:39], "one two three four " * 20])
    about = with_text(tmp_path, model=str(sound / "model"), pairs=("en-de",), splits={"train": "train"})
    assert "1 of the first 40 lines of en-de (train) are over 64 tokens" in findings("text", "note", **about)


def test_the_exit_status_is_2_where_nothing_is_wrong_but_a_check_could_not_be_done(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().out
    assert "model: not checked (there is no model" in said


def test_the_command_reads_the_file_of_a_training_run(sound, tmp_path, capsys):
    settings = tmp_path / "mine.yaml"
    settings.write_text(
        f"model: {sound}/model\nmasks: {sound}/masks\ncorpus: {{path: {sound}/text}}\n"
        "train: {arguments: {max_steps: 10, warmup_steps: 20}}\nvalid_split: valid\n",
        encoding="utf-8",
    )
    assert main(["doctor", "--config", str(settings)]) == 1
    assert "20 warm-up updates of 10 in all" in capsys.readouterr().out


def test_the_command_reads_the_file_of_an_experiment_with_both_trainings(sound, tmp_path, capsys):
    settings = tmp_path / "mine.yaml"
    settings.write_text(
        f"name: mine\nwork: {tmp_path}/work\nvocabulary: {{size: 70}}\nmodel: {{d_model: 16}}\n"
        f"data: {{corpus: {{path: {sound}/text}}, pairs: [en-de, de-en], test_split: train}}\n"
        "pretrain: {arguments: {max_steps: 10, warmup_steps: 30}}\n"
        "specialize: {arguments: {max_steps: 10, warmup_steps: 20}}\n",
        encoding="utf-8",
    )
    assert main(["doctor", "--config", str(settings)]) == 1  # the base is not made yet
    said = capsys.readouterr().out
    assert "model: not checked (there is no model" in said
    assert "✗ 20 warm-up updates of 10 in all" in said
    assert "✗ pretrain: 30 warm-up updates of 10 in all" in said
    assert "100% of the lines of en-de (test) are among the training lines" in said
    given = ["--model", f"{sound}/model", "--masks", f"{sound}/masks", "--specialize.warmup_steps", "1"]
    assert main(["doctor", str(settings), *given, "--data.test_split", "test"]) == 0
    said = capsys.readouterr().out
    assert "pretrain" not in said
    for kind in ("model", "tokenizer", "config", "masks", "text"):
        assert f"{kind}: fine" in said or f"{kind}: 1 to know" in said or f"{kind}: 2 to know" in said


def test_a_note_alone_does_not_change_the_exit_status():
    note = Finding(what="a", why="b", mend="c", level="note")
    assert Report(findings={"text": [note]}).exit_status == 0
    assert Report(findings={"text": [note]}, unchecked={"masks": "gone"}).exit_status == 2
    wrong = Finding(what="a", why="b", mend="c")
    assert Report(findings={"text": [note, wrong]}, unchecked={"masks": "gone"}).exit_status == 1


def test_a_package_that_is_not_installed_is_told(sound, monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert "nspec_hf runs from its source and is not installed" in findings(
        "environment", "note", model=str(sound / "model")
    )
