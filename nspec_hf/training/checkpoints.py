"""What a run leaves in its folder so that a stopped one goes on as if it had not been stopped.

That is whole checkpoints and the seconds it took; `claim_folder` keeps the settings it was begun with.

A process can be killed at any moment, also while it writes a checkpoint. The Trainer would resume from the
newest folder, whole or not; here a checkpoint counts only if every file in it is whole.
"""

import json
import os
import re
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

_STATE_FILE = "trainer_state.json"  # the Trainer writes it after everything else


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the newest whole checkpoint of a run, or None; warn about newer ones that are not whole."""
    folder = Path(folder)
    steps = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for step in sorted(steps, reverse=True):
        flaw = what_is_broken(steps[step])
        if flaw is None:
            return str(steps[step])
        warnings.warn(f"{steps[step]} is not whole ({flaw}) and is passed over", stacklevel=2)
    return None


def what_is_broken(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, or None where all are whole."""
    if not (checkpoint / _STATE_FILE).is_file():
        return f"{_STATE_FILE} is missing"
    broken = [path.name for path in sorted(checkpoint.iterdir()) if path.is_file() and not _is_whole(path)]
    return f"cut off: {', '.join(broken)}" if broken else None


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np"):  # compares the header with the size of the file
                return True
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError):
        return False
    # torch.save writes a zip archive, whose directory comes last.
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)


class RunClock(TrainerCallback, ExportableState):
    """Counts the seconds of training over all sittings; each checkpoint keeps them.

    Args:
        before: Seconds of the earlier sittings.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._started = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """Return what makes this clock again."""
        return {"args": {"before": self.seconds}, "attributes": {}}
