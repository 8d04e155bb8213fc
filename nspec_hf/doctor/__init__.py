"""Checks of a set-up before any work: what will go wrong with it, why, and how to mend it."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.doctor.setup import (
        Check as Check,
        Finding as Finding,
        NotCheckedError as NotCheckedError,
        Setup as Setup,
    )
    from nspec_hf.doctor.examination import CHECKS as CHECKS, Report as Report, examine as examine

__getattr__, __dir__, __all__ = attach(__name__)
