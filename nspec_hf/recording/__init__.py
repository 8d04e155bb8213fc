"""Who fires for whom: the sites of a model, and one pass that counts their activations."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.recording.config import KINDS as KINDS, SIDES as SIDES, RecordConfig as RecordConfig
    from nspec_hf.recording.weights import (
        OWN_WEIGHTS as OWN_WEIGHTS,
        refuse_integers as refuse_integers,
        refuse_unfit as refuse_unfit,
    )
    from nspec_hf.recording.model import (
        ATTACHED as ATTACHED,
        check_decoder_inputs_given as check_decoder_inputs_given,
        decoder_prompt as decoder_prompt,
        decoder_start_token as decoder_start_token,
        empty_model as empty_model,
        eval_mode as eval_mode,
        load_config as load_config,
        load_model as load_model,
        longest_text as longest_text,
        position_limit as position_limit,
    )
    from nspec_hf.recording.sites import (
        Site as Site,
        as_sites as as_sites,
        find_sites as find_sites,
        linear_at as linear_at,
        plain_model as plain_model,
        site_activation as site_activation,
        site_from_name as site_from_name,
        weight_fingerprint as weight_fingerprint,
    )
    from nspec_hf.recording.stats import STATS_KIND as STATS_KIND, ActivationStats as ActivationStats
    from nspec_hf.recording.cross_entropy import (
        token_losses as token_losses,
        tokens_of_block as tokens_of_block,
    )
    from nspec_hf.recording.recorder import record as record
    from nspec_hf.recording.script_batches import (
        PairBatch as PairBatch,
        RowPairs as RowPairs,
        ScriptCollator as ScriptCollator,
        pairs_of as pairs_of,
    )

__getattr__, __dir__, __all__ = attach(__name__)
