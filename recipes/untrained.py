"""Look at all masks of a plan before any training: the loss of the validation text with each.

    python recipes/untrained.py recipes/configs/multi30k.yaml --data.corpus.path DIR
    python recipes/untrained.py recipes/configs/multi30k.yaml --rows finetune 'ns*'

The plan is that of `compare.py`; rows that are no masks stand for the base, once. Seconds a row, where a
training takes minutes or hours: for choosing a coverage, and for seeing which settings matter at all. Results
go to `recipes/results/NAME.untrained.json`.
"""

from pathlib import Path

from tqdm import tqdm

from nspec_hf.comparison_runs import Run, chosen_runs, planned_rows
from nspec_hf.experiment import ExperimentConfig, read_settings
from nspec_hf.provenance import write_result
from nspec_hf.runs import join_processes
from nspec_hf.systems.masked import Masked
from nspec_hf.systems.system import Workbench
from nspec_hf.systems.untrained import untrained, untrained_table


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, chosen = read_settings(
        ExperimentConfig,
        argv,
        description=__doc__,
        rows={"nargs": "+", "default": None, "help": "Rows to look at, or patterns such as 'ns*'; else all."},
        seeds={"nargs": "+", "type": int, "default": None, "help": "Seeds to look at; else all."},
    )
    runs = chosen_runs(planned_rows(config), chosen.rows, chosen.seeds)
    base = next((run for run in runs if not isinstance(run.system, Masked)), None)
    found = []
    for run in tqdm([run for run in runs if isinstance(run.system, Masked) or run is base], disable=None):
        name = "base" if run is base else run.row
        found.append(untrained(name, run.system, _bench(run)))
    if join_processes().is_main_process:
        about = f"{config.data.valid_split} of {config.name}, base {Path(config.base_model).name}"
        print(untrained_table(found, about))
        path = Path(config.results) / f"{config.name}.untrained.json"
        write_result(path, {"rows": found}, config)
        print(f"kept in {path}")


def _bench(run: Run) -> Workbench:
    folder = Path(run.config.work) / "untrained" / run.row / f"s{run.seed}"
    return Workbench(config=run.config, folder=folder, seed=run.seed)


if __name__ == "__main__":
    main()
