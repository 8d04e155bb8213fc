"""Run a plan of systems and seeds, and set them side by side in one table.

    python recipes/compare.py recipes/configs/multi30k.yaml --data.corpus.path DIR
    python recipes/compare.py recipes/configs/multi30k.yaml --rows finetune 'ns*' --seeds 1 2 --jobs 2
    python recipes/compare.py recipes/configs/multi30k.yaml --tables-only

The plan is `compare:` in the experiment's file (see `nspec_hf/systems/plan.py`). Each run is a process of
`recipes/specialize.py`; what has been run is not run again, and a plan that was stopped in whatever way goes
on. Logs lie in `work/compare`; the tables go to `recipes/results/NAME.comparison.md` and `.json`.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from nspec_hf.comparison import (
    Failure,
    Job,
    PlannedRow,
    PlannedRun,
    chosen_runs,
    compare_rows,
    comparison_tables,
    markdown,
    places,
    planned_rows,
    read_tests,
    run_jobs,
)
from nspec_hf.core import (
    ConfigError,
    exit_status,
    join_tables,
    read_json,
    require_writable,
    usable_cores,
    write_json,
    write_text,
)
from nspec_hf.systems import ExperimentConfig, read_settings

SPECIALIZE = Path(__file__).resolve().with_name("specialize.py")

OPTIONS: dict[str, dict[str, Any]] = {
    "rows": {"nargs": "+", "default": None, "help": "Rows to run, or patterns such as 'ns*'; else all."},
    "seeds": {"nargs": "+", "type": int, "default": None, "help": "Seeds to run; else all."},
    "jobs": {"type": int, "default": None, "help": "Runs at a time; else one a GPU, or one."},
    "tables_only": {"action": "store_true", "help": "Run nothing; make the tables of what there is."},
}

PLACES = ("--work", "--results", "--data.corpus.path", "--base")


def main(argv: list[str] | None = None) -> None:
    """Run the recipe; exit with 1 if a run failed."""
    arguments = [_spelled(each) for each in (sys.argv[1:] if argv is None else argv)]
    config, chosen = read_settings(ExperimentConfig, arguments, description=__doc__, **OPTIONS)
    rows = planned_rows(config)
    runs = chosen_runs(rows, chosen.rows, chosen.seeds)
    experiment = _of_the_experiment(arguments)
    # Before the work, so that its result has a place and what is there is not lost.
    require_writable(table_file(config))
    earlier_table(table_file(config))
    failures: list[Failure] = []
    if not chosen.tables_only:
        failures = run_all(runs, experiment, chosen.jobs)
    made = " ".join(["python recipes/compare.py", shlex.join(_without_places(experiment))])
    write_tables(config, rows, made, _without_places(experiment))
    for failure in failures:
        print(f"failed: {failure.job.name}: {failure.reason}\n  log: {failure.job.log}", file=sys.stderr)
    if failures:
        raise SystemExit(1)


def write_tables(
    config: ExperimentConfig, rows: Sequence[PlannedRow], command: str, experiment: Sequence[str]
) -> None:
    """Compare all rows of the plan as far as they have been run; print and keep the tables."""
    path, kept = table_file(config), earlier_table(table_file(config))
    with tqdm(desc="paired tests", disable=not sys.stderr.isatty()) as bar:
        comparison = compare_rows(config, rows, experiment, show=lambda line: bar.update(), kept=kept)
    write_json(path, comparison.content())
    write_text(path.with_suffix(".md"), markdown(comparison, command))
    print(join_tables(comparison_tables(comparison)))
    for run in (run for row in rows for run in row.runs):
        why = run.why_not_done()
        if why:
            print(f"{run.name}: not run ({why})")
    print(f"kept in {path} and {path.with_suffix('.md')}")


def table_file(config: ExperimentConfig) -> Path:
    """Return where the paired tests are kept; the page lies beside them."""
    return Path(config.results) / f"{config.name}.{config.compare.table}.json"


def earlier_table(path: Path) -> dict[str, Any]:
    """Return what an earlier table kept: its verdicts, for runs whose translations are gone.

    Raises:
        ConfigError: If the file is something else.
    """
    content = read_json(path) if path.is_file() else {"tests": {}}
    if not isinstance(content, dict) or not isinstance(content.get("tests"), dict):
        raise ConfigError(f"{path} keeps no paired tests; delete it, to test again")
    for name, tests in content["tests"].items():
        try:
            read_tests(tests)
        except ConfigError as error:
            raise ConfigError(f"{path}, {name}: {error}") from error
    return content


def run_all(runs: Sequence[PlannedRun], experiment: Sequence[str], count: int | None) -> list[Failure]:
    """Run what has not been run; return what failed.

    Raises:
        ConfigError: If there is no base to continue from.
    """
    config = runs[0].config
    if not config.base and not Path(config.base_model).is_dir():
        raise ConfigError(f"there is no base in {config.base_model}; first run recipes/pretrain.py")
    folder = Path(config.work) / "compare"
    jobs = [
        Job(
            name=run.name,
            command=[sys.executable, str(SPECIALIZE), *experiment, *run.arguments()],
            log=folder / f"{run.row}.s{run.seed}.log",
            lock=folder / f"{run.row}.s{run.seed}.lock",
            is_done=lambda run=run: not run.why_not_done(),
        )
        for run in runs
    ]
    # What goes on from another row's model comes after all others, however many run at a time.
    waves = [
        [job for job, run in zip(jobs, runs, strict=True) if bool(run.plan.base) is late]
        for late in (False, True)
    ]
    environments = places(count, usable_cores(), _gpus(), os.environ)
    stopped = signal.signal(signal.SIGTERM, _stop)
    try:
        with tqdm(total=len(jobs), desc="runs", disable=not sys.stderr.isatty()) as bar:
            tell = _teller(bar)
            return [failure for wave in waves for failure in run_jobs(wave, environments, tell)]
    finally:
        signal.signal(signal.SIGTERM, stopped)


def _teller(bar: tqdm) -> Callable[[str, bool], None]:
    """Return what shows a line of text above the bar, which goes on when a run has ended."""
    ended = 0

    def tell(line: str, has_ended: bool) -> None:
        nonlocal ended
        ended += has_ended
        bar.update(has_ended)
        tqdm.write(f"[{ended}/{bar.total}] {line}")
        sys.stdout.flush()

    return tell


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def _spelled(argument: str) -> str:
    """Return an argument as the parser spells it: options may be written with hyphens."""
    return "--tables_only" if argument == "--tables-only" else argument


def _of_the_experiment(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that say which experiment it is, without those of this script."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, keywords in OPTIONS.items():
        parser.add_argument(f"--{name}", **keywords)
    return parser.parse_known_args(arguments)[1]


def _without_places(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without those that say where things lie on this machine, for tables that stay."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for place in PLACES:
        parser.add_argument(place)
    return parser.parse_known_args(arguments)[1]


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(exit_status("compare.py", main))
