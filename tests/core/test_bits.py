"""Packed bits: what goes in comes out, and what could not have gone in is refused."""

import pytest
import torch
from hypothesis import given, strategies as st

from nspec_hf.core import ArtefactError, pack, packed_width, unpack

rows = st.integers(1, 3)
widths = st.integers(1, 41)


def random_booleans(rows, width, seed):
    return torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5


@given(rows=rows, width=widths, seed=st.integers(0, 1000))
def test_packing_and_unpacking_give_the_same_booleans(rows, width, seed):
    keep_PF = random_booleans(rows, width, seed)
    packed = pack(keep_PF)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_width(width))
    assert torch.equal(unpack(packed, width), keep_PF)


def test_neuron_i_is_bit_i_mod_8_of_byte_i_div_8():
    keep_F = torch.zeros(20, dtype=torch.bool)
    keep_F[[0, 3, 9, 19]] = True
    assert pack(keep_F).tolist() == [0b00001001, 0b00000010, 0b00001000]


@given(width=widths.filter(lambda width: width % 8), data=st.data())
def test_a_set_bit_behind_the_last_neuron_is_refused(width, data):
    packed = pack(random_booleans(2, width, 0))
    bit = data.draw(st.integers(width % 8, 7))
    packed[1, -1] |= 1 << bit
    with pytest.raises(ArtefactError, match="behind the last"):
        unpack(packed, width)


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(2, 3, dtype=torch.uint8),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.tensor(0, dtype=torch.uint8),
    ],
)
def test_bytes_of_another_width_or_type_are_refused(packed):
    with pytest.raises(ArtefactError, match=r"uint8 of shape \[\.\.\., 2\]"):
        unpack(packed, 12)


def test_only_booleans_are_packed():
    with pytest.raises(TypeError, match="int64"):
        pack(torch.ones(8, dtype=torch.int64))
