import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from nspec_hf.analysis import find_pivot, overlap, progression
from nspec_hf.analysis.mask_overlap import couples, density, iou, order_by_family
from nspec_hf.core import as_pairs
from nspec_hf.masks import NeuronMasks

ENCODER, DECODER = "model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1"
PAIRS = ["en-de", "de-en", "en-fr", "fr-en", "en-cs", "cs-en"]


def iou_by_loops(keep):
    rows = [{n for n, kept in enumerate(row) if kept} for row in keep.tolist()]
    return [[len(a & b) / len(a | b) if a | b else math.nan for b in rows] for a in rows]


@pytest.fixture
def masks() -> NeuronMasks:
    return NeuronMasks.random({ENCODER: 24, DECODER: 20}, PAIRS, 0.4, seed=5)


@given(st.integers(1, 6), st.integers(1, 17), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_iou_equals_sets_counted_in_loops(pairs, width, seed):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(pairs, width, generator=generator) < torch.rand(pairs, 1, generator=generator)
    np.testing.assert_allclose(iou(keep), iou_by_loops(keep), atol=1e-12)


def test_two_empty_sets_have_no_overlap_to_speak_of():
    keep = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    found = iou(keep)
    assert math.isnan(found[0, 1])
    assert math.isnan(found[0, 0])
    assert found[0, 2] == 0
    assert found[2, 2] == 1


def test_overlap_holds_every_site(masks):
    result = overlap(masks)
    for number, site in enumerate(masks.sites):
        np.testing.assert_allclose(result.iou[number], iou_by_loops(masks.keep[site.name]))


def test_progression_means_couples_of_pairs_by_source_in_the_encoder_and_target_in_the_decoder(masks):
    result = overlap(masks)
    course = progression(result)
    pairs = as_pairs(PAIRS)
    for number, key in enumerate(["source", "target"]):
        for (i, a), (j, b) in itertools.product(enumerate(course.languages), repeat=2):
            couples = [
                result.iou[number, p, q]
                for p, q in itertools.product(range(len(pairs)), repeat=2)
                if p != q and getattr(pairs[p], key) == a and getattr(pairs[q], key) == b
            ]
            wanted = np.mean(couples) if couples else math.nan
            assert course.iou[number, i, j] == pytest.approx(wanted, nan_ok=True)
    assert course.languages == ("cs", "de", "en", "fr")
    # One pair has target de, so nothing can be said about de and itself; three have target en.
    assert math.isnan(course.iou[1, 1, 1])
    assert not math.isnan(course.iou[1, 2, 2])


def test_a_gap_stays_a_gap_in_the_progression():
    keep = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    course = progression(overlap(NeuronMasks(["en-de", "en-fr", "en-cs"], {DECODER: keep})))
    cs, de, fr = (course.languages.index(code) for code in ("cs", "de", "fr"))
    assert math.isnan(course.iou[0, de, fr])
    assert course.iou[0, de, cs] == 0
    assert list(couples(course.without(["en"]).iou[0])) == [0.0, 0.0]


def test_density_is_the_share_kept(masks):
    result = density(masks)
    for number, site in enumerate(masks.sites):
        for row, pair in enumerate(masks.pairs):
            assert result.density[number, row] == sum(masks[pair][site.name].tolist()) / site.width
    np.testing.assert_allclose(result.sparsity, 1 - result.density)


@pytest.mark.parametrize(
    ("pairs", "pivot"),
    [
        (PAIRS, "en"),
        (["en-de", "en-fr"], "en"),
        (["de-fr", "fr-cs", "cs-de"], None),
        (["en-de"], None),
        (["en-de", "de-en"], None),
    ],
)
def test_the_pivot_is_the_language_that_the_pairs_share(pairs, pivot):
    assert find_pivot(as_pairs(pairs)) == pivot


def test_families_stand_together_and_strangers_last():
    languages = ["fr", "xx", "de", "es", "nl"]
    order = order_by_family(languages, {"fr": "Romance", "es": "Romance", "de": "Germanic", "nl": "Germanic"})
    assert [languages[i] for i in order] == ["de", "nl", "es", "fr", "xx"]
