"""Adding up: eight neurons at a time, and the rows that do not count."""

import pytest
import torch

from nspec_hf.recording import ActivationStats, site_from_name
from nspec_hf.recording.accumulator import Accumulator, count_fired

SITE = site_from_name("model.encoder.layers.0.fc1", 6)


@pytest.mark.parametrize("length", [1, 255, 256, 600])
@pytest.mark.parametrize("width", [8, 13])
def test_adding_eight_booleans_at_a_time_is_a_plain_sum(length, width):
    generator = torch.Generator().manual_seed(length)
    active = torch.rand(3, length, width, generator=generator) < 0.97
    active[:, :, 0] = True
    mask = torch.rand(3, length, generator=generator) < 0.9
    mask[0] = True
    expected = (active & mask[:, :, None]).sum(1)
    assert torch.equal(count_fired(active, mask), expected)
    assert torch.equal(count_fired(active.transpose(0, 1).contiguous().transpose(0, 1), mask), expected)


def test_rows_that_are_duplicates_are_left_out():
    sums = Accumulator(pairs=2, two_sided=False)
    sums.begin({"attention_mask": torch.ones(4, 3), "pair_ids": torch.tensor([0, 1, 0, 1])}, real_rows=3)
    sums.count(site_from_name("model.layers.0.fc1", 6), torch.ones(4, 3, 6).bool(), once=False)
    sums.end(torch.zeros(4, 3, 9))
    stats = ActivationStats(["en-de", "de-en"], {"model.layers.0.fc1": 6})
    sums.fill(stats)
    assert stats.sentence_counts.tolist() == [2, 1]
    assert stats.token_counts["decoder"].tolist() == [6, 3]
    assert stats.counts["model.layers.0.fc1"].tolist() == [[6] * 6, [3] * 6]


def test_padding_that_is_not_finite_does_not_spoil_a_sum():
    sums = Accumulator(pairs=1, two_sided=True)
    mask = torch.tensor([[1, 1, 0]])
    sums.begin({"attention_mask": mask, "labels": torch.tensor([[5, -100]]), "pair_ids": torch.tensor([0])})
    values = torch.ones(1, 3, 6, dtype=torch.float64)
    values[:, 2] = torch.nan
    sums.add("av", SITE, values)
    sums.end(torch.zeros(1, 1, 9))
    assert sums._sums[f"av/{SITE.name}"][0].tolist() == [2.0] * 6
