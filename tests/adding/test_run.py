"""Runs that add pairs: the base keeps every bit, a second run leaves the first alone."""

import io
import json
from dataclasses import replace

import pytest
import torch

from nspec_hf import load
from nspec_hf.adding import AddConfig, add_pairs, load_added, prove_untouched, retrain
from nspec_hf.cli.main import main
from nspec_hf.core import ConfigError, EmptyPairError, Pair, UnknownPairError
from nspec_hf.data import BatchConfig, LanguageTags, PairText
from nspec_hf.evaluation import Translator
from nspec_hf.training import TrainConfig
from tests.helpers import tiny_text

pytestmark = pytest.mark.medium

OLD, NEW = ["en-de", "de-en"], ["en-fr", "fr-en"]
RUN = TrainConfig(
    arguments={
        "max_steps": 6,
        "learning_rate": 0.03,
        "warmup_steps": 1,
        "logging_steps": 2,
        "save_steps": 3,
        "eval_steps": 3,
        "weight_decay": 0.1,
        "disable_tqdm": True,
    },
    batches=BatchConfig(max_tokens=120, max_length=40),
)


def as_zz(texts):
    return [PairText(Pair(str(text.pair).replace("fr", "zz")), text.sources, text.targets) for text in texts]


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A base, French added to it, and a language that its tokenizer does not know after that."""
    folder = tmp_path_factory.mktemp("adding")
    model, tags = tiny_text.model(), LanguageTags(tiny_text.tokenizer())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.save_pretrained(folder / "base")
    tags.tokenizer.save_pretrained(folder / "base")
    old = tiny_text.texts(pairs=OLD)
    settings = AddConfig(width=0.5, lora=2)
    new = tiny_text.texts(pairs=NEW)
    first = add_pairs(model, tags, new, settings, RUN, folder / "fr", validation=new, old=old)
    second = add_pairs(
        model, first.tags, as_zz(new), settings, RUN, folder / "zz", old=[*old, *new], before=first.added
    )
    return folder, model, before, first, second


def test_the_base_keeps_every_bit_and_what_is_added_was_trained(twice):
    _folder, model, before, first, second = twice
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert first.untouched.identical
    assert first.untouched.sentences == 2 * 24
    assert second.untouched.identical
    assert len(second.untouched.pairs) == 4
    for made in (first, second):
        new = made.added.additions[-1]
        assert all((module.down.weight != 0).any() for module in new.neurons.values())
        assert all((module.b.weight != 0).any() for module in new.changes.values())


def test_the_first_language_is_translated_as_before_the_second_came(twice):
    folder, model, _before, first, second = twice
    sources = tiny_text.sentences(12, seed=5)["en"]
    pairs = ["en-fr", "en-de"] * 6
    alone = Translator(model, first.tags, load_added(folder / "fr" / "added", model)).translate(
        sources, pairs
    )
    both = load_added(folder / "zz" / "added", model)
    translator = Translator(model, second.tags, both)
    assert translator.translate(sources, pairs) == alone
    whole = load(folder / "zz" / "added", base=folder / "base")
    assert whole.translate([*sources, *sources], [*pairs, *["en-zz"] * 12])[:12] == alone
    assert whole.tokenizer.convert_tokens_to_ids("__zz__") == second.tags.tag_id("zz")
    mixed = translator.translate([*sources, *sources], [*pairs, *["en-zz"] * 12])
    assert mixed[:12] == alone
    assert mixed[12:] == translator.translate(sources, "en-zz")
    base = Translator(model, first.tags).translate(sources, "en-fr")
    assert alone[::2] != base[::2]
    assert alone[1::2] == Translator(model, first.tags).translate(sources, "en-de")[1::2]


def test_a_base_that_moved_would_be_noticed(twice):
    folder, model, _before, first, _second = twice
    old, new = tiny_text.texts(pairs=OLD), tiny_text.texts(pairs=NEW)
    made = load_added(folder / "fr" / "added", model)
    part = made._parts[-1]
    part._whose.pairs |= {Pair("en-de")}  # a fault: rows of an old pair get what is new
    assert not prove_untouched(made, first.tags, old, new).identical


def test_a_run_that_had_ended_is_loaded(twice):
    folder, _model, _before, first, _second = twice
    new = tiny_text.texts(pairs=NEW)
    again = add_pairs(
        tiny_text.model(),
        LanguageTags(tiny_text.tokenizer()),
        new,
        AddConfig(width=0.5, lora=2),
        RUN,
        folder / "fr",
        validation=new,
        old=tiny_text.texts(pairs=OLD),
    )
    assert again.result.had_ended
    ours, theirs = again.added.own.state_dict(), first.added.own.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("changes", [{"seed": 7}, {"kin": "de"}])
def test_a_run_that_began_otherwise_is_not_taken_for_this_one(changes, tmp_path):
    new, once = (
        as_zz(tiny_text.texts(6, pairs=NEW)),
        replace(RUN, arguments={**RUN.arguments, "max_steps": 1}),
    )

    def made(**settings):
        tags = LanguageTags(tiny_text.tokenizer())
        return add_pairs(tiny_text.model(), tags, new, AddConfig(width=0.5, **settings), once, tmp_path)

    made()
    assert made().result.had_ended
    with pytest.raises(ConfigError, match="other settings"):
        made(**changes)


def test_a_tag_begins_as_that_of_a_language_that_was_added_before(twice, tmp_path):
    _folder, model, _before, first, second = twice
    new = tiny_text.texts(6, pairs=NEW)
    yy = [PairText(Pair(str(text.pair).replace("fr", "yy")), text.sources, text.targets) for text in new]
    still = replace(RUN, arguments={**RUN.arguments, "max_steps": 1, "learning_rate": 0.0})
    third = add_pairs(
        model, first.tags, yy, AddConfig(width=0, lora=1, kin="zz"), still, tmp_path, before=second.added
    )
    rows, before = (each.added.additions[-1].own_rows for each in (third, second))
    number, kin = third.tags.tag_id("yy"), third.tags.tag_id("zz")
    assert kin == second.tags.tag_id("zz") >= model.get_input_embeddings().num_embeddings
    expected = before.embeddings[before.ids.index(kin)]
    for each in (number, kin):
        assert torch.allclose(rows.embeddings[rows.ids.index(each)], expected, atol=1e-6)


def test_old_text_of_a_pair_without_masks_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("nspec_hf.adding.run.train", None)
    model, tags = tiny_text.model(), LanguageTags(tiny_text.tokenizer())
    masks, new = tiny_text.masks(model).subset(["en-de"]), as_zz(tiny_text.texts(6, pairs=NEW))
    with pytest.raises(UnknownPairError, match="old text of de-en proves nothing"):
        add_pairs(
            model, tags, new, AddConfig(), RUN, tmp_path, old=tiny_text.texts(6, pairs=OLD), masks=masks
        )


def test_replay_repeats_the_new_text_to_be_about_as_much_as_the_old(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "nspec_hf.adding.run.train", lambda model, tags, corpus, *rest: seen.setdefault("corpus", corpus)
    )
    new, old = as_zz(tiny_text.texts(6, pairs=NEW)), tiny_text.texts(48, pairs=OLD)
    model = tiny_text.model()
    size = len(model.get_input_embeddings().weight)
    tags, _ = retrain(
        model, LanguageTags(tiny_text.tokenizer()), new, AddConfig(kin="fr"), RUN, tmp_path, replayed=old
    )
    weight = model.get_input_embeddings().weight
    assert len(weight) == size + 1
    assert tags.tag_id("zz") == size
    assert torch.equal(weight[size], weight[tags.tag_id("fr")])
    tokens = {}
    for row in seen["corpus"]:
        length = len(row["input_ids"]) + len(row["labels"])
        tokens[row["pair"] in OLD] = tokens.get(row["pair"] in OLD, 0) + length
    assert 0.8 < tokens[True] / tokens[False] < 1.25


def test_languages_without_a_tag_are_added_by_the_command_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_text.write_text(tmp_path / "data", train=40, valid=8, test=6)
    for split in ("train", "valid"):
        for code in ("yy", "zz"):
            (tmp_path / "data" / f"{split}.{code}").write_text(
                (tmp_path / "data" / f"{split}.fr").read_text()
            )
    tiny_text.model().save_pretrained("base")
    tiny_text.tokenizer().save_pretrained("base")
    common = ["add-pair", "--model", "base", "--corpus.path", "data", "--add.width", "0.5"]
    common += ["--train.arguments", json.dumps({**RUN.arguments, "max_steps": 3})]
    common += ["--train.batches.max_tokens", "120", "--train.batches.max_length", "60"]
    assert main([*common, "--pairs", "en-zz,zz-en", "--output", "zz"]) == 0
    later = ["--added", "zz/added", "--old_pairs", "en-de,en-zz"]
    assert main([*common, "--pairs", "en-yy", "--output", "yy", *later]) == 0
    loaded = load("yy/added", base="base")
    zz, yy = loaded.tokenizer.convert_tokens_to_ids(["__zz__", "__yy__"])
    assert (zz, yy) == (len(tiny_text.tokenizer()), len(tiny_text.tokenizer()) + 1)
    sources = tiny_text.sentences(6, seed=5)["en"]
    first = load("zz/added", base="base").translate(sources, "en-zz")
    assert loaded.translate([*sources, *sources], ["en-zz"] * 6 + ["en-yy"] * 6)[:6] == first


def test_old_text_that_could_prove_nothing_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("nspec_hf.adding.run.train", lambda *_: pytest.fail("it was trained"))
    new = tiny_text.texts(pairs=NEW)
    for old, error in (
        ([PairText(Pair("en-de"), [], [])], EmptyPairError),
        (tiny_text.texts(pairs=["fr-en"]), ConfigError),  # it is new
    ):
        with pytest.raises(error, match=old[0].pair):
            add_pairs(
                tiny_text.model(),
                LanguageTags(tiny_text.tokenizer()),
                new,
                AddConfig(width=0.5),
                RUN,
                tmp_path,
                old=old,
            )


def test_the_command_adds_a_pair_that_translate_then_uses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_text.write_text(tmp_path / "data", train=40, valid=8, test=6)
    tiny_text.model().save_pretrained("base")
    tiny_text.tokenizer().save_pretrained("base")
    common = [
        "--model",
        "base",
        "--pairs",
        "en-fr,fr-en",
        "--corpus.path",
        "data",
        "--old-pairs",
        "en-de,de-en",
    ]
    common += ["--train.arguments", json.dumps(dict(RUN.arguments)), "--train.batches.max_tokens", "120"]
    common += ["--train.batches.max_length", "60"]
    said = io.StringIO()
    monkeypatch.setattr("sys.stdout", said)
    assert main(["add-pair", *common, "--output", "fr", "--add.width", "0.5"]) == 0
    assert "logits the same bits as before" in said.getvalue()
    files = ["--input", "data/test.en", "--pair", "en-fr"]
    assert main(["translate", "--model", "base", "--added", "fr/added", *files, "--output", "out.txt"]) == 0
    model, tags = tiny_text.model(), LanguageTags(tiny_text.tokenizer())
    sources = (tmp_path / "data" / "test.en").read_text().splitlines()
    expected = Translator(model, tags, load_added("fr/added", model)).translate(sources, "en-fr")
    assert (tmp_path / "out.txt").read_text().splitlines() == expected
    short = ["--translate.num_beams", "1", "--translate.length_extra", "4"]
    assert main(["add-pair", *common, "--output", "free", "--way", "free", *short]) == 0
    assert "en-de" in said.getvalue()
    assert "p (Holm)" in said.getvalue()
    assert main(["add-pair", *common[:6], "--output", "r", "--way", "replay"]) == 2
