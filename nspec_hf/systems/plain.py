"""Systems without anything for single pairs: the base itself, and training it further."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nspec_hf.systems.system import Outputs, System, Workbench


@dataclass(frozen=True, kw_only=True)
class Baseline(System):
    """The multilingual base as it is: what all others are compared with."""

    name: ClassVar[str] = "baseline"
    source: ClassVar[str] = "the multilingual base, not trained further"

    def run(self, bench: Workbench) -> dict[str, Any]:
        """Train nothing."""
        return {"extra_parameters": 0, "extra_bytes": 0, "updates": 0, "training_seconds": 0.0}

    def outputs(self, bench: Workbench) -> Outputs:
        """Return the base's translations."""
        return bench.translate(bench.base(), None, "outputs")


@dataclass(frozen=True, kw_only=True)
class FineTune(System):
    """All weights, all pairs, the same budget: the control that every continued system has to beat."""
