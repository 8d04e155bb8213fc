"""Look at all masks of a plan before any training: the loss of the validation text with each.

    python recipes/untrained.py recipes/configs/multi30k.yaml --data.corpus.path DIR
    python recipes/untrained.py recipes/configs/multi30k.yaml --rows finetune 'ns*'

The plan is that of `compare.py`; rows that are no masks stand for the base, once. Seconds a row, where a
training takes minutes or hours: for choosing a coverage, and for seeing which settings matter at all. The
table has all rows that were looked at, now or before, and goes to `recipes/results/NAME.untrained.json`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from nspec_hf.comparison import PlannedRun, chosen_runs, planned_rows
from nspec_hf.core import exit_status, require_writable, write_result
from nspec_hf.systems import (
    ExperimentConfig,
    Masked,
    Run,
    read_settings,
    untrained,
    untrained_table,
    was_measured,
    without_places,
)
from nspec_hf.training import join_processes

BASE = "base"
"""What the table calls the base; no row of a plan may be called so."""


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, chosen = read_settings(
        ExperimentConfig,
        argv,
        description=__doc__,
        rows={"nargs": "+", "default": None, "help": "Rows to look at, or patterns such as 'ns*'; else all."},
        seeds={"nargs": "+", "type": int, "default": None, "help": "Seeds to look at; else all."},
    )
    path = Path(config.results) / f"{config.name}.untrained.json"
    require_writable(path)
    rows, found = planned_rows(config), []
    wanted = {run.name for run in chosen_runs(rows, chosen.rows, chosen.seeds)}
    for name, planned in tqdm(_base_and_masks(chosen_runs(rows)), disable=None):
        run = Run.of(planned.config, name, planned.seed, inside="untrained")
        if name == BASE or planned.name in wanted or was_measured(run):
            found.append(untrained(run, planned.system))
    if join_processes().is_main_process:
        about = f"{config.data.valid_split} of {config.name}, base {Path(config.base_model).name}"
        print(untrained_table(found, about))
        write_result(path, {"rows": found}, without_places(config))
        print(f"kept in {path}")


def _base_and_masks(runs: Sequence[PlannedRun]) -> list[tuple[str, PlannedRun]]:
    """Return the runs with what they are called; the first that is no masks stands for the base."""
    bases = [run for run in runs if not isinstance(run.system, Masked)]
    return [(BASE, run) for run in bases[:1]] + [
        (run.row, run) for run in runs if isinstance(run.system, Masked)
    ]


if __name__ == "__main__":
    sys.exit(exit_status("untrained.py", main))
