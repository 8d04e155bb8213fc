"""The folder of what was added, here and on the Hub.

nspec_added.safetensors   the truth: weights and layouts of all additions
nspec_masks.safetensors   masks of the old pairs, where the base has some
config.json               small; the Hub counts its downloads
README.md                 the model card
"""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from torch import Tensor, nn
from transformers import PreTrainedModel

from nspec_hf import __version__
from nspec_hf.adding.added import AddedPairs
from nspec_hf.adding.addition import Addition, Layout
from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    SiteMismatchError,
    as_pairs,
    digest,
    plain,
    read_artifact,
    write_artifact,
    write_text,
)
from nspec_hf.gating import GateConfig
from nspec_hf.masks import CONFIG_FILE, MASKS_FILE, NeuronMasks, fetch, front_matter, prepare, upload
from nspec_hf.recording import OWN_WEIGHTS, plain_model, weight_fingerprint

KIND = "nspec_added"
ADDED_FILE = "nspec_added.safetensors"


def save_added(added: AddedPairs, folder: str | os.PathLike, *, repo: str | None = None) -> None:
    """Write the folder that `load_added` reads.

    Args:
        added: What is saved; the base is not, only named.
        folder: Made where it does not exist.
        repo: Id that the card's snippet loads it from; the folder's name if not given.

    Raises:
        OSError: If a file cannot be written; what was added before is then still whole, or, if other masks
            came that far, refused by `load_added`.
    """
    folder = Path(folder)
    tensors = {
        f"{number}.{name}": weight
        for number, addition in enumerate(added.additions)
        for name, weight in addition.state_dict().items()
    }
    base = weight_fingerprint(added.model)
    layouts = [plain(asdict(addition.layout)) for addition in added.additions]
    if added.masks is not None:
        added.masks.save(folder / MASKS_FILE)
    gate = None if added.gate_config is None else plain(asdict(added.gate_config))
    stated = {
        "layouts": layouts,
        "base_weights": base,
        "all_weights": _digest_of_all(added.model),
        "masks": "" if added.masks is None else added.masks.fingerprint(),
        "gate": gate,
    }
    write_artifact(folder / ADDED_FILE, tensors, stated, KIND)
    small = {"library_name": "nspec_hf", "library_version": __version__, "added": ADDED_FILE}
    write_text(folder / CONFIG_FILE, json.dumps(small, indent=2) + "\n")
    write_text(folder / "README.md", _card(added, repo or folder.resolve().name))


def _digest_of_all(model: nn.Module) -> str:
    """Return a digest of a base's weights, as float32: a model with its feed-forward ones may be another."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return digest(
        part
        for name, weight in weights.items()
        # Quantized ones are no such tensors, and what is on the model now is not the base's.
        if type(weight) is Tensor and weight.is_floating_point() and not name.startswith(f"{OWN_WEIGHTS}.")
        for part in (name, weight.float().cpu().contiguous().numpy())
    )


def load_added(
    folder_or_repo: str | os.PathLike,
    model: PreTrainedModel,
    revision: str | None = None,
    gate_config: GateConfig | None = None,
    subfolder: str = "",
    coverage: float | None = None,
    **download: Any,
) -> AddedPairs:
    """Read what was added to a model; it is not attached yet.

    Args:
        folder_or_repo: A path, or the id of a repository.
        model: The base that it was made for.
        revision: Of the repository.
        gate_config: How masks of the old pairs act, where there are some; None: as when they were saved.
        subfolder: Folder inside it.
        coverage: Of masks of the old pairs that hold several levels, which one runs.
        download: For `huggingface_hub.snapshot_download`: `token`, `cache_dir` …

    Raises:
        ArtifactError: If the file is cut off, altered, or of another kind.
        FileNotFoundError: If there is none, or it is neither a folder nor a repository.
        SiteMismatchError: If the model is another one: its weights are not those of the base.
        ConfigError: If there are no masks of old pairs with that coverage.
    """
    folder = fetch(folder_or_repo, (ADDED_FILE, MASKS_FILE, CONFIG_FILE), revision, subfolder, download)
    if not (folder / ADDED_FILE).is_file():
        raise FileNotFoundError(f"{folder_or_repo} holds no {ADDED_FILE}; was it made by nspec add-pair?")
    tensors, stated = read_artifact(folder / ADDED_FILE, KIND)
    try:
        layouts = [Layout(**layout) for layout in stated["layouts"]]
        base, fingerprint = stated["base_weights"], stated["masks"]  # True in older ones that have masks
        gate = stated.get("gate")  # not in older ones
        gate_config = gate_config or (GateConfig(**gate) if gate else None)
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / ADDED_FILE} does not describe additions ({error!r})") from error
    plain_one = plain_model(model)
    now = weight_fingerprint(plain_one)
    if now == base and stated.get("all_weights"):  # not in older ones
        base, now = stated["all_weights"], _digest_of_all(plain_one)
    if now != base:
        names = ", ".join(dict.fromkeys(str(layout.about.get("base", "not named")) for layout in layouts))
        raise SiteMismatchError(
            f"{folder_or_repo} was added to a model with weights {base} ({names}), but this one has {now}; "
            "load that base, with weights that nothing has changed"
        )
    additions = [Addition(plain_one, layout) for layout in layouts]
    for number, addition in enumerate(additions):
        own = {
            name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{number}.")
        }
        try:
            addition.load_state_dict(own)
        except RuntimeError as error:
            raise ArtifactError(
                f"the weights in {folder / ADDED_FILE} are not those that it describes: {error}"
            ) from error
    masks = NeuronMasks.from_pretrained(folder) if fingerprint else None
    if masks is not None and fingerprint not in (True, masks.fingerprint()):
        raise ArtifactError(
            f"the masks in {folder} are {masks.fingerprint()}, not {fingerprint}, which were saved with what "
            "was added: a save was interrupted, or they were replaced; save it again (save_added)"
        )
    if coverage is not None:
        if masks is None:
            raise ConfigError(
                f"{folder_or_repo} holds no masks of old pairs, whose levels a coverage would choose among; "
                "leave coverage out"
            )
        masks = masks.at(coverage)
    return AddedPairs(plain_one, additions, masks, gate_config)


def base_of(folder: Path) -> str:
    """Return the Hub id or folder of the base that what a folder holds was added to.

    Raises:
        ArtifactError: If it does not say, or the file is damaged.
    """
    _, stated = read_artifact(folder / ADDED_FILE, KIND)
    names = [str(layout.get("about", {}).get("base") or "") for layout in stated.get("layouts", [])]
    if not any(names):
        raise ArtifactError(f"{folder} does not name the model that it was added to; give base='user/model'")
    return next(filter(None, names))


def push_added(
    added: AddedPairs, repo: str, *, private: bool | None = None, token: str | bool | None = None
) -> CommitInfo:
    """Upload what `save_added` writes in one commit; the repository is made where there is none.

    Args:
        added: What is published.
        repo: Its id, `user/name`.
        private: Whether a new repository is private.
        token: Of the Hub; the one that is logged in if not given.
    """
    repo, parent = prepare(repo, private=private, token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_added(added, folder, repo=repo)
        return upload(Path(folder), repo, parent, token=token, message="Upload added pairs")


def _card(added: AddedPairs, repo: str) -> str:
    layouts = [addition.layout for addition in added.additions]
    pairs = [pair for layout in layouts for pair in layout.pairs]
    base = next((str(layout.about["base"]) for layout in layouts if layout.about.get("base")), "")
    own = sum(addition.size for addition in added.additions)
    matter = front_matter(as_pairs(pairs), tags=("translation", "nspec-hf"), base=base)
    return f"""{matter}

# {", ".join(pairs)} for {base or "BASE"}

{own:,} parameters beside the frozen base: rows of these pairs run with them, rows of every other pair with
the base alone, whose outputs they leave as they were, bit for bit.

```python
from nspec_hf import load

loaded = load("{repo}")
loaded.translate(["…"], "{pairs[-1]}")
```
"""
