"""What a run leaves in its folder so that a stopped one goes on as if it had not been stopped.

That is whole checkpoints and the seconds it took; `claim_folder` keeps the settings it was begun with.

A process can be killed at any moment, also while it writes a checkpoint. The Trainer would resume from the
newest folder, whole or not; here a checkpoint counts only if every file in it is whole.
"""

import os
import re
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from nspec_hf.core import ArtifactError, digest, read_json, warn, whole
from nspec_hf.gating import MADE_BY_FILE, attachment_of
from nspec_hf.recording import OWN_WEIGHTS, plain_model, refuse_integers

STATE_FILE = "trainer_state.json"  # the Trainer writes it after everything else
STATE_NAME = "nspec_hf"  # under which it keeps what the gate was
_DECISIVE = "drop|activation|feed_forward_proj|norm|scale"  # fields of a config that decide what is trained
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What the names of a checkpoint's files begin with; DeepSpeed keeps all but the state in a folder.
_PARTS = {
    STATE_FILE: (STATE_FILE,),
    "optimizer": ("optimizer", "global_step"),
    "model": ("model", "pytorch_model", "adapter_model", "global_step"),
}


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the newest whole checkpoint of a run, or None; warn about newer ones that are not whole."""
    folder = Path(folder)
    steps = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*/")}
    for step in sorted(filter(str.isdecimal, steps), key=int, reverse=True):
        flaw = what_is_broken(steps[step])
        if flaw is None:
            return str(steps[step])
        warn(f"{steps[step]} is not whole ({flaw}) and is passed over")
    return None


def what_is_broken(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None where all are whole."""
    paths = sorted(checkpoint.iterdir())
    for part, beginnings in _PARTS.items():
        if not any(path.name.startswith(beginnings) for path in paths):
            return f"{part} is missing"
    broken = [path.name for path in paths if path.is_file() and not _is_whole(path)]
    return f"cut off: {', '.join(broken)}" if broken else None


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np"):  # compares the header with the size of the file
                return True
        if path.suffix == ".json":
            content = read_json(path)
            if path.name == STATE_FILE:
                return isinstance(content, dict) and isinstance(content.get("global_step"), int)
            if path.name.endswith(".index.json"):
                return all(path.with_name(shard).is_file() for shard in content["weight_map"].values())
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    # torch.save writes a zip archive, whose directory comes last.
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)


def best_checkpoint(checkpoint: Path) -> Path | None:
    """Return the best checkpoint so far, as a checkpoint knows it; None where none was chosen.

    The trap: the Trainer remembers an absolute path, which in a run that was copied or renamed belongs to
    another run. So it is looked for by its name, beside the checkpoint.

    Raises:
        ArtifactError: If it is not there.
    """
    known = read_json(checkpoint / STATE_FILE, ArtifactError).get("best_model_checkpoint")
    if not known:
        return None
    best = checkpoint.parent / PurePath(known.replace("\\", "/")).name
    if not best.is_dir():
        raise ArtifactError(
            f"the best checkpoint of the run, {best.name}, is not in {checkpoint.parent}; put it there, or "
            "begin anew in another folder"
        )
    return best


def warn_of_other_processes(checkpoint: Path, processes: int) -> None:
    """Warn where a checkpoint that training goes on from was made by more, or fewer, processes.

    The trap: the budget of a batch is each process's, so an update has other text from here on; and the
    Trainer passes over as many batches of the epoch as the updates would have taken now.
    """
    path = checkpoint / MADE_BY_FILE
    before = read_json(path, ArtifactError).get("processes", processes) if path.is_file() else processes
    if before != processes:
        warn(
            f"{checkpoint} was made with {before} processes at work, and now there are {processes}: an "
            f"update has {processes}/{before} of the text that it had, and sentences of this epoch come "
            f"twice or not at all; start {before} to go on as if nothing had been stopped"
        )


def base_facts(model: nn.Module) -> dict[str, Any]:
    """Return what tells a model before training from others, whatever device it is on.

    `base` is a digest of up to 1,024 values of each parameter, evenly spread, and `base_sums` one of sums
    over all of their bits, which are the same in whatever order they are made. Weights that a training adds
    (an attachment's, PEFT's) are left out: they are drawn anew in every sitting. `base_config` is what the
    config says of how they are trained and used: dropout, activations, norms, scales. `frozen` is a digest of
    the names of those that do not train, and `adapters` are the settings of PEFT's.
    """
    adapters: Any = getattr(model, "peft_config", {})
    parts: list[Any] = []
    sums: list[Any] = []
    for name, weight in model.named_parameters():
        if f"{OWN_WEIGHTS}." not in name and not (adapters and weight.requires_grad) and not weight.is_meta:
            gathered = whole(weight).detach()
            values = gathered.flatten()
            parts += [name, list(weight.shape), values[:: max(1, len(values) // 1024)].float().cpu().numpy()]
            sums += [name, str(_sum_of_bits(gathered))] if type(gathered) is Tensor else []
    fields = getattr(model, "config", None)
    config = {} if fields is None else fields.to_dict()
    decisive = {name: value for name, value in config.items() if re.search(_DECISIVE, name)}
    unsaved = getattr(plain_model(model), "_keys_to_ignore_on_save", None) or ()  # frozen in every training
    frozen = [
        name
        for name, weight in model.named_parameters()
        if not (weight.requires_grad or name.endswith(tuple(unsaved)))
    ]
    return {
        "base": digest(*parts),
        "base_sums": digest(*sums),
        "base_config": decisive,
        "frozen": digest(frozen),
        "adapters": {name: _without_place(config.to_dict()) for name, config in adapters.items()},
    }


def _without_place(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an adapter that decide what it computes."""
    others = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")
    return {name: value for name, value in settings.items() if name not in others}


def _sum_of_bits(weight: Tensor) -> int:
    """Return the sum over a tensor's values read as integers, each times its row's number, modulo 2⁶⁴."""
    rows = weight.reshape(len(weight) if weight.dim() else 1, -1).contiguous()
    sums = rows.view(_INTEGERS[weight.itemsize]).sum(dim=1, dtype=torch.int64)
    return int((sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum())


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load what `save_model` wrote: the model's weights, and those of an attachment that is on it.

    The model has the attachment on it whose weights were saved, if there was one, and PEFT's wrapper around
    it, if it has one.

    Raises:
        ArtifactError: If weights are missing, or there are some that the model has no place for.
    """
    attachment = attachment_of(model)
    if attachment is not None:
        attachment.shape_as(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder} holds no weights; delete the run's finished.json, and it goes on")
    if hasattr(model, "peft_config") and (folder / "adapter_config.json").is_file():
        adapted: Any = model
        adapted.load_adapter(str(folder), adapted.active_adapters[0], is_trainable=True)
        return
    refuse_integers(model, folder)
    saved: dict[str, Tensor] = {}
    for path in files:
        saved |= load_file(path)
    # Not by from_pretrained, which makes up weights that are missing and knows none of an attachment.
    keys = model.load_state_dict(saved, strict=False)
    state = model.state_dict(keep_vars=True)
    there = {id(state[name]) for name in saved.keys() & state.keys()}
    # Tied weights are saved once, and tables that are computed (Marian's positions) not at all.
    computed = set(getattr(plain_model(model), "_keys_to_ignore_on_save", None) or ())
    missing = [name for name in keys.missing_keys if id(state[name]) not in there and name not in computed]
    if missing or keys.unexpected_keys:
        raise ArtifactError(
            f"{folder} holds the weights of another model: {len(missing)} are missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(keys.unexpected_keys)} are not this model's "
            f"({', '.join(keys.unexpected_keys[:3]) or 'none'})"
        )


class RunClock(TrainerCallback, ExportableState):
    """Counts the seconds of training, those `before` this sitting too; each checkpoint keeps them."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._started = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """Return what makes this clock again."""
        return {"args": {"before": self.seconds}, "attributes": {}}
