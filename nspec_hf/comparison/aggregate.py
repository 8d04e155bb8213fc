"""Compare the systems of a plan: read what their runs left, and set them side by side.

Scores come from the results of the runs; verdicts from the translations that they kept or, where these are
gone, from an earlier comparison. A difference is taken seed by seed before it is averaged, so that what two
runs of one seed share does not count; a base has one run, which is the same for every seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nspec_hf.comparison.costs import printed_costs
from nspec_hf.comparison.runs import PlannedRow, PlannedRun, Tests, paired_tests, read_tests
from nspec_hf.comparison.table_data import (
    PARTS,
    REFERENCES,
    Against,
    Numbers,
    RowResult,
    Spread,
    SystemsComparison,
    blocks_of,
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
    experiment: Sequence[str]
    n_jobs: int | None
    show: Callable[[str], None]
    kept: Mapping[str, Any]
    targets: Mapping[Pair, Sequence[str]]
    results: Mapping[str, RunResult]
    """Name of a run → its result, of those that have one."""
    blocks: Mapping[str, Sequence[Pair]]
    tests: dict[str, Tests] = field(default_factory=dict)

    def row(self, row: PlannedRow) -> RowResult:
        done = [run for run in row.runs if run.name in self.results]
        missing = [run for run in row.runs if run.name not in self.results]
        results = [self.results[run.name] for run in done]
        about: dict[str, Any] = {
            "name": row.name,
            "system": row.system.name,
            "train": dict(row.plan.train),
            "seeds": tuple(run.seed for run in done),
            "missing": {str(run.seed): run.command(self.experiment) for run in missing},
            "printed": printed_costs(row.system),
        }
        if not done:
            return RowResult(**about)
        facts = results[0].facts
        references = {name: self._reference(row, name) for name in REFERENCES}

        def averages(metric: str, pairs: Sequence[Pair]) -> list[float | None]:
            return [result.average(metric, pairs) for result in results]

        return RowResult(
            **about,
            scores=self._spreads(self._directions, averages),
            averages=self._spreads(self.blocks, averages),
            against={name: self._against(done, other) for name, other in references.items() if other},
            extra_parameters=facts.get("extra_parameters"),
            base_parameters=self._base_parameters(row),
            extra_bytes=facts.get("extra_bytes"),
            seconds={part: Spread.over(result.seconds(part) for result in results) for part in PARTS},
            updates=facts.get("updates"),
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

        A row of another shape has gone on with training, as fine-tuning does.
        """
        if row.system.name in ("baseline", system):
            return None
        able = [
            other
            for other in self.rows
            if (other.system.name == system or (system == "finetune" and other.name == row.plan.base))
            and any(run.name in self.results for run in other.runs)
        ]

        def differs(other: PlannedRow) -> tuple[bool, bool]:
            same_base = row.plan.base in (other.plan.base, other.name if row.plan.base else "")
            return not same_base, dict(other.plan.train) != dict(row.plan.train)

        return min(able, key=differs, default=None)

    def _against(self, done: Sequence[PlannedRun], reference: PlannedRow) -> Against:
        opposites = [(run, reference.run(run.seed)) for run in done]
        matched = [(one, two) for one, two in opposites if two and two.name in self.results]
        tests = {f"{one.name} against {two.name}": self._tested(one, two) for one, two in matched}
        self.tests.update({name: test for name, test in tests.items() if test})

        def differences(metric: str, pairs: Sequence[Pair]) -> list[float | None]:
            return [self._difference(one, two, metric, pairs) for one, two in matched]

        return Against(
            reference=reference.name,
            pairs=self._spreads(self._directions, differences),
            blocks=self._spreads(self.blocks, differences),
            tests={
                metric: {
                    pair: own
                    for pair in self.targets
                    if (own := tuple(t[metric][pair] for t in tests.values() if pair in t.get(metric, {})))
                }
                for metric in self.config.metrics
            },
        )

    def _difference(
        self, one: PlannedRun, two: PlannedRun, metric: str, pairs: Sequence[Pair]
    ) -> float | None:
        """Return the difference of two runs' averages; None where one has none."""
        ours, theirs = (self.results[run.name].average(metric, pairs) for run in (one, two))
        return None if ours is None or theirs is None else ours - theirs

    def _tested(self, one: PlannedRun, two: PlannedRun) -> Tests:
        """Return the tests of two runs; without translations, earlier ones whose differences still hold."""
        name = f"{one.name} against {two.name}"
        self.show(name)
        tests = paired_tests(one, two, self.targets, self.n_jobs)
        if tests is not None:
            return tests
        kept = read_tests(self.kept.get(name, {}))
        return {
            metric: {
                pair: test
                for pair, test in by_pair.items()
                if (delta := self._difference(one, two, metric, [pair])) is not None
                and abs(delta - test.delta) < _SAME
            }
            for metric, by_pair in kept.items()
        }

    @property
    def _directions(self) -> dict[str, Sequence[Pair]]:
        """Each direction as a block of its own."""
        return {str(pair): (pair,) for pair in self.targets}

    def _spreads(
        self,
        blocks: Mapping[str, Sequence[Pair]],
        of_seeds: Callable[[str, Sequence[Pair]], list[float | None]],
    ) -> dict[str, Numbers]:
        """Return metric → block → the spread over seeds of what `of_seeds` gives for them."""
        return {
            metric: {
                name: spread
                for name, pairs in blocks.items()
                if (spread := Spread.over(of_seeds(metric, pairs)))
            }
            for metric in self.config.metrics
        }


def compare_rows(
    config: ExperimentConfig,
    rows: Sequence[PlannedRow],
    experiment: Sequence[str] = (),
    n_jobs: int | None = None,
    show: Callable[[str], None] = lambda line: None,
    kept: Mapping[str, Any] | None = None,
) -> SystemsComparison:
    """Set the rows of a plan side by side, as far as they have been run.

    Args:
        config: The experiment.
        rows: Its rows.
        experiment: The arguments of the command line that say which experiment it is, for the commands of
            runs that are missing.
        n_jobs: Processes of the paired tests; None takes the processors that this process may use.
        show: Called with a line of text before each paired test.
        kept: Paired tests of an earlier comparison, as `SystemsComparison.content` has them, for runs whose
            translations are gone.
    """
    outcomes = {run.name: run.outcome() for row in rows for run in row.runs}
    results = {name: result for name, result in outcomes.items() if result is not None}
    tests = config.data.read(config.data.test_split, config.data.tested_pairs())
    blocks, tiers = blocks_of(config.data), tiers_of(config.data)
    aggregation = _Aggregation(
        config=config,
        rows=rows,
        experiment=experiment,
        n_jobs=n_jobs,
        show=show,
        kept=kept or {},
        targets={text.pair: text.targets for text in tests},
        results=results,
        blocks={**blocks, **tiers},
    )
    return SystemsComparison(
        name=config.name,
        metrics=tuple(config.metrics),
        pairs=tuple(text.pair for text in tests),
        blocks=blocks,
        tiers=tiers,
        rows=tuple(aggregation.row(row) for row in rows),
        tests=aggregation.tests,
        n_samples=config.compare.n_samples,
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
