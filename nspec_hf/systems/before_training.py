"""What masks cost before any training: seconds, where a training takes minutes or hours.

The loss of the validation text with every pair's masks on the base as it is. It tells which settings are
worth a training, not what they come to after it: training mends much of what masks break.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nspec_hf.core import Table
from nspec_hf.systems.masked import Masked
from nspec_hf.systems.pipeline import claimed
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System

_NAME = "untrained"


def was_measured(run: Run) -> bool:
    """Return whether `untrained` left its result in the run's folder."""
    return (run.folder / f"{_NAME}.json").is_file()


def untrained(run: Run, system: System) -> dict[str, Any]:
    """Return what a system that is masks does to the base; the base itself, for any other system.

    Args:
        run: Experiment, folder and seed. Masks and result are left in the folder, and taken from there again.
        system: With its settings.

    Returns:
        `loss` in nats a token of the text, language tags left out, and the `seconds` that recording and
        selecting took. Of masks also `density`, the share of neurons kept at the gated sites of each side.

    Raises:
        ConfigError: If the folder holds other settings, or the system cannot work.
    """
    with claimed(run, system):
        return run.once(_NAME, lambda: _measured(system, run))


def _measured(system: System, run: Run) -> dict[str, Any]:
    model = system.model(run)
    facts: dict[str, Any] = {"name": run.row, "seed": run.seed, "seconds": 0.0}
    if not isinstance(system, Masked):
        return facts | {"loss": run.loss(model)}
    facts |= {"system": system.name, "settings": dataclasses.asdict(system)}
    facts["seconds"] = system.extraction(model, run)["seconds"]
    gate, masks = system.attach(model, run), system.kept_masks(run)
    kept: dict[str, list[Tensor]] = {}
    for site in masks.sites:
        kept.setdefault(site.side, []).append(masks.keep[site.name].flatten())
    facts["density"] = {side: torch.cat(keep).double().mean().item() for side, keep in kept.items()}
    return facts | {"masks": masks.fingerprint(), "loss": run.loss(model, gate)}


def untrained_table(looked_at: Sequence[Mapping[str, Any]], about: str) -> Table:
    """Return the systems, the least loss first, with what they cost more than the base.

    Args:
        looked_at: Results of `untrained`; the first that has no masks is the base.
        about: What text and base it is, for the note under the table.
    """
    dense = next((row["loss"] for row in looked_at if "masks" not in row), None)
    rows = []
    for row in sorted(looked_at, key=lambda row: row["loss"]):
        more = None if dense is None else row["loss"] - dense
        kept = [row.get("density", {}).get(side) for side in ("encoder", "decoder")]
        rows.append((row["name"], row["seed"], row["loss"], more, *kept, row.get("seconds")))
    return Table(
        title="loss of the text with masks, before any training",
        columns=("row", "seed", "loss", "more than base", "kept in encoder", "in decoder", "seconds"),
        rows=tuple(rows),
        notes=(about, "nats a target token, language tags left out; seconds to record and select"),
        digits=3,
    )
