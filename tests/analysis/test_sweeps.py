import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from nspec_hf.analysis import overlap, stability
from nspec_hf.analysis.sweeps import allocation_sweep, coverage_sweep
from nspec_hf.core import ConfigError, SiteMismatchError
from nspec_hf.masks import NeuronMasks, select_by_coverage, select_by_coverages
from nspec_hf.recording import ActivationStats, RecordConfig

PAIRS = ["en-de", "de-en", "en-fr"]
SITES = {"model.encoder.layers.0.fc1": 30, "model.decoder.layers.0.fc1": 20}


def recorded(seed, sites=SITES, pairs=PAIRS):
    stats = ActivationStats(pairs, sites, RecordConfig(te=True))
    generator = torch.Generator().manual_seed(seed)
    for name, width in sites.items():
        stats.counts[name] += torch.randint(0, 40, (len(pairs), width), generator=generator)
        stats.sums["te"][name] += torch.rand(len(pairs), width, generator=generator, dtype=torch.float64)
    for side in stats.token_counts:
        stats.token_counts[side] += 100
    stats.sentence_counts += 9
    return stats


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=7, max_size=7), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_sorting_once_selects_what_the_rule_selects_at_every_coverage(counts, coverages):
    counts_PF = torch.tensor(counts)
    for keep_PF, coverage in zip(select_by_coverages(counts_PF, coverages), coverages, strict=True):
        assert torch.equal(keep_PF, select_by_coverage(counts_PF, coverage))


def test_a_coverage_that_no_float_is_sweeps_as_it_selects():
    stats = recorded(1, {"model.encoder.layers.0.fc1": 100}, ["en-de"])
    stats.counts["model.encoder.layers.0.fc1"][:] = 1
    coverages = [number / 100 for number in range(1, 101)]
    # 0.55 · 100 is a little more than 55 in floats; 55 of 100 reach 0.55.
    assert coverage_sweep(stats, coverages).density[:, 0].tolist() == coverages


def test_the_coverage_sweep_is_that_of_masks_made_one_by_one():
    stats = recorded(1)
    sweep = coverage_sweep(stats, (0.3, 0.8, 1.0))
    for row, coverage in enumerate(sweep.coverages):
        masks = NeuronMasks.from_coverage(stats, coverage)
        overlaps = overlap(masks).iou
        for column, site in enumerate(sweep.sites):
            assert sweep.density[row, column] == pytest.approx(masks.keep[site.name].float().mean().item())
            couples = [overlaps[column, i, j] for i in range(3) for j in range(i)]
            assert sweep.overlap[row, column] == pytest.approx(np.mean(couples))
    assert (np.diff(sweep.density, axis=0) > 0).all()


def test_the_allocation_sweep_is_that_of_masks_made_one_by_one():
    stats = recorded(2)
    sweep = allocation_sweep(stats, "te", (0.2, 0.6), (0.5, 0.9))
    for row, general in enumerate(sweep.generals):
        for k, threshold in enumerate(sweep.thresholds):
            masks = NeuronMasks.from_importance(stats, "te", general=general, threshold=threshold)
            for column, site in enumerate(sweep.sites):
                keep, common = masks.keep[site.name], masks.general[site.name]
                assert sweep.density[row, k, column] == pytest.approx(keep.float().mean().item())
                assert sweep.specific[row, k, column] == pytest.approx((keep & ~common).float().mean().item())


def test_stability_compares_a_pairs_masks_from_two_recordings():
    recordings = {"100": recorded(1), "200": recorded(2), "all": recorded(3)}
    result = stability(recordings, coverage=0.7)
    name = "model.decoder.layers.0.fc1"
    one = select_by_coverage(recordings["100"].counts[name][1], 0.7)
    two = select_by_coverage(recordings["all"].counts[name][1], 0.7)
    wanted = float((one & two).sum() / (one | two).sum())
    assert result.iou[0, 2, 1, 1] == pytest.approx(wanted)
    assert result.iou[2, 0, 1, 1] == pytest.approx(wanted)
    against = result.against("all")
    assert against[2] == 1
    assert against[0] == pytest.approx(result.iou[2, 0].mean())
    assert len(result.to_pandas()) == 3 * 3 * 2 * 3


def test_recordings_of_other_pairs_are_not_compared():
    with pytest.raises(SiteMismatchError, match="'b'"):
        stability({"a": recorded(1), "b": recorded(1, pairs=PAIRS[:2])})
    with pytest.raises(ConfigError, match="two"):
        stability({"a": recorded(1)})


def test_a_coverage_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="got"):
        coverage_sweep(recorded(1), (0.5, 1.2))


def test_attention_sites_take_no_part_in_coverage():
    sites = {"model.decoder.layers.0.self_attn.q_proj": 8, "model.decoder.layers.0.fc1": 20}
    sweep = coverage_sweep(recorded(1, sites), (0.5,))
    assert [site.name for site in sweep.sites] == ["model.decoder.layers.0.fc1"]
    with pytest.raises(ConfigError, match="feed-forward"):
        coverage_sweep(recorded(1, {"model.decoder.layers.0.self_attn.q_proj": 8}), (0.5,))
