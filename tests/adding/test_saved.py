"""What was added goes to the Hub and comes back, with the real client; its card runs."""

import pytest
import torch
from huggingface_hub import ModelCard
from torch.utils.data import DataLoader

from nspec_hf.adding import AddConfig, AddedPairs, Addition, layout_for, load_added, save_added
from nspec_hf.cli.main import main
from nspec_hf.core import ArtifactError, ConfigError
from nspec_hf.data import PairCollator
from nspec_hf.evaluation import Translator
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig, record
from tests.helpers import tiny_text
from tests.helpers.hub_stand_in import HubStandIn, run
from tests.helpers.kills import killed_at

PUSH_PULL_AND_RUN_THE_CARD = """
import json, re, sys
from pathlib import Path
import torch
from huggingface_hub import hf_hub_download
from nspec_hf.adding import load_added, push_added
from nspec_hf.recording import load_model

repo, base, folder = sys.argv[1:]
model = load_model(base)
added = load_added(folder, model)
commit = push_added(added, repo).oid
again = load_added(repo, model, revision=commit)
ours, theirs = added.own.state_dict(), again.own.state_dict()
card = Path(hf_hub_download(repo, "README.md")).read_text()
(code,) = re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL)
names = {}
exec(compile(code, "the card", "exec"), names)
print(json.dumps({
    "same": ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours),
    "translates": isinstance(names["loaded"].translate("one two", "en-fr"), str),
}))
"""


@pytest.mark.medium
def test_pulled_additions_are_the_pushed_ones_and_the_card_translates(tmp_path):
    model, base = tiny_text.model(), tmp_path / "base"
    model.save_pretrained(base)
    tiny_text.tokenizer().save_pretrained(base)
    layout = layout_for(model, ["en-fr", "fr-en"], AddConfig(), 0.5, ids=[4, 9], about={"base": str(base)})
    save_added(AddedPairs(model, [Addition(model, layout).draw(model, 1, {})]), tmp_path / "added")
    with HubStandIn() as hub:
        arguments = ("somebody/french", base, tmp_path / "added")
        found = run(hub, tmp_path / "home", PUSH_PULL_AND_RUN_THE_CARD, *arguments)
        assert {"nspec_added.safetensors", "README.md", "config.json"} <= set(
            hub.commits["somebody/french"][-1][1]
        )
    assert found == {"same": True, "translates": True}


@pytest.mark.parametrize(("base", "named"), [("some/base", "some/base"), ("", None)])
def test_the_card_s_metadata_is_what_the_hub_reads_whatever_yaml_takes_a_code_for(tmp_path, base, named):
    model = tiny_text.model()
    layout = layout_for(model, ["en-no", "nob_Latn-en"], AddConfig(), 0.5, ids=[4], about={"base": base})
    save_added(AddedPairs(model, [Addition(model, layout).draw(model, 1, {})]), tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.language == ["en", "no", "nob"]  # unquoted, YAML takes "no" for False
    assert (data.library_name, data.base_model) == ("nspec_hf", named)


def test_old_pairs_run_at_the_level_of_their_masks_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny_text.model(), tiny_text.tokenizer()
    model.save_pretrained("base")
    tokenizer.save_pretrained("base")
    old = ["en-de", "de-en"]
    loader = DataLoader(
        tiny_text.corpus(12, pairs=old), batch_size=6, collate_fn=PairCollator(tokenizer, old)
    )
    stats = record(model, loader, old, RecordConfig(progress=False))
    masks = NeuronMasks.from_coverage(stats, 0.9, levels=(0.3,))
    layout = layout_for(model, ["en-fr"], AddConfig(), 0.5, ids=[4, 9], about={"base": "base"})
    save_added(AddedPairs(model, [Addition(model, layout).draw(model, 1, {})], masks), "added")
    texts = tiny_text.sentences(6, seed=2)["en"]
    tmp_path.joinpath("in.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    found = {}
    for coverage in ("0.3", "0.9"):
        line = ["translate", "--model", "base", "--added", "added", "--pair", "en-de", "--input", "in.txt"]
        assert main([*line, "--coverage", coverage, "--output", "out.txt"]) == 0
        found[coverage] = tmp_path.joinpath("out.txt").read_text(encoding="utf-8").splitlines()
        expected = Translator(model, tokenizer, masks.at(float(coverage))).translate(texts, "en-de")
        assert found[coverage] == expected
    assert found["0.3"] != found["0.9"]


def test_a_coverage_without_masks_of_old_pairs_is_refused(tmp_path):
    model = tiny_text.model()
    layout = layout_for(model, ["en-fr"], AddConfig(), 0.5, ids=[4, 9], about={"base": "base"})
    save_added(AddedPairs(model, [Addition(model, layout).draw(model, 1, {})]), tmp_path)
    with pytest.raises(ConfigError, match="holds no masks of old pairs"):
        load_added(tmp_path, model, coverage=0.5)


@pytest.mark.parametrize("changes", range(12))
def test_a_save_over_another_that_is_killed_leaves_the_old_the_new_or_what_is_refused(changes, tmp_path):
    """Killed before each change of files in turn: never masks of one save with the weights of the other."""
    model, both = tiny_text.model(), []
    for seed in (1, 2):
        layout = layout_for(model, ["en-fr"], AddConfig(), 0.5, ids=[4, 9])
        masks = tiny_text.masks(model, ["en-de"], seed=seed)
        both.append(AddedPairs(model, [Addition(model, layout).draw(model, seed, {})], masks))
    save_added(both[0], tmp_path)
    killed_at(changes, tmp_path, lambda: save_added(both[1], tmp_path))
    try:
        found = load_added(tmp_path, model)
    except ArtifactError:
        with pytest.raises(ArtifactError, match="save it again"):
            load_added(tmp_path, model)
    else:
        weights = found.own.state_dict()
        (same,) = [
            one for one in both if all(torch.equal(weights[n], w) for n, w in one.own.state_dict().items())
        ]
        assert found.masks == same.masks
    save_added(both[1], tmp_path)
    assert load_added(tmp_path, model).masks == both[1].masks
