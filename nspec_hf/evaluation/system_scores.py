"""The scores of one system: every direction and metric, and averages over the groups that papers report.

A direction belongs to a group (one-to-many out of the pivot, many-to-one into it, zero-shot without it) and
to a resource tier: that of its language other than the pivot (`high`), or, for a zero-shot direction, those
of both (`high-low`). `groups.py` sets several systems side by side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nspec_hf.core import (
    ZERO_SHOT,
    Cell,
    ConfigError,
    Pair,
    Table,
    UnknownPairError,
    by_pair,
    languages_of,
    pivot_of,
    require,
)
from nspec_hf.evaluation.language_id import OffTarget
from nspec_hf.evaluation.metrics import Score, score
from nspec_hf.evaluation.saved import Saved

TIERS = ("high", "med", "low")
"""Resource tiers in the order of tables; others come after them by name."""


@dataclass(frozen=True, kw_only=True)
class SystemScores(Saved):
    """What one system scored."""

    what: ClassVar[str] = "scores of a system"

    name: str
    scores: Mapping[Pair, Mapping[str, Score]]
    """For each pair, metric name → score."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """How the translations were made: beams, length penalty, checkpoint, mask fingerprint … JSON values."""
    pivot: str = "en"
    tiers: Mapping[str, str] = field(default_factory=dict)
    """Language → resource tier; empty: no tiers. The pivot needs none."""
    off_target: Mapping[Pair, OffTarget] = field(default_factory=dict)
    """Shares of output in the wrong language, where they were looked for."""

    def __post_init__(self) -> None:
        """Spell the pivot as the pairs do."""
        object.__setattr__(self, "pivot", pivot_of(languages_of(self.scores), self.pivot))

    @property
    def pairs(self) -> list[Pair]:
        """The pairs that were scored."""
        return list(self.scores)

    @property
    def metrics(self) -> list[str]:
        """The metrics that any pair has, in order of appearance."""
        return list(dict.fromkeys(metric for scores in self.scores.values() for metric in scores))

    def tier(self, pair: str) -> str | None:
        """Return a pair's resource tier, `high` or, without the pivot, `high-low`; None without tiers.

        Raises:
            ConfigError: If there are tiers but a language of the pair has none.
        """
        if not self.tiers:
            return None
        pair = Pair(pair)
        languages = [code for code in (pair.source, pair.target) if code != self.pivot]
        missing = [code for code in languages if code not in self.tiers]
        if missing:
            raise ConfigError(f"{pair}: {', '.join(missing)} has no tier; tiers are: {dict(self.tiers)}")
        return "-".join(self.tiers[code] for code in languages)

    def tiers_of(self, pairs: Sequence[Pair]) -> list[str]:
        """Return the tiers of some pairs in the order of tables: `TIERS`, then others by name."""

        def order(tier: str) -> list[tuple[int, str]]:
            return [(TIERS.index(part) if part in TIERS else len(TIERS), part) for part in tier.split("-")]

        return sorted({tier for pair in pairs if (tier := self.tier(pair))}, key=order)

    def select(self, group: str | None = None, tier: str | None = None) -> list[Pair]:
        """Return the pairs of a group, of a tier, or of both."""
        return [
            pair
            for pair in self.scores
            if group in (None, pair.group(self.pivot)) and (tier is None or tier == self.tier(pair))
        ]

    def value(self, pair: str, metric: str) -> float:
        """Return one value.

        Raises:
            UnknownPairError: If the pair has no such score.
        """
        scores = self.scores.get(Pair(pair), {})
        if metric not in scores:
            raise UnknownPairError(
                f"{self.name} has no {metric} of {pair}; it has: {', '.join(scores) or 'nothing'}"
            )
        return scores[metric].value

    def average(self, metric: str, group: str | None = None, tier: str | None = None) -> float | None:
        """Return the mean over directions, each counting once; None if there is no direction.

        Raises:
            UnknownPairError: If a direction lacks that score: a mean over some directions would mislead.
        """
        values = [self.value(pair, metric) for pair in self.select(group, tier)]
        return math.fsum(values) / len(values) if values else None

    def at_least(self, threshold: float, metric: str = "bleu") -> int:
        """Return how many zero-shot directions reach a threshold (5 and 10: Tan et al., Tables 15 and 16)."""
        return sum(self.value(pair, metric) >= threshold for pair in self.select(ZERO_SHOT))

    def table(self) -> Table:
        """Return a table with a line a direction and a column a metric, and off-target shares if known."""
        columns = ["pair", "group", *(["tier"] if self.tiers else []), *self.metrics]
        columns += ["wrong language %", "of references %"] if self.off_target else []
        rows = tuple(self._row(pair) for pair in self.scores)
        return Table(title=self.name, columns=tuple(columns), rows=rows, notes=notes_of([self], self.metrics))

    def _row(self, pair: Pair) -> tuple[Cell, ...]:
        cells: list[Cell] = [str(pair), pair.group(self.pivot), *([self.tier(pair)] if self.tiers else [])]
        scores, languages = self.scores[pair], self.off_target.get(pair)
        cells += [scores[metric].value if metric in scores else None for metric in self.metrics]
        if self.off_target:
            shares = (None, None) if languages is None else (languages.share, languages.floor)
            cells += [None if share is None else 100 * share for share in shares]
        return tuple(cells)


def score_system(
    name: str,
    outputs: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = ("bleu", "chrf++"),
    *,
    sources: Mapping[str, Sequence[str]] | None = None,
    **about: Any,
) -> SystemScores:
    """Score all directions of one system.

    Args:
        name: The system's name.
        outputs: Its translations: `{pair: [sentence, …]}`.
        references: One a sentence, for at least these pairs.
        metrics: Names as in `metrics.py`.
        sources: What was translated, for metrics that look at it.
        **about: Further fields of `SystemScores`: `generation`, `pivot`, `tiers`, `off_target`.

    Raises:
        UnknownPairError: If a direction has no references.
        CorpusError: If line counts differ; the message names the pair and both counts.
    """
    scores = {}
    wanted, original = by_pair(references), None if sources is None else by_pair(sources)
    for pair, sentences in by_pair(outputs).items():
        if pair not in wanted:
            raise UnknownPairError(
                f"{pair} has no references; there are those of: {', '.join(wanted) or 'none'}"
            )
        said = None if original is None else original[pair]
        scores[pair] = {metric: score(sentences, wanted[pair], metric, pair, said) for metric in metrics}
    return SystemScores(name=name, scores=scores, **about)


def require_names(names: Sequence[str]) -> None:
    """Check that systems which are shown together have different names: else one takes another's place.

    Raises:
        ConfigError: If two have the same.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    require(
        not twice,
        f"several systems are called {', '.join(twice)}; score them under names of their own: nspec evaluate "
        "--name NAME",
    )


def notes_of(systems: Sequence[SystemScores], metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the signatures behind the numbers, and how each system translated."""
    signatures = {
        f"{metric}: {scores[metric].signature}"
        for system in systems
        for scores in system.scores.values()
        for metric in metrics
        if metric in scores
    }
    made = [
        f"{system.name}: " + ", ".join(f"{key}={value}" for key, value in system.generation.items())
        for system in systems
        if system.generation
    ]
    return (*sorted(signatures), *made)
