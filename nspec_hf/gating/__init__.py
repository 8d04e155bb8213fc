"""Each row runs its own neurons: a gate puts masks on a model, in one of three modes."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.gating.config import (
        MADE_BY_FILE as MADE_BY_FILE,
        GateConfig as GateConfig,
        GateMode as GateMode,
        Silence as Silence,
        facts_of_training as facts_of_training,
        stated_config as stated_config,
    )
    from nspec_hf.gating.internals import (
        bounds_with_prompt as bounds_with_prompt,
        generation_setting as generation_setting,
    )
    from nspec_hf.gating.routing import Routing as Routing
    from nspec_hf.gating.entry_points import TakenOver as TakenOver, Takeover as Takeover
    from nspec_hf.gating.attachment import (
        Attachment as Attachment,
        attachment_of as attachment_of,
        set_aside as set_aside,
        freeze_unsaved as freeze_unsaved,
    )
    from nspec_hf.gating.linears import refuse_changed_linears as refuse_changed_linears, resize as resize
    from nspec_hf.gating.gate import (
        MASKS_FOLDER as MASKS_FOLDER,
        NeuronGate as NeuronGate,
        composes as composes,
    )
    from nspec_hf.gating.widen import add_neurons as add_neurons, drawn_rows as drawn_rows

__getattr__, __dir__, __all__ = attach(__name__)
