"""Push and pull with the real client of the Hub, against a stand-in on this machine.

The client reads its endpoint when it is imported, so each test runs a program of its own.
"""

import ast

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nspec_hf.masks import MASKS_FILE, NeuronMasks, Recipe
from nspec_hf.masks.hub import STATS_FILE
from nspec_hf.masks.readable import COPY_FILE
from nspec_hf.recording import ActivationStats, find_sites
from tests.helpers.hub_stand_in import HubStandIn, run
from tests.helpers.models import VOCABULARY, tiny_m2m100

PAIRS = ["en-de", "de-en", "en-fr", "fr-en"]
REPO = "somebody/masks-of-a-model"


@pytest.fixture
def hub():
    with HubStandIn() as hub:
        yield hub


@pytest.fixture
def base(tmp_path):
    """Return the folder of a tiny model with a tokenizer of the M2M-100 family."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "__en__", "__de__", "__fr__", "A", "sentence", "in", "en", "."]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = tmp_path / "base"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    tiny_m2m100().save_pretrained(folder)
    return folder


PUSH_AND_PULL = """
import json, sys
from nspec_hf.masks import NeuronMasks

repo, first, second = sys.argv[1:]
old, new = NeuronMasks.from_pretrained(first), NeuronMasks.from_pretrained(second)
commits = [old.push_to_hub(repo).oid, new.push_to_hub(repo, message="More pairs").oid]
print(json.dumps({
    "commits": commits,
    "differ": old != new,
    "main": NeuronMasks.from_pretrained(repo) == new,
    "first": NeuronMasks.from_pretrained(repo, revision=commits[0]) == old,
    "recipe": NeuronMasks.from_pretrained(repo).recipe == new.recipe,
    "general": NeuronMasks.from_pretrained(repo).general is not None,
    "offline": NeuronMasks.from_pretrained(repo, local_files_only=True) == new,
}))
"""


def test_pulled_masks_are_the_pushed_ones_at_every_revision(hub, tmp_path):
    masks = NeuronMasks.random(find_sites(tiny_m2m100()), PAIRS, density=0.6)
    general = {name: keep_PF.all(dim=0) for name, keep_PF in masks.keep.items()}
    masks = NeuronMasks(PAIRS, masks.keep, general=general, recipe=masks.recipe)
    masks.save_pretrained(tmp_path / "first")
    masks.compose("de-fr").save_pretrained(tmp_path / "second")
    found = run(hub, tmp_path / "home", PUSH_AND_PULL, REPO, tmp_path / "first", tmp_path / "second")
    (_, _), (first, files), (second, _) = hub.commits[REPO]
    assert found.pop("commits") == [first, second]
    assert all(found.values()), found
    assert set(files) == {".gitattributes", MASKS_FILE, COPY_FILE, "config.json", "README.md"}
    assert files[MASKS_FILE] == (tmp_path / "first" / MASKS_FILE).read_bytes()
    assert hub.downloads[REPO] > 0


PUSH_WITHOUT_STATISTICS = """
import json, sys
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats

repo, first, second, stats, figure = sys.argv[1:]
more = {"stats": ActivationStats.load(stats), "figures": [figure]}
for subfolder in ("", "set"):
    NeuronMasks.from_pretrained(first).push_to_hub(repo, subfolder=subfolder, **more)
NeuronMasks.from_pretrained(second).push_to_hub(repo, subfolder="set")
print(json.dumps([]))
"""


def test_statistics_and_figures_of_earlier_masks_go_when_others_are_pushed(hub, tmp_path):
    sites = find_sites(tiny_m2m100())
    for seed in (1, 2):
        NeuronMasks.random(sites, PAIRS, density=0.6, seed=seed).save_pretrained(tmp_path / str(seed))
    ActivationStats(PAIRS, sites).save(tmp_path / "stats")
    (tmp_path / "map.png").write_bytes(b"an image")
    paths = [tmp_path / name for name in ("1", "2", "stats", "map.png")]
    run(hub, tmp_path / "home", PUSH_WITHOUT_STATISTICS, REPO, *paths)
    before, after = (set(hub.commits[REPO][number][1]) for number in (-2, -1))
    assert before - after == {f"set/{STATS_FILE}", "set/figures/map.png"}
    assert {STATS_FILE, "figures/map.png"} < after


RUN_THE_CARD = """
import contextlib, io, json, re, sys
from pathlib import Path
from huggingface_hub import hf_hub_download
from nspec_hf.masks import NeuronMasks

repo, folder = sys.argv[1:]
NeuronMasks.from_pretrained(folder).push_to_hub(repo)
card = Path(hf_hub_download(repo, "README.md")).read_text()
(code,) = re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL)
printed, names = io.StringIO(), {}
with contextlib.redirect_stdout(printed):
    exec(compile(code, "the card", "exec"), names)
print(json.dumps({"code": code, "printed": printed.getvalue(), "masks": names["masks"].fingerprint()}))
"""


@pytest.mark.slow
def test_the_snippet_of_a_pushed_card_runs_as_it_stands(hub, base, tmp_path):
    drawn = NeuronMasks.random(find_sites(tiny_m2m100()), PAIRS)
    masks = NeuronMasks(PAIRS, drawn.keep, recipe=Recipe(method="random", base_model=str(base)))
    masks.save_pretrained(tmp_path / "masks")
    found = run(hub, tmp_path / "home", RUN_THE_CARD, REPO, tmp_path / "masks")
    assert f'NeuronMasks.from_pretrained("{REPO}")' in found["code"]
    assert f'AutoModelForSeq2SeqLM.from_pretrained("{base}")' in found["code"]
    assert found["masks"] == masks.fingerprint()
    (translation,) = ast.literal_eval(found["printed"])
    assert isinstance(translation, str)


def test_the_snippet_of_masks_without_a_model_runs_too(hub, tmp_path):
    masks = NeuronMasks.random(find_sites(tiny_m2m100()), PAIRS)
    masks.save_pretrained(tmp_path / "masks")
    found = run(hub, tmp_path / "home", RUN_THE_CARD, REPO, tmp_path / "masks")
    assert found["printed"].strip() == repr(masks)


TRY = """
import json, sys
from nspec_hf.masks import NeuronMasks

folder, found = sys.argv[1], {}
attempts = {
    "push": lambda: NeuronMasks.from_pretrained(folder).push_to_hub("somebody/masks"),
    "no repository": lambda: NeuronMasks.from_pretrained("somebody/nothing"),
    "no revision": lambda: NeuronMasks.from_pretrained("somebody/empty", revision="v9"),
    "no masks": lambda: NeuronMasks.from_pretrained("somebody/empty"),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def test_what_cannot_be_pushed_or_pulled_is_refused_with_its_reason(hub, tmp_path):
    NeuronMasks.random({"model.encoder.layers.0.fc1": 8}, PAIRS).save_pretrained(tmp_path / "masks")
    hub.commits["somebody/empty"], hub.downloads["somebody/empty"] = [], 0
    hub.commit("somebody/empty", {"config.json": b"{}"})
    found = run(hub, tmp_path / "home", TRY, tmp_path / "masks", token="hf_wrong")
    assert "401" in found["push"]
    assert "somebody/masks" not in hub.commits
    assert found["no repository"].startswith(
        "FileNotFoundError: somebody/nothing is no folder here, and as a"
    )
    assert found["no revision"].startswith("RevisionNotFoundError")
    assert found["no masks"] == (
        "FileNotFoundError: somebody/empty holds no nspec_masks.safetensors; was it made by save_pretrained?"
    )


PUSH_WHAT_NAMES_FOLDERS = """
import json, sys, warnings
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import ActivationStats

repo, folder, stats, model = sys.argv[1:]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    more = {"model": model} if model else {}
    NeuronMasks.from_pretrained(folder).push_to_hub(repo, stats=ActivationStats.load(stats), **more)
print(json.dumps([str(each.message) for each in caught if "this machine" in str(each.message)]))
"""


@pytest.mark.parametrize("model", ["", "somebody/specialized"])
def test_paths_of_this_machine_are_not_published(hub, tmp_path, model):
    base, text = tmp_path / "secret-project" / "base", tmp_path / "secret-project" / "dev-text"
    sites = find_sites(tiny_m2m100())
    stats = ActivationStats(PAIRS, sites, base={"id": str(base)}, corpus={"path": str(text), "split": "dev"})
    # Of another text, and named further inside.
    stats.merge(ActivationStats(PAIRS, sites, base={"id": str(base)}, corpus={"files": [str(text)]}))
    stats.save(tmp_path / "stats")
    keep = NeuronMasks.random(sites, PAIRS).keep
    recipe = Recipe(method="coverage", base_model=str(base), corpus=stats.corpus)
    NeuronMasks(PAIRS, keep, recipe=recipe).save_pretrained(tmp_path / "masks")
    arguments = (REPO, tmp_path / "masks", tmp_path / "stats", model)
    warned = run(hub, tmp_path / "home", PUSH_WHAT_NAMES_FOLDERS, *arguments)
    files = hub.commits[REPO][-1][1]
    assert b"dev-text" in files[MASKS_FILE]
    assert b"dev-text" in files[STATS_FILE]
    if model:
        assert warned == []
        assert all(b"secret-project" not in content for content in files.values())
        assert b'"base"' in files[COPY_FILE]
    else:
        # Without the id of a repository the snippet can only run here, and says so.
        assert str(base) in warned[0]
        assert str(base).encode() in files["README.md"]
        assert all(str(text).encode() not in content for content in files.values())
        assert b"secret-project" not in files[STATS_FILE]
