"""Systems without anything for single pairs: the base as it is, and training all of it further."""

from dataclasses import dataclass
from typing import Any, ClassVar

from nspec_hf.systems.run import Outputs, Run
from nspec_hf.systems.system import System


@dataclass(frozen=True, kw_only=True)
class Baseline(System):
    """The multilingual base as it is: what all others are compared with."""

    name: ClassVar[str] = "baseline"
    source: ClassVar[str] = "the multilingual base, not trained further"
    trains: ClassVar[bool] = False

    def train(self, run: Run) -> dict[str, Any]:
        """Train nothing."""
        return {"extra_parameters": 0, "extra_bytes": 0, "updates": 0, "training_seconds": 0.0}

    def outputs(self, run: Run) -> Outputs:
        """Return the base's translations."""
        return run.translate(run.base(), None, "outputs")


@dataclass(frozen=True, kw_only=True)
class FineTune(System):
    """All weights, all pairs, the same budget: the control that every continued system has to beat."""

    name: ClassVar[str] = "finetune"
    source: ClassVar[str] = "continued training of all weights on all pairs, the same budget"
