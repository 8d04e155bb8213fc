"""What a folder or a repository stands for: where its model lies, its masks, and how they acted in training.

    masks                 nspec_masks.safetensors; config.json or the recipe names the model
    masks beside a model  both in one folder
    a run                 model/ and masks/
    a plain model         without masks: all neurons run
    adapters of PEFT      in the place of a model: their base with them merged

The trap: masks go with the model that was trained with them, acting as they did then. Which one that is, and
how they acted, is read from what training and publishing wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nspec_hf.core import (
    ArtifactError,
    UnsupportedModelError,
    adapters_and_base,
    read_json,
    warn,
)
from nspec_hf.export import REPORT_FILE
from nspec_hf.gating import (
    MADE_BY_FILE,
    MASKS_FOLDER,
    GateConfig,
    facts_of_training,
    stated_config,
)
from nspec_hf.masks import CONFIG_FILE, MASKS_FILE, NeuronMasks

_MODEL, _MASKS = "model", "masks"
SMALL_FILES = (
    CONFIG_FILE,
    MASKS_FILE,
    MADE_BY_FILE,
    REPORT_FILE,
    f"{MASKS_FOLDER}/{MASKS_FILE}",
    f"{_MASKS}/{MASKS_FILE}",
    f"{_MODEL}/{CONFIG_FILE}",
    f"{_MODEL}/{MADE_BY_FILE}",
)
"""The files that say what a repository holds; none of them is large."""


@dataclass(frozen=True)
class Place:
    """Where a model lies: a folder, or a folder of a repository."""

    name: str
    download: Mapping[str, Any]
    """Arguments of a download, wherever it is from."""
    revision: str = ""
    subfolder: str = ""

    @property
    def hub(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that say which of the repository's files are meant."""
        where = {"revision": self.revision, "subfolder": self.subfolder}
        return {**self.download, **{name: value for name, value in where.items() if value}}

    def inside(self, folder: str) -> "Place":
        """Return the folder in it."""
        if Path(self.name).is_dir():
            return replace(self, name=str(Path(self.name) / folder))
        return replace(self, subfolder="/".join(filter(None, (self.subfolder, folder))))

    def __str__(self) -> str:
        """Return its name, with the revision and the folder of a repository."""
        more = ", ".join(filter(None, (self.revision, self.subfolder)))
        return f"{self.name} ({more})" if more else self.name


@dataclass(frozen=True)
class Parts:
    """What is to be put together."""

    place: Place
    """The model's."""
    masks: NeuronMasks | None = None
    gate: GateConfig | None = None
    """How the masks acted in training; None where nothing says it."""
    fingerprint: str = ""
    """Of the weights that the masks go with; empty where nothing says it."""


def as_trained(
    model: str | Path, masks: NeuronMasks | None, gate: GateConfig | None = None
) -> GateConfig | None:
    """Return how masks are to act on a model: as is asked for, else as they did in its training.

    Args:
        model: Its folder, which says how where a run has trained it, or its Hub id.
        masks: Those that are put on it; None: all neurons run.
        gate: What is asked for.

    Raises:
        UnsupportedModelError: If a run has trained it with more than masks (adapters …).

    Warns:
        UserWarning: If it was trained with masks, and these are others, act otherwise, or are none.
    """
    trained, acted = _trained_with(Path(model))
    if masks is None:
        if acted is not None and acted.mode != "gradient":
            warn(
                f"{model} was trained with masks ({trained}), and without them all neurons run: it may "
                "translate worse than it did"
            )
        return gate
    _warn_of_other_masks(model, trained, masks)
    return acts_as(model, acted, gate)


def acts_as(model: Any, trained: GateConfig | None, asked: GateConfig | None) -> GateConfig | None:
    """Return how masks are to act, as is asked for or as they did, and tell where these differ."""
    if trained is None or asked is None:
        return asked or trained
    dense = [each.mode == "gradient" for each in (trained, asked)]
    if dense[0] != dense[1] or (not dense[0] and trained.silence != asked.silence):
        did, do = (f"mode={each.mode!r}, silence={each.silence!r}" for each in (trained, asked))
        warn(
            f"{model} was trained with masks that act by {did}, and here they act by {do}: it may translate "
            "worse than it did"
        )
    return asked


def recognized(here: Path, place: Place, given: Place | None) -> Parts:
    """Return what a folder stands for.

    Args:
        here: The folder, with at least its `SMALL_FILES`.
        place: Where it comes from.
        given: The model that was asked for in the place of the one that is named.

    Raises:
        ArtifactError: If it stands for nothing, or does not name its model.
        UnsupportedModelError: If a model was trained with more than masks.
    """
    config = _content(here / CONFIG_FILE)
    is_model = _is_model(here)
    if (here / MASKS_FILE).is_file() and not is_model:
        masks = NeuronMasks.from_pretrained(here)
        stated = stated_config(config.get("gate"), here / CONFIG_FILE)
        named, fingerprint = (given, "") if given is not None else _named(config, masks, place)
        trained, acted = _trained_with(Path(named.name))
        _warn_of_other_masks(named.name, trained, masks)
        return Parts(named, masks, stated or acted, fingerprint)
    if is_model:
        model, folder = here, place
    elif _is_model(here / _MODEL):
        model, folder = here / _MODEL, place.inside(_MODEL)
    elif config.get("sets"):
        raise ArtifactError(
            f"{place} holds several sets of masks; give subfolder=, one of: {', '.join(config['sets'])}"
        )
    else:
        raise ArtifactError(
            f"{place} holds neither masks ({MASKS_FILE}), a run (model/ and masks/), an exported model "
            f"({REPORT_FILE}) nor a model ({CONFIG_FILE})"
        )
    trained, stated = _trained_with(model)
    masks = _masks_of(here, model, trained)
    return Parts(given or folder, masks, stated if masks else None)


def _masks_of(here: Path, model: Path, trained: str) -> NeuronMasks | None:
    """Return the masks that lie with a model: those that it was trained with, where that is known."""
    folders = [here, here / _MASKS, model / MASKS_FOLDER, *here.glob(f"checkpoint-*/{MASKS_FOLDER}")]
    there = [NeuronMasks.from_pretrained(each) for each in folders if (each / MASKS_FILE).is_file()]
    if not there:
        if trained:
            raise ArtifactError(
                f"{model} was trained with masks ({trained}), which do not lie beside it; copy them to "
                f"{_MASKS}/, or load the masks with base= this model"
            )
        return None
    right = next((masks for masks in there if masks.fingerprint() == trained), there[0])
    _warn_of_other_masks(model, trained, right)
    return right


def _warn_of_other_masks(model: Path | str, trained: str, masks: NeuronMasks) -> None:
    if trained and masks.fingerprint() != trained:
        warn(
            f"{model} was trained with masks {trained}, these are {masks.fingerprint()}: it may "
            "translate worse than it did"
        )


def _trained_with(model: Path) -> tuple[str, GateConfig | None]:
    """Return the fingerprint of the masks that a run trained its model with, and how they acted."""
    facts = facts_of_training(model)
    if facts is None:
        return "", None
    if not isinstance(facts, dict) or "masks" not in facts or "gate" not in facts:
        raise UnsupportedModelError(
            f"{model} was trained with more than masks ({', '.join(facts)}), which would be left out here; "
            "translate with the system that trained it"
        )
    return str(facts["masks"]), stated_config(facts["gate"], model / MADE_BY_FILE)


def _named(config: Mapping[str, Any], masks: NeuronMasks, place: Place) -> tuple[Place, str]:
    """Return the model that masks go with, and the fingerprint of its weights."""
    recipe = masks.recipe
    if config.get("model"):
        where = Place(str(config["model"]), place.download, config.get("revision") or "")
        return where, str(config.get("fingerprint") or "")
    if not recipe.base_model:
        raise ArtifactError(f"the masks in {place} do not name their model; give base='user/model'")
    return Place(recipe.base_model, place.download, recipe.revision), recipe.weight_fingerprint


def _is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, or adapters of PEFT, which stand for their base."""
    return "model_type" in _content(folder / CONFIG_FILE) or bool(adapters_and_base(folder)[0])


def _content(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where there is none."""
    content = read_json(path, ArtifactError) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
