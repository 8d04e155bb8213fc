"""The tables of a comparison of systems, as text and as a Markdown page.

Cells over several seeds read `mean ± sample standard deviation`. Verdicts of paired tests read `better /
worse / not significant`, counted over directions and seeds at p < 0.05, each direction alone. A row that has
not been run says so, and the command that runs it stands under the tables.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from nspec_hf.analysis import gains
from nspec_hf.comparison.costs import costs_table
from nspec_hf.comparison.table_data import REFERENCES, TRAINED, RowResult, Spread, SystemsComparison
from nspec_hf.core import ZERO_SHOT, Cell, Table
from nspec_hf.evaluation import VERDICTS

NOT_RUN = "not run"
_INDIVIDUAL = "individual"
_THRESHOLDS = (5, 10)


def comparison_tables(comparison: SystemsComparison) -> list[Table]:
    """Return all tables, those of the first metric first."""
    tables = []
    for metric in comparison.metrics:
        tables.append(averages_table(comparison, metric))
        if ZERO_SHOT in comparison.blocks:
            tables.append(zero_shot_table(comparison, metric))
        if comparison.tiers:
            tables.append(tiers_table(comparison, metric))
        table = interference_table(comparison, metric)
        tables += [] if table is None else [table]
        if any(row.results for row in comparison.rows):
            tables.append(directions_table(comparison, metric))
    return [*tables, costs_table(comparison)]


def averages_table(comparison: SystemsComparison, metric: str) -> Table:
    """Return the averages of each block, and the trained directions against base and fine-tuning."""

    def cells(row: RowResult) -> list[Cell]:
        means = [_text(row.mean(metric, pairs)) for pairs in comparison.blocks.values()]
        return [*means, *_against(comparison, row, metric, TRAINED)]

    title = f"{metric}: means over directions; Δ and verdicts over the trained ones"
    columns = (*comparison.blocks, *_against_columns(comparison))
    return _table(comparison, title, columns, cells, _reading_notes(comparison))


def zero_shot_table(comparison: SystemsComparison, metric: str) -> Table:
    """Return the zero-shot directions: mean, how many reach 5 and 10 BLEU (Tan et al., Tables 15, 16), Δ."""
    counted = _THRESHOLDS if metric.lower().startswith("bleu") else ()

    def cells(row: RowResult) -> list[Cell]:
        scores = [row.mean(metric, [pair]) for pair in comparison.blocks[ZERO_SHOT]]
        known = None not in scores
        counts = [sum(s.mean >= t for s in scores if s) if known else None for t in counted]
        mean = _text(row.mean(metric, comparison.blocks[ZERO_SHOT]))
        return [mean, *counts, *_against(comparison, row, metric, ZERO_SHOT)]

    columns = ("mean", *(f"≥ {threshold}" for threshold in counted), *_against_columns(comparison))
    return _table(comparison, f"{metric}: zero-shot directions", columns, cells)


def tiers_table(comparison: SystemsComparison, metric: str) -> Table:
    """Return averages by resource tier: the base's own, and the others' differences (Tan et al., Table 2)."""

    def cells(row: RowResult) -> list[Cell]:
        against = row.against.get("baseline")
        number = row.mean if against is None else against.difference
        return [_text(number(metric, own), signed=against is not None) for own in comparison.tiers.values()]

    title = f"{metric}: means by resource tier; rows with a sign are differences from the base"
    return _table(comparison, title, tuple(comparison.tiers), cells)


def interference_table(comparison: SystemsComparison, metric: str) -> Table | None:
    """Return gains over individual models, and where systems win (synergy) or lose (interference).

    Tan et al. 2024, Table 4. None if the individual models have not been run.
    """
    means = {
        row.name: {str(pair): own.mean for pair in comparison.pairs if (own := row.mean(metric, [pair]))}
        for row in comparison.rows
        if row.results
    }
    individual = next((r.name for r in comparison.rows if r.system.name == _INDIVIDUAL and r.results), "")
    known = means.get(individual, {}).keys()
    scores = {name: by_pair for name, by_pair in means.items() if by_pair.keys() & known}
    if len(scores) < 2:
        return None
    groups = comparison.tiers or {name: own for name, own in comparison.blocks.items() if name != TRAINED}
    differences = gains(scores, individual, metric=metric)
    named = [next((name for name, own in groups.items() if pair in own), "") for pair in differences.pairs]
    grouped = replace(differences, groups=tuple(named)).by_group()
    rows: list[tuple[Cell, ...]] = []
    for system, *numbers in zip(grouped.systems, grouped.mean, grouped.gained, grouped.lost, strict=True):
        cells = [
            (None, None) if np.isnan(mean) else (f"{mean:+.2f}", f"{gained} / {lost}")
            for mean, gained, lost in zip(*numbers, strict=True)
        ]
        rows.append((system, *itertools.chain.from_iterable(cells)))
    return Table(
        title=f"{metric} against individual models: mean gain, and directions with synergy / interference",
        columns=("system", *(heading for group in grouped.groups for heading in (group, f"{group} +/−"))),
        rows=tuple(rows),
    )


def directions_table(comparison: SystemsComparison, metric: str) -> Table:
    """Return every direction: a line each, a column a row that has been run."""
    run = [row for row in comparison.rows if row.results]
    return Table(
        title=f"{metric} of every direction",
        columns=("direction", *(row.name for row in run)),
        rows=tuple(
            (str(pair), *(_text(row.mean(metric, [pair])) for row in run)) for pair in comparison.pairs
        ),
    )


def markdown(comparison: SystemsComparison, command: str) -> str:
    """Return everything as a Markdown page, with the command that made it."""
    parts = [f"# {comparison.name}: comparison of systems", f"Made by `{command}`."]
    parts += [table.render("markdown").rstrip("\n") for table in comparison_tables(comparison)]
    missing = missing_runs(comparison)
    if missing:
        lines = "\n".join(f"- {name}: `{own}`" for name, own in missing.items())
        parts.append(f"## Not run\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def missing_runs(comparison: SystemsComparison) -> dict[str, str]:
    """Return the runs that are missing, `row, seed 1` → the command that runs it."""
    return {
        f"{row.name}, seed {run.seed}": run.command(comparison.experiment)
        for row in comparison.rows
        for run in row.runs
        if run.seed not in row.results
    }


def _table(
    comparison: SystemsComparison,
    title: str,
    columns: Sequence[str],
    cells: Callable[[RowResult], Sequence[Cell]],
    notes: tuple[str, ...] = (),
) -> Table:
    """Return a table with a line a row: its name, how many of its seeds were run, and the cells."""
    rows = tuple(
        (row.name, _seeds(row), *cells(row)) if row.results else (row.name, NOT_RUN, *[None] * len(columns))
        for row in comparison.rows
    )
    return Table(title=title, columns=("system", "seeds", *columns), rows=rows, notes=notes)


def _against(comparison: SystemsComparison, row: RowResult, metric: str, block: str) -> list[Cell]:
    """Return how a row stands against base and fine-tuning."""
    cells: list[Cell] = []
    for name in REFERENCES:
        against = row.against.get(name)
        difference = against and against.difference(metric, comparison.blocks[block])
        counts = against and against.verdicts(metric, comparison.blocks[block])
        counted = counts and " / ".join(str(counts[verdict]) for verdict in VERDICTS)
        cells += [_text(difference, signed=True), counted]
    return cells


def _seeds(row: RowResult) -> Cell:
    """Return how many seeds were run, `1 of 3` while some are missing."""
    return len(row.runs) if len(row.runs) == len(row.results) else f"{len(row.results)} of {len(row.runs)}"


def _against_columns(comparison: SystemsComparison) -> tuple[str, ...]:
    """Return the heads of `_against`'s cells: the name of the row that is compared with."""
    names = []
    for name in REFERENCES:
        used = {row.against[name].reference for row in comparison.rows if name in row.against}
        only = next(iter(used)) if len(used) == 1 else name
        names += [f"Δ {only}", f"vs {only}: b / w / n"]
    return tuple(names)


def _reading_notes(comparison: SystemsComparison) -> tuple[str, ...]:
    notes = [
        f"b / w / n: better, worse, not significant; paired randomization, {comparison.n_samples} trials"
    ]
    notes += [
        f"{name}: {trials} trials, of an earlier comparison, since translations are gone"
        for name, trials in comparison.trials.items()
    ]
    for row in comparison.rows:
        against, own = row.against.get("finetune"), dict(row.plan.train)
        if row.system.continued_dropout is not None:
            own["continued_dropout"] = row.system.continued_dropout
        if own and row.results:
            words = ", ".join(f"{name}={value}" for name, value in own.items())
            other = against.reference if against else "no row"
            notes.append(f"{row.name}: its own training ({words}), compared with {other}")
        only = against and comparison.row(against.reference)
        if only and len(only.runs) == 1 and row.results.keys() - only.results.keys():
            notes.append(f"{row.name}: all its seeds are compared with the only one of {only.name}")
    notes += comparison.doubts
    doubts = [
        f"{name.partition(' against ')[0]}, {pair}, {metric}: {test.few_differ} sentences differ"
        for name, tests in comparison.tests.items()
        for metric, by_pair in tests.items()
        for pair, test in by_pair.items()
        if test.few_differ is not None
    ]
    if doubts:
        shown = "; ".join(doubts[:3]) + (" …" if len(doubts) > 3 else "")
        notes.append(
            f"{len(doubts)} verdicts of all metrics are not to be trusted, too few sentences differ: {shown}"
        )
    return tuple(notes)


def _text(spread: Spread | None, signed: bool = False) -> str | None:
    return None if spread is None else spread.text(signed=signed)
