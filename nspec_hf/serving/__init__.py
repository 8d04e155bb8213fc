"""Load what was trained or published, and answer requests with it; publish what was trained."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.serving.config import BatchingConfig as BatchingConfig, ServeConfig as ServeConfig
    from nspec_hf.serving.layout import as_trained as as_trained
    from nspec_hf.serving.loading import LoadedModel as LoadedModel, load as load
    from nspec_hf.serving.batching import BatchingTranslator as BatchingTranslator
    from nspec_hf.serving.app import (
        check_address as check_address,
        make_app as make_app,
        run_server as run_server,
    )
    from nspec_hf.serving.publishing import publish as publish

__getattr__, __dir__, __all__ = attach(__name__)
