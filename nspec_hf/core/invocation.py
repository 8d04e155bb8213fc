"""How the command line was called, so that commands which are printed for the user run as printed."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """Return what calls the command line again, such as `nspec` or `.venv/bin/python -m nspec_hf`."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py" and script.parent.name == "nspec_hf":
        return f"{_as_typed(Path(sys.executable))} -m nspec_hf"
    on_path = Path(shutil.which("nspec") or "").resolve() == script.resolve()
    return "nspec" if on_path or script.stem != "nspec" else _as_typed(script)


def _as_typed(path: Path) -> str:
    """Return a path as a shell takes it, from here where it lies below this folder."""
    path, here = Path(os.path.abspath(path)), Path.cwd()  # not resolved: a link tells the environment
    if not path.is_relative_to(here):
        return shlex.quote(str(path))
    below = str(path.relative_to(here))
    return shlex.quote(below if os.sep in below else os.path.join(os.curdir, below))
