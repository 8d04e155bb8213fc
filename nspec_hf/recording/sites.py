"""Find where a model's neurons live: by the shape of its layers, never by a table of model types.

A site is a linear layer whose output units are neurons. Four shapes of feed-forward block cover the
translation models of transformers and most decoder-only ones: `fc1 → σ → fc2`, `wi → σ → wo`, and the gated
ones `σ(wi_0) · wi_1 → wo` and `σ(gate_proj) · up_proj → down_proj`. What could only be gated wrongly is
refused with the reason.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, SiteMismatchError, UnsupportedModelError, as_names, digest, whole
from nspec_hf.recording.config import KINDS
from nspec_hf.recording.model import OTHER_PARTS

# Gated linear → (ungated linear, down projection), all children of one module.
_BLOCKS = {
    "fc1": ("", "fc2"),
    "wi": ("", "wo"),
    "wi_0": ("wi_1", "wo"),
    "gate_proj": ("up_proj", "down_proj"),
    "up_proj": ("", "down_proj"),
}
_DOWNS = {down for _, down in _BLOCKS.values()}
_ATTENTIONS = (
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q", "k", "v", "o"),
)
_PROJECTIONS = {name for names in _ATTENTIONS for name in names}
# Between activation and down projection, of BitNet, Kosmos-2 and Gemma 3n (where above 0): all neurons count.
_MIXES = ("ffn_sub_norm", "ffn_layernorm", "activation_sparsity")
_ACTIVATIONS = ("activation_fn", "act", "act_fn", "activation")

_CROSS = re.compile(r"cross|encoder_att|encdec", re.IGNORECASE)
_EXPERTS = re.compile(r"^(experts?|router|shared_experts?|block_sparse_moe)$")
_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
_REFUSED_TYPES = {
    "fsmt": "its layers run time-first ([L, B, D]), so the rows of a batch are not the first axis",
    "pegasus_x": "its encoder's blocks run a second time, on global tokens that stand for no text",
}


@dataclass(frozen=True)
class Site:
    """A linear layer whose output units are neurons; all but the width follows from its name."""

    name: str
    """Dotted path of the linear in the plain model: `model.encoder.layers.0.fc1`."""
    width: int
    """F, the number of neurons: output units of the linear."""
    side: str
    """`encoder` or `decoder`: the stack that its layer belongs to; decoder-only models have decoders."""
    layer: int
    """Number of that layer in its stack, from 0."""
    kind: str
    """`ffn`, `attention` or `ffn_out`."""
    down: str = ""
    """For `ffn`: dotted path of the down projection, whose input are the neurons' activations; else empty."""
    up: str = ""
    """For gated blocks: dotted path of the linear that is multiplied to the activated branch; else empty."""
    positions: str = "decoder"
    """Whose tokens pass through: the side, but `encoder` for k and v of the decoder's cross-attention."""

    def linear(self, model: nn.Module) -> nn.Linear:
        """Return the linear itself, in the plain model."""
        return linear_at(model, self.name)


def linear_at(model: nn.Module, path: str) -> nn.Linear:
    """Return the linear at a dotted path of the plain model; LoRA and quantized ones look like one too.

    Raises:
        SiteMismatchError: If there is none.
    """
    try:
        return cast(nn.Linear, model.get_submodule(path))
    except AttributeError as error:
        raise SiteMismatchError(f"{type(model).__name__} has no {path!r}: {error}") from None


def find_sites(model: nn.Module, kinds: Iterable[str] = ("ffn",)) -> list[Site]:
    """Return the sites of a model in forward order: encoder before decoder, layer by layer.

    Args:
        model: A Hugging Face model. Wrappers of DDP, `torch.compile` and PEFT are looked through, so the
            names are those of the plain model.
        kinds: Which sites: `ffn` (feed-forward neurons), `attention` (q, k, v and out, one site each),
            `ffn_out` (the down projection's output).

    Raises:
        UnsupportedModelError: If a layer has no block of a known shape, or one that could only be gated
            wrongly: experts behind a router, time-first layers, one layer used twice, layers wrapped one
            by one, an activation with σ(0) ≠ 0, or what scales or cuts off by all neurons of a token.
        ConfigError: If a kind is unknown.
    """
    kinds = as_names(kinds)
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"expected a model, got {type(model).__name__}; load it with AutoModelForSeq2SeqLM"
        )
    if not kinds or set(kinds) - set(KINDS):
        raise ConfigError(f"kinds are among {', '.join(KINDS)}, got {kinds}")
    model = plain_model(model)
    _refuse_model(model)
    sites: list[Site] = []
    for name, module in model.named_modules():
        if OTHER_PARTS.search(name):
            continue
        if "attention" in kinds:
            sites += _attention_sites(name, module)
        if set(kinds) - {"attention"}:
            sites += [site for site in _block_sites(model, name, module) if site.kind in kinds]
    for kind in kinds:
        _refuse_gaps(model, [site for site in sites if site.kind == kind], kind)
    _refuse_shared(model, sites)
    return sorted(sites, key=lambda site: (site.side != "encoder", site.layer, site.kind != "attention"))


def site_from_name(name: str, width: int) -> Site:
    """Return the site with that dotted path, for masks that are made without a model.

    Side, layer, kind and the neighbours are read from the path; a path that names no side is a decoder's.
    """
    path = name.split(".")
    parent, last = ".".join(path[:-1]), path[-1]
    sides = [part for part in path if "encoder" in part.lower() or "decoder" in part.lower()]
    sides = [part for part in sides if not _CROSS.search(part)]
    side = "encoder" if sides and "encoder" in sides[-1].lower() else "decoder"
    numbers = [int(part) for part in path if part.isdigit()]
    kind = "attention" if last in _PROJECTIONS else "ffn_out" if last in _DOWNS else "ffn"
    up, down = _BLOCKS.get(last, ("", ""))
    crosses = kind == "attention" and last[0] in "kv" and any(_CROSS.search(part) for part in path[-2:-1])
    return Site(
        name=name,
        width=int(width),
        side=side,
        layer=numbers[0] if numbers else 0,
        kind=kind,
        down=_join(parent, down),
        up=_join(parent, up),
        positions="encoder" if crosses else side,
    )


def as_sites(sites: Iterable[Site] | Mapping[str, int]) -> list[Site]:
    """Return sites, or those that names and widths stand for."""
    if isinstance(sites, Mapping):
        widths = cast(Mapping[str, int], sites)
        return [site_from_name(name, width) for name, width in widths.items()]
    return list(sites)


def plain_model(model: Any) -> PreTrainedModel:
    """Return the model itself, out of the wrappers of DDP, DeepSpeed, `torch.compile` and PEFT.

    Raises:
        UnsupportedModelError: If PEFT tunes a prompt or prefix, which the wrapper adds and the model lacks.
    """
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            for name, config in model.peft_config.items():
                if config.is_prompt_learning:
                    raise UnsupportedModelError(
                        f"PEFT's adapter {name!r} is {config.peft_type.value}, a prompt or prefix that the "
                        "wrapper adds and that would be lost; use LoRA, or get_base_model() to do without"
                    )
            inner = model.get_base_model()
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def site_activation(model: nn.Module, site: Site) -> Callable[[Tensor], Tensor]:
    """Return σ of a feed-forward site.

    Raises:
        UnsupportedModelError: If the module that holds the site does not show its activation.
    """
    parent = plain_model(model).get_submodule(site.name.rpartition(".")[0])
    for name in _ACTIVATIONS:
        activation = getattr(parent, name, None)
        if callable(activation):
            return cast(Callable[[Tensor], Tensor], activation)
    raise UnsupportedModelError(
        f"{type(parent).__name__} at {site.name!r} has no activation named {', '.join(_ACTIVATIONS)}, so it "
        "cannot be checked that a silenced neuron stays silent"
    )


def weight_fingerprint(model: nn.Module) -> str:
    """Return the first 16 hex digits of the SHA-256 over the sites' names and weights (as float32, in order).

    The sites are the feed-forward ones, whatever is counted or gated; if none has a known shape, those of
    attention. Sharded weights (FSDP2, ZeRO-3) are gathered, so then every rank must call this.
    """
    model = plain_model(model)
    try:
        sites = find_sites(model)
    except UnsupportedModelError:
        sites = find_sites(model, ("attention",))

    def parts() -> Iterator[Any]:
        for site in sites:
            yield site.name
            yield _dense(site.linear(model)).numpy()

    return digest(parts())


def _dense(linear: Any) -> Tensor:
    """Return a linear's weight as float32 on the CPU, whole where it is sharded, unpacked where quantized."""
    weight: Any = linear.weight
    weight = whole(weight) if isinstance(weight, Tensor) else weight()
    if weight.is_quantized or type(weight).dequantize is not Tensor.dequantize:
        weight = weight.dequantize()
    return weight.float().cpu().contiguous()


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent and child else child


def _linears(module: nn.Module, children: Iterable[str]) -> list[nn.Linear]:
    """Return the children of these names if all are linears, else none."""
    found = [getattr(module, child, None) for child in children]
    # Not isinstance of nn.Linear: LoRA and quantized layers are linears too, with the same two attributes.
    are_linears = all(hasattr(each, "in_features") and hasattr(each, "out_features") for each in found)
    return cast(list[nn.Linear], found) if are_linears else []


def _refuse_model(model: nn.Module) -> None:
    class_name = type(model).__name__
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type in _REFUSED_TYPES:
        raise UnsupportedModelError(f"{class_name} is not supported: {_REFUSED_TYPES[model_type]}")
    for name, _ in model.named_modules():
        parts = name.split(".")
        if not OTHER_PARTS.search(name) and any(_EXPERTS.match(part) for part in parts):
            raise UnsupportedModelError(
                f"{class_name} has experts behind a router ({name!r}): an expert sees loose tokens, so its "
                "neurons cannot be tied to the rows of a batch; use a dense model"
            )
        if any(part in _WRAPPERS for part in parts):
            raise UnsupportedModelError(
                f"{name!r} is wrapped inside the model; compile the whole model instead of its layers, and "
                "for FSDP use `fully_shard`, which keeps the names"
            )


def _block_sites(model: nn.Module, name: str, module: nn.Module) -> list[Site]:
    if not any(part.isdigit() for part in name.split(".")):
        return []
    for gated, (up, down) in _BLOCKS.items():
        linears = _linears(module, [gated, down, *([up] if up else [])])
        widths = {linear.out_features for linear in (*linears[:1], *linears[2:])}
        if not linears or widths != {linears[1].in_features}:
            continue
        site = _placed(model, _join(name, gated), linears[0].out_features)
        _refuse_activation(model, site)
        return [site, _placed(model, site.down, linears[1].out_features)]
    if _linears(module, ["gate_up_proj"]):
        raise UnsupportedModelError(
            f"{_join(name, 'gate_up_proj')!r} computes gate and up projection in one linear, so its output "
            "units are not neurons; only separate projections are supported"
        )
    return []


def _attention_sites(name: str, module: nn.Module) -> list[Site]:
    for children in _ATTENTIONS:
        linears = _linears(module, children)
        if linears:
            if "Merged" in type(module).__name__:
                raise UnsupportedModelError(f"{name!r} sends both sides through one k and one v projection")
            pairs = zip(children, linears, strict=True)
            return [site_from_name(_join(name, child), linear.out_features) for child, linear in pairs]
    return []


def _is_two_sided(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _placed(model: nn.Module, name: str, width: int) -> Site:
    if _is_two_sided(model) and not re.search("encoder|decoder", name):
        raise UnsupportedModelError(
            f"{name!r} names neither encoder nor decoder; give the whole model, not one of its halves"
        )
    return site_from_name(name, width)


def _refuse_activation(model: nn.Module, site: Site) -> None:
    parent = model.get_submodule(site.name.rpartition(".")[0])
    for mixes in (name for name in _MIXES if getattr(parent, name, None)):
        raise UnsupportedModelError(
            f"{type(parent).__name__} at {site.name!r} has {mixes}, which scales or cuts off by all neurons "
            "of a token, so what others say would depend on silenced ones, which may speak themselves"
        )
    activation = site_activation(model, site)
    weights = list(activation.parameters()) if isinstance(activation, nn.Module) else []
    if any(weight.is_meta for weight in weights):
        return  # nothing is loaded yet
    # Named, since a model may be made under a device that holds no values.
    device = weights[0].device if weights else "cpu"
    with torch.no_grad():
        at_zero = activation(torch.zeros(1, device=device)).abs().max().item()
    if at_zero != 0:
        raise UnsupportedModelError(
            f"the activation of {site.name!r}, {type(activation).__name__}, gives {at_zero:.4g} at 0, so a "
            "silenced neuron would still speak; only activations with σ(0) = 0 can be gated"
        )


def _refuse_gaps(model: PreTrainedModel, sites: Sequence[Site], kind: str) -> None:
    """Refuse a model that has no site of a kind, or a side or a layer without one beside those with one."""
    class_name, names = type(model).__name__, [site.name for site in sites]
    shapes = "q, k, v, out" if kind == "attention" else "fc1/fc2, wi/wo, wi_0/wi_1/wo or gate/up/down_proj"
    if not names:
        raise UnsupportedModelError(f"{class_name} has no {kind} site: no layer holds linears named {shapes}")
    sides = {site.side for site in sites}
    if len(sides) == 1 and _is_two_sided(model):
        raise UnsupportedModelError(
            f"{kind} sites were found in the {sides.pop()} of {class_name} alone: no layer of its other half "
            f"holds linears of fitting widths named {shapes}"
        )
    for stack in sorted({re.split(r"\.?\b\d+\.", name, maxsplit=1)[0] for name in names}):
        layers = [_join(stack, child) for child, _ in model.get_submodule(stack).named_children()]
        empty = [layer for layer in layers if not any(name.startswith(f"{layer}.") for name in names)]
        if empty:
            raise UnsupportedModelError(
                f"some layers of {class_name} have a known {kind} block and some have not: {', '.join(empty)}"
            )


def _refuse_shared(model: nn.Module, sites: Sequence[Site]) -> None:
    names = {id(model.get_submodule(site.name)): site.name for site in sites}
    for name, module in model.named_modules(remove_duplicate=False):
        if names.get(id(module), name) != name:
            raise UnsupportedModelError(
                f"{names[id(module)]!r} and {name!r} are one layer used twice, so it is no single site"
            )
