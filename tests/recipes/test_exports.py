"""The recipe that exports a pair in every form and scores each: a tiny run; what differs is not the same."""

import json
import sys

import pytest

from nspec_hf.core import Pair
from nspec_hf.data import LanguageTags, PairText
from tests.helpers import tiny_text
from tests.helpers.tiny_experiment import RECIPES

sys.path.insert(0, str(RECIPES))
import exports

sys.path.remove(str(RECIPES))


@pytest.fixture
def arguments(tmp_path):
    """Write model, masks and text; return the command line."""
    model = tiny_text.model()
    model.save_pretrained(tmp_path / "model")
    tiny_text.tokenizer().save_pretrained(tmp_path / "model")
    tiny_text.masks(model).save_pretrained(tmp_path / "masks")
    tiny_text.write_text(tmp_path / "data", test=5)
    folders = [f"--{name}={tmp_path / name}" for name in ("model", "masks", "data")]
    return [*folders, "--split=test", "--sample=3", "--max-new-tokens=8"]


def test_every_form_has_its_size_its_agreement_with_the_gate_and_its_bleu(tmp_path, arguments, capsys):
    pytest.importorskip("ctranslate2")
    path = tmp_path / "exports.json"
    assert exports.main([*arguments, "--json", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    assert found.keys() == {"gate", *exports.FORMS, "recipe"}
    for name in ("zeroed", "pruned", "ctranslate2"):
        assert (found[name]["same"], found[name]["sentences"]) == (5, 5)
        assert (found[name]["proof_same"], found[name]["proof_sentences"]) == (1.0, 3)
        assert found[name]["bleu"] == found["gate"]["bleu"]
    assert found["zeroed"]["parameters"] == found["zeroed"]["parameters_dense"]
    assert found["pruned"]["parameters"] < found["pruned"]["parameters_dense"]
    assert found["ctranslate2.int8"]["bytes"] < found["ctranslate2"]["bytes"]
    assert "tok:13a" in found["gate"]["signature"]
    assert str(tmp_path) not in text
    assert "ctranslate2.int8" in capsys.readouterr().out


def test_translations_that_differ_from_the_gates_are_not_counted_as_the_same(
    tmp_path, arguments, monkeypatch
):
    monkeypatch.setattr(exports, "FORMS", {"zeroed": {"format": "zeroed"}})
    whole = exports.exported_tokens

    def one_other(*given):
        ((pair, (first, *rest)),) = whole(*given).items()
        return {pair: [[*first, 5], *rest]}

    monkeypatch.setattr(exports, "exported_tokens", one_other)
    path = tmp_path / "exports.json"
    exports.main([*arguments, "--json", str(path)])
    assert json.loads(path.read_text(encoding="utf-8"))["zeroed"]["same"] == 4


def test_bleu_is_that_of_the_tokens_text():
    tags = LanguageTags(tiny_text.tokenizer())
    text = PairText(Pair("en-de"), ["one two three four five"] * 2, ["eins zwei drei vier fünf"] * 2)
    tokens = [tags.tokenizer(line, add_special_tokens=False)["input_ids"] for line in text.targets]
    assert exports.bleu(tokens, tags, text)["bleu"] == pytest.approx(100)
    assert exports.bleu(tokens[::-1], tags, text)["bleu"] == pytest.approx(100)
    assert exports.bleu([[], []], tags, text)["bleu"] == 0
