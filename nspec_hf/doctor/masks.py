"""Checks of the masks: are they of this model, for these pairs, and neither empty nor the same for all?"""

from collections.abc import Iterator

from nspec_hf.core import NspecError, SiteMismatchError, in_short
from nspec_hf.doctor.setup import Finding, NotCheckedError, Setup, note, one_line
from nspec_hf.recording import find_sites, weight_fingerprint

_DENSE = 0.98


def check_masks(setup: Setup) -> Iterator[Finding]:
    """Look at the masks alone, and beside model and pairs."""
    try:
        held = setup.held
    except NotCheckedError:
        raise
    except (NspecError, OSError) as error:
        yield Finding(
            what=f"the masks cannot be read: {one_line(error)}",
            why="each pair's neurons are not known",
            mend="write them again: nspec select, or fetch the repository again",
        )
        return
    yield from _sites(setup)
    missing = [pair for pair in setup.directions if pair not in held]
    if missing:
        yield Finding(
            what=f"{len(missing)} pairs have no mask: {in_short(missing, 5)}",
            why="their rows stop with an error",
            mend="record and select them too, or --gate.zero_shot compose, which takes the encoder of one "
            "pair and the decoder of another",
        )
    empty = [
        f"{held.pairs[number]} at {site.name}"
        for site in held.sites
        for number in (held.keep.at(site.name).kept_P == 0).nonzero()[0]
    ]
    if empty:
        yield Finding(
            what=f"{len(empty)} masks keep nothing: {in_short(empty, 3)}",
            why="the layer is silent for that pair; statistics of a broken model or of no text look like "
            "this",
            mend="record again on text of that pair, and look at the model's check above",
        )
    if held.density() > _DENSE:
        yield note(
            what=f"the masks keep {held.density():.1%} of the neurons",
            why="hardly anything is specialized; training with them is fine-tuning",
            mend="select with a smaller coverage: 0.6 kept 42 % of the neurons at the quality of fine-tuning",
        )
    if len(held.pairs) > 1 and held.keep.is_alike():
        yield note(
            what=f"all {len(held.pairs)} pairs have the same neurons",
            why="a mask that all share is pruning, not specialization",
            mend="record each pair on text of its own; pairs that share their source text share encoder "
            "masks",
        )


def _sites(setup: Setup) -> Iterator[Finding]:
    held = setup.held
    sites = setup.given(
        "model", lambda: find_sites(setup.network, sorted({site.kind for site in held.sites}))
    )
    try:
        held.check_model(sites)
    except SiteMismatchError as error:
        yield Finding(
            what=f"the masks are of another model: {one_line(error)}",
            why="a gate refuses them",
            mend="record this model, or take the one that was recorded: "
            f"{held.recipe.base_model or 'not noted'}",
        )
        return
    counted = held.recipe.weight_fingerprint
    if counted and counted != weight_fingerprint(setup.network):
        yield note(
            what="the model's feed-forward weights are not those that were counted",
            why="after continued training that is right; otherwise the neurons were chosen for another model",
            mend="if this is meant to be the base, record it again",
        )
