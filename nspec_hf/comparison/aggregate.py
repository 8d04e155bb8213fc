"""Compare the systems of a plan: read what their runs left, and set them side by side.

Scores come from the results of the runs, verdicts from the translations that they kept. A difference is taken
seed by seed before it is averaged, so that what two runs of one seed share does not count; a base has
one run, which is the same for every seed.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nspec_hf.comparison.paired_runs import paired_comparison
from nspec_hf.comparison.runs import Row, Run
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
from nspec_hf.core import Pair
from nspec_hf.evaluation import VERDICTS, Comparison, SystemScores, Verdict, notes_of
from nspec_hf.systems import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class _Finished:
    """A run with its result."""

    run: Run
    outcome: Mapping[str, Any]
    scores: SystemScores

    def value(self, pair: Pair, metric: str) -> float | None:
        score = self.scores.scores.get(pair, {}).get(metric)
        return None if score is None or not math.isfinite(score.value) else score.value

    def average(self, pairs: Sequence[Pair], metric: str) -> float | None:
        values = [self.value(pair, metric) for pair in pairs]
        return None if None in values else math.fsum(values) / len(values)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """What all rows share while they are compared."""

    config: ExperimentConfig
    rows: Sequence[Row]
    experiment: Sequence[str]
    n_jobs: int | None
    show: Callable[[str], None]
    finished: Mapping[str, _Finished]
    targets: Mapping[Pair, Sequence[str]]
    blocks: Mapping[str, Sequence[Pair]]

    def row(self, row: Row) -> RowResult:
        done = [self.finished[run.name] for run in row.runs if run.name in self.finished]
        about = {
            "name": row.name,
            "system": row.system.name,
            "source": row.system.source,
            "settings": dict(row.plan.settings),
            "train": dict(row.plan.train),
            "seeds": tuple(each.run.seed for each in done),
            "missing": {
                str(run.seed): run.command(self.experiment)
                for run in row.runs
                if run.name not in self.finished
            },
        }
        if not done:
            return RowResult(**about)
        references = {name: self._reference(row, name) for name in REFERENCES}
        return RowResult(
            **about,
            scores=self._by_pair(lambda metric, pair: Spread.over(e.value(pair, metric) for e in done)),
            averages=self._by_block(lambda metric, own: Spread.over(e.average(own, metric) for e in done)),
            against={
                name: self._against(done, other) for name, other in references.items() if other is not None
            },
            extra_parameters=done[0].outcome.get("extra_parameters"),
            extra_bytes=done[0].outcome.get("extra_bytes"),
            extraction_seconds=Spread.over(e.outcome.get("extraction", {}).get("seconds") for e in done),
            training_seconds=Spread.over(_training_seconds(e.outcome) for e in done),
            updates=done[0].outcome.get("updates"),
        )

    def _reference(self, row: Row, system: str) -> Row | None:
        """Return the row that a row is compared with: of that system, with the same training if there is."""
        if row.system.name in ("baseline", system):
            return None
        able = [each for each in self.rows if each.system.name == system]
        able = [each for each in able if any(run.name in self.finished for run in each.runs)]
        same = [each for each in able if dict(each.plan.train) == dict(row.plan.train)]
        return next(iter(same or able), None)

    def _against(self, done: Sequence[_Finished], other: Row) -> Against:
        matched = []
        for each in done:
            opposite = other.run(each.run.seed)
            if opposite is not None and opposite.name in self.finished:
                matched.append((each, self.finished[opposite.name]))
        found = [comparison for one, two in matched if (comparison := self._tested(one.run, two.run))]
        verdicts, p_values = {}, {}
        for metric in self.config.metrics:
            judged = [row for comparison in found for row in comparison.rows if row.metric == metric]
            of = {pair: [row for row in judged if row.pair == pair] for pair in self.targets}
            verdicts[metric] = {pair: tuple(row.verdict for row in own) for pair, own in of.items() if own}
            p_values[metric] = {pair: tuple(row.p_value for row in own) for pair, own in of.items() if own}
        return Against(
            reference=other.name,
            pairs=self._by_pair(
                lambda metric, pair: Spread.over(
                    _minus(one.value(pair, metric), two.value(pair, metric)) for one, two in matched
                )
            ),
            blocks=self._by_block(
                lambda metric, own: Spread.over(
                    _minus(one.average(own, metric), two.average(own, metric)) for one, two in matched
                )
            ),
            verdicts=verdicts,
            p_values=p_values,
            counts={metric: self._counted(own) for metric, own in verdicts.items()},
            doubtful=tuple(
                f"{row.system_name}, {row.pair}, {row.metric}: {row.differing} sentences differ"
                for comparison in found
                for row in comparison.rows
                if row.owed_to_ties(comparison.alpha)
            ),
        )

    def _tested(self, run: Run, other: Run) -> Comparison | None:
        self.show(f"{run.name} against {other.name}")
        metrics = list(self.config.metrics)
        return paired_comparison(
            run, other, self.targets, metrics, self.config.compare.n_samples, self.n_jobs
        )

    def _counted(self, verdicts: Mapping[Pair, Sequence[Verdict]]) -> dict[str, dict[Verdict, int]]:
        return {
            block: {
                verdict: sum(verdicts[pair].count(verdict) for pair in pairs if pair in verdicts)
                for verdict in VERDICTS
            }
            for block, pairs in self.blocks.items()
            if all(pair in verdicts for pair in pairs)
        }

    def _by_pair(self, of: Callable[[str, Pair], Spread | None]) -> dict[str, Numbers]:
        return {
            metric: {str(pair): found for pair in self.targets if (found := of(metric, pair)) is not None}
            for metric in self.config.metrics
        }

    def _by_block(self, of: Callable[[str, Sequence[Pair]], Spread | None]) -> dict[str, Numbers]:
        return {
            metric: {
                name: found for name, pairs in self.blocks.items() if (found := of(metric, pairs)) is not None
            }
            for metric in self.config.metrics
        }


def compare_rows(
    config: ExperimentConfig,
    rows: Sequence[Row],
    experiment: Sequence[str] = (),
    n_jobs: int | None = None,
    show: Callable[[str], None] = lambda line: None,
) -> SystemsComparison:
    """Set the rows of a plan side by side, as far as they have been run.

    Args:
        config: The experiment.
        rows: Its rows.
        experiment: The arguments of the command line that say which experiment it is, for the commands of
            runs that are missing.
        n_jobs: Processes of the paired tests; None takes the processors that this process may use.
        show: Called with a line of text before each paired test.
    """
    finished: dict[str, _Finished] = {}
    for run in (run for row in rows for run in row.runs):
        outcome = run.outcome()
        if outcome is not None:
            scores = SystemScores.from_json(json.dumps(outcome["scores"]))
            finished[run.name] = _Finished(run=run, outcome=outcome, scores=scores)
    tests = config.data.read(config.data.test_split, config.data.tested_pairs())
    maker = _Maker(
        config=config,
        rows=rows,
        experiment=experiment,
        n_jobs=n_jobs,
        show=show,
        finished=finished,
        targets={text.pair: text.targets for text in tests},
        blocks={**blocks_of(config.data), **tiers_of(config.data)},
    )
    return SystemsComparison(
        name=config.name,
        metrics=tuple(config.metrics),
        pairs=tuple(text.pair for text in tests),
        blocks=blocks_of(config.data),
        tiers=tiers_of(config.data),
        rows=tuple(maker.row(row) for row in rows),
        n_samples=config.compare.n_samples,
        notes=_notes(list(finished.values()), list(config.metrics)),
    )


def _training_seconds(outcome: Mapping[str, Any]) -> float | None:
    """Return the seconds of a run's training, from scratch if it was."""
    own = outcome.get("training_seconds")
    return own and own + outcome.get("pretraining", {}).get("training_seconds", 0.0)


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _notes(finished: Sequence[_Finished], metrics: Sequence[str]) -> tuple[str, ...]:
    """Return what made the numbers: signatures, decoding, hardware and versions, each once."""
    alike = [dataclasses.replace(each.scores, name="decoding") for each in finished]
    recipes = [each.outcome.get("recipe", {}) for each in finished]
    machines = [
        "hardware: "
        + ", ".join([f"{own.get('cores')} cores of {own.get('processor')}", *own.get("gpus", [])])
        for own in (recipe.get("hardware", {}) for recipe in recipes)
    ]
    versions = [
        "versions: " + ", ".join(f"{name} {value}" for name, value in recipe.get("versions", {}).items())
        for recipe in recipes
    ]
    return tuple(dict.fromkeys([*notes_of(alike, metrics), *machines, *versions]))
