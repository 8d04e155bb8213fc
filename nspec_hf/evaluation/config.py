"""How text is decoded. A file of its own, so that a command's help loads no torch."""

from dataclasses import dataclass

from nspec_hf.core import is_number, require, require_count, warn_unused


@dataclass(frozen=True, kw_only=True)
class TranslateConfig:
    """How text is decoded."""

    num_beams: int = 5
    """Beams; 1 is greedy."""

    length_penalty: float = 1.0
    """Exponent of the length that a hypothesis's score is divided by."""

    max_tokens: int = 4096
    """Source tokens of a batch times beams, padding included; a longer sentence is a batch of its own."""

    length_ratio: float = 2.0
    """Longest translation in tokens: this many times the source's length …"""

    length_extra: int = 20
    """… plus this many, and never more than the model has positions for."""

    max_source: int | None = None
    """Longest source in tokens, tags included; what is beyond is cut off, with a warning. None takes what
    the model has positions for."""

    progress: bool = True
    """Show a bar where standard error is a terminal."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("num_beams", "max_tokens", "length_extra"):
            value = getattr(self, name)
            require_count(name, value)
        ratio, penalty = self.length_ratio, self.length_penalty
        require(is_number(ratio) and ratio > 0, f"length_ratio is positive and finite, got {ratio!r}")
        require(is_number(penalty), f"length_penalty is a finite number, got {penalty!r}")
        if self.max_source is not None:
            require_count("max_source", self.max_source, least=8)
        warn_unused(self, {"length_penalty": "not num_beams=1"}, "translate.")
