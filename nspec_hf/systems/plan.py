"""The plan of a comparison, as an experiment's YAML says it: rows of a table, each run with some seeds.

    compare:
      seeds: [1, 2, 3]
      rows:
        baseline: {seeds: [1]}
        finetune: {}
        random_30: {system: random, settings: {density: 0.7}}
        ns: {system: neuron_specialization}
        ns_k: {system: neuron_specialization, sweep: {coverage: [0.5, 0.8]}}      # rows ns_k_0.5 and ns_k_0.8
        ns_slow: {system: neuron_specialization, train: {learning_rate: 1.0e-4}}
        shallow: {}
        ns_shallow: {system: neuron_specialization, base: shallow}         # goes on from its pretraining

`comparison/runs.py` finds the systems and their settings; `recipes/compare.py` runs it all.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nspec_hf.core import ConfigError, require

TRAIN = "train."
"""What a swept setting's name begins with where it is an argument of training."""

# Names of rows are names of folders in `work` and parts of file names, where these two are other things.
_TAKEN = ("base", "compare")
_NAME = r"[A-Za-z0-9][\w.+-]*"


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """One row of the tables: a system with settings."""

    system: str = ""
    """Name of the system; empty: the row's own name."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """The system's settings, where they are not its defaults."""

    seeds: Sequence[int] = ()
    """Seeds to run; empty: the plan's."""

    base: str = ""
    """A row of another shape (`shallow`, `gelu` …): its model before the continuation, of its first seed, is
    what this row goes on from, and the row itself is what this one is compared with."""

    train: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the continued training that this row alone has, and `patience`. What differs from the
    fine-tuned row's budget is no longer compared on equal terms; the tables say so."""

    sweep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Setting, or `train.NAME` → values: a row each, or, for several settings, each combination. The values
    are added to the row's name."""


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """Which systems are compared, and how."""

    rows: Mapping[str, RowPlan] = field(default_factory=dict)
    """Name → row, in the order of the tables."""

    seeds: Sequence[int] = (1,)
    """Seeds of the rows that name none."""

    n_samples: int = 10_000
    """Trials of the paired tests."""

    table: str = "comparison"
    """What the tables' files are called after the experiment's name: several plans may share runs."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(
            bool(re.fullmatch(_NAME, self.table)),
            f"compare.table is a part of a file's name, letters, digits and _ . + -: {self.table!r}",
        )
        require(self.n_samples >= 1, f"compare.n_samples is at least 1, got {self.n_samples}")

    def expanded(self) -> dict[str, RowPlan]:
        """Return the rows by name, without sweeps, each with its system and seeds.

        Raises:
            ConfigError: If a name cannot be one, two rows have the same, or a row has no or doubled seeds.
        """
        rows: dict[str, RowPlan] = {}
        for name, planned in self.rows.items():
            seeds = tuple(planned.seeds or self.seeds)
            different = 0 < len(seeds) == len(set(seeds))
            require(different, f"row {name!r}: seeds are different numbers, at least one; got {seeds}")
            whole = dataclasses.replace(planned, system=planned.system or name, seeds=seeds)
            for own_name, row in _swept(name, whole):
                if not re.fullmatch(_NAME, own_name) or own_name in _TAKEN:
                    raise ConfigError(
                        f"{own_name!r} cannot be a row's name: it names a folder and files, so it is made of "
                        f"letters, digits and _ . + -, and is not one of: {', '.join(_TAKEN)}"
                    )
                require(own_name not in rows, f"two rows are called {own_name!r}; give one another name")
                rows[own_name] = row
        return rows


def _swept(name: str, row: RowPlan) -> Iterator[tuple[str, RowPlan]]:
    """Yield a row for each combination of swept values; the row itself if nothing is swept."""
    for setting, values in row.sweep.items():
        is_list = bool(values) and not isinstance(values, str)
        require(is_list, f"row {name!r}: sweep.{setting} is a list of values, got {values!r}")
        given = row.train if setting.startswith(TRAIN) else row.settings
        given_too = setting.removeprefix(TRAIN) in given
        require(not given_too, f"row {name!r}: {setting} is both given and swept; leave one out")
    for values in itertools.product(*row.sweep.values()):
        settings, train = dict(row.settings), dict(row.train)
        for setting, value in zip(row.sweep, values, strict=True):
            given = train if setting.startswith(TRAIN) else settings
            given[setting.removeprefix(TRAIN)] = value
        own = dataclasses.replace(row, settings=settings, train=train, sweep={})
        yield "_".join([name, *map(_in_a_name, values)]), own


def _in_a_name(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(map(_in_a_name, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)
