"""recipes/smaller.py exports, loads, translates and compares every form, on a tiny model."""

import json

import pytest

from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.helpers import tiny_text
from tests.test_pages import loaded


@pytest.mark.medium
def test_every_form_of_a_group_of_pairs_is_beside_its_dense_one(tmp_path, capsys):
    pytest.importorskip("ctranslate2")
    model = tiny_text.model()
    for part in (model, tiny_text.tokenizer()):
        part.save_pretrained(tmp_path / "model")
    sites = {site.name: site.width for site in find_sites(model)}
    pairs = ["en-de", "de-en"]
    NeuronMasks.random(sites=sites, pairs=pairs, density=0.4, seed=1).save_pretrained(tmp_path / "masks")
    tiny_text.write_text(tmp_path / "data", train=40, test=6)
    arguments = ["--model", tmp_path / "model", "--masks", tmp_path / "masks", "--data", tmp_path / "data"]
    arguments += [
        "--pairs",
        "en-de,de-en",
        "--split",
        "test",
        "--sample",
        "3",
        "--timed",
        "2",
        "--rounds",
        "1",
    ]
    arguments += ["--max-new-tokens", "8", "--beams", "2", "--json", tmp_path / "out.json"]
    forms = ["padded", "ctranslate2.union", "ctranslate2.union.int8", "ctranslate2"]
    arguments += ["--forms", *forms]
    assert loaded("smaller").main([str(each) for each in arguments]) == 0
    assert "of dense" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    for form in forms[:3]:
        models = found[form]
        sizes = {name: each["bytes"] for name, each in models.items()}
        assert sizes["both"] < min(sizes["neurons"], sizes["vocabulary"])
        assert max(sizes["neurons"], sizes["vocabulary"]) < sizes["dense"]
        assert all(each["proof_same"] == 1.0 or form.endswith("int8") for each in models.values())
        assert {pair for each in models.values() for pair in each["bleu"]} == set(pairs)
        assert models["both"]["density"] < models["vocabulary"]["density"] == 1.0
    assert found["padded"]["dense"]["parameters"] == model.num_parameters()
    apart = found["ctranslate2"]  # a model a pair, where masks differ
    assert apart["vocabulary"]["bytes"] < apart["both"]["bytes"] < apart["neurons"]["bytes"]
    assert apart["both"]["parameters"] > found["ctranslate2.union"]["both"]["parameters"]
    assert apart["neurons"]["bleu"] == found["padded"]["neurons"]["bleu"]
