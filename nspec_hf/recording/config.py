"""What one pass over the text counts."""

from dataclasses import dataclass
from typing import Literal

from nspec_hf.core import as_names, is_number, require, warn_unused

KINDS = ("ffn", "attention", "ffn_out")
SIDES = ("encoder", "decoder")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What one pass over the text counts (Tan et al. 2024, §3.1; Xie et al. 2021, Eq. 5 to 8)."""

    count: Literal["tokens", "sentences"] = "tokens"
    """`tokens`: a neuron counts once for every non-padding position where it is active. `sentences`: at
    most once a sentence, as the paper's text says (the union over its tokens). Neurons that fire once in
    nearly every sentence are kept by the second, silenced by the first; small models need them
    (`recipes/RESULTS.md`)."""

    kinds: tuple[str, ...] = ("ffn",)
    """Which sites: `ffn` (feed-forward neurons), `attention` (outputs of q, k, v and out), `ffn_out`."""

    active_on: Literal["product", "gate"] = "product"
    """For gated blocks (mT5, Gemma …): whether `active` looks at the down projection's input, or at
    σ(gate) alone."""

    av: bool = False
    """Also record the mean absolute activation (importance by absolute value, AV)."""

    te: bool = False
    """Also record |∂L/∂h · h| (importance by Taylor expansion, TE). Needs a backward pass, about three
    times the work."""

    label_smoothing: float | None = None
    """For `te`: label smoothing of the loss whose gradient is taken, in [0, 1); 0.1 is usual in training."""

    max_sentences: int | None = None
    """Stop counting a pair after this many sentences; None counts all."""

    progress: bool = True
    """Show a progress bar where standard error is a terminal."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(
            self.count in ("tokens", "sentences"), f"count is 'tokens' or 'sentences', got {self.count!r}"
        )
        require(
            self.active_on in ("product", "gate"), f"active_on is 'product' or 'gate', got {self.active_on!r}"
        )
        object.__setattr__(self, "kinds", as_names(self.kinds))
        require(bool(self.kinds), f"kinds names at least one of: {', '.join(KINDS)}")
        unknown = sorted(set(self.kinds) - set(KINDS))
        require(not unknown, f"unknown kinds {unknown}; kinds are: {', '.join(KINDS)}")
        smoothing = self.label_smoothing or 0.0
        require(
            is_number(smoothing) and 0 <= smoothing < 1,
            f"label_smoothing is a share in [0, 1), got {smoothing!r}",
        )
        limit = self.max_sentences
        require(
            limit is None or (type(limit) is int and limit > 0),
            f"max_sentences is a positive whole number or None, got {limit!r}",
        )
        warn_unused(self, {"label_smoothing": "te"})
