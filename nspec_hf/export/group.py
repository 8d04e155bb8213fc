"""Several pairs in one exported model, each with its own neurons.

Shape letters: P = pairs, F = neurons of a site, K = those that the exported model has.

A specialized model was trained with each pair's own neurons, and translates worse with more of them. So a
model that has the neurons of several pairs together goes with their masks, renumbered to the neurons that are
left: a gate with these silences what the pair did not have, as in the whole model. CTranslate2 has no such
gate; there each pair gets a model, or all run the neurons of all.

Masks of several levels keep those that need no other neurons, which are the sparser ones.
"""

from dataclasses import replace
from typing import Literal

from transformers import PreTrainedModel

from nspec_hf.export.config import ExportConfig
from nspec_hf.export.prune import left_neurons
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import linear_at

Sharing = Literal["", "gated", "apart", "union"]
"""How several pairs share an export: `gated`, one model with masks beside it; `apart`, a model a pair;
`union`, one model whose neurons all run for all. Empty where there is nothing to share."""


def sharing_of(own: NeuronMasks | None, config: ExportConfig) -> Sharing:
    """Return how pairs share an export; `own` is their masks, None where all neurons stay."""
    if own is None or own.keep.is_alike():
        return ""
    if config.group == "union":
        return "union"
    return "apart" if config.format == "ctranslate2" else "gated"


def renumbered(own: NeuronMasks, together: NeuronMasks, model: PreTrainedModel) -> NeuronMasks:
    """Return pairs' masks for a model that has the neurons of all of them, and no others.

    Levels that keep neurons which are gone, the denser ones, are left out.

    Args:
        own: The masks for the whole model.
        together: Their union, which the model was cut to.
        model: That model.
    """
    union = together[together.pairs[0]]
    index = {name: left_neurons(union[name], linear_at(model, name).out_features) for name in union}
    keep = {name: keep_PF[:, index[name]] for name, keep_PF in own.keep.items()}
    general = None if own.general is None else {name: own.general[name][index[name]] for name in index}
    levels = {
        level: {name: keep_PF[:, index[name]] for name, keep_PF in own.levels[level].items()}
        for level in kept_levels(own, together)
    }
    note = f"renumbered to the neurons of {', '.join(own.pairs)} together"
    recipe = replace(own.recipe, derived=(*own.recipe.derived, note))
    return NeuronMasks(own.pairs, keep, general=general, recipe=recipe, levels=levels)


def kept_levels(own: NeuronMasks, together: NeuronMasks) -> list[float]:
    """Return the levels of masks whose neurons are all among those that a model was cut to, ascending."""
    union = together[together.pairs[0]]
    return [
        level
        for level, keep in own.levels.items()
        if not any(bool((keep_PF & ~union[name]).any()) for name, keep_PF in keep.items())
    ]
