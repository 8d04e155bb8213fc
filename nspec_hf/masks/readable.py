"""The readable files beside the bits of masks: a copy of what is not bits, the Hub's small file, the card.

They can be lost: the file of the bits is the truth.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nspec_hf import __version__
from nspec_hf.core import FORMAT, ArtifactError, file_digest, read_artifact, read_json, warn, write_text
from nspec_hf.masks.select import LIBRARY, Recipe
from nspec_hf.recording import STATS_KIND

MASKS_FILE = "nspec_masks.safetensors"
COPY_FILE = "nspec_config.json"
CONFIG_FILE = "config.json"


def write_texts(folder: Path, described: Mapping[str, Any], card: str, use: Mapping[str, Any]) -> None:
    """Write them: what `described` says, the small file for the Hub with what `use` says, and the card."""
    readable = json.dumps({"format": FORMAT, **described}, indent=2, ensure_ascii=False) + "\n"
    small = {"library_name": LIBRARY, "library_version": __version__, "masks": MASKS_FILE}
    small |= {name: value for name, value in use.items() if value}
    write_text(folder / COPY_FILE, readable)
    replace_own(folder / CONFIG_FILE, json.dumps(small, indent=2) + "\n", f'"library_name": "{LIBRARY}"')
    replace_own(folder / "README.md", card, f"\nlibrary_name: {LIBRARY}\n")


def warn_of_other_copy(masks: Path) -> None:
    """Warn where the readable files beside masks are of other masks: a save was broken off between them."""
    path = masks.with_name(COPY_FILE)
    try:
        stated = read_json(path, ArtifactError) if path.is_file() else {}
    except ArtifactError:
        stated = {"file": "unreadable"}
    if isinstance(stated, dict) and "file" in stated and stated["file"] != file_digest(masks):
        warn(
            f"{path.name} and the card in {path.parent} are of other masks than {MASKS_FILE}, which counts; "
            "a save was broken off: call save_pretrained again"
        )


def warn_of_older(
    folder: Path, fingerprint: str, recipe: Recipe, statistics: Path | None, figures: Iterable[Path]
) -> None:
    """Warn of statistics and figures that lie in the folder beside other masks than are saved now.

    Statistics of the same weights, text and pairs pass: they may be the only copy of what was counted.
    """
    try:
        before = read_json(folder / COPY_FILE, ArtifactError)["fingerprint"]
    except (OSError, ArtifactError, KeyError, TypeError):
        return  # nothing was saved here
    older = [str(figure.relative_to(folder)) for figure in figures]
    if statistics and statistics.is_file() and not _of_recipe(statistics, recipe):
        older.append(statistics.name)
    if older and before != fingerprint:
        warn(
            f"{', '.join(older)} in {folder} lay there beside other masks ({before}) and stay; "
            "delete them, or save into a folder of their own"
        )


def _of_recipe(statistics: Path, recipe: Recipe) -> bool:
    try:
        stated = read_artifact(statistics, STATS_KIND, mapped=True)[1]
    except ArtifactError:
        return False
    counted = stated["base"].get("fingerprint") or "", stated["corpus"], stated["pairs"]
    return counted == (recipe.weight_fingerprint, recipe.corpus, list(recipe.tokens))


def replace_own(path: Path, text: str, mark: str) -> None:
    """Write a file, unless something else of that name lies there, which is warned about and stays."""
    if path.exists() and mark.encode() not in path.read_bytes():
        warn(f"{path} is not of these masks and stays as it is; save into a folder of their own")
        return
    write_text(path, text)
