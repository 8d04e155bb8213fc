"""The four rules against loops that spell the equations out."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st

from nspec_hf.core import ConfigError
from nspec_hf.masks import allocate_by_importance, select_by_chance, select_by_coverage, select_random

counts_of_a_site = st.lists(st.integers(0, 50), min_size=1, max_size=30)
shares = st.floats(0, 1)


def covered_by_loop(counts, coverage):
    """Eq. 1 of Tan et al., as released: take neurons by count until their sum reaches k · total, exactly."""
    total, kept, covered, coverage = sum(counts), set(), 0, Fraction(str(coverage))
    for neuron in sorted(range(len(counts)), key=lambda i: (-counts[i], i)):
        if covered >= coverage * total:
            break
        kept.add(neuron)
        covered += counts[neuron]
    return [neuron in kept for neuron in range(len(counts))]


@given(counts=counts_of_a_site, coverage=st.floats(0.01, 1))
def test_coverage_keeps_the_shortest_prefix_that_reaches_the_share(counts, coverage):
    kept_F = select_by_coverage(torch.tensor(counts), coverage)
    assert kept_F.tolist() == covered_by_loop(counts, coverage)


@given(counts=counts_of_a_site, coverage=st.floats(0.01, 1))
def test_coverage_reaches_the_share_and_needs_every_neuron_for_it(counts, coverage):
    counts_F = torch.tensor(counts, dtype=torch.float64)
    kept_F = select_by_coverage(counts_F, coverage)
    needed = Fraction(str(coverage)) * sum(counts)
    assert counts_F[kept_F].sum().item() >= needed
    if kept_F.any():
        assert (counts_F[kept_F].sum() - counts_F[kept_F].min()).item() < needed
        assert not kept_F.all() or counts_F.min() > 0


@given(counts=counts_of_a_site, low=st.floats(0.01, 1), high=st.floats(0.01, 1))
def test_more_coverage_never_drops_a_neuron(counts, low, high):
    low, high = sorted((low, high))
    few_F, many_F = (select_by_coverage(torch.tensor(counts), k) for k in (low, high))
    assert not (few_F & ~many_F).any()


@given(percent=st.integers(1, 100), rest=st.integers(0, 99), scale=st.integers(1, 10**12))
def test_a_share_that_is_reached_exactly_needs_no_further_neuron(percent, rest, scale):
    # [55, 45] at 0.55: the float next to 0.55 is a little more, times 100 it asks for a second neuron.
    counts = [percent * scale, max(0, 100 - percent - rest) * scale, min(rest, 100 - percent) * scale]
    for dtype in (torch.int64, torch.float64):
        kept_F = select_by_coverage(torch.tensor(counts, dtype=dtype), percent / 100)
        assert kept_F.tolist() == covered_by_loop(counts, percent / 100)
    assert select_by_coverage(torch.tensor([55, 45]), 0.55).tolist() == [True, False]


@given(
    counts=st.lists(st.floats(0, 1e300) | st.integers(0, 2**62), min_size=1, max_size=20),
    coverage=st.fractions(Fraction(1, 1000), 1, max_denominator=1000).map(float),
)
def test_coverage_is_exact_whatever_the_size_of_the_counts(counts, coverage):
    dtype = torch.int64 if all(isinstance(count, int) for count in counts) else torch.float64
    counts_F = torch.tensor(counts, dtype=dtype)
    if dtype == torch.int64 and sum(counts) >= 2**63:
        counts_F = counts_F // len(counts)
    exact = [Fraction(count) for count in counts_F.tolist()]
    assert select_by_coverage(counts_F, coverage).tolist() == covered_by_loop(exact, coverage)


def test_neurons_with_equal_counts_are_taken_in_index_order():
    assert select_by_coverage(torch.tensor([5, 5, 5, 5]), 0.5).tolist() == [True, True, False, False]


def test_a_silent_layer_keeps_nothing():
    assert not select_by_coverage(torch.zeros(3, 8, dtype=torch.int64), 0.95).any()


def test_full_coverage_drops_only_neurons_that_never_fired():
    # A thousand tenths do not add up exactly, so a rule by sums alone could keep the neuron that never fired.
    counts_F = torch.full((1001,), 0.1, dtype=torch.float64)
    counts_F[500] = 0
    assert select_by_coverage(counts_F, 1.0).tolist() == [i != 500 for i in range(1001)]


def test_each_row_is_selected_on_its_own_whatever_the_leading_dimensions():
    counts = torch.randint(0, 9, (2, 3, 11), generator=torch.Generator().manual_seed(0))
    kept = select_by_coverage(counts, 0.8)
    for i in range(2):
        for j in range(3):
            assert torch.equal(kept[i, j], select_by_coverage(counts[i, j], 0.8))


@pytest.mark.parametrize("coverage", [0, -0.1, 1.01, float("nan")])
def test_coverage_outside_its_range_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage is a share and must lie in"):
        select_by_coverage(torch.ones(3), coverage)


@pytest.mark.parametrize("bad", [-1.0, float("inf"), float("nan")])
def test_counts_and_importance_that_cannot_be_are_refused(bad):
    values = torch.tensor([1.0, bad])
    with pytest.raises(ValueError, match="counts must be finite"):
        select_by_coverage(values, 0.9)
    with pytest.raises(ValueError, match="importance must be finite"):
        allocate_by_importance(values[None], 0.5, 0.7)


def allocated_by_loop(importance, general, threshold):
    """Eq. 9 of Xie et al., neuron by neuron."""
    pairs, width = len(importance), len(importance[0])
    means = [sum(row[i] for row in importance) / pairs for i in range(width)]
    ranked = sorted(range(width), key=lambda i: (-means[i], i))
    common = set(ranked[: round(general * width)])
    keep = [[i in common for i in range(width)] for _ in range(pairs)]
    for i in set(range(width)) - common:
        highest = max(row[i] for row in importance)
        for pair, row in enumerate(importance):
            needs = row[i] == highest if threshold == 1 else row[i] > threshold * highest
            if needs and highest > 0:
                keep[pair][i] = True
    return keep, [i in common for i in range(width)]


@given(
    pairs=st.integers(1, 4),
    width=st.integers(1, 12),
    general=st.sampled_from([0, 0.25, 0.5, 0.9, 1]),
    threshold=st.sampled_from([0, 0.3, 0.7, 1]),
    data=st.data(),
)
def test_allocation_equals_the_equation_neuron_by_neuron(pairs, width, general, threshold, data):
    # Eighths are exact, so that means and ties are the same in both programs.
    value = st.integers(0, 40).map(lambda n: n / 8)
    importance = [[data.draw(value) for _ in range(width)] for _ in range(pairs)]
    keep_PF, general_F = allocate_by_importance(torch.tensor(importance), general, threshold)
    keep, common = allocated_by_loop(importance, general, threshold)
    assert general_F.tolist() == common
    assert keep_PF.tolist() == keep


def test_a_neuron_exactly_at_the_threshold_is_not_given():
    keep_PF, _ = allocate_by_importance(torch.tensor([[1.0], [0.5], [0.51]]), 0, 0.5)
    assert keep_PF[:, 0].tolist() == [True, False, True]


def test_at_threshold_one_the_most_important_pairs_get_the_neuron_and_nobody_a_silent_one():
    keep_PF, _ = allocate_by_importance(torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.9, 0.0]]), 0, 1)
    assert keep_PF.tolist() == [[True, False], [True, False], [False, False]]


def test_importance_of_low_precision_or_whole_numbers_is_compared_exactly():
    # Means of a third of 256 and of 257 are one number in bfloat16, and whole numbers have no mean at all.
    importance = [[256, 256, 10], [0, 1, 7], [0, 0, 0]]
    keep, common = allocated_by_loop(importance, 0.34, 0.7)
    for dtype in (torch.bfloat16, torch.float16, torch.int64):
        keep_PF, general_F = allocate_by_importance(torch.tensor(importance, dtype=dtype), 0.34, 0.7)
        assert general_F.tolist() == common == [False, True, False]
        assert keep_PF.tolist() == keep
    # Differences that float32 does not know count too: of two means, and above half of the maximum.
    keep_PF, general_F = allocate_by_importance(
        torch.tensor([[2.0, 2.0, 1.0], [2.0, 2.0 + 1e-12, 0.5 + 1e-12]], dtype=torch.float64), 0.34, 0.5
    )
    assert general_F.tolist() == [False, True, False]
    assert keep_PF.tolist() == [[True, True, True], [True, True, True]]


def test_general_neurons_are_those_of_highest_mean_and_belong_to_all():
    importance_PF = torch.tensor([[9.0, 4.0, 0.0, 1.0], [0.0, 4.0, 0.0, 1.0]])
    keep_PF, general_F = allocate_by_importance(importance_PF, 0.5, 0.7)
    assert general_F.tolist() == [True, True, False, False]
    assert keep_PF.tolist() == [[True, True, False, True], [True, True, False, True]]


@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 2, 4)])
def test_importance_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        allocate_by_importance(torch.ones(shape), 0.9, 0.7)


@pytest.mark.parametrize(("general", "threshold"), [(1.1, 0.7), (0.9, -0.1)])
def test_shares_outside_their_range_are_refused(general, threshold):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        allocate_by_importance(torch.ones(2, 4), general, threshold)


@given(width=st.integers(0, 200), density=shares, seed=st.integers(0, 99))
def test_random_selection_keeps_exactly_the_rounded_share(width, density, seed):
    keep_F = select_random(width, density, torch.Generator().manual_seed(seed))
    assert keep_F.shape == (width,)
    assert int(keep_F.sum()) == round(density * width)


@given(low=shares, high=shares)
def test_of_two_random_densities_with_one_seed_the_smaller_is_a_subset(low, high):
    low, high = sorted((low, high))
    few_F, many_F = (select_random(64, d, torch.Generator().manual_seed(3)) for d in (low, high))
    assert not (few_F & ~many_F).any()


def test_every_neuron_has_the_same_chance_to_be_drawn():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([select_random(10, 0.3, generator) for _ in range(2000)]).double().mean(dim=0)
    # Standard deviation of a share of 0.3 over 2,000 draws: 0.0102.
    assert (drawn - 0.3).abs().max() < 0.05


@pytest.mark.parametrize(("width", "density"), [(4, 1.5), (4, -0.1), (-1, 0.5)])
def test_a_draw_that_cannot_be_is_refused(width, density):
    with pytest.raises(ValueError, match=r"density is a share and must|width is"):
        select_random(width, density, torch.Generator())


def by_chance(counts, coverage, temperature, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return select_by_chance(torch.tensor(counts), coverage, temperature, generator)


@given(counts=counts_of_a_site, coverage=st.floats(0.01, 1), temperature=st.floats(0, 9))
def test_chance_keeps_as_many_as_coverage_does_and_without_noise_the_same(counts, coverage, temperature):
    kept = covered_by_loop(counts, coverage)
    assert by_chance(counts, coverage, temperature).sum() == sum(kept)
    assert by_chance(counts, coverage, 0.0).tolist() == kept


@given(counts=counts_of_a_site, low=st.floats(0.01, 1), high=st.floats(0.01, 1))
def test_more_coverage_never_drops_a_neuron_that_was_drawn(counts, low, high):
    low, high = sorted((low, high))
    few_F, many_F = (by_chance(counts, k, 0.3) for k in (low, high))
    assert not (few_F & ~many_F).any()


def drawn_without_replacement(shares, draws):
    """Return the chance of every set that so many draws make, each in proportion to what is left."""
    if not draws:
        return {frozenset(): 1.0}
    chances = {}
    for first, share in enumerate(shares):
        rest = [0 if each == first else value for each, value in enumerate(shares)]
        for others, chance in drawn_without_replacement(rest, draws - 1).items():
            key = others | {first}
            chances[key] = chances.get(key, 0) + share / sum(shares) * chance
    return chances


def test_at_temperature_1_sets_are_drawn_without_replacement_in_proportion_to_activity():
    counts, coverage, seeds = [40, 30, 20, 8, 2], 0.6, 4000  # two neurons cover 60 %
    seen = {}
    for seed in range(seeds):
        key = frozenset(by_chance(counts, coverage, 1.0, seed).nonzero()[:, 0].tolist())
        seen[key] = seen.get(key, 0) + 1
    for key, chance in drawn_without_replacement(counts, 2).items():
        # Five standard deviations, and two draws for sets that are hardly drawn.
        room = 5 * (seeds * chance * (1 - chance)) ** 0.5 + 2
        assert abs(seen.get(key, 0) - seeds * chance) <= room, sorted(key)


def test_a_draw_is_by_the_logarithm_of_the_share_and_gumbel_noise_however_small_the_share():
    counts, temperature = [1_000_000, 3, 90, 0, 2, 90, 1, 5000], 0.8
    for seed in range(40):
        uniform = torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        score = [
            # A neuron that never fired has the chance of one in a million million.
            math.log(max(count / sum(counts), 1e-12)) - temperature * math.log(-math.log(chance))
            for count, chance in zip(counts, uniform, strict=True)
        ]
        ranked = sorted(range(8), key=lambda neuron: -score[neuron])
        for coverage in (0.5, 0.999, 0.99995, 1.0):
            kept = sum(covered_by_loop(counts, coverage))
            drawn = by_chance(counts, coverage, temperature, seed)
            assert drawn.nonzero()[:, 0].tolist() == sorted(ranked[:kept])


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf"), True, "0.3"])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ConfigError, match="temperature is a number of at least 0"):
        by_chance([1, 2], 0.5, temperature)
