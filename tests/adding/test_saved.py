"""What was added goes to the Hub and comes back, with the real client; its card runs."""

import pytest
from huggingface_hub import ModelCard

from nspec_hf.adding import AddConfig, AddedPairs, Addition, layout_for, save_added
from tests.helpers import tiny_text
from tests.helpers.hub_stand_in import HubStandIn, run

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
