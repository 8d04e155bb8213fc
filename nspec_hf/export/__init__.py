"""A pair's own model: without the neurons and the subwords that it does not use, also for CTranslate2."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.export.config import ExportConfig as ExportConfig
    from nspec_hf.export.memory import page_out as page_out
    from nspec_hf.export.prune import pruned as pruned
    from nspec_hf.export.ctranslate2 import Decoder as Decoder, convert as convert
    from nspec_hf.export.verify import gated_tokens as gated_tokens, greedy as greedy, until_end as until_end
    from nspec_hf.export.trim import VocabularyReport as VocabularyReport
    from nspec_hf.export.report import REPORT_FILE as REPORT_FILE, ExportReport as ExportReport
    from nspec_hf.export.reading import (
        exported_masks as exported_masks,
        exported_tokens as exported_tokens,
        folder_of_pair as folder_of_pair,
        load_pruned as load_pruned,
    )
    from nspec_hf.export.export import export_model as export_model

__getattr__, __dir__, __all__ = attach(__name__)
