"""Say which command makes each system, setting, table and figure of both papers, and where its result is.

    python recipes/papers.py
    python recipes/papers.py --costs d128

The list is `recipes/papers.yaml`. Each has the command at the size that the paper prints, whose text is not
part of this project, and the command on text that is at hand with its results, or why there are none.
`--costs` puts the costs of a plan's runs beside those of the papers (Tan et al. 2024, Table 5, A.2 and A.5;
Xie et al. 2021, Tables 1 and 2).
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from nspec_hf.core import Cell, Table, exit_status, read_json

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("papers.yaml")
PAPERS = {"tan": "Tan et al. 2024", "xie": "Xie et al. 2021"}
SIZE = "not run, because the text is not at hand and it takes GPUs for days"
PLANNED = "not run, because there was no time yet"
HERE = "minutes"
"""The plan whose commands are shown; results of further plans count too."""
ALSO = ("low", "d64", "d128")

PRINTED = {
    "pair_adapters": "+87 % (EC30), +67 % (IWSLT); 1.42 GB",
    "family_adapters": "+70 % (EC30)",
    "lass": "0 %; +33 hours on 4 GPUs; 9.84 GB",
    "differentiation_base": "+100 % (IWSLT)",
    "ns": "0 %; +5 minutes; 3e-3 GB",
    "allocation_te": "0 %",
    "allocation_av": "0 %",
    "target_attention": "+88 % (IWSLT-17)",
    "pair_adapters_xie": "+20 % (IWSLT-17)",
    "expansion_te": "+13 % (Europarl)",
    "individual": "+621 % (IWSLT-17)",
    "wide": "+23 %",
    "deep": "+40 %",
    "shallow": "−39 %",
}
"""Row → extra parameters, extraction and extra memory as printed."""


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plans = yaml.safe_load(LIST.read_text(encoding="utf-8"))["plans"]
    parser.add_argument("--costs", choices=plans, help="The table of costs of a plan's runs instead.")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "recipes" / "results", help="Folder of results."
    )
    chosen = parser.parse_args(argv)
    name = plans[chosen.costs]["name"] if chosen.costs else ""
    print(costs(name, chosen.results) if name else overview(chosen.results))


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


def costs(name: str, results: Path) -> Table:
    """Return what each system of a plan adds and takes, beside what the papers print."""
    base = read_json(results / f"{name}.base.json")
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for path in sorted(results.glob(f"{name}.*.s*.json")):
        facts = read_json(path)
        rows.setdefault(facts["name"], []).append(facts)
    about = f"base: {base['parameters']:,} parameters, {base['training_seconds']:.0f} s of training"
    return Table(
        title=f"{name}: costs of one run ({about})",
        columns=(
            *("system", "extra parameters", "extra memory KiB", "extraction s", "training s", "decoding s"),
            "printed",
        ),
        rows=tuple((name, *_cost(runs, base), PRINTED.get(name)) for name, runs in rows.items()),
        notes=("printed: extra parameters; extraction; extra memory, where the papers give them",),
    )


def _cost(runs: list[Mapping[str, Any]], base: Mapping[str, Any]) -> Iterator[Cell]:
    first = runs[0]
    added = first.get("extra_parameters", 0)
    yield f"{added / base['parameters']:+.0%}"
    yield round((4 * added + first.get("extra_bytes", 0)) / 1024, 1)
    for seconds in (
        [run["extraction"]["seconds"] for run in runs if "extraction" in run],
        [run["training_seconds"] + run.get("pretraining", {}).get("training_seconds", 0) for run in runs],
        [run["decoding_seconds"] for run in runs if "decoding_seconds" in run],
    ):
        yield round(statistics.mean(seconds), 1) if seconds else None


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
