"""The paired tests equal sacreBLEU's digit for digit, and plain loops over sentences."""

import itertools
import math
import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from nspec_hf.core import ConfigError
from nspec_hf.evaluation import sacrebleu_metric
from nspec_hf.evaluation.paired_test import paired_test

WORDS = "the a cat dog sat ran on under mat rug red blue fast slow today".split()


def corpus(sentences, noise, seed):
    """Return references and a system that gets each word wrong with a probability."""
    rng = random.Random(seed)
    references = [[rng.choice(WORDS) for _ in range(rng.randint(4, 12))] for _ in range(sentences)]
    system = [[rng.choice(WORDS) if rng.random() < noise else word for word in line] for line in references]
    return [" ".join(line) for line in references], [" ".join(line) for line in system]


def two_systems(sentences=37):
    references, one = corpus(sentences, 0.35, 1)
    _, other = corpus(sentences, 0.33, 1)
    return references, one, other


def metrics(*names):
    return [sacrebleu_metric(name) for name in names]


@pytest.mark.parametrize("test", ["ar", "bs"])
@pytest.mark.parametrize("seed", [1, 12345])
def test_p_values_are_those_of_sacrebleu(test, seed, monkeypatch):
    references, one, other = two_systems()
    _, third = corpus(37, 0.5, 1)
    monkeypatch.setenv("SACREBLEU_SEED", str(seed))
    # 1,100 trials: three blocks, the last not full; 37 sentences: no multiple of 32.
    theirs = PairedTest(
        [("one", one), ("other", other), ("third", third)],
        {"BLEU": BLEU(), "chrF2++": CHRF(word_order=2), "TER": TER()},
        [references],
        test_type=test,
        n_samples=1100,
    )
    signatures, wanted = theirs()
    ours = paired_test(
        one, {"other": other, "third": third}, references, metrics("bleu", "chrf++", "ter"), test, 1100, seed
    )
    for name, their_name in (("bleu", "BLEU"), ("chrf++", "chrF2++"), ("ter", "TER")):
        for position, system in enumerate(("other", "third"), start=1):
            found = ours[system, name]
            assert found.p_value == wanted[their_name][position].p_value
            assert found.system == wanted[their_name][position].score
            assert found.baseline == wanted[their_name][0].score
            assert found.signature == str(signatures[their_name])
    assert len({found.p_value for found in ours.values()}) > 2


def bleu_statistics(hypothesis, reference):
    """Lengths, matches and totals of four orders, by hand."""
    own, wanted = hypothesis.split(), reference.split()
    matches, totals = [], []
    for order in range(1, 5):
        grams = [tuple(own[i : i + order]) for i in range(len(own) - order + 1)]
        left = [tuple(wanted[i : i + order]) for i in range(len(wanted) - order + 1)]
        totals.append(len(grams))
        matches.append(0)
        for gram in grams:
            if gram in left:
                left.remove(gram)
                matches[-1] += 1
    return [len(own), len(wanted), *matches, *totals]


def bleu_of(statistics):
    sums = [sum(column) for column in zip(*statistics, strict=True)]
    logs = [math.log(sums[2 + order] / sums[6 + order]) for order in range(4)]
    return 100 * min(1.0, math.exp(1 - sums[1] / sums[0])) * math.exp(sum(logs) / 4)


@pytest.mark.parametrize("seed", [0, 7])
def test_randomization_is_a_loop_that_swaps_sentences(seed):
    references, one, other = two_systems(40)
    one_statistics = [bleu_statistics(h, r) for h, r in zip(one, references, strict=True)]
    other_statistics = [bleu_statistics(h, r) for h, r in zip(other, references, strict=True)]
    real = abs(bleu_of(one_statistics) - bleu_of(other_statistics))
    stream = np.random.default_rng(seed).integers(2, size=(200, 40), dtype=bool)
    larger = 0
    for trial in stream:
        left, right = [], []
        for swap, a, b in zip(trial, one_statistics, other_statistics, strict=True):
            left.append(a if swap else b)
            right.append(b if swap else a)
        larger += abs(bleu_of(left) - bleu_of(right)) > real
    found = paired_test(one, {"other": other}, references, metrics("bleu"), "ar", 200, seed)["other", "bleu"]
    assert found.p_value == pytest.approx((larger + 1) / 201)
    assert 0.02 < found.p_value < 0.98
    assert found.system - found.baseline == pytest.approx(bleu_of(other_statistics) - bleu_of(one_statistics))


@pytest.mark.parametrize("seed", [0, 7])
def test_the_bootstrap_is_a_loop_that_draws_sentences(seed):
    references, one, other = two_systems(40)
    one_statistics = [bleu_statistics(h, r) for h, r in zip(one, references, strict=True)]
    other_statistics = [bleu_statistics(h, r) for h, r in zip(other, references, strict=True)]
    real = abs(bleu_of(one_statistics) - bleu_of(other_statistics))
    differences = []
    for drawn in np.random.default_rng(seed).choice(40, size=(200, 40), replace=True):
        left, right = [one_statistics[i] for i in drawn], [other_statistics[i] for i in drawn]
        differences.append(abs(bleu_of(left) - bleu_of(right)))
    mean = sum(differences) / 200
    larger = sum(difference - mean > real for difference in differences)
    found = paired_test(one, {"other": other}, references, metrics("bleu"), "bs", 200, seed)["other", "bleu"]
    # Half a trial of tolerance: sacreBLEU's bootstrap computes in single precision.
    assert found.p_value == pytest.approx((larger + 1) / 201, abs=0.5 / 201)


def test_seed_zero_is_a_seed(monkeypatch):
    references, one, other = two_systems()
    again = [
        paired_test(one, {"other": other}, references, metrics("bleu"), "ar", 300, 0)["other", "bleu"]
        for _ in range(3)
    ]
    assert len({found.p_value for found in again}) == 1
    assert "seed:0|" in again[0].signature


def test_the_environment_does_not_choose_the_seed(monkeypatch):
    references, one, other = two_systems()
    before = paired_test(one, {"other": other}, references, metrics("bleu"), "ar", 300, 5)
    monkeypatch.setenv("SACREBLEU_SEED", "6")
    assert paired_test(one, {"other": other}, references, metrics("bleu"), "ar", 300, 5) == before
    assert paired_test(one, {"other": other}, references, metrics("bleu"), "ar", 300, 6) != before


def test_no_seed_is_not_repeatable_and_the_signature_says_so():
    references, one, other = two_systems()
    found = [
        paired_test(one, {"other": other}, references, metrics("bleu"), "ar", 300, None)["other", "bleu"]
        for _ in range(5)
    ]
    assert len({result.p_value for result in found}) > 1
    assert "seed:none" in found[0].signature


@pytest.mark.parametrize("test", ["ar", "bs"])
def test_a_system_is_not_different_from_itself(test):
    references, one, _ = two_systems()
    found = paired_test(one, {"copy": list(one)}, references, metrics("bleu", "chrf++", "ter"), test, 200, 1)
    assert {result.p_value for result in found.values()} == {1.0}


@pytest.mark.parametrize("differing", [1, 2, 3, 5])
def test_randomization_of_few_sentences_is_the_exact_test_if_ties_count(differing):
    references, one, other = two_systems(40)
    seen = [
        (bleu_statistics(a, r), bleu_statistics(b, r)) for a, b, r in zip(one, other, references, strict=True)
    ]
    changed = [i for i, (a, b) in enumerate(seen) if a != b][:differing]
    other = [other[i] if i in changed else one[i] for i in range(40)]
    statistics = [[bleu_statistics(h, r) for h, r in zip(s, references, strict=True)] for s in (one, other)]
    real = abs(bleu_of(statistics[0]) - bleu_of(statistics[1]))
    larger = at_least = 0
    for swaps in itertools.product((0, 1), repeat=differing):
        left, right = list(statistics[0]), list(statistics[1])
        for i, swap in zip(changed, swaps, strict=True):
            if swap:
                left[i], right[i] = right[i], left[i]
        difference = abs(bleu_of(left) - bleu_of(right))
        larger += difference > real + 1e-9
        at_least += difference > real - 1e-9
    found = paired_test(one, {"other": other}, references, metrics("bleu"), "ar", 4000, 3)["other", "bleu"]
    assert found.differing == differing
    assert found.p_value == pytest.approx(larger / 2**differing, abs=0.03)
    assert found.p_with_ties == pytest.approx(at_least / 2**differing, abs=0.03)
    assert found.p_with_ties > 2 / 2**differing - 0.03


@pytest.mark.parametrize("test", ["ar", "bs"])
def test_ties_do_not_matter_where_many_sentences_differ(test):
    references, one, other = two_systems()
    for found in paired_test(one, {"o": other}, references, metrics("bleu", "chrf++"), test, 500, 1).values():
        assert found.p_with_ties == found.p_value
        assert 20 < found.differing <= 37


def test_an_unknown_test_is_refused():
    with pytest.raises(ConfigError, match="'ar'"):
        paired_test(["a"], {"b": ["a"]}, ["a"], metrics("bleu"), "t", 10, 1)
