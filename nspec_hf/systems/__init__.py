"""What the papers compare with: one file a system, each trained on one budget."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.systems.plan import RowPlan as RowPlan
    from nspec_hf.systems.experiment import (
        DataConfig as DataConfig,
        ExperimentConfig as ExperimentConfig,
        read_settings as read_settings,
    )
    from nspec_hf.systems.system import System as System, Workbench as Workbench, make_system as make_system
    from nspec_hf.systems.masked import Masked as Masked
    from nspec_hf.systems.registry import SYSTEMS as SYSTEMS
    from nspec_hf.systems.run import run_system as run_system
    from nspec_hf.systems.before_training import (
        FILE as FILE,
        untrained as untrained,
        untrained_table as untrained_table,
    )

__getattr__, __dir__, __all__ = attach(__name__)
