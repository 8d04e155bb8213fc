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
    from nspec_hf.systems.result import (
        RunResult as RunResult,
        portable as portable,
        signed_scores as signed_scores,
        without_places as without_places,
    )
    from nspec_hf.systems.display import (
        Speaker as Speaker,
        TrainingBar as TrainingBar,
        quiet_loading as quiet_loading,
    )
    from nspec_hf.systems.run import Run as Run
    from nspec_hf.systems.system import System as System
    from nspec_hf.systems.architectures import Architecture as Architecture
    from nspec_hf.systems.masked import Masked as Masked, NeuronSpecialization as NeuronSpecialization
    from nspec_hf.systems.elastic import ElasticMasks as ElasticMasks
    from nspec_hf.systems.registry import SYSTEMS as SYSTEMS, make_system as make_system
    from nspec_hf.systems.pipeline import pretrain as pretrain, run_system as run_system
    from nspec_hf.systems.before_training import (
        untrained as untrained,
        untrained_table as untrained_table,
        was_measured as was_measured,
    )
    from nspec_hf.systems.whole_run import run_to_report as run_to_report

__getattr__, __dir__, __all__ = attach(__name__)
