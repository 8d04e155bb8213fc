"""Many systems, many seeds, one table."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.comparison.jobs import (
        Failure as Failure,
        Job as Job,
        places as places,
        run_jobs as run_jobs,
    )
    from nspec_hf.comparison.runs import (
        PlannedRow as PlannedRow,
        PlannedRun as PlannedRun,
        chosen_runs as chosen_runs,
        planned_rows as planned_rows,
        read_tests as read_tests,
    )
    from nspec_hf.comparison.aggregate import compare_rows as compare_rows
    from nspec_hf.comparison.tables import comparison_tables as comparison_tables, markdown as markdown

__getattr__, __dir__, __all__ = attach(__name__)
