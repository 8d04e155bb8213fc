"""The two-minute tour: the whole method on made-up language families."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.demo.demo import tour as tour

__getattr__, __dir__, __all__ = attach(__name__)
