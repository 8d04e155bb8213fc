"""Which rule turns statistics into masks."""

from dataclasses import dataclass
from typing import Literal, cast

from nspec_hf.core import as_names, require, require_share, require_weight
from nspec_hf.recording import SIDES

Grouping = Literal["pair", "source", "target", "separate"]
Coverage = float | Literal["paper", "sparse"]

PRESETS: dict[str, float] = {"paper": 0.95, "sparse": 0.6}
"""Coverages with a name: that of Tan et al., and the sparsest that lost nothing to fine-tuning in three
seeds: 42 % of the neurons, after a continuation as long as the training of a base that overfits by a third
of its loss. Where a base hardly overfits it costs half a BLEU and more (`recipes/RESULTS.md`)."""

_IMPORTANCE = "method=te|av"
BY_METHOD: dict[str, str] = {
    "coverage": "method=coverage",
    "coverage_decoder": "method=coverage",
    "general": _IMPORTANCE,
    "threshold": _IMPORTANCE,
    "by": "method=coverage|te|av",
    "density": "method=random",
    "seed": "method=random or temperature",
    "temperature": "method=coverage",
}
"""Setting → the method that reads it. An experiment may set them for several systems, so its file is not
warned of."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which rule turns statistics into masks, and its settings."""

    method: Literal["coverage", "te", "av", "random"] = "coverage"
    """`coverage`: the most active neurons that cover a share of the activations (Tan et al., Eq. 1). `te` and
    `av`: allocation by importance (Xie et al., Eq. 9). `random`: the control."""

    coverage: Coverage = 0.95
    """For `coverage`: k of Eq. 1, the share of a layer's activations to cover, in (0, 1]; or `paper` (0.95),
    or `sparse` (0.6: less than half of the neurons, for little text, and a continuation as long as the
    base's training)."""

    coverage_decoder: float | None = None
    """For `coverage`: the decoder's k, where it is not the encoder's; None takes `coverage` on both sides."""

    sides: tuple[str, ...] = SIDES
    """Which sides get masks; sites of the other side stay dense."""

    general: float = 0.9
    """For `te` and `av`: ρ, the share of neurons that every pair keeps, in [0, 1]."""

    threshold: float = 0.7
    """For `te` and `av`: k of Eq. 9; a pair gets a specific neuron where its importance exceeds k·max, in
    [0, 1]."""

    by: Grouping = "pair"
    """Select per pair, per source language, per target language, or per source in the encoder and per target
    in the decoder; pairs that share the language share one mask. Not for `random`."""

    density: float = 0.7
    """For `random`: the share of neurons kept at every site, in (0, 1]."""

    seed: int = 1
    """For `random`, and for a `temperature`: the seed, zero or more."""

    temperature: float = 0.0
    """For `coverage`: above 0, as many neurons are drawn with chances that follow activity; the weight of
    chance. 0.3 takes three quarters of a pair's own neurons, for a base that overfits by half of its loss
    (`recipes/RESULTS.md`)."""

    def __post_init__(self) -> None:
        """Check the values."""
        methods = ("coverage", "te", "av", "random")
        require(self.method in methods, f"method is one of {', '.join(methods)}, got {self.method!r}")
        if isinstance(self.coverage, str):
            known = ", ".join(PRESETS)
            require(self.coverage in PRESETS, f"coverage is a share, {known}; got {self.coverage!r}")
            object.__setattr__(self, "coverage", PRESETS[self.coverage])
        require_share("coverage", cast(float, self.coverage), above_zero=True)
        if self.coverage_decoder is not None:
            require_share("coverage_decoder", self.coverage_decoder, above_zero=True)
        require_share("general", self.general)
        require_share("threshold", self.threshold)
        require_share("density", self.density, above_zero=True)
        require_weight("temperature", self.temperature)
        require(type(self.seed) is int and self.seed >= 0, f"seed is an integer from 0, got {self.seed!r}")
        object.__setattr__(self, "sides", as_names(self.sides))
        unknown = sorted(set(self.sides) - set(SIDES))
        require(bool(self.sides) and not unknown, f"sides are 'encoder' and 'decoder', got {self.sides}")
        require(self.by in ("pair", "source", "target", "separate"), f"unknown variety by={self.by!r}")
