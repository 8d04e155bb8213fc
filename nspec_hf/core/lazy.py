"""Public names of a room that are loaded when they are first used, and libraries that may be missing.

Importing torch takes seconds, and `nspec record --help` needs none of it. So a room's `__init__.py` says its
names once, in a block that type checkers read and Python skips; `attach` reads the same block.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nspec_hf.core.errors import MissingPartError, NspecError

OPTIONAL_PARTS = {
    "ctranslate2": "export",
    "datasets": "data",
    "evaluate": "evaluate",
    "fastapi": "serve",
    "jinja2": "analysis",
    "lingua": "evaluate",
    "matplotlib": "analysis",
    "pandas": "analysis",
    "pyarrow": "data",
    "sacremoses": "moses",
    "scipy": "analysis",
    "uvicorn": "serve",
}
"""Module that a base installation lacks → the extra that brings it."""


def optional(module: str, needed_by: str, error: type[NspecError] = MissingPartError) -> Any:
    """Return a module of a library that a base installation lacks; import it where it is used.

    Where it is missing, the error says what needs it and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        raise error(
            f"{needed_by} needs {library}: pip install 'nspec-hf[{OPTIONAL_PARTS[library]}]'"
        ) from None


def attach(room: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return the `__getattr__`, `__dir__` and `__all__` of a package whose names stand in such a block."""
    module = sys.modules[room]
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    file_of = {alias.name: node.module for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in file_of:
            raise AttributeError(f"{room} has no {name!r}; it has: {', '.join(sorted(file_of))}")
        try:
            value = getattr(importlib.import_module(str(file_of[name])), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in OPTIONAL_PARTS:
                raise
            raise MissingPartError(
                f"{room}.{name} needs {missing}, which is not installed: "
                f"pip install 'nspec-hf[{OPTIONAL_PARTS[missing]}]'"
            ) from error
        setattr(module, name, value)
        return value

    return load, lambda: sorted({*vars(module), *file_of}), sorted(file_of)
