"""The settings of each step, as frozen classes that the command line and the YAML files read alike.

Every field has a string under it: its meaning, unit and range. The classes check themselves when they are
made, so a wrong value is refused before any work is done. They have no `slots`, here and in the other files,
since jsonargparse reads the defaults of nested settings with `vars`.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nspec_hf.errors import ConfigError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple; `"ffn"` alone is one name, not three letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def _require_share(name: str, value: float, above_zero: bool = False) -> None:
    within = value <= 1 and (value > 0 if above_zero else value >= 0)
    _require(within, f"{name} is a share and must lie in {'(' if above_zero else '['}0, 1], got {value}")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What one pass over the text counts (Tan et al. 2024, §3.1; Xie et al. 2021, Eq. 5 to 8)."""

    count: Literal["tokens", "sentences"] = "tokens"
    """`tokens`: a neuron counts once for every non-padding position where it is active. `sentences`: at
    most once a sentence, as the paper's text says (the union over its tokens). Neurons that fire once in
    nearly every sentence are kept by the second, silenced by the first; small models need them (README)."""

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

    max_sentences: int | None = None
    """Stop counting a pair after this many sentences; None counts all."""

    progress: bool = True
    """Show a progress bar where standard error is a terminal."""

    def __post_init__(self) -> None:
        """Check the values."""
        _require(
            self.count in ("tokens", "sentences"), f"count is 'tokens' or 'sentences', got {self.count!r}"
        )
        _require(
            self.active_on in ("product", "gate"), f"active_on is 'product' or 'gate', got {self.active_on!r}"
        )
        object.__setattr__(self, "kinds", as_names(self.kinds))
        _require(bool(self.kinds), "kinds names at least one of: ffn, attention, ffn_out")
        unknown = sorted(set(self.kinds) - {"ffn", "attention", "ffn_out"})
        _require(not unknown, f"unknown kinds {unknown}; kinds are: ffn, attention, ffn_out")
        _require(
            self.max_sentences is None or self.max_sentences > 0, "max_sentences is a positive number or None"
        )


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which rule turns statistics into masks, and its settings."""

    method: Literal["coverage", "te", "av", "random"] = "coverage"
    """`coverage`: the most active neurons that cover a share of the activations (Tan et al., Eq. 1). `te` and
    `av`: allocation by importance (Xie et al., Eq. 9). `random`: the control."""

    coverage: float = 0.95
    """For `coverage`: k of Eq. 1, the share of a layer's activations to cover, in (0, 1]."""

    coverage_decoder: float | None = None
    """For `coverage`: the decoder's k, where it is not the encoder's; None takes `coverage` on both sides."""

    sides: tuple[str, ...] = ("encoder", "decoder")
    """Which sides get masks; sites of the other side stay dense."""

    general: float = 0.9
    """For `te` and `av`: ρ, the share of neurons that every pair keeps, in [0, 1]."""

    threshold: float = 0.7
    """For `te` and `av`: k of Eq. 9; a pair gets a specific neuron where its importance exceeds k·max, in
    [0, 1]."""

    by: Literal["pair", "source", "target", "separate"] = "pair"
    """Select per pair, per source language, per target language, or per source in the encoder and per target
    in the decoder; pairs that share the language share one mask. Not for `random`."""

    density: float = 0.7
    """For `random`: the share of neurons kept at every site, in (0, 1]."""

    seed: int = 1
    """For `random`: the seed."""

    def __post_init__(self) -> None:
        """Check the values."""
        methods = ("coverage", "te", "av", "random")
        _require(self.method in methods, f"method is one of {', '.join(methods)}, got {self.method!r}")
        _require_share("coverage", self.coverage, above_zero=True)
        if self.coverage_decoder is not None:
            _require_share("coverage_decoder", self.coverage_decoder, above_zero=True)
        _require_share("general", self.general)
        _require_share("threshold", self.threshold)
        _require_share("density", self.density, above_zero=True)
        object.__setattr__(self, "sides", as_names(self.sides))
        unknown = sorted(set(self.sides) - {"encoder", "decoder"})
        _require(bool(self.sides) and not unknown, f"sides are 'encoder' and 'decoder', got {self.sides}")
        _require(self.by in ("pair", "source", "target", "separate"), f"unknown variety by={self.by!r}")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How masks act on a model."""

    mode: Literal["mask", "slice", "gradient"] = "mask"
    """`mask`: compute all neurons, silence those that the pair does not keep; any mix of pairs in a batch.
    `slice`: compute only the kept rows, faster. `gradient`: a dense forward pass, but each pair's loss
    trains only its own rows."""

    silence: Literal["neuron", "weights"] = "neuron"
    """`neuron`: h = σ(m·z), the neuron is gone, bias included (Eq. 4 as the paper explains it). `weights`:
    h = σ(m·xW + b), the released code, where a silenced neuron still emits σ(b). Mode `gradient` silences
    nothing, so it warns of a choice here."""

    zero_shot: Literal["error", "compose"] = "error"
    """What to do with a pair without masks: refuse it, or compose its masks from those to and from the
    pivot."""

    pivot: str = "en"
    """The language that zero-shot composition goes through."""

    multiple_of: int | None = None
    """For `slice`: round the number of computed rows up to a multiple of this. None: 8 on a CPU, the fastest
    of 1 to 128 in training a 1024×4096 block, though they differ by no more than the rounds do
    (`recipes/results/bench.cpu.json`); 64 on CUDA, a guess for tensor cores that nobody has measured."""

    cache_bytes: int = 2 << 30
    """For `slice`: memory bound in bytes of the slices that are kept between batches in eval mode."""

    def __post_init__(self) -> None:
        """Check the values."""
        _require(
            self.mode in ("mask", "slice", "gradient"), f"mode is mask, slice or gradient, got {self.mode!r}"
        )
        _require(
            self.silence in ("neuron", "weights"), f"silence is 'neuron' or 'weights', got {self.silence!r}"
        )
        _require(
            self.zero_shot in ("error", "compose"),
            f"zero_shot is 'error' or 'compose', got {self.zero_shot!r}",
        )
        _require(self.multiple_of is None or self.multiple_of > 0, "multiple_of is a positive number or None")
        _require(self.cache_bytes >= 0, "cache_bytes is not negative")
        if self.mode == "gradient" and self.silence != "neuron":
            warnings.warn(
                f"silence={self.silence!r} has no effect in mode 'gradient', which silences no neuron: its "
                "forward pass is dense; leave it out, or use mode 'mask' or 'slice'",
                stacklevel=3,
            )
