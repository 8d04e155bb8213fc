"""The settings of one training run. Importing them loads no torch, so that a command's help comes at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from nspec_hf.core import is_number, require, require_count, require_share
from nspec_hf.data import BatchConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Any `Seq2SeqTrainingArguments` by name: `max_steps`, `learning_rate`, `bf16` … On the command line it
    may go without this word: `--train.warmup_steps 200`. Where it is silent: Adam with β 0.9/0.98 and ε 1e-9,
    learning rate 5e-4 after 4,000 warm-up updates (a tenth of `max_steps` where that is less than 8,000),
    inverse square root, label smoothing 0.1 (Tan et al. 2024, A.2)."""

    batches: BatchConfig = field(default_factory=BatchConfig)
    """How sentences are put into batches."""

    patience: int | None = None
    """Stop after this many evaluations in a row without a better validation loss, and keep the best; None
    trains to the end."""

    elastic: bool = False
    """Train all coverages that the masks keep (`nspec select --levels`), so that one checkpoint runs at any
    of them afterwards (`nspec translate --coverage`): each micro-batch draws one."""

    teacher: float | None = None
    """With `elastic`: run each micro-batch with the densest masks too, and let the drawn ones learn from that
    with this weight, in [0, 1]; 0.5 did best. About twice the work of an update. None: no teacher."""

    def changed(
        self,
        max_steps: int | None = None,
        learning_rate: float | None = None,
        batch_tokens: int | None = None,
        seed: int | None = None,
    ) -> Self:
        """Return the run with other values of what is changed most; None leaves a setting as it is.

        A sentence that is longer than `batch_tokens` is left out, with a warning; the seed is that of the
        order of the text, and of dropout.
        """
        given = {"max_steps": max_steps, "learning_rate": learning_rate, "seed": seed}
        arguments = {name: value for name, value in given.items() if value is not None}
        batches = self.batches
        if batch_tokens is not None:
            require_count("batch_tokens", batch_tokens)
            longest = min(batches.max_length or batch_tokens, batch_tokens)
            batches = replace(batches, max_tokens=batch_tokens, max_length=longest)
        if seed is not None:
            batches = replace(batches, seed=seed)
        return replace(self, arguments={**self.arguments, **arguments}, batches=batches)

    def __post_init__(self) -> None:
        """Check the values."""
        # Settings are written into result files, and a token must not be.
        require(
            "hub_token" not in self.arguments,
            "hub_token would be written into result files; log in with `hf auth login`, or set HF_TOKEN",
        )
        if self.teacher is not None:
            require_share("teacher", self.teacher)
            require(self.elastic, "a teacher needs elastic training: --train.elastic true")
        given = self.patience
        require(
            given is None or (is_number(given) and isinstance(given, int) and given >= 1),
            f"patience is a positive number of evaluations or None, got {given!r}",
        )
