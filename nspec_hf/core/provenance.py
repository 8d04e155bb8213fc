"""The recipe of a number: which versions, which hardware, which settings and how long it took.

A result without these cannot be compared with another, so everything that a recipe writes carries them.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nspec_hf import __version__

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


def plain(value: Any) -> Any:
    """Return settings or results as JSON values.

    Dataclasses become dicts, sets sorted lists, numbers that are not finite None (JSON has none such), and
    what is no JSON value at all its text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(each) for each in value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write_result(path: str | os.PathLike, result: Mapping[str, Any], config: Any) -> None:
    """Write a result as JSON with its recipe, whole or not at all.

    Args:
        path: The file; its folder is made if needed.
        result: The numbers.
        config: The settings that made them, any dataclass or mapping; versions and hardware are added.
    """
    path = Path(path)
    content = {**result, "recipe": {"config": plain(config), "versions": versions(), "hardware": hardware()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(plain(content), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
