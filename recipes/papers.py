"""Say which command makes each system, setting, table and figure of both papers, and where its result is.

    python recipes/papers.py

The list is `recipes/papers.yaml`. Each has the command at the size that the paper prints, whose text is not
part of this project, and the command on text that is at hand with its results, or why there are none.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nspec_hf.core import Cell, Table, exit_status, require

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("papers.yaml")
PAPERS = {"tan": "Tan et al. 2024", "xie": "Xie et al. 2021"}
SIZE = "not run, because the text is not at hand and it takes GPUs for days"
PLANNED = "not run, because there was no time yet"
HERE = "minutes"
"""The plan whose commands are shown; results of further plans count too."""
ALSO = ("again", "low", "d64", "d128")


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "recipes" / "results", help="Folder of results."
    )
    results: Path = parser.parse_args(argv).results
    require(results.is_dir(), f"there is no folder {results}")
    print(overview(results))


def overview(results: Path) -> Table:
    """Return one row for each system, setting, table and figure."""
    content = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    rows = [
        (paper, entry["item"], entry["what"], *_commands(entry), _result(entry, content, results))
        for key, paper in PAPERS.items()
        for entry in content[key]
    ]
    return Table(
        title="Both papers",
        columns=("paper", "item", "what", "as printed", "here", "result"),
        rows=tuple(rows),
        notes=(
            f"compare.py: python recipes/compare.py; HERE: {content['plans'][HERE]['config']}",
            f"PLAN.yaml: recipes/configs/PLAN.yaml; as printed: {SIZE}",
        ),
    )


def _commands(entry: Mapping[str, Any]) -> tuple[Cell, Cell]:
    """Return the command of the paper's size, and the one on the text at hand."""
    if "setting" in entry:
        return entry["setting"], None
    if "rows" not in entry:
        return None, entry["command"]
    plans = entry["printed"].split(", ")
    printed = [f"compare.py {plan}.yaml --rows {' '.join(entry['rows'])}" for plan in plans]
    return "; ".join(printed), f"compare.py HERE --rows {' '.join(_rows(entry))}"


def _rows(entry: Mapping[str, Any]) -> list[str]:
    return entry.get("here_rows", entry.get("rows", []))


def _result(entry: Mapping[str, Any], content: Mapping[str, Any], results: Path) -> str:
    if "setting" in entry:
        return "a setting, see there"
    if "not_run" in entry:
        return f"not run, because {entry['not_run']}"
    names, rows = [content["plans"][plan]["name"] for plan in (HERE, *ALSO)], _rows(entry)
    patterns = {file: [file] for file in entry.get("files", [])} or {
        row: [f"{name}.{row}.s*.json" for name in names] for row in rows
    }
    there = {
        what: [path.name for pattern in own for path in sorted(results.glob(pattern))]
        for what, own in patterns.items()
    }
    found = [name for own in there.values() for name in own]
    shown = [*found[:2], f"… ({len(found)} files)"] if len(found) > 3 else found
    missing = ", ".join(what for what, own in there.items() if not own)
    return ", ".join(shown) + (f"; not yet: {missing}" if missing else "") if found else PLANNED


if __name__ == "__main__":
    sys.exit(exit_status("papers.py", main))
