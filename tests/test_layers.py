"""The house: rooms in the order of the pipeline, files in reading order, arrows that point up alone."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from nspec_hf import ROOMS

PACKAGE = Path(__file__).resolve().parents[1] / "nspec_hf"
ORDER = [f"{room}.{file}" for room, files in ROOMS.items() for file in files.split()]
FACES = {".".join(path.parent.relative_to(PACKAGE).parts): path for path in PACKAGE.rglob("__init__.py")}
PATHS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__init__", "__main__")
}
FILES = sorted(PATHS)


def imports(source: str) -> set[tuple[str, str]]:
    """Return what a source imports of the package, anywhere in it, as (module, name)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
    ours = {(module, name) for module, name in found if re.match(r"\.|nspec_hf(\.|$)", module)}
    return {(module.removeprefix("nspec_hf").removeprefix("."), name) for module, name in ours}


def misplaced(file: str, source: str) -> list[str]:
    """Return the imports of a file that point down, or past the face of another room."""
    room, rooms = file.partition(".")[0], list(ROOMS)
    wrong = []
    for module, name in sorted(imports(source)):
        if (module, name) == ("", "__version__"):
            continue
        target = module.partition(".")[0] or name
        if target == room:
            is_right = module in ORDER and ORDER.index(module) < ORDER.index(file)
        else:
            public = target in rooms and module in ("", target)
            is_right = public and rooms.index(target) < rooms.index(room)
        if not is_right:
            wrong.append(f"{module or 'nspec_hf'} {name}".strip())
    return wrong


def test_the_map_names_every_file_once():
    assert sorted(ORDER) == FILES


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_from_the_faces_of_rooms_above_it_and_from_files_above_it_in_its_room(file):
    assert not misplaced(file, PATHS[file].read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", [face for face in sorted(FACES) if face])
def test_a_room_s_face_is_a_docstring_and_its_own_public_names(room):
    tree = ast.parse(FACES[room].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    block = [statement for node in tree.body if isinstance(node, ast.If) for statement in node.body]
    assert all(
        isinstance(node, ast.ImportFrom) and node.module.startswith(f"nspec_hf.{room}.") for node in block
    )
    names = [alias.name for node in block for alias in node.names]
    assert len(names) == len(set(names))
    # A file of that name would take the name's place once it is imported.
    assert not {*names} & {path.stem for path in FACES[room].parent.iterdir()}
    others = [
        node for node in tree.body if not isinstance(node, (ast.Expr, ast.If, ast.Import, ast.ImportFrom))
    ]
    assert all(isinstance(node, ast.Assign) for node in others)
    assert len(others) <= 1


def test_what_is_imported_from_a_room_is_on_its_face():
    public = {room: {name for _, name in imports(FACES[room].read_text("utf-8"))} for room in ROOMS}
    readers = [*PATHS.values(), *(PACKAGE.parent / "recipes").rglob("*.py")]
    wanted = {(module, name) for path in readers for module, name in imports(path.read_text("utf-8")) if name}
    asked = {(room, name) for room, name in wanted if room in ROOMS and f"{room}.{name}" not in PATHS}
    assert asked
    assert {(room, name) for room, name in asked if name not in public[room]} == set()


def test_the_rooms_form_no_circle_and_this_is_their_graph(capsys):
    above: dict[str, set[str]] = {room: set() for room in ROOMS}
    for file, path in PATHS.items():
        room = file.partition(".")[0]
        targets = {module.partition(".")[0] or name for module, name in imports(path.read_text("utf-8"))}
        above[room] |= targets & set(ROOMS) - {room}
    arrows = {room: " ".join(sorted(rooms, key=list(ROOMS).index)) or "–" for room, rooms in above.items()}
    with capsys.disabled():
        sys.stdout.write("\n" + "".join(f"{room:>12} ← {rooms}\n" for room, rooms in arrows.items()))
    assert set(TopologicalSorter(above).static_order()) == set(ROOMS)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "systems"])
def test_a_room_holds_no_more_than_twelve_files(room):
    files = ROOMS[room].split()
    assert len({file.partition(".")[0] for file in files}) <= 12


@pytest.mark.parametrize("file", [file for file in FILES if file != "cli.main"])
def test_no_file_but_the_command_line_hides_imports_of_ours_in_functions(file):
    tree = ast.parse(PATHS[file].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert not {each for function in functions for each in imports(ast.unparse(function))}


def test_only_figures_import_matplotlib():
    texts = {file: path.read_text(encoding="utf-8") for file, path in PATHS.items()}
    drawing = {file for file, text in texts.items() if re.search(r"^\s*(from|import) matplotlib", text, re.M)}
    assert drawing
    assert all(file.startswith("analysis.figures.") for file in drawing)


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_one_sitting_and_says_what_it_is(file):
    text = PATHS[file].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(ast.parse(text))


def test_a_hidden_import_would_be_found():
    assert imports("def f():\n    from nspec_hf.gating.gate import NeuronGate") == {
        ("gating.gate", "NeuronGate")
    }
    assert imports("import nspec_hf.masks as m") == {("masks", "")}
    assert imports("from nspec_hf import record") == {("", "record")}
    assert imports("import numpy\nfrom nspec import x") == set()


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("masks.rules", "from nspec_hf.gating import NeuronGate"),
        ("gating.gate", "from nspec_hf.masks.rules import select_random"),
        ("masks.rules", "from nspec_hf.masks.masks import NeuronMasks"),
        ("masks.rules", "from nspec_hf.masks import NeuronMasks"),
        ("masks.rules", "from nspec_hf import NeuronGate"),
        ("masks.rules", "from .config import SelectConfig"),
    ],
)
def test_an_import_that_points_down_or_past_a_face_would_be_found(file, source):
    assert misplaced(file, source)
