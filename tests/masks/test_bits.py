"""Masks in memory and in their file: a bit a neuron, composed pairs as two row numbers."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from nspec_hf.core import ArtifactError, ConfigError, Pair, pack, packed_width, write_artifact
from nspec_hf.masks import MASKS_FILE, NeuronMasks
from nspec_hf.masks.hub import KIND
from tests.masks.test_select import DECODER, ENCODER

LANGUAGES = ["en", "de", "fr", "cs", "da"]
OWN = [pair for code in LANGUAGES[1:] for pair in (Pair("en", code), Pair(code, "en"))]
NEW = [Pair(a, b) for a in LANGUAGES[1:] for b in LANGUAGES[1:] if a != b]
WIDTHS = {ENCODER: 21, DECODER: 16}


def drawn(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(len(OWN), width, generator=generator) < 0.6 for name, width in WIDTHS.items()}


def by_hand(keep):
    """Masks of own and new pairs as booleans, by a plain loop."""
    rows = {pair: (OWN.index(pair), OWN.index(pair)) for pair in OWN}
    rows |= {pair: (OWN.index(f"{pair.source}-en"), OWN.index(f"en-{pair.target}")) for pair in NEW}
    return {name: torch.stack([keep[name][both[name == DECODER]] for both in rows.values()]) for name in keep}


@pytest.fixture
def keep():
    return drawn()


@pytest.fixture
def composed(keep):
    return NeuronMasks(OWN, keep).compose(NEW)


def test_composed_pairs_are_views_of_their_parts(composed, keep):
    expected = by_hand(keep)
    assert composed.pairs == OWN + NEW
    for name, keep_PF in expected.items():
        site = composed.keep.at(name)
        assert site.bits.tensor.shape == (len(OWN), packed_width(WIDTHS[name]))
        assert torch.equal(composed.keep[name], keep_PF)
        assert site.kept_P.tolist() == keep_PF.sum(dim=1).tolist()
        for row, pair in enumerate(composed.pairs):
            assert torch.equal(composed[pair][name], keep_PF[row])
    kept = sum(int(each.sum()) for each in expected.values())
    assert composed.density() == kept / sum(each.numel() for each in expected.values())
    assert composed.density("de-fr", DECODER) == int(keep[DECODER][OWN.index("en-fr")].sum()) / 16


def test_views_and_masks_of_their_own_are_equal_where_the_neurons_are(composed, keep):
    same = NeuronMasks(OWN + NEW, by_hand(keep))
    assert composed == same
    changed = by_hand(keep)
    changed[DECODER][-1, -1] ^= True
    assert composed != NeuronMasks(OWN + NEW, changed)
    assert [composed.subset(NEW[:3])] == [same.subset(NEW[:3])]


def test_a_saved_composed_set_is_its_parts_and_two_numbers_a_pair(composed, tmp_path):
    path = tmp_path / MASKS_FILE
    composed.save(path)
    stored = load_file(path)
    for name, width in WIDTHS.items():
        assert stored[f"keep/{name}"].shape == (len(OWN), packed_width(width))
    assert stored["rows/encoder"].dtype == torch.int32
    assert stored["rows/encoder"].tolist() == [*range(len(OWN)), *(OWN.index(f"{p.source}-en") for p in NEW)]
    assert stored["rows/decoder"].tolist() == [*range(len(OWN)), *(OWN.index(f"en-{p.target}") for p in NEW)]
    loaded = NeuronMasks.from_pretrained(path)
    assert loaded == composed
    assert loaded.pairs == composed.pairs
    assert loaded.keep.at(ENCODER).bits.tensor.shape[0] == len(OWN)
    assert loaded.recipe == composed.recipe
    assert loaded.compose("en-en", pivot="de").index("en-en") == len(OWN + NEW)


def test_masks_of_their_own_are_saved_without_numbers(composed, tmp_path):
    NeuronMasks(OWN, drawn()).save(tmp_path / "own")
    assert {name.partition("/")[0] for name in load_file(tmp_path / "own")} == {"keep", "sha256"}
    composed.subset(OWN).save(tmp_path / "subset")
    assert load_file(tmp_path / "subset").keys() == load_file(tmp_path / "own").keys()


def test_many_pairs_are_laid_out_a_part_at_a_time_and_none_is_left_out():
    codes = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefghi"]
    own = [pair for code in codes for pair in (Pair("en", code), Pair(code, "en"))]
    keep = {name: torch.rand(len(own), width) < 0.6 for name, width in WIDTHS.items()}
    many = NeuronMasks(own, keep).compose(Pair(a, b) for a in codes for b in codes if a != b)
    for name in WIDTHS:
        parts = list(many.keep.at(name).in_order())
        assert len(parts) > 1
        assert torch.equal(torch.from_numpy(np.concatenate(parts)), pack(many.keep[name]))


@given(chosen=st.lists(st.sampled_from(OWN + NEW), min_size=1, unique=True), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_subset_holds_the_rows_that_it_uses_and_no_other(chosen, seed):
    keep = drawn(seed)
    masks, expected = NeuronMasks(OWN, keep).compose(NEW).subset(chosen), by_hand(keep)
    rows = [(OWN + NEW).index(pair) for pair in chosen]
    for name in WIDTHS:
        assert torch.equal(masks.keep[name], expected[name][rows])
        parts = {
            pair if pair in OWN else (f"{pair.source}-en" if name == ENCODER else f"en-{pair.target}")
            for pair in chosen
        }
        assert masks.keep.at(name).bits.tensor.shape[0] == len(parts)


def test_copies_and_pickles_of_a_composed_set_stay_views(composed):
    for again in (copy.deepcopy(composed), pickle.loads(pickle.dumps(composed))):
        assert again == composed
        assert again.keep.at(ENCODER).bits.tensor.shape[0] == len(OWN)
        assert again.keep.at(ENCODER).rows is not again.keep.at(DECODER).rows


def test_composed_of_the_new_masks_as_they_were_of_the_old(composed):
    other = NeuronMasks(OWN, drawn(2))
    again = other.compose_like(composed)
    assert again == other.compose(NEW)
    assert again != composed
    with pytest.raises(ConfigError, match="same pairs"):
        other.subset(OWN[::-1]).compose_like(composed)
    with pytest.raises(ConfigError, match="same pairs"):
        other.subset(OWN[:4]).compose_like(composed)


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize("other", [0, 1, len(OWN) - 1])
def test_masks_are_alike_unless_one_pair_whichever_has_another_neuron(site, other):
    same = {name: torch.arange(width).expand(len(OWN), width) % 3 > 0 for name, width in WIDTHS.items()}
    assert NeuronMasks(OWN, same).keep.is_alike()
    one = {name: keep_PF.clone() for name, keep_PF in same.items()}
    one[site][other, -1] ^= True
    masks = NeuronMasks(OWN, one)
    assert not masks.keep.is_alike()
    assert masks.subset(OWN[:other] + OWN[other + 1 :]).keep.is_alike()


def test_many_composed_pairs_are_one_note_of_the_recipe(composed, keep):
    assert composed.recipe.derived == ("12 pairs composed through en",)
    few = NeuronMasks(OWN, keep).compose(["de-fr", "fr-de"])
    assert few.recipe.derived == ("de-fr composed through en", "fr-de composed through en")


def test_masks_in_use_stay_what_they_are_when_their_file_is_replaced(keep, tmp_path):
    path = tmp_path / MASKS_FILE
    NeuronMasks(OWN, keep).save(path)
    loaded = NeuronMasks.from_pretrained(path)
    NeuronMasks(OWN, drawn(2)).save(path)
    assert all(torch.equal(loaded.keep[name], keep[name]) for name in keep)
    path.unlink()
    assert all(torch.equal(loaded.keep[name], keep[name]) for name in keep)


def test_a_boolean_tensor_that_is_given_out_is_no_part_of_the_masks(composed, keep):
    composed.keep[ENCODER].fill_(True)
    composed["en-de"][ENCODER].fill_(True)
    assert torch.equal(composed["en-de"][ENCODER], keep[ENCODER][0])


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([0, 1, 3], dtype=torch.int32),
        torch.tensor([0, 1, -1], dtype=torch.int32),
        torch.tensor([0, 1, 0], dtype=torch.int32),
        torch.tensor([0, 1, 2], dtype=torch.int64),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([[0, 1, 2]], dtype=torch.int32),
    ],
)
def test_row_numbers_that_fit_no_rows_are_refused(rows, tmp_path):
    bits = {f"keep/{ENCODER}": torch.tensor([[1], [2], [3]], dtype=torch.uint8)}
    described = {
        "pairs": ["en-de", "de-en", "en-fr"],
        "sites": [{"name": ENCODER, "width": 5}],
        "general": False,
        "recipe": {"derived": []},
    }
    right = torch.tensor([2, 1, 0], dtype=torch.int32)
    write_artifact(tmp_path / MASKS_FILE, {**bits, "rows/encoder": right}, described, KIND)
    first = NeuronMasks.from_pretrained(tmp_path)["en-de"][ENCODER]
    assert first.tolist() == [True, True, False, False, False]
    write_artifact(tmp_path / MASKS_FILE, {**bits, "rows/encoder": rows}, described, KIND)
    with pytest.raises(ArtifactError, match="describe"):
        NeuronMasks.from_pretrained(tmp_path)


def test_the_card_of_thousands_of_pairs_lists_some(tmp_path):
    codes = [f"x{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(20)]
    own = [pair for code in codes for pair in (Pair("en", code), Pair(code, "en"))]
    masks = NeuronMasks.random(WIDTHS, own).compose([Pair(a, b) for a in codes for b in codes if a != b])
    masks.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "220 more" in card
    assert "380 pairs composed through en" in card
    assert len(card.splitlines()) < 300
    assert len(json.loads((tmp_path / "nspec_config.json").read_text())["pairs"]) == 420
    assert np.isclose(NeuronMasks.from_pretrained(tmp_path).density(), masks.density())
