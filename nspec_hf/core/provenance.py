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
from nspec_hf.core.files import write_json

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


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_result(path: str | os.PathLike, result: Mapping[str, Any], config: Any) -> None:
    """Write a result as JSON with its recipe, whole or not at all.

    Args:
        path: The file; its folder is made if needed.
        result: The numbers.
        config: The settings that made them, any dataclass or mapping; versions and hardware are added.
    """
    recipe = {"config": config, "versions": versions(), "hardware": hardware()}
    write_json(path, {**result, "recipe": recipe})
