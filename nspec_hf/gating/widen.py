"""Make a trained model's feed-forward layers wider, by neurons that change nothing until they are trained.

Shape letters: D = model width, F = a site's neurons, W = new ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, TrainingSetupError, UnsupportedModelError
from nspec_hf.gating.attachment import attachment_of
from nspec_hf.gating.linears import refuse_changed_linears, resize
from nspec_hf.recording import Site, find_sites, linear_at, plain_model

# Fields of a config that hold a width, the more specific first; the last three are of both stacks.
_FIELDS = ("{side}_ffn_dim", "d_ff", "ffn_dim", "intermediate_size")


def add_neurons(model: PreTrainedModel, widths: dict[str, int], seed: int = 1) -> None:
    """Make feed-forward sites wider, in place; the model computes what it did.

    Each weight of a new row of W1 is drawn from the trained ones of the same input, its bias from the trained
    biases, so that new neurons fire about as often as the old. Their columns of W2 are zeros, so W2 learns
    first. For all feed-forward sites, by name, `widths` says how many neurons they have afterwards.

    Raises:
        ConfigError: If a site is missing or would get narrower.
        UnsupportedModelError: If a layer is no plain linear, or the model's config cannot say the widths.
        TrainingSetupError: If something is on the model.
    """
    plain = plain_model(model)
    if attachment_of(plain) is not None:
        raise TrainingSetupError("the model has a gate or another attachment; detach it, then add neurons")
    sites = find_sites(plain)
    wrong = [site.name for site in sites if widths.get(site.name, 0) < site.width]
    if wrong or len(widths) != len(sites):
        raise ConfigError(
            f"widths are for all {len(sites)} sites and not below theirs; see {', '.join(wrong)}"
        )
    refuse_changed_linears(plain, sites)
    _write_widths(plain, sites, widths)
    generator = torch.Generator().manual_seed(seed)
    for site in sites:
        more = widths[site.name] - site.width
        for path in filter(None, (site.name, site.up)):
            linear = linear_at(plain, path)
            weight_WD, bias_W = drawn_rows(linear, more, generator)
            bias_F = None if bias_W is None else torch.cat([linear.bias, bias_W])
            resize(linear, torch.cat([linear.weight, weight_WD]), bias_F)
        down = linear_at(plain, site.down)
        silent_DW = down.weight.new_zeros(down.out_features, more)
        resize(down, torch.cat([down.weight, silent_DW], dim=1), down.bias)


def drawn_rows(linear: nn.Linear, more: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Return weights [W, D] and biases [W] of more rows of a linear, drawn on the CPU from its own."""
    weight_FD, bias_F = linear.weight.detach(), linear.bias
    drawn_WD = torch.randint(len(weight_FD), (more, weight_FD.shape[1]), generator=generator)
    new_WD = weight_FD.gather(0, drawn_WD.to(weight_FD.device))
    if bias_F is None:
        return new_WD, None
    drawn_W = torch.randint(len(weight_FD), (more,), generator=generator)
    return new_WD, bias_F.detach()[drawn_W.to(bias_F.device)]


def _write_widths(model: PreTrainedModel, sites: Sequence[Site], widths: dict[str, int]) -> None:
    """Write the widths into the model's config, so that `from_pretrained` makes a model of that shape."""
    written: dict[str, int] = {}
    for site in sites:
        names = [field.format(side=site.side) for field in _FIELDS]
        field = next((name for name in names if getattr(model.config, name, None) == site.width), None)
        if field is None:
            raise UnsupportedModelError(
                f"the config of {type(model).__name__} has no {', '.join(names)} that is {site.width}, the "
                f"width of {site.name!r}, so a wider model could not be loaded again"
            )
        if written.setdefault(field, widths[site.name]) != widths[site.name]:
            raise UnsupportedModelError(
                f"the config of {type(model).__name__} has one {field} for all layers, which would be "
                f"{written[field]} and {widths[site.name]} wide"
            )
    model.config.update(written)
