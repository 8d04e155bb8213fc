"""Translate, score, decide: what got better, what got worse, and what may be chance."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.evaluation.config import TranslateConfig as TranslateConfig
    from nspec_hf.evaluation.requests import (
        check_texts as check_texts,
        shortened as shortened,
        warn_of_no_end as warn_of_no_end,
    )
    from nspec_hf.evaluation.translator import Translator as Translator
    from nspec_hf.evaluation.generate import seconds_kept as seconds_kept
    from nspec_hf.evaluation.generate import translate_test_set as translate_test_set
    from nspec_hf.evaluation.metrics import (
        Score as Score,
        sacrebleu_metric as sacrebleu_metric,
        score as score,
    )
    from nspec_hf.evaluation.comet import (
        COMET_MODEL as COMET_MODEL,
        read_comet as read_comet,
        write_comet as write_comet,
    )
    from nspec_hf.evaluation.language_id import off_target as off_target
    from nspec_hf.evaluation.system_scores import (
        SystemScores as SystemScores,
        notes_of as notes_of,
        require_names as require_names,
        score_system as score_system,
    )
    from nspec_hf.evaluation.groups import (
        grouped_table as grouped_table,
        tiers_from_sizes as tiers_from_sizes,
    )
    from nspec_hf.evaluation.significance import (
        VERDICTS as VERDICTS,
        Comparison as Comparison,
        Verdict as Verdict,
        compare as compare,
    )

__getattr__, __dir__, __all__ = attach(__name__)
