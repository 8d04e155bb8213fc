"""The settings of one training run. Importing them loads no torch, so that a command's help comes at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nspec_hf.core import require
from nspec_hf.data import BatchConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Any `Seq2SeqTrainingArguments` by name: `max_steps`, `learning_rate`, `bf16` … Where it is silent:
    Adam with β 0.9/0.98 and ε 1e-9, learning rate 5e-4 after 4,000 warm-up updates, inverse square root,
    label smoothing 0.1 (Tan et al. 2024, A.2)."""

    batches: BatchConfig = field(default_factory=BatchConfig)
    """How sentences are put into batches."""

    patience: int | None = None
    """Stop after this many evaluations in a row without a better validation loss, and keep the best; None
    trains to the end."""

    def __post_init__(self) -> None:
        """Check the values."""
        # Settings are written into result files, and a token must not be.
        require(
            "hub_token" not in self.arguments,
            "hub_token would be written into result files; log in with `hf auth login`, or set HF_TOKEN",
        )
        require(
            self.patience is None or self.patience >= 1,
            f"patience is a positive number of evaluations or None, got {self.patience}",
        )
