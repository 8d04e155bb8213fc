"""What a pair keeps: rules that turn statistics into masks, and the folder that they are saved in."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.masks.config import (
        BY_METHOD as BY_METHOD,
        Coverage as Coverage,
        SelectConfig as SelectConfig,
    )
    from nspec_hf.masks.rules import (
        allocate_by_importance as allocate_by_importance,
        select_by_chance as select_by_chance,
        select_by_coverage as select_by_coverage,
        select_by_coverages as select_by_coverages,
        select_random as select_random,
    )
    from nspec_hf.masks.bits import Held as Held, PackedMasks as PackedMasks, SiteBits as SiteBits
    from nspec_hf.masks.select import Recipe as Recipe
    from nspec_hf.masks.model_card import card_text as card_text, front_matter as front_matter
    from nspec_hf.masks.readable import CONFIG_FILE as CONFIG_FILE, MASKS_FILE as MASKS_FILE
    from nspec_hf.masks.repository import (
        facts_without_paths as facts_without_paths,
        fetch as fetch,
        prepare as prepare,
        pull as pull,
        stats_without_paths as stats_without_paths,
        upload as upload,
    )
    from nspec_hf.masks.masks import NeuronMasks as NeuronMasks

__getattr__, __dir__, __all__ = attach(__name__)
