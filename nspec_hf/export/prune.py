"""Bake one pair's masks into a copy of a model: the silenced neurons are zeroed, or cut out.

Shape letters: D = model width, F = neurons of a site, K = kept ones.

The copy gives the gate's outputs without a gate. A silenced neuron's row of W1 and its bias become zero, so
it gives σ(0) = 0, and its column of W2 with them. With `silence="weights"` it would still give σ(b1), so
W2[:, off] σ(b1[off]) is added to the bias of the down projection first. Sites of other kinds lose the rows
and the bias of their silenced outputs and are never cut.

The copy shares all weights that are not changed with the model, so that it takes little memory beside it;
none where the model is given up for it (`release`).
"""

import copy
from collections import Counter
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.core import ArtifactError, ConfigError, UnsupportedModelError
from nspec_hf.export.memory import let_go
from nspec_hf.gating import attachment_of, refuse_changed_linears, resize
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import Site, find_sites, linear_at, plain_model, site_activation


def pruned(
    model: PreTrainedModel, masks: NeuronMasks, pair: str, silence: str = "neuron", multiple_of: int = 1
) -> tuple[PreTrainedModel, dict[str, int]]:
    """Return a copy of the model without its silenced neurons, and each site's width; see `baked`."""
    return baked(model, masks, pair, "pruned", silence, multiple_of)


def baked(
    model: PreTrainedModel,
    masks: NeuronMasks,
    pair: str,
    form: str,
    silence: str = "neuron",
    multiple_of: int = 1,
    release: bool = False,
) -> tuple[PreTrainedModel, dict[str, int]]:
    """Return a copy of the model whose silenced neurons are zeros or gone, and each site's width.

    Args:
        model: The model that the masks are for; a gate on it is left out of the copy.
        masks: Which neurons the pair keeps.
        pair: Whose masks to bake.
        form: As in `ExportConfig`. `zeroed` has the same shapes. In `padded` layers that share a width in the
            config (those of a side, in T5 all) get that of the widest of them, so that any code loads it. In
            `pruned` and `ctranslate2` each site is as wide as its masks, and only then are widths returned.
        silence: What a gate does to a neuron: `neuron` or `weights`.
        multiple_of: Round widths up to a multiple of this by leaving zeroed neurons in; each site keeps at
            least one multiple.
        release: Whether the model gives its weights up, so that each goes from memory as soon as the copy has
            replaced it; the model is then of no use.

    Raises:
        UnknownPairError: If the pair has no masks.
        SiteMismatchError: If the masks are for another model.
        UnsupportedModelError: If a layer cannot be written to (LoRA, quantized), `weights` cannot be baked,
            or, for `padded`, the config does not say the width under a name that is known here.
    """
    if silence not in ("neuron", "weights"):
        raise ConfigError(f"silence is 'neuron' or 'weights', got {silence!r}")
    plain, keep = plain_model(model), masks[pair]
    blocks = [] if form == "zeroed" else find_sites(plain)
    # Also of sites without masks: a model that was pruned before has other widths than its config says.
    widths = {
        site.name: _rounded(keep[site.name], multiple_of) if site.name in keep else site.width
        for site in blocks
    }
    widest: dict[str, int] = {}
    if form == "padded":
        fields = {site.name: _width_field(plain, site) for site in blocks}
        for site in blocks:
            field = fields[site.name]
            widest[field] = max(widths[site.name], widest.get(field, 0))
        widths = {name: widest[fields[name]] for name in widths}
    sites = find_sites(plain, {site.kind for site in masks.sites})
    masks.check_model(sites)
    made = plain_copy(plain)
    gated = [site for site in sites if site.name in keep]
    refuse_changed_linears(made, gated)
    if release:
        give_up(plain)
    held = Counter(id(weight) for part in made.modules() for weight in part.parameters(recurse=False))
    free = {number for number, times in held.items() if release and times == 1}
    # Feed-forward sites first: what they add to a bias may be silenced by a site on the output.
    for site in sorted(gated, key=lambda site: site.kind != "ffn"):
        _zero(made, site, keep[site.name], silence, free)
        if site.name in widths:
            _narrow(made, site, left_neurons(keep[site.name], widths[site.name]))
    for field, width in widest.items():
        setattr(made.config, field, width)
    return made, {} if form == "padded" else widths


def _rounded(keep_F: Tensor, multiple_of: int) -> int:
    """Return how many neurons stay: the kept ones, at least one, rounded up as far as there are so many."""
    return min(len(keep_F), max(1, -(-int(keep_F.sum()) // multiple_of)) * multiple_of)


def _width_field(model: PreTrainedModel, site: Site) -> str:
    """Return the name under which the config says a site's width."""
    for field, width in _stated_widths(model, site).items():
        if width == site.width:
            return field
    raise UnsupportedModelError(
        f"the config of a {type(model).__name__} does not say the width of {site.name!r} under a name that "
        "is known; export it as 'pruned'"
    )


def _stated_widths(model: PreTrainedModel, site: Site) -> dict[str, int]:
    """Return what the config says that may be a site's width, by name."""
    fields = (f"{site.side}_ffn_dim", "d_ff")
    return {field: width for field in fields if (width := getattr(model.config, field, None)) is not None}


def refuse_unwritable(model: PreTrainedModel, form: str) -> None:
    """Refuse a model of which other weights would be written than those that it computes with.

    Args:
        model: The plain model.
        form: As in `ExportConfig`.

    Raises:
        UnsupportedModelError: If adapters of PEFT are in it, or pairs were added on it, or, where plain
            classes are to load what is written, its layers are narrower than its config says.
    """
    acting = attachment_of(model)
    if acting is not None and acting.own is not None:
        raise UnsupportedModelError(
            f"a {type(acting).__name__} is on the model, and its weights would be left out: for pairs that "
            "were added export its merged() model; for the model beneath take it off, "
            "attachment_of(model).detach()"
        )
    for name, part in model.named_modules():
        if type(part).__module__.startswith("peft."):
            raise UnsupportedModelError(
                f"{name!r} is a {type(part).__name__} of PEFT, whose weights are not among those of a plain "
                "model; merge it (merge_and_unload) and export what that returns"
            )
    for site in find_sites(model) if form in ("zeroed", "padded") else []:
        stated = _stated_widths(model, site)
        if stated and site.width not in stated.values():
            raise UnsupportedModelError(
                f"{site.name!r} has {site.width} neurons, and the config says {max(stated.values())}: the "
                f"model was cut before, and plain classes cannot load it; export it as 'pruned', not {form!r}"
            )


def left_neurons(keep_F: Tensor, width: int) -> Tensor:
    """Return which neurons a site that is cut to a width still has, in their order, [K].

    Kept ones come first, so that what fills up to the width is zeroed ones.
    """
    return torch.argsort(keep_F.int(), descending=True, stable=True)[:width].sort().values


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


def plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model without the gate that may be on it; the copy shares its weights."""
    shared = {id(weight): weight for weight in chain(model.parameters(), model.buffers())}
    plain = copy.deepcopy(model, shared)  # type: ignore[arg-type]
    gate = attachment_of(plain)
    if gate is not None:
        gate.detach()
    return plain.eval()


def give_up(model: PreTrainedModel) -> None:
    """Give a model's weights up: it stays as a shape, on the device "meta", and a copy may keep them."""
    model.to(torch.device("meta"))  # type: ignore[arg-type]


def _zero(model: nn.Module, site: Site, keep_F: Tensor, silence: str, free: set[int]) -> None:
    linear = _with_own_weights(site.linear(model), free)
    off_F = ~keep_F.to(linear.weight.device)
    with torch.no_grad():
        if site.kind != "ffn":
            _zero_rows(linear, off_F)
            return
        down = _with_own_weights(linear_at(model, site.down), free)
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
            _zero_rows(_with_own_weights(linear_at(model, site.up), free), off_F)
        down.weight[:, off_F] = 0


def _with_own_weights(linear: nn.Linear, free: set[int]) -> nn.Linear:
    """Give a linear copies of its weights; `free` are those that no other module has, nor the whole model."""
    shared = linear.weight
    resize(linear, shared.clone(), None if linear.bias is None else linear.bias.clone())
    if id(shared) in free:
        let_go(shared)
    return linear


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
