"""The recipe of a number: which versions, which hardware, which settings and how long it took.

A result without these cannot be compared with another, so everything that a recipe writes carries them.
"""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nspec_hf import __version__
from nspec_hf.core.errors import ArtifactError
from nspec_hf.core.files import read_json, write_json

_PACKAGES = ("torch", "transformers", "accelerate", "sacrebleu", "sentencepiece", "tokenizers")


def versions() -> dict[str, str]:
    """Return the versions of this package and of those that a result depends on."""
    return {
        "nspec_hf": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def hardware() -> dict[str, Any]:
    """Return the processor, its cores and threads in use, and the accelerators."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _adapter_base(folder: str | os.PathLike) -> str | None:
    """Return the model that a PEFT adapter's folder is for; None where the folder holds no adapter.

    Raises:
        ArtifactError: If the adapter does not say.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        return None
    content = read_json(path, ArtifactError)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not base or not isinstance(base, str):
        raise ArtifactError(
            f"{folder} holds a PEFT adapter that names no base; load its base, put the adapter on it with "
            "peft.PeftModel.from_pretrained, and save the result of merge_and_unload()"
        )
    return base


def adapters_and_base(name: str | Path) -> tuple[list[str | Path], str | Path]:
    """Return the folders of PEFT adapters that lie on one another, the last first, and the model below."""
    adapters: list[str | Path] = []
    while name not in adapters and (base := _adapter_base(name)) is not None:
        adapters.append(name)
        name = base
    return adapters, name


def write_result(path: str | os.PathLike, result: Mapping[str, Any], config: Any) -> None:
    """Write a result as JSON, whole or not at all, with its recipe: settings, versions and hardware."""
    recipe = {"config": config, "versions": versions(), "hardware": hardware()}
    write_json(path, {**result, "recipe": recipe})
