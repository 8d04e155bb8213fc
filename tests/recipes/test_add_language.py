"""recipes/add_language.py chooses by the validation text, as many settings of each way, and tests it."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

from nspec_hf.data import CorpusConfig
from nspec_hf.systems import DataConfig
from tests.helpers import tiny_text
from tests.helpers.pages import ROOT
from tests.test_pages import loaded

LOSSES = {"a": 3.0, "b": 2.0, "c": 2.5, "d": 4.0}
BLEU = {"a": 9.0, "b": 1.0, "c": 5.0, "d": 2.0}  # what the test text says chooses nothing


@pytest.fixture
def config(tmp_path):
    tiny_text.write_text(tmp_path / "data", train=8, valid=4, test=30)
    data = DataConfig(
        corpus=CorpusConfig(path=str(tmp_path / "data")), pairs=["en-de", "de-en"], test_split="test"
    )
    return loaded("add_language").Adding(
        data=data,
        old_pairs=["en-fr"],
        rows={row: {} for row in LOSSES},
        searched={"beside": ["a", "b"], "free": ["c", "d"]},
        name="tiny",
        work=str(tmp_path / "work"),
        results=str(tmp_path / "results"),
    )


def test_the_least_validation_loss_chooses_and_every_seed_is_tested(config, tmp_path, monkeypatch):
    recipe, asked = loaded("add_language"), []

    def measured(config, row, lines, seed, updates, sentences):
        asked.append((row, seed))
        for text in config.data.read("test"):
            said = text.targets if row == "b" else [line[::-1] for line in text.targets]
            path = tmp_path / "work" / f"{lines}" / f"{row}.s{seed}" / "outputs" / f"{text.pair}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(said) + "\n", encoding="utf-8")
        return {"validation_loss": {"1": 9.0, "2": LOSSES[row]}, "new": {"bleu": {"mean": BLEU[row]}}}

    monkeypatch.setattr(recipe, "measure", measured)
    found = recipe.search(config, 500, 2, 30)
    assert found["chosen"] == {"beside": "b", "free": "c"}
    assert asked == [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("b", 2), ("c", 2)]
    assert found["scores"]["beside"] == {"s1": {"bleu": 1.0}, "s2": {"bleu": 1.0}}
    kept = json.loads((tmp_path / "results" / "tiny.500.search.json").read_text(encoding="utf-8"))
    assert kept["losses"] == {"beside": {"a": 3.0, "b": 2.0}, "free": {"c": 2.5, "d": 4.0}}
    for tested in kept["tests"].values():
        assert tested["test"] == "bs"
        assert {row["verdict"] for row in tested["rows"] if row["metric"] == "chrf++"} == {"better"}
    asked.clear()
    recipe.search(replace(config, seeds=(1,)), 500, 2, 30)
    assert asked == []  # nothing is measured twice


def test_what_was_measured_with_other_settings_is_told_and_with_the_same_in_other_words_is_not(
    config, tmp_path, recwarn
):
    recipe, path = loaded("add_language"), tmp_path / "results" / "tiny.500.a.s1.json"
    path.parent.mkdir()
    config = replace(config, rows={"a": {"add": {"width": 0.5}}})
    measured = {"settings": {"add": {"width": 0.5, "pieces": "all"}}, "max_steps": 300, "sentences": 9}
    path.write_text(json.dumps(measured), encoding="utf-8")
    assert recipe.row_of(config, "a", 500, 1, 300, 9) == measured
    assert not recwarn
    for changed, updates, sentences, told in (
        ({"add": {"width": 0.4}}, 300, 9, "with other settings, and"),
        ({"add": {"width": 0.5}, "updates": 800}, 300, 9, "with other settings, max_steps, and"),
        ({"add": {"width": 0.5}}, 800, 9, "with other max_steps, and"),
        ({"add": {"width": 0.5}}, 300, 10, "with other sentences, and"),
    ):
        with pytest.warns(UserWarning, match=told):
            found = recipe.row_of(replace(config, rows={"a": changed}), "a", 500, 1, updates, sentences)
        assert found == measured


def test_the_results_that_are_kept_were_made_with_the_settings_that_the_file_has_today():
    recipe = loaded("add_language")
    rows = recipe.read_options([str(ROOT / "recipes/configs/multi30k_add/czech.yaml")])[0].rows
    kept = [
        path
        for path in (ROOT / "recipes/results").glob("multi30k_add.*.s?.json")
        if "against" not in path.name
    ]
    assert len(kept) > 60
    for path in kept:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert recipe.written_out(found["settings"]) == recipe.written_out(rows[found["row"]]), path.name
        added = recipe.added(found) if found["way"] == "beside" else ""
        # So many of its first 500 and 4,000 sentences' pieces no other language uses.
        few = found.get("words", "").startswith(("396 embeddings", "430 embeddings"))
        assert ("new pieces" in added) == few, path.name


def test_joint_training_begins_from_new_weights_with_all_text_and_its_own_count_of_updates(
    config, tmp_path, monkeypatch
):
    recipe = loaded("add_language")
    network = tiny_text.model(seed=7)
    network.save_pretrained(tmp_path / "base")
    tiny_text.tokenizer().save_pretrained(tmp_path / "base")

    class Asked(Exception):
        pass

    def asked(model, tags, texts, add, run, place, **others):
        raise Asked(model, texts, run.arguments["max_steps"], others["replayed"])

    monkeypatch.setattr(recipe, "retrain", asked)
    rows = {"joint": {"way": "joint", "updates": 18}, "replay": {"way": "replay"}}
    told = {}
    for row in rows:
        changed = replace(config, rows=rows, base=str(tmp_path / "base"))
        with pytest.raises(Asked) as caught:
            recipe.measure(changed, row, 5, 1, 3, 10)
        told[row] = caught.value.args
    trained = {row: model.get_encoder().layers[0].fc1.weight for row, (model, *_) in told.items()}
    assert trained["replay"].equal(network.get_encoder().layers[0].fc1.weight)
    assert not trained["joint"].equal(network.get_encoder().layers[0].fc1.weight)
    assert {row: updates for row, (_, _, updates, _) in told.items()} == {"joint": 18, "replay": 3}
    for _, texts, _, replayed in told.values():
        assert [len(text.sources) for text in texts] == [5, 5]
        assert [(str(text.pair), len(text.sources)) for text in replayed] == [("en-fr", 8)]


def test_the_figure_shows_what_the_validation_text_chose_of_each_size(config, tmp_path):
    recipe = loaded("add_language")
    measured = {  # row, seed → way, what is added, share, loss, BLEU
        ("small", 1): ("beside", {"width": 0, "pieces": "new"}, 0.1, 4.0, 3.0),
        ("slow", 1): ("beside", {}, 0.2, 3.0, 9.0),  # the better on the test text
        ("fast", 1): ("beside", {}, 0.2, 2.0, 5.0),
        ("fast", 2): ("beside", {}, 0.2, 9.0, 7.0),
        ("free", 1): ("free", {}, 1.0, 2.0, 4.0),
        ("free_too_fast", 1): ("free", {}, 1.0, 3.0, 8.0),
    }
    (tmp_path / "results").mkdir()
    for (row, seed), (way, add, share, loss, bleu) in measured.items():
        made = {"row": row, "way": way, "lines": 500, "seed": seed, "settings": {"add": add}, "share": share}
        made |= {
            "width": add.get("width", 0.25),
            "validation_loss": {"1": loss},
            "new": {"bleu": {"mean": bleu}},
        }
        (tmp_path / f"results/tiny.500.{row}.s{seed}.json").write_text(json.dumps(made), encoding="utf-8")
    assert recipe.draw(config).read_bytes().startswith(b"\x89PNG")
    axes = plt.gcf().axes[0]
    curve, tuned = axes.lines[0], axes.lines[-1]
    assert [tuple(point) for point in curve.get_xydata()] == [(10, 3), (20, 6)]
    assert list(tuned.get_ydata()) == [4, 4]
    assert [text.get_text() for text in axes.texts] == ["new pieces", "neurons 25%"]
    plt.close("all")
