"""Which feed-forward blocks can be sliced, and whether their slices can be kept between batches.

Slicing reads parts of weights, so it needs whole ones at hand while the layer runs; and a slice that is kept
is a copy, so every change of the weights must be noticed. Adapters, quantization, FSDP, ZeRO and tensor
parallelism each break one of the two in their own way.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nspec_hf.core import UnsupportedModelError
from nspec_hf.gating.config import GateConfig
from nspec_hf.recording import Site


def why_not(model: nn.Module, site: Site, config: GateConfig) -> str:
    """Return why a site cannot be sliced, or nothing."""
    for path in filter(None, (site.name, site.up, site.down)):
        linear = model.get_submodule(path)
        if type(linear).forward is not nn.Linear.forward or "forward" in vars(linear):
            return "slicing needs plain nn.Linear layers, not LoRA, quantized or otherwise changed ones"
        weight = linear._parameters.get("weight")
        if weight is None or not weight.is_floating_point():
            return "slicing needs weights that are plain floating-point parameters"
    gated = model.get_submodule(site.name)
    if config.silence == "weights" and site.up and gated.bias is not None:
        return "with silence='weights' a silenced neuron of a gated block with bias is no constant"
    return ""


def modules_around(model: nn.Module, site: Site) -> list[nn.Module]:
    """Return the linears of a site and every module that holds one of them, up to the model."""
    names = [name.split(".") for name in (site.name, site.up, site.down) if name]
    paths = [".".join(parts[:count]) for parts in names for count in range(len(parts) + 1)]
    return [model.get_submodule(path) for path in dict.fromkeys(paths)]


def can_keep(weight: Tensor, around: Sequence[nn.Module]) -> bool:
    """Return whether a change of a weight would be noticed: FSDP and ZeRO rewrite them unseen.

    Args:
        weight: The weight as it is while the layer runs.
        around: The modules that hold it (`modules_around`), one of which FSDP may have taken.
    """
    if weight.is_inference() or hasattr(weight, "ds_id") or hasattr(weight, "_fsdp_flattened"):
        return False
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return True
    # By name: the class's module is not imported before something is sharded.
    return not any(kind.__name__ == "FSDPModule" for part in around for kind in type(part).__mro__)


def check_whole(site: Site, tensor: Tensor) -> None:
    """Refuse weights of which this process sees a shard only, while the layer runs.

    FSDP and ZeRO-3 gather the weights of what they shard before its forward, so it is whole layers that they
    must shard where one linear reads another's bias; tensor parallelism gathers nothing.

    Raises:
        UnsupportedModelError: If it is a shard.
    """
    # By name: the class's module is not imported before something is sharded.
    if type(tensor).__name__ == "DTensor" or not tensor.numel():
        raise UnsupportedModelError(
            f"mode 'slice' needs the whole weights of {site.name} and {site.down} while they run, but here "
            "they are sharded; shard whole layers (fully_shard(layer)), not linears or along their width, "
            "or use mode 'mask'"
        )


def resize(linear: nn.Linear, weight_OI: Tensor, bias_O: Tensor | None) -> None:
    """Give a linear other weights and the sizes that they have; frozen ones stay frozen.

    Args:
        linear: Changed in place.
        weight_OI: New weights, [outputs, inputs].
        bias_O: New biases; None where it has none.
    """
    linear.out_features, linear.in_features = weight_OI.shape
    linear.weight = nn.Parameter(weight_OI.detach().contiguous(), linear.weight.requires_grad)
    if bias_O is not None and bias_O is not linear.bias:
        linear.bias = nn.Parameter(bias_O.detach().contiguous(), linear.bias.requires_grad)


def refuse_changed_linears(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse sites whose weights, or those of the down and up projections beside them, cannot be written to.

    Raises:
        UnsupportedModelError: If one of these layers is not a plain linear (LoRA, quantized).
    """
    for site in sites:
        for path in filter(None, (site.name, site.up, site.down)):
            linear = model.get_submodule(path)
            if type(linear).forward is not nn.Linear.forward or not linear.weight.is_floating_point():
                raise UnsupportedModelError(
                    f"{path!r} is a {type(linear).__name__}; only plain nn.Linear layers can be written "
                    "to: merge LoRA layers (merge_and_unload), load without quantization"
                )
