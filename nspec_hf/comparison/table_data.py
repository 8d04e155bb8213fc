"""The numbers of a comparison of systems: a row a system, with scores, differences, verdicts and costs.

A number over seeds is a `Spread`: mean and sample standard deviation. Directions stand in blocks: one-to-many
and many-to-one, trained directions between other languages, all trained ones, and zero-shot ones, each also
by resource tier where the experiment has tiers. A block's average counts every direction once, and is
undefined where a system lacks one. `aggregate.py` fills all this in, `tables.py` prints it.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nspec_hf.comparison.runs import PlannedRow, Tests
from nspec_hf.core import MANY_TO_ONE, ONE_TO_MANY, ZERO_SHOT, Pair
from nspec_hf.evaluation import SystemScores, Verdict
from nspec_hf.systems import DataConfig, RunResult

TRAINED = "trained"
BETWEEN = "between others"
REFERENCES = ("baseline", "finetune")
"""Systems that rows are compared with: the base, and all weights trained with the same budget."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over seeds."""

    mean: float
    sd: float | None
    """Sample standard deviation (n - 1); None for one seed."""
    values: tuple[float, ...]
    """Seed by seed."""

    @classmethod
    def over(cls, values: Iterable[float | None]) -> "Spread | None":
        """Return the spread of the values that there are; None if there are none."""
        known = tuple(value for value in values if value is not None)
        if not known:
            return None
        sd = statistics.stdev(known) if len(known) > 1 else None
        return cls(mean=math.fsum(known) / len(known), sd=sd, values=known)

    def text(self, digits: int = 2, signed: bool = False) -> str:
        """Return `mean ± sd`, or the mean alone."""
        mean = f"{self.mean:{'+' if signed else ''}.{digits}f}"
        return mean if self.sd is None else f"{mean} ± {self.sd:.{digits}f}"


def difference(one: RunResult, two: RunResult, metric: str, pairs: Sequence[Pair]) -> float | None:
    """Return the difference of two runs' means over directions; None if either lacks one of them."""
    ours, theirs = one.average(metric, pairs), two.average(metric, pairs)
    return None if ours is None or theirs is None else ours - theirs


@dataclass(frozen=True, kw_only=True)
class Against:
    """One row against another: differences of scores, and verdicts of paired tests."""

    reference: str
    """Name of the other row."""
    results: tuple[tuple[RunResult, RunResult], ...]
    """The row's results, each with that of the other row that it is compared with."""
    tests: tuple[Tests, ...]
    """Paired tests, seed by seed; without a pair whose translations are gone."""

    def difference(self, metric: str, pairs: Sequence[Pair]) -> Spread | None:
        """Return the difference of the means over directions, taken seed by seed."""
        return Spread.over(difference(one, two, metric, pairs) for one, two in self.results)

    def verdicts(self, metric: str, pairs: Sequence[Pair]) -> Counter[Verdict] | None:
        """Return how often each verdict stands, over directions and seeds; None if a direction has none."""
        of_pairs = [[seed[metric][p] for seed in self.tests if p in seed.get(metric, {})] for p in pairs]
        return Counter(test.verdict for own in of_pairs for test in own) if all(of_pairs) else None


@dataclass(frozen=True, kw_only=True)
class RowResult(PlannedRow):
    """One row with what its runs left."""

    results: Mapping[int, RunResult]
    """Seed → result, of those that were run."""
    base_parameters: int | None
    """Of the model that it goes on from; None where no result says so."""
    against: Mapping[str, Against]
    """`baseline` and `finetune` → the comparison with the row of that system."""

    def mean(self, metric: str, pairs: Sequence[Pair]) -> Spread | None:
        """Return the mean over directions, each counting once; None where no seed has all of them."""
        return Spread.over(result.average(metric, pairs) for result in self.results.values())


@dataclass(frozen=True, kw_only=True)
class SystemsComparison:
    """All rows."""

    name: str
    metrics: tuple[str, ...]
    pairs: tuple[Pair, ...]
    blocks: Mapping[str, tuple[Pair, ...]]
    tiers: Mapping[str, tuple[Pair, ...]]
    """The blocks by resource tier, `one-to-many high` …; empty if there are no tiers."""
    rows: tuple[RowResult, ...]
    experiment: tuple[str, ...]
    """The arguments of the command line that say which experiment it is."""
    tests: Mapping[str, Tests]
    """`RUN against RUN` → paired tests, of both references."""
    earlier: Mapping[str, Tests]
    """The same, of an earlier comparison, which no row asks for any more."""
    n_samples: int
    """Trials of the paired tests."""
    trials: Mapping[str, int]
    """As in `tests` → another number, that an earlier comparison had: translations are gone."""
    doubts: tuple[str, ...]
    """What is not on equal terms: different bases, translations that are not those of the scores."""
    notes: tuple[str, ...]
    """Signatures of the metrics, decoding, hardware."""

    def content(self) -> dict[str, Any]:
        """Return what is kept as JSON: all that the results of the runs do not say."""
        seeds = {row.name: tuple(row.results) for row in self.rows}
        tests = {**self.earlier, **self.tests}
        kept = {"name": self.name, "seeds": seeds, "n_samples": self.n_samples, "tests": tests}
        return {**kept, "trials": self.trials} if self.trials else kept

    def row(self, name: str) -> RowResult | None:
        """Return a row that has been run with any seed, by its name."""
        return next((row for row in self.rows if row.name == name and row.results), None)


def blocks_of(data: DataConfig) -> dict[str, tuple[Pair, ...]]:
    """Return block → its directions, in the order of the tables, without blocks that hold none."""
    trained = data.trained_pairs()
    # A trained direction without the pivot is no zero-shot direction, whatever its group is called elsewhere.
    groups = {ONE_TO_MANY: ONE_TO_MANY, MANY_TO_ONE: MANY_TO_ONE, BETWEEN: ZERO_SHOT}
    blocks = {
        name: tuple(pair for pair in trained if pair.group(data.pivot) == group)
        for name, group in groups.items()
    }
    blocks |= {TRAINED: tuple(trained), ZERO_SHOT: tuple(data.zero_shot_pairs())}
    return {name: pairs for name, pairs in blocks.items() if pairs}


def tiers_of(data: DataConfig) -> dict[str, tuple[Pair, ...]]:
    """Return the blocks by resource tier: `one-to-many high` → its directions."""
    if not data.tiers:
        return {}
    of = SystemScores(name="", scores={}, pivot=data.pivot, tiers=data.tiers)
    by_tier: dict[str, tuple[Pair, ...]] = {}
    for name, pairs in blocks_of(data).items():
        if name != TRAINED:
            for tier in of.tiers_of(pairs):
                by_tier[f"{name} {tier}"] = tuple(pair for pair in pairs if of.tier(pair) == tier)
    return by_tier
