"""What the weights of a checkpoint must be: all of the model's, of its shapes, finite, and floats.

Transformers fills what is missing with random numbers, and copies integers into a model of floats as they
are, or floats of 8 bits without their scales: a model that was quantized by another program then computes
with other weights, and says nothing.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict
from transformers.utils.hub import cached_file

from nspec_hf.core import ArtifactError, read_json

OWN_WEIGHTS = "nspec_own"
"""Name under which a model holds the weights of what is attached to it and has some, while it is on it."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# In the order in which transformers and PEFT look for them; of the first that is there all weights come.
_FILES = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")


def refuse_unfit(
    model: nn.Module,
    name: str | Path,
    *,
    missing_keys: Iterable[str] = (),
    unexpected_keys: Iterable[str] = (),
    mismatched_keys: Iterable[tuple[Any, ...]] = (),
    checked: Callable[[Tensor], None] | None = None,
    **_others: Any,
) -> None:
    """Check what `from_pretrained(…, output_loading_info=True)` says of a model, and that it is finite.

    Args:
        model: What was loaded.
        name: Where from, for the error.
        missing_keys: Weights that the checkpoint lacks; tied ones are not among them.
        unexpected_keys: Weights that the model has no place for. A head or a buffer that it does without is
            let pass, but not a further layer.
        mismatched_keys: Name, shape in the checkpoint and shape in the model.
        checked: Called with each weight once it was read.

    Raises:
        ArtifactError: If the weights are not all of this model, or not finite, with three names; or if there
            are some of what was attached to it.
    """
    missing, unexpected = sorted(missing_keys), sorted(unexpected_keys)
    others = [f"{key} {list(saved)} instead of {list(own)}" for key, saved, own in sorted(mismatched_keys)]
    if any(f"{OWN_WEIGHTS}." in key for key in unexpected):
        raise ArtifactError(
            f"{name} was saved with added pairs, or adapters, on the model, which would be left out: load "
            "what `nspec add-pair` wrote to added/ (nspec_hf.load, or --added beside the base), or translate "
            "with the system that trained it"
        )
    known = {_any_layer(key) for key in model.state_dict()}
    layers = [key for key in unexpected if "*" in _any_layer(key) and _any_layer(key) in known]
    faults = {"are missing": missing, "have another shape": others, "are of further layers": layers}
    wrong = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in faults.items()
        if keys
    ]
    if wrong:
        hint = f"; it holds others under {unexpected[0]!r}, …" if missing and unexpected else ""
        pruned = "; one that was exported as 'pruned' is read by load_pruned alone, 'padded' by all" * bool(
            others
        )
        raise ArtifactError(
            f"the weights of {name} do not fit its config: {'; '.join(wrong)}{hint}. Loaded as they are, the "
            f"model would be partly random; save it again with save_pretrained of the plain model{pruned}"
        )
    broken = []
    for key, weight in chain(model.named_parameters(), model.named_buffers()):
        plain = type(weight.detach()) is Tensor  # quantized and sharded ones know no isfinite
        if plain and weight.is_floating_point() and not weight.is_meta:
            if not _is_finite(weight.detach(), isinstance(weight, nn.Parameter)):
                broken.append(key)
            if checked is not None:
                checked(weight)
    if broken:
        raise ArtifactError(
            f"{len(broken)} weights of {name} are not finite ({', '.join(broken[:3])}); take an earlier "
            "checkpoint, and train in float32 or bfloat16"
        )


def _is_finite(weight: Tensor, is_trained: bool) -> bool:
    # `isfinite` would need as much memory again as the largest weight, often half of the model, has.
    if not weight.numel():
        return True
    least, most = weight.aminmax()  # NaN is both
    # A buffer may forbid with -inf.
    return bool(torch.isfinite(most) and (not is_trained or torch.isfinite(least)))


def refuse_integers(model: nn.Module, name: str | Path, variant: str | None = None, **hub: Any) -> None:
    """Check that a model was saved in floats of 16 bits or more, or quantized as transformers knows.

    The other arguments are those that it was loaded by: Hub id or folder, what stands in the names of its
    files, `revision`, `token`, `cache_dir` …; nothing is fetched again.

    Raises:
        ArtifactError: If it was not, with three names.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    state = model.state_dict()
    saved = _saved_types(name, variant, {**hub, "force_download": False, "local_files_only": True})
    wrong = {
        key: dtype
        for key, dtype in saved.items()
        if dtype not in _FLOATS and _holds_floats(key, dtype, state)
    }
    if wrong:
        kinds = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in wrong.values()}))
        raise ArtifactError(
            f"{len(wrong)} weights of {name} are saved as {kinds} ({', '.join(sorted(wrong)[:3])}), but its "
            "config.json has no quantization_config that transformers reads: as they are they would be taken "
            "for floats. Take the model from before it was quantized, or save it in floats with the program "
            "that quantized it"
        )


def _holds_floats(key: str, dtype: torch.dtype, state: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor goes to where a model has floats; its name there may be another one."""
    if key in state:
        return state[key].is_floating_point()
    return key.endswith("weight") and dtype.itemsize == 1 and dtype != torch.bool


def _saved_types(name: str | Path, variant: str | None, hub: Mapping[str, Any]) -> dict[str, torch.dtype]:
    """Return the types of what was saved; of files only the heads are read."""
    for file in _FILES:
        stem, ending = file.rsplit(".", 1)
        file = f"{stem}.{variant}.{ending}" if variant else file
        index = f"{stem}.{ending}.index.{variant}.json" if variant else f"{file}.index.json"
        paths = list(_fetched([file], name, hub))
        if not paths:
            indices = [read_json(path, ArtifactError) for path in _fetched([index], name, hub)]
            shards = {shard for each in indices for shard in each.get("weight_map", {}).values()}
            paths = list(_fetched(sorted(shards), name, hub))
        if paths:
            return {
                key: tensor.dtype
                for path in paths
                for key, tensor in load_state_dict(path, map_location="meta").items()
            }
    return {}


def _fetched(files: Iterable[str], name: str | Path, hub: Mapping[str, Any]) -> Iterator[str]:
    """Yield where files lie, those that are there; the library has just loaded them."""
    for file in files:
        try:
            path = cached_file(str(name), file, **hub)
        except OSError:
            continue
        if path is not None:
            yield path


def _any_layer(key: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", key)
