"""Which systems are better than the baseline, and on how many directions? Verdicts that do not count on luck.

`compare` runs a paired test (see `paired_test.py`) on every direction, metric and system. A verdict is
`better`, `worse` or `not significant`, and is given twice: at p < 0.05 for the direction alone, as papers
report it, and after Holm's correction, since of sixty directions three would pass by chance alone.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nspec_hf.core import (
    ConfigError,
    Pair,
    Table,
    UnknownPairError,
    by_pair,
    optional,
    require,
    require_count,
    usable_cores,
    warn,
)
from nspec_hf.data import Outputs, require_parallel
from nspec_hf.evaluation.metrics import SacrebleuMetric, sacrebleu_metric
from nspec_hf.evaluation.paired_test import PairedResult, PairedTest, paired_test
from nspec_hf.evaluation.saved import Saved

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["better", "worse", "not significant"]
VERDICTS: tuple[Verdict, ...] = ("better", "worse", "not significant")
Results = dict[tuple[str, str], PairedResult]
"""Of one direction: (system, metric) → result."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One system against the baseline on one direction and metric."""

    pair: Pair
    metric: str
    """The metric's name as it was asked for."""
    system_name: str
    baseline: float
    """The baseline's score."""
    system: float
    """The system's score."""
    delta: float
    """`system - baseline`."""
    p_value: float
    """Of this direction alone."""
    p_holm: float
    """Corrected for looking at all directions (Holm, 1979), within one system and metric."""
    verdict: Verdict
    """By `p_value`; whether more is better depends on the metric."""
    verdict_holm: Verdict
    """By `p_holm`."""
    signature: str
    """sacreBLEU's signature, with test, trials and seed."""
    p_with_ties: float | None = None
    """The same p, with trials counted that differ exactly as much; see `paired_test.py`."""
    differing: int | None = None
    """Sentences in which the two systems differ, as the metric sees it."""

    def owed_to_ties(self, alpha: float) -> bool:
        """Return whether the verdict holds only because sacreBLEU does not count ties."""
        return self.p_with_ties is not None and self.p_value < alpha <= self.p_with_ties

    def verdict_in_words(self, alpha: float) -> str:
        """Return the verdict with what speaks against it."""
        if self.owed_to_ties(alpha):
            return f"{self.verdict} (but few sentences differ: {self.differing})"
        return self.verdict if self.verdict == self.verdict_holm else f"{self.verdict} (not after Holm)"


@dataclass(frozen=True, kw_only=True)
class Comparison(Saved):
    """All rows, system by system and metric by metric, and how they were made."""

    what: ClassVar[str] = "a comparison"
    derived: ClassVar[frozenset[str]] = frozenset({"counts"})

    rows: tuple[ComparisonRow, ...]
    baseline_name: str
    test: PairedTest
    n_samples: int
    seed: int | None
    alpha: float = 0.05

    def counts(
        self, metric: str | None = None, system_name: str | None = None, *, holm: bool = False
    ) -> dict[Verdict, int]:
        """Return how many rows have each verdict: of one metric, of one system, or of all."""
        verdicts = [
            row.verdict_holm if holm else row.verdict
            for row in self.rows
            if metric in (None, row.metric) and system_name in (None, row.system_name)
        ]
        return {verdict: verdicts.count(verdict) for verdict in VERDICTS}

    def tested(self) -> list[tuple[str, str]]:
        """Return the systems and metrics that were tested, as (system, metric)."""
        return list(dict.fromkeys((row.system_name, row.metric) for row in self.rows))

    def signatures(self) -> list[str]:
        """Return each metric with its signature, which says how its numbers were computed."""
        return sorted({f"{row.metric}: {row.signature}" for row in self.rows})

    def to_pandas(self) -> "pd.DataFrame":
        """Return a data frame with a line a row; needs pandas."""
        pd = optional("pandas", "to_pandas", ConfigError)
        return pd.DataFrame([{**asdict(row), "pair": str(row.pair)} for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, with the counts of verdicts; `from_dict` reads it back."""
        return {**super().to_dict(), "counts": self.counts()}

    def table(self) -> Table:
        """Return a table with a line a row; its notes count the verdicts and carry the signatures."""
        name = {"ar": "approximate randomization", "bs": "bootstrap resampling"}[self.test]
        counts = [
            f"{system}, {metric}: {_in_words(self.counts(metric, system))} at p < {self.alpha}; "
            f"after Holm's correction {_in_words(self.counts(metric, system, holm=True))}"
            for system, metric in self.tested()
        ]
        return Table(
            title=f"Against {self.baseline_name}: paired {name}, {self.n_samples} trials, seed {self.seed}",
            columns=("pair", "system", "metric", "baseline", "score", "delta", "p", "p (Holm)", "verdict"),
            rows=tuple(_cells(row, self.alpha) for row in self.rows),
            notes=(*counts, *filter(None, [self.doubts()]), *self.signatures()),
        )

    def doubts(self) -> str:
        """Name the rows whose verdict rests on sacreBLEU's not counting ties; empty if there are none."""
        doubtful = [
            f"{r.pair} ({r.system_name}, {r.metric}: {r.differing} differ, p = {r.p_with_ties:.3f} with ties)"
            for r in self.rows
            if r.owed_to_ties(self.alpha)
        ]
        why = "do not trust the verdict where few sentences differ, since sacreBLEU counts no ties"
        return f"{why}: {', '.join(doubtful)}" if doubtful else ""


def compare(
    systems: Mapping[str, Mapping[str, Sequence[str]]],
    references: Mapping[str, Sequence[str]],
    baseline: str,
    metrics: Sequence[str] = ("bleu", "chrf++"),
    test: PairedTest = "ar",
    n_samples: int = 10_000,
    seed: int | None = 12345,
    n_jobs: int | None = None,
) -> Comparison:
    """Test every system against the baseline, on every direction and metric.

    Args:
        systems: For each system's name, its translations: `{pair: [sentence, …]}`; the baseline among them.
        references: One reference a sentence. Directions that no system translated may be there too.
        baseline: The name of the system that the others are compared with.
        metrics: Names of sacreBLEU's metrics (see `metrics.py`).
        test: `ar`, approximate randomization, or `bs`, bootstrap resampling.
        n_samples: How many trials.
        seed: Of the random stream, which starts anew for each direction, as sacreBLEU's does; None: not
            repeatable.
        n_jobs: How many processes; None takes the processors that this process may use.

    Raises:
        UnknownPairError: If the systems do not hold the same directions, or references lack one.
        CorpusError: If line counts differ; the message names the pair and both counts.
        ConfigError: If a setting is wrong, or a metric has no statistics by sentence.

    Warns:
        UserWarning: If a verdict stands on too few differing sentences: sacreBLEU's p does not count ties.
    """
    _check_settings(metrics, n_samples, n_jobs)
    if seed is not None:
        require_count("seed", seed, least=0)
    outputs = {name: _by_pair(texts) for name, texts in systems.items()}
    wanted = _by_pair(references)
    _check_outputs(outputs, wanted, baseline)
    others = [name for name in outputs if name != baseline]
    pairs = list(outputs[baseline])
    tests = {pair: [_with_statistics(metric, pair, wanted[pair]) for metric in metrics] for pair in pairs}
    ask = partial(paired_test, test=test, n_samples=n_samples, seed=seed)
    asked = [
        (outputs[baseline][pair], {name: outputs[name][pair] for name in others}, wanted[pair], tests[pair])
        for pair in pairs
    ]
    results = _run(ask, asked, n_jobs)
    rows: list[ComparisonRow] = []
    for name in others:
        for metric in tests[pairs[0]]:
            found = [of_pair[name, metric.name] for of_pair in results]
            corrected = holm([result.p_value for result in found])
            rows += [_judged(name, metric, *each) for each in zip(pairs, found, corrected, strict=True)]
    comparison = Comparison(
        rows=tuple(rows), baseline_name=baseline, test=test, n_samples=n_samples, seed=seed
    )
    if comparison.doubts():
        warn(comparison.doubts())
    return comparison


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given (Holm, 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; a corrected value is at most 1, and
    never below that of a smaller p.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _run(ask: Callable[..., Results], asked: Sequence[tuple[Any, ...]], n_jobs: int | None) -> list[Results]:
    """Run each direction's test, several at once."""
    workers = min(len(asked), n_jobs or usable_cores())
    if workers == 1:
        return [ask(*arguments) for arguments in asked]
    # Forked processes need no `if __name__ == "__main__"` in the caller's script and start at once; these
    # touch neither torch nor CUDA. macOS and Windows cannot fork safely, or at all.
    method = "fork" if sys.platform.startswith("linux") else "spawn"
    others = set(active_children())
    with ProcessPoolExecutor(workers, get_context(method), _serve) as pool:
        try:
            with _uninterrupted():
                started = [pool.submit(ask, *arguments) for arguments in asked]
            return [running.result() for running in started]
        except BaseException:
            for worker in set(active_children()) - others:
                worker.terminate()
            raise


def _serve() -> None:
    """Be a worker of another process: what stops that one, Ctrl-C or `kill -9`, ends this one with it."""
    # Ctrl-C goes to all processes of a terminal: the workers leave it to the one that ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Its tasks come through a pipe, which its neighbours hold open too: of itself it would wait for ever.
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while processes are forked: within a hook of `os.fork`, Python forgets exceptions."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which does not fork
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _judged(
    name: str, metric: SacrebleuMetric, pair: Pair, result: PairedResult, p_holm: float
) -> ComparisonRow:
    delta, alpha = result.system - result.baseline, Comparison.alpha
    direction: Verdict = "better" if (delta < 0) == metric.lower_is_better else "worse"
    return ComparisonRow(
        pair=pair,
        metric=metric.name,
        system_name=name,
        delta=delta,
        p_holm=p_holm,
        verdict=direction if result.p_value < alpha else "not significant",
        verdict_holm=direction if p_holm < alpha else "not significant",
        **vars(result),
    )


def _with_statistics(name: str, pair: Pair, references: Sequence[str]) -> SacrebleuMetric:
    metric = sacrebleu_metric(name, pair, references)
    if metric is None:
        raise ConfigError(
            f"{name!r} cannot be tested: a paired test needs a metric of sacreBLEU (bleu, "
            "bleu:<tokenizer>, spbleu, chrf, chrf++, ter)"
        )
    return metric


def _by_pair(texts: Mapping[str, Sequence[str]]) -> Outputs:
    return {pair: list(lines) for pair, lines in by_pair(texts).items()}


def _check_settings(metrics: Sequence[str], n_samples: int, n_jobs: int | None) -> None:
    if isinstance(metrics, str) or not metrics or len(set(metrics)) != len(metrics):
        raise ConfigError(f"metrics is a list of different names such as ('bleu', 'chrf++'), got {metrics!r}")
    if n_samples < 1 or (n_jobs is not None and n_jobs < 1):
        raise ConfigError(f"n_samples and n_jobs are at least 1, got {n_samples} and {n_jobs}")
    if n_samples < 100:
        warn(
            f"{n_samples} trials: no p-value can be below {1 / (n_samples + 1):.3f}; papers use 1,000 to "
            "10,000"
        )


def _check_outputs(outputs: Mapping[str, Outputs], references: Outputs, baseline: str) -> None:
    if baseline not in outputs or len(outputs) < 2:
        raise ConfigError(
            f"compare needs the baseline {baseline!r} and another system; systems are: "
            f"{', '.join(outputs) or 'none'}"
        )
    pairs = outputs[baseline]
    require(bool(pairs), f"the baseline {baseline!r} has no direction")
    for name, held in {**outputs, "references": references}.items():
        missing = [pair for pair in pairs if pair not in held]
        extra = [pair for pair in held if pair not in pairs and name != "references"]
        if missing or extra:
            raise UnknownPairError(
                f"{name} and the baseline {baseline} hold different directions: {name} lacks "
                f"{', '.join(missing) or 'none'}, the baseline lacks {', '.join(extra) or 'none'}"
            )
    for name, held in outputs.items():
        for pair, lines in held.items():
            require_parallel(pair, lines, references[pair], name)


def _cells(row: ComparisonRow, alpha: float) -> tuple[str | float, ...]:
    p_values = (f"{row.p_value:.4f}", f"{row.p_holm:.4f}")
    scores = (row.baseline, row.system, row.delta)
    return (str(row.pair), row.system_name, row.metric, *scores, *p_values, row.verdict_in_words(alpha))


def _in_words(counts: Mapping[Verdict, int]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
