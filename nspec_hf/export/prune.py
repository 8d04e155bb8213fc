"""Bake one pair's masks into a copy of a model: the silenced neurons are zeroed, or cut out.

Shape letters: D = model width, F = neurons of a site, K = kept ones.

The copy gives the gate's outputs without a gate. A silenced neuron's row of W1 and its bias become zero, so
it gives σ(0) = 0, and its column of W2 with them. With `silence="weights"` it would still give σ(b1), so
W2[:, off] σ(b1[off]) is added to the bias of the down projection first. Sites of other kinds lose the rows
and the bias of their silenced outputs and are never cut.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.core import ArtifactError, ConfigError, UnsupportedModelError
from nspec_hf.gating import attachment_of, refuse_changed_linears, resize
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import Site, find_sites, linear_at, plain_model, site_activation


def zeroed(model: PreTrainedModel, masks: NeuronMasks, pair: str, silence: str = "neuron") -> PreTrainedModel:
    """Return a copy of the model with the same shapes, whose silenced neurons are zeros.

    Args:
        model: The model that the masks are for; a gate on it is left out of the copy.
        masks: Which neurons the pair keeps.
        pair: Whose masks to bake.
        silence: What a gate does to a neuron: `neuron` or `weights`.

    Raises:
        UnknownPairError: If the pair has no masks.
        SiteMismatchError: If the masks are for another model.
        UnsupportedModelError: If a layer cannot be written to (LoRA, quantized), or
            `weights` cannot be baked.
    """
    if silence not in ("neuron", "weights"):
        raise ConfigError(f"silence is 'neuron' or 'weights', got {silence!r}")
    sites = find_sites(plain_model(model), {site.kind for site in masks.sites})
    masks.check_model(sites)
    keep = masks[pair]
    baked = _plain_copy(plain_model(model))
    gated = [site for site in sites if site.name in keep]
    refuse_changed_linears(baked, gated)
    # Feed-forward sites first: what they add to a bias may be silenced by a site on the output.
    for site in sorted(gated, key=lambda site: site.kind != "ffn"):
        _zero(baked, site, keep[site.name], silence)
    return baked


def pruned(
    model: PreTrainedModel, masks: NeuronMasks, pair: str, silence: str = "neuron", multiple_of: int = 1
) -> tuple[PreTrainedModel, dict[str, int]]:
    """Return a smaller copy of the model, without its silenced neurons, and each site's width.

    Args:
        model: As `zeroed`, which also says what is raised.
        masks: Which neurons the pair keeps.
        pair: Whose masks to bake.
        silence: What a gate does to a neuron.
        multiple_of: Round widths up to a multiple of this by leaving zeroed neurons in; each site keeps at
            least one multiple.
    """
    baked = zeroed(model, masks, pair, silence)
    widths: dict[str, int] = {}
    for site in find_sites(baked):
        if site.name not in masks.keep:
            continue
        keep_F = masks[pair][site.name]
        size = min(site.width, max(1, -(-int(keep_F.sum()) // multiple_of)) * multiple_of)
        # Kept neurons first, so that what fills up to the multiple is zeroed ones; then in their order.
        order_K = torch.argsort(keep_F.int(), descending=True, stable=True)[:size].sort().values
        _narrow(baked, site, order_K)
        widths[site.name] = size
    return baked, widths


def narrow(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Make a model's feed-forward blocks as narrow as a pruned model's; the weights are yet to be loaded.

    Args:
        model: The model, changed in place.
        widths: Site name → number of neurons.

    Raises:
        ArtifactError: If the model has no such site, or not so many neurons there.
    """
    sites = {site.name: site for site in find_sites(model)}
    for name, width in widths.items():
        if name not in sites or not 0 < width <= sites[name].width:
            there = f"{sites[name].width} neurons" if name in sites else "no such layer"
            raise ArtifactError(f"the pruned model has {width} neurons at {name!r}, its config {there}")
        _narrow(model, sites[name], torch.arange(width))


def _plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model without the gate that may be on it."""
    plain = copy.deepcopy(model)
    gate = attachment_of(plain)
    if gate is not None:
        gate.detach()
    return plain.eval()


def _zero(model: nn.Module, site: Site, keep_F: Tensor, silence: str) -> None:
    linear = site.linear(model)
    off_F = ~keep_F.to(linear.weight.device)
    with torch.no_grad():
        if site.kind != "ffn":
            _zero_rows(linear, off_F)
            return
        down = linear_at(model, site.down)
        if silence == "weights" and linear.bias is not None and off_F.any():
            if site.up or down.bias is None:
                raise UnsupportedModelError(
                    f"what {site.name!r} emits under silence='weights' is no constant that the bias of "
                    f"{site.down!r} could hold; bake with silence='neuron'"
                )
            constant_F = site_activation(model, site)(linear.bias) * off_F
            down.bias.add_(nn.functional.linear(constant_F, down.weight))
        _zero_rows(linear, off_F)
        if site.up:
            _zero_rows(linear_at(model, site.up), off_F)
        down.weight[:, off_F] = 0


def _zero_rows(linear: nn.Linear, off_F: Tensor) -> None:
    linear.weight[off_F] = 0
    if linear.bias is not None:
        linear.bias[off_F] = 0


def _narrow(model: nn.Module, site: Site, index_K: Tensor) -> None:
    for linear in (linear_at(model, path) for path in (site.name, site.up) if path):
        index = index_K.to(linear.weight.device)
        resize(linear, linear.weight[index], None if linear.bias is None else linear.bias[index])
    down = linear_at(model, site.down)
    resize(down, down.weight[:, index_K.to(down.weight.device)], down.bias)
