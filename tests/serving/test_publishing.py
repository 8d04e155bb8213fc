"""A page on the Hub that explains itself: one commit with masks, card, scores and report, read back whole."""

import json
import re
from dataclasses import replace

import pytest
import yaml

from nspec_hf.core import ConfigError
from nspec_hf.evaluation import SystemScores, compare, score_system
from nspec_hf.serving import load, publish
from tests.helpers.hub_stand_in import TOKEN, HubStandIn, run as run_program
from tests.helpers.tiny_text import PAIRS, masks, model
from tests.serving.test_loading import expected, mixed, named, put, save, trained_by

pytest.importorskip("matplotlib")
pytestmark = [pytest.mark.filterwarnings("ignore:.*reached their longest length"), pytest.mark.medium]

PUBLISH = """
import json, os, sys, time, warnings
from huggingface_hub.errors import HfHubHTTPError
from nspec_hf import NeuronMasks, load
from nspec_hf.evaluation import Comparison, SystemScores, TranslateConfig
from nspec_hf.serving import publish

time.sleep = lambda seconds: None  # the client waits before it tries a broken push again
said = json.loads(sys.argv[1])
short = TranslateConfig(num_beams=2, length_ratio=1.0, length_extra=3, progress=False)
found = []
for call, given in json.loads(sys.argv[2]):
    try:
        if call == "publish":
            given["scores"] = [SystemScores.load(path) for path in given.get("scores", [])]
            if "comparison" in given:
                given["comparison"] = Comparison.load(given["comparison"])
            found.append(publish(load(given.pop("folder")), **given).oid)
        elif call == "chdir":
            found.append(os.chdir(given["folder"]))
        elif call == "push":
            found.append(NeuronMasks.from_pretrained(given.pop("folder")).push_to_hub(**given).oid)
        else:
            loaded = load(translate=short, **given)
            found.append([loaded.translate(*said), loaded.weights, loaded.revision])
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


def run(hub, home, calls, token=TOKEN):
    """Return what the calls give in a process whose Hub is the stand-in."""
    return run_program(hub, home, PUBLISH, json.dumps(mixed()), json.dumps(calls), token=token)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained run, its base, scores of two systems and their comparison."""
    folder = tmp_path_factory.mktemp("made")
    base, trained = model(), model(seed=5)
    chosen = masks(base)
    save(folder / "base", base)
    save(folder / "run" / "model", trained)
    named(base, chosen, "some/base").save_pretrained(folder / "run" / "masks")
    trained_by(folder / "run" / "model", chosen)
    named(base, chosen, "some/base").save_pretrained(folder / "untrained")
    right = {
        pair: [f"the {word} cat sat on {i} mats" for i in range(8) for word in ("red", "old")]
        for pair in PAIRS
    }
    wrong = {pair: [line.replace("cat sat", "dog sits") for line in lines] for pair, lines in right.items()}
    for name, outputs in (("fine-tune", wrong), ("specialized", right)):
        score_system(name, outputs, right, ["bleu", "chrf++"]).save(folder / f"{name}.json")
    compared = compare(
        {"fine-tune": wrong, "specialized": right}, right, "fine-tune", ["bleu"], n_samples=50, n_jobs=1
    )
    compared.save(folder / "comparison.json")
    return folder, base, trained, chosen


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_one_commit_holds_masks_card_scores_and_report_and_load_takes_it_from_there(made, tmp_path):
    folder, base, trained, chosen = made
    given = {
        "folder": str(folder / "run"),
        "repo": "me/masks",
        "model": "me/trained",
        "scores": [str(folder / "fine-tune.json"), str(folder / "specialized.json")],
        "comparison": str(folder / "comparison.json"),
        "dataset": "toy test",
    }
    with HubStandIn() as hub:
        put(hub, "me/trained", folder / "run" / "model")
        put(hub, "some/base", folder / "base")
        commit, pulled, unnamed, untold = run(
            hub,
            tmp_path / "home",
            [
                ["publish", dict(given)],
                ["load", {"repo_or_folder": "me/masks"}],
                ["publish", {**given, "repo": "me/other", "model": None}],
                ["publish", {**given, "repo": "me/other", "dataset": ""}],
            ],
        )
        assert "me/other" not in hub.commits
        (_, _), (last, files) = hub.commits["me/masks"]
    assert commit == last
    assert pulled[0] == expected(trained, chosen) != expected(base, chosen)
    assert pulled[1].startswith("as stated")
    assert "name it: model='user/name'" in unnamed
    assert "scores need a dataset" in untold
    assert set(files) == {
        ".gitattributes", "README.md", "config.json", "nspec_config.json", "nspec_masks.safetensors",
        "figures/overlap.png", "comparison.json", "report.html",
        "scores/fine-tune.json", "scores/specialized.json",
    }  # fmt: skip
    card = files["README.md"].decode()
    assert card in hub.validated
    data = front(card)
    assert data["language"] == ["de", "en", "fr"]
    assert (data["base_model"], data["base_model_relation"]) == ("me/trained", "adapter")
    results = data["model-index"][0]["results"]
    own = json.loads(files["scores/specialized.json"])["scores"]
    stated = {
        (row["dataset"]["config"], metric["name"]): (metric["value"], metric["config"])
        for row in results
        for metric in row["metrics"]
    }
    assert stated == {
        (pair, name): (round(score["value"], 4), score["signature"])
        for pair, scores in own.items()
        for name, score in scores.items()
    }
    assert {row["dataset"]["name"] for row in results} == {"toy test"}
    assert "![overlap](figures/overlap.png)" in card
    assert re.search(r"\| en-de \| specialized \| bleu \|.*better", card)
    assert "nrefs:1|" in card
    assert 'load("me/masks")' in card
    assert str(folder) not in card
    assert files["figures/overlap.png"].startswith(b"\x89PNG")
    assert b"<html" in files["report.html"]


def test_an_untrained_base_needs_no_name_and_its_revision_is_kept(made, tmp_path):
    folder, base, _, chosen = made
    with HubStandIn() as hub:
        put(hub, "some/base", folder / "base")
        commit, pulled = run(
            hub,
            tmp_path / "home",
            [
                ["publish", {"folder": str(folder / "untrained"), "repo": "me/masks"}],
                ["load", {"repo_or_folder": "me/masks"}],
            ],
        )
    assert (pulled[0], pulled[2]) == (expected(base, chosen), commit)


def test_several_sets_share_a_repository_and_its_page_lists_them(made, tmp_path):
    folder, base, trained, chosen = made
    few = masks(base, density=0.3)
    save(tmp_path / "run" / "model", trained)
    named(base, few, "some/base").save_pretrained(tmp_path / "run" / "masks")
    trained_by(tmp_path / "run" / "model", few)
    alike = tmp_path / "here" / "me" / "masks"  # called as the repository is
    alike.mkdir(parents=True)
    (alike / "config.json").write_text('{"masks": "mine", "sets": {"mine": {"pairs": []}}}')
    with HubStandIn() as hub:
        put(hub, "me/trained", folder / "run" / "model")
        about = {"repo": "me/masks", "model": "me/trained"}
        found = run(
            hub,
            tmp_path / "home",
            [
                ["publish", {"folder": str(folder / "run"), "subfolder": "k60", **about}],
                ["chdir", {"folder": str(tmp_path / "here")}],
                ["publish", {"folder": str(tmp_path / "run"), "subfolder": "sets/k30", **about}],
                ["chdir", {"folder": str(tmp_path)}],
                ["load", {"repo_or_folder": "me/masks", "subfolder": "k60"}],
                ["load", {"repo_or_folder": "me/masks", "subfolder": "sets/k30"}],
                ["load", {"repo_or_folder": "me/masks"}],
                ["publish", {"folder": str(folder / "run"), **about}],
                ["load", {"repo_or_folder": "me/masks"}],
                ["load", {"repo_or_folder": "me/masks", "subfolder": "sets/k30"}],
            ],
        )
        del found[1:4:2]  # of the changes of the working directory
        first, both, all_three = (files for _, files in hub.commits["me/masks"][1:])
    assert [each[0] for each in (found[2], found[3])] == [expected(trained, chosen), expected(trained, few)]
    assert "several sets of masks; give subfolder=, one of: k60, sets/k30" in found[4]
    assert found[6][0] == found[2][0]
    assert found[7][0] == found[3][0]
    card = both["README.md"].decode()
    assert "[k60](k60/README.md)" in card
    assert "[sets/k30](sets/k30/README.md)" in card
    assert front(card)["language"] == ["de", "en", "fr"]
    assert "sets/k30" not in first["README.md"].decode()
    assert set(json.loads(both["config.json"])["sets"]) == {"k60", "sets/k30"}
    assert json.loads(both["config.json"])["sets"]["sets/k30"]["fingerprint"] == few.fingerprint()
    assert set(json.loads(all_three["config.json"])["sets"]) == {"k60", "sets/k30"}
    assert "How they were made" in all_three["README.md"].decode()


def test_private_repositories_organisations_and_branches(made, tmp_path):
    folder, _, trained, chosen = made
    about = {"folder": str(folder / "run"), "model": "me/trained"}
    with HubStandIn() as hub:
        put(hub, "me/trained", folder / "run" / "model")
        calls = [
            ["publish", {**about, "repo": "some-organisation/masks", "private": True}],
            ["load", {"repo_or_folder": "some-organisation/masks"}],
            ["push", {"folder": str(folder / "run" / "masks"), "repo": "me/masks"}],
            ["publish", {**about, "repo": "me/masks", "revision": "v2"}],
            ["load", {"repo_or_folder": "me/masks", "revision": "v2"}],
        ]
        found = run(hub, tmp_path / "home", calls)
        (outside,) = run(hub, tmp_path / "elsewhere", calls[1:2], token="")
        assert hub.private == {"some-organisation/masks"}
        assert hub.branches["me/masks", "main"] == found[2]
        assert hub.branches["me/masks", "v2"] == found[3]
    assert found[1][0] == found[4][0] == expected(trained, chosen)
    assert outside.startswith("FileNotFoundError")


def test_an_interrupted_push_has_changed_nothing_and_is_done_again(made, tmp_path):
    folder, _, trained, chosen = made
    about = {"folder": str(folder / "run"), "model": "me/trained", "repo": "me/masks"}
    with HubStandIn() as hub:
        put(hub, "me/trained", folder / "run" / "model")
        (first,) = run(hub, tmp_path / "home", [["publish", about]])
        before = dict(hub.find("me/masks", "main")[1])
        hub.interrupted = 100
        more = {**about, "scores": [str(folder / "specialized.json")], "dataset": "toy test"}
        (broken,) = run(hub, tmp_path / "home", [["publish", more]])
        assert hub.find("me/masks", "main") == (first, before)
        hub.interrupted = 0
        again, pulled, old = run(
            hub,
            tmp_path / "home",
            [
                ["publish", more],
                ["load", {"repo_or_folder": "me/masks"}],
                ["load", {"repo_or_folder": "me/masks", "revision": first}],
            ],
        )
    assert "Error" in broken
    assert pulled[2] == again != first
    assert pulled[0] == old[0] == expected(trained, chosen)
    assert old[2] == first


def test_scores_that_would_lie_in_one_file_are_refused_before_anything_is_made(made):
    folder, *_ = made
    twice = SystemScores.load(folder / "specialized.json")
    loaded = load(folder / "untrained", base=folder / "base")
    for other in (twice, replace(twice, name="a b")):
        named_alike = [other, replace(other, name=other.name.replace(" ", "/"))]
        with pytest.raises(ConfigError, match="several systems are called"):
            publish(loaded, "me/masks", scores=named_alike, dataset="toy test")
