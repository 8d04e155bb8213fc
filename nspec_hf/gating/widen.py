"""Give each pair neurons of its own: the same masks, for a model that is made wider first.

Shape letters: D = model width, F = a site's neurons, W = new ones of a group, G = groups of pairs, P = pairs.

Masks take neurons away from pairs. Where a model is too small for its pairs, none can be spared; then each
pair, or all pairs that share a language, can be given some instead. All pairs keep the old neurons (or those
that masks let them keep), and of the G·W new ones only their group's W. A new neuron begins silent, by zeros
in W2, so the model translates as before until it is trained. Sliced or exported, a pair computes W neurons
more than it did, however many pairs there are. Beyond both papers; an adapter beside the feed-forward block
(Bapna & Firat 2019 put theirs after it), but one that is a plain model with masks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, TrainingSetupError, UnsupportedModelError, as_pairs
from nspec_hf.gating.attachment import attachment_of
from nspec_hf.gating.linears import refuse_changed_linears, resize
from nspec_hf.masks import NeuronMasks, Recipe, group_numbers
from nspec_hf.recording import Site, find_sites, linear_at, plain_model

OWNERS = ("pair", "source", "target", "separate", "all")
"""Who shares new neurons: `SelectConfig.by`, and `all` for neurons that every pair has."""

# Fields of a config that hold a width, the more specific first; the last three are of both stacks.
_FIELDS = ("{side}_ffn_dim", "d_ff", "ffn_dim", "intermediate_size")


def grow(
    model: PreTrainedModel,
    pairs: Sequence[str],
    share: float = 0.25,
    by: str = "pair",
    masks: NeuronMasks | None = None,
    seed: int = 1,
) -> NeuronMasks:
    """Add neurons to all feed-forward sites, in place, and return the masks that say whose they are.

        masks = grow(model, ["en-de", "de-en"])
        gate = NeuronGate(model, masks)             # and train: the new neurons are silent yet

    Args:
        model: A trained model with nothing on it.
        pairs: In the order of `pair_ids`.
        share: New neurons of each group as a share of the site's, positive; at least one neuron.
        by: Whom they belong to: each `pair`; all pairs with that `source` or `target`; `separate`, by source
            in the encoder and by target in the decoder; or `all` pairs together.
        masks: Which of the old neurons each pair keeps; None: all. Sites that they do not hold stay whole.
        seed: Seed of the new rows.

    Raises:
        ConfigError: If a setting is out of range, or the masks are for other pairs.
        SiteMismatchError: If the masks are for another model.
        UnsupportedModelError: If the model cannot be widened.
        TrainingSetupError: If something is on the model.
    """
    grown = grown_masks(find_sites(model), pairs, share, by, masks)
    add_neurons(model, {site.name: site.width for site in grown.sites}, seed)
    return grown


def grown_masks(
    sites: Sequence[Site],
    pairs: Sequence[str],
    share: float = 0.25,
    by: str = "pair",
    masks: NeuronMasks | None = None,
) -> NeuronMasks:
    """Return the masks of a model that `add_neurons` makes as wide as they are; for arguments see `grow`.

    The sites are the feed-forward ones as they are before.
    """
    pairs = as_pairs(pairs)
    if by not in OWNERS or share <= 0:
        raise ConfigError(f"by is one of {', '.join(OWNERS)} and share is positive, got {by!r} and {share}")
    if masks is not None:
        masks.check_model(sites)
        if masks.pairs != pairs:
            raise ConfigError(f"the masks are for other pairs or in another order: {', '.join(masks.pairs)}")
    keep = {}
    for site in sites:
        whole_PF = torch.ones(len(pairs), site.width, dtype=torch.bool)
        old_PF = whole_PF if masks is None else masks.keep.get(site.name, whole_PF)
        group_P = group_numbers(pairs, by, site.side)
        own_PG = group_P[:, None] == group_P.unique()
        wide = max(1, round(share * site.width))
        keep[site.name] = torch.cat([old_PF, own_PG.repeat_interleave(wide, dim=1)], dim=1)
    settings = {"share": share, "by": by, "old": "all" if masks is None else masks.fingerprint()}
    return NeuronMasks(pairs, keep, recipe=Recipe(method="grown", settings=settings))


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
                f"{written[field]} and {widths[site.name]} wide; share neurons by pair, source, target or all"
            )
    model.config.update(written)
