"""Weights leave memory when they are not used, and come back as they were."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nspec_hf.export import memory, page_out
from nspec_hf.export.memory import a_side_at_a_time, let_go
from nspec_hf.recording import load_model
from tests.helpers.models import random_batch, tiny_m2m100

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is given back there alone")


def resident():
    """Return the bytes of mapped files that are in memory."""
    return int(re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.fixture
def drawn():
    return {str(number): torch.rand(1000, 5001) for number in range(3)}


@pytest.fixture
def mapped(drawn, tmp_path):
    save_file(drawn, tmp_path / "weights.safetensors")
    mapped = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(mapped[name], drawn[name]) for name in drawn)
    return mapped


def test_memory_of_a_mapped_weight_is_given_back_and_its_neighbours_are_whole(drawn, mapped):
    before = resident()
    let_go(mapped.pop("1"))
    assert before - resident() > 0.9 * drawn["1"].nbytes
    assert all(torch.equal(mapped[name], drawn[name]) for name in mapped)


def test_weights_that_are_paged_out_come_back_also_those_that_were_written_to(drawn, mapped):
    model = nn.ParameterDict(mapped)
    model["3"] = nn.Parameter(torch.rand(1000, 5001))
    drawn["3"] = model["3"].detach().clone()
    with torch.no_grad():
        model["1"][500, 7] = drawn["1"][500, 7] = 2.0  # one page of this weight is no longer the file's
    before = resident()
    page_out(*model.values())
    out = before - resident()
    assert 1.9 * drawn["0"].nbytes < out < 2.1 * drawn["0"].nbytes
    assert all(torch.equal(model[name], drawn[name]) for name in drawn)


def test_without_a_page_map_no_weight_leaves_memory(drawn, mapped, monkeypatch, tmp_path):
    for content in (None, b"", b"12345678"):
        place = tmp_path / "pagemap"
        if content is not None:
            place.write_bytes(content)  # of other systems, and ends too soon
        monkeypatch.setattr(memory, "_PAGE_MAP", place)
        before = resident()
        page_out(*mapped.values())
        assert before - resident() < 0.1 * drawn["0"].nbytes


def test_elsewhere_than_on_linux_nothing_is_asked_of_the_system(mapped, drawn, monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "win32")
    monkeypatch.setattr(memory, "_system", lambda: pytest.fail("asked for its C library"))
    page_out(*mapped.values())
    let_go(*mapped.values())
    assert all(torch.equal(mapped[name], drawn[name]) for name in drawn)


def test_only_the_side_that_computes_is_in_memory_and_says_what_it_said(tmp_path):
    tiny_m2m100(d_model=256, encoder_ffn_dim=8192, decoder_ffn_dim=8192).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    batch = {name: batch_of[:2] for name, batch_of in random_batch(model.config.vocab_size).items()}
    with torch.no_grad():
        expected = model(**batch).logits
        held = []
        model.get_decoder().register_forward_pre_hook(lambda *_: held.append(resident()))
        model(**batch)
        before = resident()
        with a_side_at_a_time(model):
            found = model(**batch).logits
    encoder = sum(weight.nbytes for name, weight in model.named_parameters() if "encoder.layers" in name)
    decoder = sum(weight.nbytes for name, weight in model.named_parameters() if "decoder.layers" in name)
    assert torch.equal(found, expected)
    assert held[0] - held[1] > 0.9 * (encoder + decoder)  # the decoder has not computed yet
    assert before - resident() > 0.9 * (encoder + decoder)
