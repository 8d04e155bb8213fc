"""The model card: metadata that the Hub accepts, code that can be run, and every fact of the recipe."""

import ast
import re

import pytest
import torch
from huggingface_hub import ModelCard

from nspec_hf.core import as_pairs
from nspec_hf.masks import NeuronMasks, Recipe, SelectConfig
from nspec_hf.masks.model_card import card_text, iso_codes, usage_snippet
from tests.masks.test_select import DECODER, ENCODER, PAIRS, made_up_stats

BASE = {"id": "some/base", "revision": "abc123", "fingerprint": "0123456789abcdef"}


@pytest.fixture(scope="module")
def masks():
    stats = made_up_stats(base=BASE, corpus={"name": "dev", "sentences": 1000})
    return NeuronMasks.from_config(stats, SelectConfig(coverage=0.85))


def test_the_metadata_says_languages_base_and_library(masks):
    data = ModelCard(card_text(masks, repo="me/masks")).data
    assert data.language == ["de", "en", "fr"]
    assert data.library_name == "nspec_hf"
    assert data.pipeline_tag == "translation"
    assert data.base_model == "some/base"
    assert data.base_model_relation == "adapter"


@pytest.mark.parametrize("base", ["", "./out/base", "/tmp/base", "a/b/c", "tests"])
def test_a_base_that_is_no_repository_stays_out_of_the_metadata(base, monkeypatch, tmp_path):
    # "tests" could be a repository's id, but is a folder here.
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    keep = {ENCODER: torch.tensor([[True, False]])}
    card = card_text(NeuronMasks(pairs=["en-de"], keep=keep, recipe=Recipe(base_model=base)), repo="me/masks")
    assert ModelCard(card).data.base_model is None


def test_languages_are_iso_codes_as_the_hub_wants_them():
    pairs = as_pairs(["eng_Latn-deu_Latn", "zh-CN->en_XX", "klingon-en"])
    assert iso_codes(pairs) == ["deu", "en", "eng", "zh"]
    keep = {ENCODER: torch.tensor([[True, False]])}
    assert "language:" not in card_text(NeuronMasks(pairs=["klingon-elvish"], keep=keep), repo="me/masks")


def test_every_fact_of_the_recipe_stands_in_the_card(masks):
    card = card_text(masks, repo="me/masks")
    facts = ["`coverage`", "some/base", "abc123", "0123456789abcdef", '"name": "dev"', masks.fingerprint()]
    facts += [f"| setting `{name}` |" for name in masks.recipe.settings]
    facts += ["`0.85`", f"{sum(masks.recipe.tokens.values()):,}", *masks.recipe.versions.values()]
    assert not [fact for fact in facts if fact not in card]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SelectConfig(coverage=0.85), "the most active neurons of a site"),
        (SelectConfig(coverage=0.85, temperature=0.3), "drawn with chances that follow how often they fired"),
        (SelectConfig(method="random"), "drawn at random"),
    ],
)
def test_the_card_says_how_neurons_were_chosen(config, says):
    card = card_text(NeuronMasks.from_config(made_up_stats(base=BASE), config), repo="me/masks")
    (line,) = (line for line in card.splitlines() if line.startswith("| method |"))
    assert says in line
    assert ("temperature" in card) == (config.temperature > 0)


def test_the_tables_show_the_shares_that_were_kept():
    keep = {ENCODER: torch.zeros(2, 8, dtype=torch.bool), DECODER: torch.zeros(2, 4, dtype=torch.bool)}
    keep[ENCODER][0, :6] = True
    keep[ENCODER][1, :2] = True
    keep[DECODER][1, :3] = True
    recipe = Recipe(tokens={"en-de": 12345})
    card = card_text(NeuronMasks(pairs=["en-de", "de-en"], keep=keep, recipe=recipe), repo="me/masks")
    assert f"| `{ENCODER}` | 8 | 0.500 | 0.250 (de-en) | 0.750 (en-de) |" in card
    assert f"| `{DECODER}` | 4 | 0.375 | 0.000 (en-de) | 0.750 (de-en) |" in card
    assert "| en-de | 0.375 | 12,345 |" in card
    assert "| de-en | 0.500 | – |" in card


def test_text_with_bars_and_line_breaks_cannot_break_a_table():
    keep = {ENCODER: torch.tensor([[True, False]])}
    recipe = Recipe(derived=("a | b\nc",))
    card = card_text(NeuronMasks(pairs=["en-de"], keep=keep, recipe=recipe), repo="me/masks")
    assert r"| then | a \| b c |" in card


def test_the_snippet_is_python_and_names_masks_base_revision_and_pair(masks):
    code = usage_snippet(masks.recipe, masks.pairs, "me/masks")
    ast.parse(code)
    assert 'NeuronMasks.from_pretrained("me/masks")' in code
    assert 'AutoModelForSeq2SeqLM.from_pretrained("some/base", revision="abc123")' in code
    assert f'"{PAIRS[0]}"' in code


def test_the_snippet_loads_the_specialized_model_where_there_is_one(masks):
    code = usage_snippet(masks.recipe, masks.pairs, "me/masks", model="me/specialized")
    assert code.count('from_pretrained("me/specialized")') == 2
    assert "some/base" not in code
    assert "abc123" not in code


def test_odd_names_cannot_break_out_of_the_snippet():
    recipe = Recipe(base_model='x"); import os; ("')
    code = usage_snippet(recipe, as_pairs(["q')-de"]), "me/masks")
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import)]
    assert not imports


def test_figures_are_shown_with_a_name_to_read(masks):
    card = card_text(masks, repo="me/masks", figures=["figures/overlap_of_layer_0.png"])
    assert "![overlap of layer 0](figures/overlap_of_layer_0.png)" in card
    assert "## Figures" not in card_text(masks, repo="me/masks")


def test_the_card_has_one_block_of_code(masks):
    assert len(re.findall(r"```python\n.*?```", card_text(masks, repo="me/masks"), flags=re.DOTALL)) == 1
