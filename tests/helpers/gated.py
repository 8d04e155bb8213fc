"""Random masks for tiny models, and the reference for what they do: a copy whose silenced rows are zero."""

import copy

import torch

from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites

PAIRS = ["en-de", "de-en", "en-fr"]


def random_masks(model, kinds=("ffn",), density=0.6, pairs=PAIRS, seed=1):
    return NeuronMasks.random(find_sites(model, kinds), pairs, density, seed)


def zeroed_copy(model, masks, pair):
    """Return a copy in which rows and biases of the neurons that a pair does not keep are zero."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for name, keep_F in masks[pair].items():
            linear = reference.get_submodule(name)
            linear.weight[~keep_F] = 0
            if linear.bias is not None:
                linear.bias[~keep_F] = 0
    return reference


class Around(torch.nn.Module):
    """Runs a layer in its place."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        return self.layer(*args, **kwargs)


def without_ids(batch):
    return {name: value for name, value in batch.items() if name != "pair_ids"}


def one_pair(batch, index):
    return {**batch, "pair_ids": torch.full_like(batch["pair_ids"], index)}
