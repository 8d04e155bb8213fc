"""An exported folder as its users load it, and the proof's look at what it writes."""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from nspec_hf.core import ArtifactError, Pair, read_json, require
from nspec_hf.data import LanguageTags
from nspec_hf.export.config import ExportConfig
from nspec_hf.export.ctranslate2 import Decoder
from nspec_hf.export.memory import a_side_at_a_time
from nspec_hf.export.prune import narrow
from nspec_hf.export.report import REPORT_FILE
from nspec_hf.export.verify import Tokens, gated_tokens, prompts, until_end
from nspec_hf.masks import MASKS_FILE, NeuronMasks
from nspec_hf.recording import load_model


def load_pruned(folder: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """Load a model that was exported as `pruned`; it is of the plain model's class.

    Args:
        folder: What `export_model` wrote.
        options: As for `load_model`: dtype, device …

    Raises:
        ArtifactError: If the folder holds no pruned model, or a damaged one.
    """
    folder = Path(folder)
    try:
        content = read_json(folder / REPORT_FILE, ArtifactError)
        form, widths = content["config"]["format"], dict(content["widths"])
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no readable {REPORT_FILE}: {error!r}") from error
    if form != "pruned":
        raise ArtifactError(f"{folder} was not exported as 'pruned'; {REPORT_FILE} says: {form}")
    if not all(isinstance(width, int) for width in widths.values()):
        raise ArtifactError(f"the widths in {folder / REPORT_FILE} are no numbers of neurons: {widths}")
    return load_model(folder, reshape=lambda model: narrow(model, widths), **options)


def exported_masks(folder: Path, coverage: float | None = None) -> NeuronMasks | None:
    """Return the masks that lie with an exported model of several pairs; None: all of its neurons run.

    Args:
        folder: What `export_model` wrote.
        coverage: Which level of the masks; None: the one that was exported.

    Raises:
        ConfigError: If there is no such level, or there are no masks.
    """
    if not (folder / MASKS_FILE).is_file():
        require(coverage is None, f"{folder} holds no masks whose coverage could be chosen")
        return None
    masks = NeuronMasks.from_pretrained(folder)
    return masks if coverage is None else masks.at(coverage)


def folder_of_pair(folder: Path, pair: str) -> Path:
    """Return where the model of a pair lies: in a folder of its own, or with those of all pairs."""
    own = (folder / name for name in (Pair(pair).file_name, pair))  # the second is what older exports have
    return next((place for place in own if place.is_dir()), folder)


def exported_tokens(
    folder: Path,
    model: PreTrainedModel,
    tags: LanguageTags,
    sample: Tokens,
    config: ExportConfig,
    masked: bool = True,
    coverage: float | None = None,
) -> Tokens:
    """Return the greedy translations of an exported model, loaded as its users load it.

    Args:
        folder: What `export_model` wrote.
        model: The model that it was made from, for its type, device and start token.
        tags: How the tokenizer spells languages.
        sample: Encoded sentences.
        config: What was exported.
        masked: Whether masks that lie in the folder act, as they do under `nspec_hf.load`.
        coverage: Which level of them.
    """
    longest = config.max_new_tokens
    if config.format != "ctranslate2":
        load = load_pruned if config.format == "pruned" else load_model
        device = None if model.device.type == "meta" else model.device  # given up, see `export_model`
        loaded = load(folder, dtype=model.dtype, device=device)
        masks = exported_masks(folder, coverage) if masked else None
        with a_side_at_a_time(loaded):
            return gated_tokens(loaded, tags, masks, sample, config.silence, longest)
    found: Tokens = {}
    for pair, rows in sample.items():
        place = folder_of_pair(folder, pair)
        _, prefixes = prompts(model, tags, list(sample) if place == folder else [pair])
        written = Decoder(place, tags.tokenizer).decode(rows, [prefixes[pair]] * len(rows), longest)
        found[pair] = [until_end(row, tags.tokenizer) for row in written]
    return found
