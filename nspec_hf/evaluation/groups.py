"""Systems side by side: averages over groups of directions and resource tiers, as in the papers' tables.

Tan et al.'s Tables 2, 6, 11 and 14 are `grouped_table(systems, by="tier")`, Tables 15 and 16 its counts of
zero-shot directions that reach 5 and 10 BLEU. An average counts every direction once.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from nspec_hf.core import MANY_TO_ONE, ONE_TO_MANY, ZERO_SHOT, Cell, ConfigError, Table, require
from nspec_hf.evaluation.system_scores import SystemScores, notes_of

GROUPS = (ONE_TO_MANY, MANY_TO_ONE, ZERO_SHOT)
Column = tuple[str | None, str | None]
"""Group and tier of the directions that a column averages; None takes all."""


def grouped_table(
    systems: Sequence[SystemScores],
    metric: str = "bleu",
    by: Literal["group", "tier"] = "group",
    baseline: str | None = None,
    thresholds: Sequence[float] | None = None,
) -> Table:
    """Compare systems by their averages.

    Args:
        systems: A line each.
        metric: Whose averages.
        by: A column for each group of directions, or for each tier within each group.
        baseline: If given, the other systems' lines show the difference from this one.
        thresholds: Also count the zero-shot directions that reach these values; None: 5 and 10 for BLEU, and
            none for other metrics. Neither counts nor the share of output in the wrong language, which is
            shown where it was looked for, are ever differences.

    Raises:
        ConfigError: If there are no systems, the baseline is not among them, or they differ in pairs, pivot
            or tiers.
        UnknownPairError: If a system lacks a score.
    """
    _check_alike(systems, baseline)
    first = systems[0]
    columns = _columns(first, by)
    if thresholds is None:
        thresholds = (5, 10) if metric.lower().startswith("bleu") else ()
    counted = tuple(thresholds) if first.select(ZERO_SHOT) else ()
    looked = any(wrong_language(system) is not None for system in systems)
    reference = next((system for system in systems if system.name == baseline), None)
    rows: list[dict[str, Cell]] = []
    for system in systems:
        base = None if system is reference else reference
        row: dict[str, Cell] = {"system": system.name}
        for heading, column in columns.items():
            mean = _mean(system, metric, column)
            row[heading] = mean if base is None else mean - _mean(base, metric, column)
        row |= {f"zero-shot ≥ {threshold:g}": system.at_least(threshold, metric) for threshold in counted}
        rows.append(row | ({"zero-shot wrong language %": wrong_language(system)} if looked else {}))
    return Table(
        title=f"{metric}, mean over directions" + (f"; differences from {baseline}" if baseline else ""),
        columns=tuple(rows[0]),
        rows=tuple(tuple(row.values()) for row in rows),
        notes=notes_of(systems, [metric]),
    )


def wrong_language(system: SystemScores) -> float | None:
    """Return the mean share of zero-shot output in the wrong language, in percent; None if not looked for.

    Directions into languages that the identifier does not know are left out.
    """
    looked_at = [pair for pair in system.select(ZERO_SHOT) if pair in system.off_target]
    known = [share for pair in looked_at if (share := system.off_target[pair].share) is not None]
    return 100 * math.fsum(known) / len(known) if known else None


def tiers_from_sizes(
    sizes: Mapping[str, int], high: int | None = None, med: int | None = None
) -> dict[str, str]:
    """Sort languages into `high`, `med` and `low` by how many training sentences they have.

    Args:
        sizes: Language → number of sentences.
        high: From how many sentences on a language is `high`.
        med: From how many on it is `med`. Without bounds, the range from the smallest to the largest size
            is cut into thirds on a logarithmic scale: 5,000,000, 1,000,000 and 100,000 (EC30) become high,
            med and low.

    Raises:
        ConfigError: If a size is not positive, or only one of the bounds is given or they are in the wrong
            order.
    """
    least = min(sizes.values(), default=0)
    require(least >= 1, f"every language has at least one sentence, got {dict(sizes)}")
    require((high is None) == (med is None), "give both bounds, high and med, or neither")
    if high is None or med is None:
        low, top = math.log(least), math.log(max(sizes.values()))
        med_log, high_log = low + (top - low) / 3, low + 2 * (top - low) / 3
    else:
        med_log, high_log = math.log(max(med, 1)), math.log(max(high, 1))
    require(med_log <= high_log, f"high starts at more sentences than med, got high={high} and med={med}")
    return {
        language: "high" if math.log(size) >= high_log else "med" if math.log(size) >= med_log else "low"
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


def _mean(system: SystemScores, metric: str, column: Column) -> float:
    mean = system.average(metric, *column)
    return math.nan if mean is None else mean


def _check_alike(systems: Sequence[SystemScores], baseline: str | None) -> None:
    names = [system.name for system in systems]
    if not systems or len(set(names)) != len(names) or (baseline is not None and baseline not in names):
        raise ConfigError(
            f"a table needs systems of different names, the baseline {baseline!r} too; got {names}"
        )
    first = systems[0]
    for system in systems[1:]:
        both, differ = f"{system.name} and {first.name}", sorted(set(system.pairs) ^ set(first.pairs))
        require(not differ, f"{both} were not scored on the same pairs; differing: {', '.join(differ)}")
        alike = (system.pivot, dict(system.tiers)) == (first.pivot, dict(first.tiers))
        require(alike, f"{both} differ in pivot or tiers, so their groups do too")
