"""What each system of a comparison adds and takes, beside what the papers print of it."""

from collections.abc import Mapping
from typing import Any

from nspec_hf.comparison.table_data import RowResult, Spread, SystemsComparison
from nspec_hf.core import Cell, Table
from nspec_hf.systems import System

PRINTED: Mapping[str, str] = {
    # Tan et al. 2024: Table 5, A.2.4, §6.1, Table 11.
    "lass": "0 %; +33 hours on 4 GPUs; 9.84 GB",
    "neuron_specialization": "0 %; +5 minutes; 3e-3 GB",
    "family_adapters": "+70 % (EC30)",
    "random": "0 %",
    "finetune": "0 %",
    "shallow": "−39 %",
    "wide": "+23 %",
    "deep": "+40 %",
    # Xie et al. 2021: parameters of Table 1 (IWSLT-17, the base has 64.69 M) and Table 2 (Europarl, 90.42 M).
    "individual": "+621 % (IWSLT-17), +726 % (Europarl)",
    "target_attention": "+88 % (IWSLT-17), +203 % (Europarl)",
    "allocation_te": "0 %",
    "allocation_av": "0 %",
    "expansion": "+13 % (Europarl)",
}
"""System → extra parameters; time of extraction; extra memory, as printed."""

PRINTED_BY: Mapping[str, tuple[str, Mapping[Any, str]]] = {
    # Two a layer: Tan et al., Table 5 and A.2.3; one: Xie et al., Tables 1 and 2.
    "pair_adapters": (
        "per_layer",
        {
            2: "+87 % (EC30), +67 % (IWSLT); n/a; 1.42 GB",
            1: "+20 % (IWSLT-17), +21 % (Europarl)",
        },
    ),
    # Tan et al., Tables 1 and 9; without a bound 118 M of 47 M (Table 8), which is +151 %.
    "differentiation": (
        "upper_bound",
        {1.0: "+100 % (IWSLT)", 0.51: "+51 % (shallow)", None: "+252 % (shallow)"},
    ),
}
"""System → the setting on which it depends, and its value → as printed."""


def printed_costs(system: System) -> str | None:
    """Return what the papers print of a system's costs; None where they print nothing."""
    setting, by_value = PRINTED_BY.get(system.name, ("", {}))
    return by_value.get(getattr(system, setting)) if setting else PRINTED.get(system.name)


def costs_table(comparison: SystemsComparison) -> Table:
    """Return what each system adds and takes (Tan et al. 2024, Table 5), beside the papers' figures."""
    columns = (
        *("system", "extra parameters", "Δθ", "extra memory KiB"),
        *("extraction s", "training s", "decoding s", "updates", "in the papers"),
    )
    return Table(
        title="Costs of one run",
        columns=columns,
        rows=tuple(_cells(row) for row in comparison.rows),
        notes=(
            "Δθ: extra parameters as a share of those of the base that the row goes on from",
            "extra memory: parameters at four bytes each, and masks",
            "decoding: all tested directions; in the papers: Δθ; extraction; extra memory, at their size",
            *comparison.notes,
        ),
    )


def _cells(row: RowResult) -> tuple[Cell, ...]:
    printed, results = printed_costs(row.system), list(row.results.values())
    if not results:
        return (row.name, "not run", *[None] * 6, printed)
    facts, base = results[0].facts, row.base_parameters
    extra, more = facts.get("extra_parameters"), facts.get("extra_bytes")
    seconds = [
        Spread.over(result.seconds(part) for result in results)
        for part in ("extraction", "training", "decoding")
    ]
    return (
        row.name,
        extra,
        None if extra is None or not base else f"{100 * extra / base:+.0f} %",
        None if extra is None or more is None else (4 * extra + more) / 1024,
        *(spread and spread.text(digits=1) for spread in seconds),
        facts.get("updates"),
        printed,
    )
