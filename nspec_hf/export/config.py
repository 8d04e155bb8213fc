"""What is exported. Importing it loads no torch, so that a command's help comes at once."""

from dataclasses import dataclass
from typing import Literal

from nspec_hf.core import ConfigError, require_count, require_share, warn_unused


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is written, and what it must prove."""

    format: Literal["zeroed", "padded", "pruned", "ctranslate2"] = "zeroed"
    """`zeroed`: any code loads it, same widths. `padded`: any code loads it, layers as wide as the widest of
    their side. `pruned`: each layer as wide as its masks, for `load_pruned`. `ctranslate2`: as `pruned`, for
    CTranslate2."""

    silence: Literal["neuron", "weights"] = "neuron"
    """What the gate did in training to neurons that a pair does not keep."""

    group: Literal["own", "union"] = "own"
    """Several pairs. `own`: each translates with its own neurons: one model has those of all, and their masks
    beside it; CTranslate2, which has no masks, gets a model a pair, each in a folder with its name. `union`:
    all pairs run the neurons of all, which a specialized model is not used to."""

    quantization: str = "float32"
    """For `ctranslate2`: float32, float16, bfloat16, int16, int8, int8_float32, int8_float16 or
    int8_bfloat16."""

    multiple_of: int = 1
    """For all but `zeroed`: round widths up to a multiple of this; extra neurons are zeros."""

    min_count: int = 1
    """With a trimmed vocabulary: how often a subword must occur in the text that is counted."""

    sample: int = 8
    """How many sentences a pair has to prove itself on: made-up ones, or the first of the corpus that `nspec
    export` is given. `export_model` takes all of its texts."""

    max_new_tokens: int = 64
    """Longest translation of the sample, in tokens."""

    agreement: float | None = None
    """Share of the sample that must come out the same, token by token, in [0, 1]. None: all of it, or none
    where the weights are quantized."""

    quantized_agreement: float = 0.25
    """Where weights are quantized: share of the sample that must come out as from the same model in float32,
    token by token, in [0, 1]. It depends on what multiplies 8 bits more than on the model: on a processor
    without VNNI, of 200 sentences of one small model 40 stayed the same with CTranslate2's default and 139
    with Intel's MKL (`CT2_USE_MKL=1`)."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.format not in ("zeroed", "padded", "pruned", "ctranslate2"):
            raise ConfigError(f"format is zeroed, padded, pruned or ctranslate2, got {self.format!r}")
        if self.group not in ("own", "union"):
            raise ConfigError(f"group is own or union, got {self.group!r}")
        for name in ("multiple_of", "min_count", "sample", "max_new_tokens"):
            require_count(name, getattr(self, name))
        if self.agreement is not None:
            require_share("agreement", self.agreement)
        require_share("quantized_agreement", self.quantized_agreement)
        if self.format != "ctranslate2" and self.quantization != "float32":
            raise ConfigError(f"format {self.format!r} keeps the model's type; only ctranslate2 quantizes")
        rules = {
            "multiple_of": "format=padded|pruned|ctranslate2",
            "quantized_agreement": "not quantization=float32",
        }
        warn_unused(self, rules, "export.")

    @property
    def quantized(self) -> bool:
        """Whether weights have another type than they were trained in."""
        return self.quantization != "float32"
