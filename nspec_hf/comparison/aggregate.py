"""Compare the systems of a plan: read what their runs left, and set them side by side.

Scores come from the results of the runs; verdicts from the translations that they kept or, where these are
gone, from an earlier comparison. A difference is taken seed by seed before it is averaged, so that what two
runs of one seed share does not count; a base has one run, which is the same for every seed.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nspec_hf.comparison.costs import printed_costs
from nspec_hf.comparison.runs import PlannedRow, PlannedRun, TestedPair, Tests, paired_tests, read_tests
from nspec_hf.comparison.table_data import (
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
from nspec_hf.evaluation import VERDICTS, Verdict
from nspec_hf.systems import ExperimentConfig, RunResult

# A score is written with all its digits, so a test of other translations has another difference.
_SAME = 1e-6


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A run with its result."""

    run: PlannedRun
    result: RunResult

    def average(self, metric: str, pairs: Sequence[Pair]) -> float | None:
        """Return the mean over directions, each counting once; None if one has no score."""
        scores = [self.result.scores.get(pair, {}) for pair in pairs]
        values = [own[metric] for own in scores if metric in own]
        return math.fsum(values) / len(values) if len(values) == len(pairs) else None

    def cost(self, name: str) -> float | None:
        """Return the seconds of the extraction, the decoding or the training, from scratch if it was."""
        facts = self.result.facts
        if name == "extraction":
            return facts.get("extraction", {}).get("seconds")
        seconds = facts.get(f"{name}_seconds")
        if name == "decoding" or not seconds:
            return seconds
        return seconds + facts.get("pretraining", {}).get("training_seconds", 0.0)


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
    finished: Mapping[str, _Finished]
    blocks: Mapping[str, Sequence[Pair]]
    tests: dict[str, Tests] = field(default_factory=dict)

    def row(self, row: PlannedRow) -> RowResult:
        done = [self.finished[run.name] for run in row.runs if run.name in self.finished]
        missing = [run for run in row.runs if run.name not in self.finished]
        about: dict[str, Any] = {
            "name": row.name,
            "system": row.system.name,
            "train": dict(row.plan.train),
            "seeds": tuple(finished.run.seed for finished in done),
            "missing": {str(run.seed): run.command(self.experiment) for run in missing},
            "printed": printed_costs(row.system),
        }
        if not done:
            return RowResult(**about)
        facts = done[0].result.facts
        references = {name: self._reference(row, name) for name in REFERENCES}

        def averages(metric: str, pairs: Sequence[Pair]) -> list[float | None]:
            return [finished.average(metric, pairs) for finished in done]

        return RowResult(
            **about,
            scores=self._spreads(self._directions, averages),
            averages=self._spreads(self.blocks, averages),
            against={name: self._against(done, other) for name, other in references.items() if other},
            extra_parameters=facts.get("extra_parameters"),
            base_parameters=self._base_parameters(row),
            extra_bytes=facts.get("extra_bytes"),
            extraction_seconds=Spread.over(finished.cost("extraction") for finished in done),
            training_seconds=Spread.over(finished.cost("training") for finished in done),
            decoding_seconds=Spread.over(finished.cost("decoding") for finished in done),
            updates=facts.get("updates"),
        )

    def _base_parameters(self, row: PlannedRow) -> int | None:
        """Return the parameters of what a row goes on from, where the results say so."""
        path = Path(self.config.results) / f"{self.config.name}.base.json"
        known = read_json(path).get("parameters") if path.is_file() else None
        shape = next((other for other in self.rows if other.name == row.plan.base), None)
        if known is None or shape is None:
            return known
        result = self.finished.get(shape.runs[0].name)
        return result and known + result.result.facts.get("extra_parameters", 0)

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
            and any(run.name in self.finished for run in other.runs)
        ]

        def differs(other: PlannedRow) -> tuple[bool, bool]:
            same_base = row.plan.base in (other.plan.base, other.name if row.plan.base else "")
            return not same_base, dict(other.plan.train) != dict(row.plan.train)

        return min(able, key=differs, default=None)

    def _against(self, done: Sequence[_Finished], reference: PlannedRow) -> Against:
        opposites = [(finished, reference.run(finished.run.seed)) for finished in done]
        matched = [
            (one, self.finished[run.name]) for one, run in opposites if run and run.name in self.finished
        ]
        tests = {f"{one.run.name} against {two.run.name}": self._tested(one, two) for one, two in matched}
        self.tests.update({name: test for name, test in tests.items() if test})
        seeds = list(tests.values())
        by_metric = {
            metric: {
                pair: own
                for pair in self.targets
                if (own := tuple(test[metric][pair] for test in seeds if pair in test.get(metric, {})))
            }
            for metric in self.config.metrics
        }

        def differences(metric: str, pairs: Sequence[Pair]) -> list[float | None]:
            return [_minus(one.average(metric, pairs), two.average(metric, pairs)) for one, two in matched]

        return Against(
            reference=reference.name,
            pairs=self._spreads(self._directions, differences),
            blocks=self._spreads(self.blocks, differences),
            tests=by_metric,
            counts={
                metric: {
                    block: _counted(test for pair in pairs for test in by_pair[pair])
                    for block, pairs in self.blocks.items()
                    if all(pair in by_pair for pair in pairs)
                }
                for metric, by_pair in by_metric.items()
            },
            doubtful=tuple(
                f"{name.partition(' against ')[0]}, {pair}, {metric}: {test.few_differ} sentences differ"
                for name, by_test in tests.items()
                for metric, by_pair in by_test.items()
                for pair, test in by_pair.items()
                if test.few_differ is not None
            ),
        )

    def _tested(self, one: _Finished, two: _Finished) -> Tests:
        """Return the tests of two runs; without translations, earlier ones whose differences still hold."""
        name = f"{one.run.name} against {two.run.name}"
        self.show(name)
        tests = paired_tests(one.run, two.run, self.targets, self.n_jobs)
        if tests is not None:
            return tests
        kept = read_tests(self.kept.get(name, {}))
        return {
            metric: {
                pair: test
                for pair, test in by_pair.items()
                if (delta := _minus(one.average(metric, [pair]), two.average(metric, [pair]))) is not None
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
    finished = {}
    for run in (run for row in rows for run in row.runs):
        result = run.outcome()
        if result is not None:
            finished[run.name] = _Finished(run=run, result=result)
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
        finished=finished,
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
        notes=_notes([read.result for read in finished.values()]),
    )


def _counted(tests: Iterable[TestedPair]) -> dict[Verdict, int]:
    verdicts = [test.verdict for test in tests]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


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
