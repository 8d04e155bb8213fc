"""The runs of a comparison: each row's system with each of its seeds, its command, and whether it was run.

A run is one call of `recipes/specialize.py`, in a folder of its own (`work/ROW/sSEED`), and leaves one result
(`results/NAME.ROW.sSEED.json`). The result says what made it; one that other settings made does not count.
"""

import dataclasses
import fnmatch
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nspec_hf.core import ConfigError, plain
from nspec_hf.data import Outputs, read_outputs
from nspec_hf.systems import SYSTEMS, ExperimentConfig, RowPlan, System, Workbench, make_system
from nspec_hf.training import training_arguments

# What may differ between a result and the plan: places, progress bars, and the plan itself.
_MAY_DIFFER = ("work", "results", "compare", "data.corpus.path", "record.progress", "translate.progress")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row with one seed."""

    row: str
    plan: RowPlan
    system: System
    seed: int
    config: ExperimentConfig
    """The experiment, with the row's own arguments of training."""

    @property
    def name(self) -> str:
        """What logs call it."""
        return f"{self.row} s{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it keeps masks, checkpoints, model and translations."""
        return Path(self.config.work) / self.row / f"s{self.seed}"

    @property
    def result_file(self) -> Path:
        """Where its result is."""
        return Path(self.config.results) / f"{self.config.name}.{self.row}.s{self.seed}.json"

    def arguments(self) -> list[str]:
        """Return what `specialize.py` is told beside the experiment."""
        told = ["--system", self.system.name, "--row", self.row, "--seed", str(self.seed)]
        if self.plan.settings:
            told += ["--settings", json.dumps(plain(self.plan.settings))]
        for name, value in self.plan.train.items():
            place = "specialize" if name == "patience" else "specialize.arguments"
            told += [f"--{place}.{name}", value if isinstance(value, str) else json.dumps(plain(value))]
        return told

    def command(self, experiment: Sequence[str]) -> str:
        """Return the command line, for reading; `experiment` are the arguments that say which one it is."""
        return shlex.join(["python", "recipes/specialize.py", *experiment, *self.arguments()])

    def outcome(self) -> dict[str, Any] | None:
        """Return its result, or None if there is none that these settings made."""
        found, why = self._look()
        return None if why else found

    def why_not_done(self) -> str:
        """Return why there is no result that counts; empty if there is one."""
        return self._look()[1]

    def _look(self) -> tuple[dict[str, Any], str]:
        found = _read(self.result_file)
        if not found.get("scores"):
            return found, "there is no result" if not found else "the result has no scores"
        bench = Workbench(config=self.config, folder=self.folder, seed=self.seed)
        config = dataclasses.replace(self.config, specialize=bench.budget())
        differ = _differences(config, found.get("recipe", {}).get("config"))
        differ += _differences(self.system, found.get("settings"), "settings")
        for name, value in {"name": self.row, "system": self.system.name, "seed": self.seed}.items():
            differ += [] if found.get(name) == value else [name]
        why = f"{self.result_file} was made with other settings: {', '.join(differ)}" if differ else ""
        return found, why

    def outputs(self) -> Outputs | None:
        """Return its translations of the tests, or None if they are not there any more."""
        texts: Outputs = {}
        # Individual models have a folder each.
        for folder in (self.folder / "outputs", *sorted(self.folder.glob("*/outputs"))):
            texts |= read_outputs(folder) if folder.is_dir() else {}
        return texts or None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the tables: a system with its settings, and its runs, one a seed."""

    name: str
    plan: RowPlan
    system: System
    runs: tuple[Run, ...]

    def run(self, seed: int) -> Run | None:
        """Return what a run of that seed is compared with: the same seed, or the only one there is."""
        if len(self.runs) == 1:
            return self.runs[0]
        return next((run for run in self.runs if run.seed == seed), None)


def planned_rows(config: ExperimentConfig) -> list[Row]:
    """Return the plan's rows, with their systems.

    Raises:
        ConfigError: If the plan is empty or wrong: the message names all that is wrong in it.
    """
    plans, rows, wrong = config.compare.expanded(), [], []
    if not plans:
        raise ConfigError(f"{config.name} plans no comparison; name rows under `compare:` in its YAML file")
    if not config.data.test_split:
        raise ConfigError(f"{config.name} has no test text (data.test_split), so nothing can be compared")
    for name, plan in plans.items():
        try:
            rows.append(_row(name, plan, config))
        except (ConfigError, TypeError) as error:
            wrong.append(f"row {name!r}: {error}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return rows


def chosen_runs(
    rows: Sequence[Row], names: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[Run]:
    """Return the runs of some rows and seeds, the first seed of every row before the second of any.

    Args:
        rows: All rows.
        names: Names of rows, or patterns such as `ns_*`; None: all.
        seeds: Seeds; None: all.

    Raises:
        ConfigError: If a name or a seed is nobody's.
    """
    for pattern in names or ():
        if not fnmatch.filter([row.name for row in rows], pattern):
            raise ConfigError(f"no row is called {pattern!r}; there are: {', '.join(r.name for r in rows)}")
    chosen = [row for row in rows if not names or any(fnmatch.fnmatch(row.name, each) for each in names)]
    missing = set(seeds or ()) - {run.seed for row in chosen for run in row.runs}
    if missing:
        raise ConfigError(f"no chosen row has the seed {', '.join(map(str, sorted(missing)))}")
    placed = [(place, run) for row in chosen for place, run in enumerate(row.runs)]
    # A stable sort: a plan that is stopped early has a whole table of first seeds.
    return [run for _, run in sorted(placed, key=lambda each: each[0]) if not seeds or run.seed in seeds]


def _row(name: str, plan: RowPlan, config: ExperimentConfig) -> Row:
    if plan.system not in SYSTEMS:
        raise ConfigError(f"there is no system {plan.system!r}; there are: {', '.join(SYSTEMS)}")
    system = make_system(SYSTEMS[plan.system], plan.settings)
    own = dict(plan.train)
    patience = own.pop("patience", config.specialize.patience)
    training = dataclasses.replace(
        config.specialize, arguments={**config.specialize.arguments, **own}, patience=patience
    )
    changed = dataclasses.replace(config, specialize=training)
    if own:
        # Asked now, since the Trainer would refuse an unknown argument only when the row's turn has come.
        training_arguments(dataclasses.replace(training, patience=None), Path(config.work))
    runs = tuple(Run(row=name, plan=plan, system=system, seed=seed, config=changed) for seed in plan.seeds)
    return Row(name=name, plan=plan, system=system, runs=runs)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _differences(now: Any, then: Any, name: str = "") -> list[str]:
    """Return the names of settings that differ; one that a result does not know was added since."""
    if name in _MAY_DIFFER:
        return []
    if dataclasses.is_dataclass(now) and isinstance(then, Mapping):
        return [
            each
            for field in dataclasses.fields(now)
            if field.name in then
            for each in _differences(
                getattr(now, field.name), then[field.name], f"{name}.{field.name}".lstrip(".")
            )
        ]
    return [] if plain(now) == then else [name or "the recipe"]
