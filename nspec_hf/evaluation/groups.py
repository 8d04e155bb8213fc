"""Averages over groups of directions and resource tiers, as in the papers' tables.

A line of Tan et al.'s Tables 2, 6, 11 and 14 is `grouped_table(system, by="tier")`, of Tables 15 and 16 its
counts of zero-shot directions that reach 5 and 10 BLEU. An average counts every direction once.
"""

import math
from collections.abc import Mapping
from typing import Literal

from nspec_hf.core import MANY_TO_ONE, ONE_TO_MANY, ZERO_SHOT, Cell, ConfigError, Table, require
from nspec_hf.evaluation.system_scores import SystemScores, notes_of

GROUPS = (ONE_TO_MANY, MANY_TO_ONE, ZERO_SHOT)
_THRESHOLDS = (5, 10)
Column = tuple[str | None, str | None]
"""Group and tier of the directions that a column averages; None takes all."""


def grouped_table(
    system: SystemScores, metric: str = "bleu", by: Literal["group", "tier"] = "group"
) -> Table:
    """Return a system's averages in a line.

    Zero-shot directions that reach 5 and 10 BLEU are counted, and the share of output in the wrong language
    is shown where it was looked for.

    Args:
        system: Its scores.
        metric: Whose averages.
        by: A column for each group of directions, or for each tier within each group.

    Raises:
        ConfigError: If there are no tiers to group by.
        UnknownPairError: If the system lacks a score.
    """
    row: dict[str, Cell] = {"system": system.name}
    for heading, column in _columns(system, by).items():
        mean = system.average(metric, *column)
        row[heading] = math.nan if mean is None else mean
    if metric.lower().startswith("bleu") and system.select(ZERO_SHOT):
        row |= {f"zero-shot ≥ {threshold}": system.at_least(threshold, metric) for threshold in _THRESHOLDS}
    wrong = wrong_language(system)
    row |= {} if wrong is None else {"zero-shot wrong language %": wrong}
    return Table(
        title=f"{metric}, mean over directions",
        columns=tuple(row),
        rows=(tuple(row.values()),),
        notes=notes_of([system], [metric]),
    )


def wrong_language(system: SystemScores) -> float | None:
    """Return the mean share of zero-shot output in the wrong language, in percent; None if not looked for.

    Directions into languages that the identifier does not know are left out.
    """
    looked_at = [pair for pair in system.select(ZERO_SHOT) if pair in system.off_target]
    known = [share for pair in looked_at if (share := system.off_target[pair].share) is not None]
    return 100 * math.fsum(known) / len(known) if known else None


def tiers_from_sizes(sizes: Mapping[str, int]) -> dict[str, str]:
    """Sort languages into `high`, `med` and `low` by how many training sentences they have.

    The range from the smallest to the largest size is cut into thirds on a logarithmic scale: 5,000,000,
    1,000,000 and 100,000 (EC30) become high, med and low.

    Raises:
        ConfigError: If a size is not positive.
    """
    least = min(sizes.values(), default=0)
    require(least >= 1, f"every language has at least one sentence, got {dict(sizes)}")
    low, top = math.log(least), math.log(max(sizes.values()))
    med, high = low + (top - low) / 3, low + 2 * (top - low) / 3
    return {
        language: "high" if math.log(size) >= high else "med" if math.log(size) >= med else "low"
        for language, size in sizes.items()
    }


def _columns(system: SystemScores, by: str) -> dict[str, Column]:
    """Return each column's heading, group and tier, in the order of the papers."""
    require(by in ("group", "tier"), f"tables are grouped by 'group' or 'tier', got {by!r}")
    if by == "tier" and not system.tiers:
        raise ConfigError(f"{system.name} has no tiers to group by; give tiers (see tiers_from_sizes)")
    columns: dict[str, Column] = {}
    for group in GROUPS:
        pairs = system.select(group)
        if by == "tier":
            columns |= {f"{group} {tier}": (group, tier) for tier in system.tiers_of(pairs)}
        if pairs:
            columns[f"{group} all" if by == "tier" else group] = (group, None)
    groups = {group for group, _ in columns.values()}
    return columns | {"all": (None, None)} if len(groups) > 1 else columns
