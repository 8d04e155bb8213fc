"""The layout: every file is in the reading order, and imports only from files above it, at any depth."""

import ast
import re
from pathlib import Path

import pytest

from nspec_hf import READING_ORDER

PACKAGE = Path(__file__).resolve().parents[1] / "nspec_hf"


def dotted(path: Path) -> str:
    """Return a file's name in the reading order: `gate`, `systems.lass`, or `systems` for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {
    dotted(path): path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"
}
FILES = sorted(PATHS)


def own_imports(source: str) -> set[str]:
    """Return the files of the package that a source imports anywhere: at the top, in functions, by name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom) and node.module == "nspec_hf":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nspec_hf."):
            found.add(node.module.removeprefix("nspec_hf."))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("nspec_hf.")]
            found |= {name.removeprefix("nspec_hf.") for name in names}
    return found


def test_the_reading_order_names_every_file_once():
    assert sorted(READING_ORDER) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_files_above_it(name):
    above = {*READING_ORDER[: READING_ORDER.index(name)], "__version__"}
    imported = own_imports(PATHS[name].read_text(encoding="utf-8"))
    assert imported <= above, f"{name}.py imports {sorted(imported - above)}, which stand below it"


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("cli", "__main__")])
def test_no_file_but_the_command_line_hides_imports_of_ours_in_functions(name):
    tree = ast.parse(PATHS[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    hidden = {each for function in functions for each in own_imports(ast.unparse(function))}
    assert not hidden


def test_only_plots_import_matplotlib():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")}
    texts = {path.stem: path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py")}
    drawing = {name for name, text in texts.items() if re.search(r"^\s*(from|import) matplotlib", text, re.M)}
    assert drawing
    assert all("plots" in name for name in drawing)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_one_sitting_and_says_what_it_is(name):
    text = PATHS[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(ast.parse(text))


def test_a_hidden_import_would_be_found():
    assert own_imports("def f():\n    from nspec_hf.gate import NeuronGate") == {"gate"}
    assert own_imports("import nspec_hf.masks as m") == {"masks"}
    assert own_imports("from nspec_hf import record") == {"record"}
