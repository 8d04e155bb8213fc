"""Compare the systems of a plan: read what their runs left, and set them side by side.

Scores come from the results of the runs; verdicts from the translations that they kept or, where these are
gone or are not those that were scored, from an earlier comparison. A difference is taken seed by seed before
it is averaged, so that what two runs of one seed share does not count; a base has one run, which is the same
for every seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nspec_hf.comparison.runs import PlannedRow, PlannedRun, Tests, paired_tests, read_tests
from nspec_hf.comparison.table_data import (
    REFERENCES,
    Against,
    RowResult,
    SystemsComparison,
    blocks_of,
    difference,
    tiers_of,
)
from nspec_hf.core import Pair, read_json
from nspec_hf.systems import ExperimentConfig, RunResult

# A score is written with all its digits, so a test of other translations has another difference.
_SAME = 1e-6


@dataclass(frozen=True, kw_only=True)
class _Aggregation:
    """What all rows share while they are compared."""

    config: ExperimentConfig
    rows: Sequence[PlannedRow]
    show: Callable[[str], None]
    kept: Mapping[str, Any]
    targets: Mapping[Pair, Sequence[str]]
    results: Mapping[str, RunResult]
    """Name of a run → its result, of those that have one."""
    tests: dict[str, Tests] = field(default_factory=dict)
    trials: dict[str, int] = field(default_factory=dict)
    not_scored: list[str] = field(default_factory=list)
    """`RUN against RUN` whose folders hold other translations than those of their scores."""

    def row(self, row: PlannedRow) -> RowResult:
        done = [run for run in row.runs if run.name in self.results]
        references = {name: self._reference(row, name) for name in REFERENCES} if done else {}
        return RowResult(
            **vars(row),
            results={run.seed: self.results[run.name] for run in done},
            base_parameters=self._base_parameters(row),
            against={name: self._against(done, other) for name, other in references.items() if other},
        )

    def _base_parameters(self, row: PlannedRow) -> int | None:
        """Return the parameters of what a row goes on from, where the results say so."""
        path = Path(self.config.results) / f"{self.config.name}.base.json"
        known = read_json(path).get("parameters") if path.is_file() else None
        shape = next((other for other in self.rows if other.name == row.plan.base), None)
        if known is None or shape is None:
            return known
        result = self.results.get(shape.runs[0].name)
        return result and known + result.facts.get("extra_parameters", 0)

    def _reference(self, row: PlannedRow, system: str) -> PlannedRow | None:
        """Return the row that a row is compared with: of that system, with the same base and training if any.

        A row of another shape has gone on with training, as fine-tuning does. Dropout is a part of training.
        """
        if row.system.name in ("baseline", system):
            return None
        able = [
            other
            for other in self.rows
            if (other.system.name == system or (system == "finetune" and other.name == row.plan.base))
            and any(run.name in self.results for run in other.runs)
        ]

        def differs(other: PlannedRow) -> tuple[bool, bool, bool]:
            same_base = row.plan.base == (other.plan.base or (row.plan.base and other.name))
            other_dropout = other.system.continued_dropout != row.system.continued_dropout
            return not same_base, dict(other.plan.train) != dict(row.plan.train), other_dropout

        return min(able, key=differs, default=None)

    def _against(self, done: Sequence[PlannedRun], reference: PlannedRow) -> Against:
        opposites = [(run, reference.run(run.seed)) for run in done]
        matched = [(one, two) for one, two in opposites if two and two.name in self.results]
        tests = {f"{one.name} against {two.name}": self._tested(one, two) for one, two in matched}
        self.tests.update({name: test for name, test in tests.items() if test})
        return Against(
            reference=reference.name,
            results=tuple((self.results[one.name], self.results[two.name]) for one, two in matched),
            tests=tuple(tests.values()),
        )

    def _tested(self, one: PlannedRun, two: PlannedRun) -> Tests:
        """Return the tests of two runs; without the translations that were scored, earlier ones that hold."""
        name = f"{one.name} against {two.name}"
        self.show(name)
        made = paired_tests(one, two, self.targets)
        if made is not None:
            tests = self._of_the_scores(made, one.name, two.name)
            if tests != made:
                self.not_scored.append(name)
            if tests == made or any(tests.values()):
                return tests
        return self._earlier(name)

    def no_longer_asked_for(self) -> dict[str, Tests]:
        """Return earlier tests of runs that no row is compared by now; their translations may be gone."""
        names = [name for name in self.kept.get("tests", {}) if name not in self.tests]
        return {name: tests for name in names if any((tests := self._earlier(name)).values())}

    def _earlier(self, name: str) -> Tests:
        """Return the tests that an earlier comparison has, as far as they hold."""
        one, _, two = name.partition(" against ")
        tests = self._of_the_scores(read_tests(self.kept.get("tests", {}).get(name, {})), one, two)
        trials = self.kept.get("trials", {}).get(name, self.kept.get("n_samples"))
        if any(tests.values()) and trials not in (None, self.config.compare.n_samples):
            self.trials[name] = trials
        return tests

    def _of_the_scores(self, tests: Tests, one: str, two: str) -> Tests:
        """Return those tests whose differences are those of two runs' results, where both have one."""
        if not {one, two} <= self.results.keys():
            return tests
        results = (self.results[one], self.results[two])
        return {
            metric: {
                pair: test
                for pair, test in by_pair.items()
                if (delta := difference(*results, metric, [pair])) is not None
                and abs(delta - test.delta) < _SAME
            }
            for metric, by_pair in tests.items()
        }

    def _bases(self, seed: int) -> dict[str, list[str]]:
        """Return base weights → the runs of a seed, and what they are compared with, that go on from them."""
        bases: dict[str, list[str]] = {}
        for row in self.rows:
            run = None if row.plan.base or row.system.from_scratch else row.run(seed)
            if run is None or not (run.seed == seed or row.system.name in REFERENCES):
                continue
            weights = self.results[run.name].facts.get("base_weights") if run.name in self.results else None
            if weights is not None:
                bases.setdefault(weights, []).append(run.name)
        return bases

    def doubts(self) -> tuple[str, ...]:
        """Say what is not compared on equal terms, as far as the results tell."""
        doubts = []
        by_seed = {
            seed: self._bases(seed) for seed in sorted({run.seed for row in self.rows for run in row.runs})
        }
        unequal = {seed: bases for seed, bases in by_seed.items() if len(bases) > 1}
        for seed, bases in unequal.items():
            told = "; ".join(f"{weights}: {', '.join(names)}" for weights, names in bases.items())
            doubts.append(
                f"runs of seed {seed} go on from different weights of the base, which differ too ({told})"
            )
        own = {seed: next(iter(bases)) for seed, bases in by_seed.items() if len(bases) == 1}
        if not unequal and len(set(own.values())) > 1:
            told = ", ".join(f"seed {seed}: {weights}" for seed, weights in own.items())
            doubts.append(f"seeds go on from bases of their own ({told})")
        if self.not_scored:
            shown = "; ".join(self.not_scored[:3]) + (" …" if self.not_scored[3:] else "")
            doubts.append(
                f"{len(self.not_scored)} comparisons lack tests, since the translations in the runs' folders "
                f"are not those that were scored: {shown}"
            )
        return tuple(doubts)


def compare_rows(
    config: ExperimentConfig,
    rows: Sequence[PlannedRow],
    experiment: Sequence[str] = (),
    show: Callable[[str], None] = lambda line: None,
    kept: Mapping[str, Any] | None = None,
) -> SystemsComparison:
    """Set the rows of a plan side by side, as far as they have been run.

    Args:
        config: The experiment.
        rows: Its rows.
        experiment: The arguments of the command line that say which experiment it is, for the commands of
            runs that are missing.
        show: Called with a line of text before each paired test.
        kept: An earlier comparison, as `SystemsComparison.content` has it, whose paired tests stand for runs
            whose translations are gone. They are kept on, those too that no row asks for any more.
    """
    outcomes = {run.name: run.outcome() for row in rows for run in row.runs}
    results = {name: result for name, result in outcomes.items() if result is not None}
    tests = config.data.read(config.data.test_split, config.data.tested_pairs())
    aggregation = _Aggregation(
        config=config,
        rows=rows,
        show=show,
        kept=kept or {},
        targets={text.pair: text.targets for text in tests},
        results=results,
    )
    compared = tuple(aggregation.row(row) for row in rows)
    return SystemsComparison(
        name=config.name,
        metrics=tuple(config.metrics),
        pairs=tuple(text.pair for text in tests),
        blocks=blocks_of(config.data),
        tiers=tiers_of(config.data),
        rows=compared,
        experiment=tuple(experiment),
        tests=aggregation.tests,
        earlier=aggregation.no_longer_asked_for(),
        n_samples=config.compare.n_samples,
        trials=aggregation.trials,
        doubts=aggregation.doubts(),
        notes=_notes(list(results.values())),
    )


def _notes(results: Sequence[RunResult]) -> tuple[str, ...]:
    """Return what made the numbers: signatures, decoding, hardware and versions, each once."""
    recipes = [result.facts.get("recipe", {}) for result in results]
    machines = [
        "hardware: "
        + ", ".join([f"{machine.get('cores')} cores of {machine.get('processor')}", *machine.get("gpus", [])])
        for machine in (recipe.get("hardware", {}) for recipe in recipes)
    ]
    versions = [
        "versions: " + ", ".join(f"{name} {value}" for name, value in recipe.get("versions", {}).items())
        for recipe in recipes
    ]
    notes = dict.fromkeys(note for result in results for note in result.notes)
    signatures = sorted(note for note in notes if not note.startswith("decoding: "))
    made = [note for note in notes if note.startswith("decoding: ")]
    return tuple(dict.fromkeys([*signatures, *made, *machines, *versions]))
