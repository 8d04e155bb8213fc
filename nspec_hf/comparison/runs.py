"""The runs of a comparison: each row with each of its seeds, its command, what it left, paired tests.

A run is one call of `recipes/specialize.py`, in a folder of its own (`work/ROW/sSEED`), and leaves one result
(`results/NAME.ROW.sSEED.json`). The result says what made it; one that other settings made does not count.
"""

import contextlib
import dataclasses
import fnmatch
import json
import math
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nspec_hf.core import ConfigError, Pair, digest, plain, read_json, require, warn, write_json
from nspec_hf.data import Outputs, read_outputs
from nspec_hf.evaluation import VERDICTS, Verdict, compare, sacrebleu_metric
from nspec_hf.systems import (
    SYSTEMS,
    Architecture,
    ExperimentConfig,
    RowPlan,
    Run,
    RunResult,
    System,
    make_system,
    portable,
)
from nspec_hf.training import training_arguments

# What may differ between a result and the plan: places, progress bars, and the plan itself.
_MAY_DIFFER = ("work", "results", "compare", "data.corpus.path", "record.progress", "translate.progress")


@dataclass(frozen=True, kw_only=True)
class PlannedRun(Run):
    """One row with one seed; its config has the row's own arguments of training."""

    plan: RowPlan
    system: System

    @property
    def name(self) -> str:
        """What logs call it."""
        return f"{self.row} s{self.seed}"

    def arguments(self) -> list[str]:
        """Return what `specialize.py` is told beside the experiment."""
        words = ["--system", self.system.name, "--row", self.row, "--seed", str(self.seed)]
        if self.plan.settings:
            words += ["--settings", json.dumps(plain(self.plan.settings))]
        if self.plan.base:
            words += ["--base", self.config.base, "--model", json.dumps(plain(self.config.model))]
        for name, value in self.plan.train.items():
            place = "specialize" if name == "patience" else "specialize.arguments"
            words += [f"--{place}.{name}", value if isinstance(value, str) else json.dumps(plain(value))]
        return words

    def command(self, experiment: Sequence[str]) -> str:
        """Return the command line, for reading; `experiment` are the arguments that say which one it is."""
        return shlex.join(["python", "recipes/specialize.py", *experiment, *self.arguments()])

    def outcome(self) -> RunResult | None:
        """Return its result, or None if there is none that these settings made."""
        return None if self.why_not_done() else RunResult.read(self.result_file)

    def why_not_done(self) -> str:
        """Return why there is no result that counts; empty if there is one.

        Raises:
            ConfigError: If the file is no result of a run.
        """
        result = RunResult.read(self.result_file)
        if result is None or not result.scores:
            return "there is no result" if result is None else "the result has no scores"
        facts, base = result.facts, portable(self.config.base)
        config = dataclasses.replace(self.config, specialize=self.budget(), base=base)
        differing = _differences(config, facts.get("recipe", {}).get("config"))
        differing += _differences(self.system, facts.get("settings"), "settings")
        about = {"name": self.row, "system": self.system.name, "seed": self.seed}
        differing += [name for name, value in about.items() if facts.get(name) != value]
        return f"{self.result_file} was made with other settings: {', '.join(differing)}" if differing else ""

    def outputs(self) -> Outputs | None:
        """Return its translations of the tests, or None if they are not there any more."""
        texts: Outputs = {}
        # Individual models have a folder each.
        for folder in (self.folder / "outputs", *sorted(self.folder.glob("*/outputs"))):
            texts |= read_outputs(folder) if folder.is_dir() else {}
        return texts or None


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A row of the tables: a system with its settings, and its runs, one a seed."""

    name: str
    plan: RowPlan
    system: System
    runs: tuple[PlannedRun, ...]

    def run(self, seed: int) -> PlannedRun | None:
        """Return what a run of that seed is compared with: the same seed, or the only one there is."""
        if len(self.runs) == 1:
            return self.runs[0]
        return next((run for run in self.runs if run.seed == seed), None)


def planned_rows(config: ExperimentConfig) -> list[PlannedRow]:
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
            rows.append(_row(name, plan, _on_its_base(plan, plans, config)))
        except (ConfigError, TypeError) as error:
            wrong.append(f"row {name!r}: {error}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return rows


def chosen_runs(
    rows: Sequence[PlannedRow], names: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[PlannedRun]:
    """Return the runs of some rows and seeds, the first seed of every row before the second of any.

    Args:
        rows: All rows.
        names: Names of rows, or patterns such as `ns_*`; None: all.
        seeds: Seeds; None: all.

    Raises:
        ConfigError: If no row has such a name, or no chosen row such a seed.
    """
    for pattern in names or ():
        if not fnmatch.filter([row.name for row in rows], pattern):
            raise ConfigError(f"no row is called {pattern!r}; there are: {', '.join(r.name for r in rows)}")
    chosen = [row for row in rows if not names or any(fnmatch.fnmatch(row.name, name) for name in names)]
    missing = set(seeds or ()) - {run.seed for row in chosen for run in row.runs}
    if missing:
        raise ConfigError(f"no chosen row has the seed {', '.join(map(str, sorted(missing)))}")
    placed = [(place, run) for row in chosen for place, run in enumerate(row.runs)]
    # A stable sort: a plan that is stopped early has a whole table of first seeds.
    in_order = sorted(placed, key=lambda item: item[0])
    return [run for _, run in in_order if not seeds or run.seed in seeds]


def _on_its_base(plan: RowPlan, plans: Mapping[str, RowPlan], config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with the base that a row names, whose config says its shape.

    Raises:
        ConfigError: If no row of another shape is called so.
    """
    if not plan.base:
        return config
    shapes = [n for n, other in plans.items() if issubclass(SYSTEMS.get(other.system, System), Architecture)]
    if plan.base not in shapes:
        raise ConfigError(
            f"its base {plan.base!r} is no row of another shape; there are: {', '.join(shapes) or 'none'}"
        )
    # How attention is computed is no part of a saved config.
    kept = {name: value for name, value in config.model.items() if name == "attn_implementation"}
    return dataclasses.replace(config, base=f"@{plan.base}/s{plans[plan.base].seeds[0]}", model=kept)


def _row(name: str, plan: RowPlan, config: ExperimentConfig) -> PlannedRow:
    system, arguments = make_system(plan.system, plan.settings), dict(plan.train)
    require("seed" not in arguments, f"row {name!r}: a row's seeds are named by `seeds`, not by train.seed")
    if plan.train and not system.trains:
        warn(f"row {name!r}: train has no effect, since {system.name} trains nothing; leave it out")
    patience = arguments.pop("patience", config.specialize.patience)
    training = dataclasses.replace(
        config.specialize, arguments={**config.specialize.arguments, **arguments}, patience=patience
    )
    config = dataclasses.replace(config, specialize=training)
    if arguments:
        # Asked now, since the Trainer would refuse an unknown argument only when the row's turn has come.
        training_arguments(dataclasses.replace(training, patience=None), Path(config.work))
    runs = tuple(PlannedRun.of(config, name, seed, plan=plan, system=system) for seed in plan.seeds)
    return PlannedRow(name=name, plan=plan, system=system, runs=runs)


def _differences(now: Any, then: Any, name: str = "") -> list[str]:
    """Return the names of settings that differ; one that a result does not know was added since."""
    if name in _MAY_DIFFER:
        return []
    if not (dataclasses.is_dataclass(now) and isinstance(then, Mapping)):
        return [] if plain(now) == then else [name or "the recipe"]
    return [
        difference
        for field in dataclasses.fields(now)
        if field.name in then
        for difference in _differences(
            getattr(now, field.name), then[field.name], f"{name}.{field.name}".lstrip(".")
        )
    ]


class TestedPair(NamedTuple):
    """A paired test of one direction and metric."""

    delta: float
    """Difference of the scores."""
    p_value: float
    """Of this direction alone."""
    verdict: Verdict
    few_differ: int | None = None
    """How many sentences differ, where they are so few that the verdict should not be trusted."""


Tests = dict[str, dict[Pair, TestedPair]]
"""One run against another: metric → direction → test."""


def paired_tests(
    run: PlannedRun, reference: PlannedRun, targets: Mapping[Pair, Sequence[str]]
) -> Tests | None:
    """Test a run against another one, on the directions that both translated.

    A test of twelve directions takes half a minute, a plan has hundreds of them, and each new run adds some.
    So they lie in `work/ROW/sSEED/significance/` and are taken from there as long as no sentence changed.

    Args:
        run: The one that is better or worse.
        reference: What it is compared with.
        targets: What the tests' translations should be.

    Returns:
        The tests of all metrics but those that have no statistics by sentence (COMET …); None if the
        translations of either are not there any more, or they have nothing in common.
    """
    ours, theirs = run.outputs(), reference.outputs()
    if ours is None or theirs is None:
        return None
    pairs = [pair for pair in targets if pair in ours and pair in theirs]
    metrics = [name for name in run.config.metrics if pairs and sacrebleu_metric(name, pairs[0]) is not None]
    if not metrics:
        return None
    systems, references, wanted = (
        {str(pair): list(text[pair]) for pair in pairs} for text in (ours, theirs, targets)
    )
    n_samples = run.config.compare.n_samples
    text = digest(json.dumps([systems, references, wanted]))
    key = {"metrics": metrics, "n_samples": n_samples, "text": text}
    path = run.folder / "significance" / f"{reference.row}.s{reference.seed}.json"
    with contextlib.suppress(ConfigError):  # what is damaged, or of an older layout, is tested anew
        kept = read_json(path) if path.is_file() else None
        if isinstance(kept, dict) and kept.get("key") == key:
            return read_tests(kept.get("tests"))
    with warnings.catch_warnings():
        # Verdicts that stand on few sentences are named in the tables.
        warnings.filterwarnings("ignore", message="do not trust the verdict")
        comparison = compare(
            {reference.name: references, run.name: systems},
            wanted,
            reference.name,
            metrics,
            n_samples=n_samples,
        )
    tests: Tests = {metric: {} for metric in metrics}
    for row in comparison.rows:
        few = row.differing if row.owed_to_ties(comparison.alpha) else None
        tests[row.metric][row.pair] = TestedPair(row.delta, row.p_value, row.verdict, few)
    write_json(path, {"key": key, "tests": tests})
    return tests


def read_tests(content: Any) -> Tests:
    """Return tests as JSON holds them: a list in the place of each `TestedPair`.

    Raises:
        ConfigError: If it is something else.
    """
    try:
        tests = {
            metric: {Pair(pair): TestedPair(*values) for pair, values in by_pair.items()}
            for metric, by_pair in content.items()
        }
        if all(
            test.verdict in VERDICTS and math.isfinite(test.delta)
            for own in tests.values()
            for test in own.values()
        ):
            return tests
        raise ValueError("unknown verdicts")
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"these are no paired tests ({error}); delete the file, to test again") from error
