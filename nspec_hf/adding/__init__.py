"""New pairs for a trained model, beside frozen weights: the old pairs stay, bit for bit, what they were."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.adding.config import AddConfig as AddConfig, auto_width as auto_width
    from nspec_hf.adding.addition import Addition as Addition, Layout as Layout, layout_for as layout_for
    from nspec_hf.adding.added import AddedPairs as AddedPairs
    from nspec_hf.adding.languages import find_words as find_words, new_languages as new_languages
    from nspec_hf.adding.saved import (
        ADDED_FILE as ADDED_FILE,
        base_of as base_of,
        load_added as load_added,
        push_added as push_added,
        save_added as save_added,
    )
    from nspec_hf.adding.run import (
        ADDED_FOLDER as ADDED_FOLDER,
        AddResult as AddResult,
        Untouched as Untouched,
        add_pairs as add_pairs,
        prove_untouched as prove_untouched,
        retrain as retrain,
    )

__getattr__, __dir__, __all__ = attach(__name__)
