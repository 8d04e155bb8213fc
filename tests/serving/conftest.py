"""A small model with masks, as a run leaves it, and what is loaded from it."""

import pytest

from nspec_hf.serving import load
from tests.helpers.tiny_text import masks, model, tokenizer
from tests.serving.test_batching import SHORT


@pytest.fixture(scope="module")
def network():
    return model(max_position_embeddings=24)


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    network.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    masks(network).save_pretrained(folder / "masks")
    return folder


@pytest.fixture
def loaded(folder):
    return load(folder, translate=SHORT)
