"""The errors and warnings of the package: each says what was found, what was expected and what to do.

Each is also a builtin (`UnknownPairError` is a `KeyError`), so that code which does not know this package
still catches the right thing.
"""

import math
import sys
import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

LIBRARIES = (
    "accelerate datasets huggingface_hub jsonargparse numpy peft tokenizers torch torchao transformers"
)
"""The libraries that call this package, or that it calls: no warning of ours points into them."""

_NO_USERS = {__name__.partition(".")[0], *LIBRARIES.split()}


class NspecError(Exception):
    """Root of all errors that this package raises on purpose."""

    def __str__(self) -> str:
        """Return the message as it was written; `KeyError` alone would print its repr."""
        return "\n".join(str(part) for part in self.args)


class ConfigError(NspecError, ValueError):
    """A setting has a value that it cannot have, or two settings contradict each other."""


class MissingPartError(NspecError, ImportError):
    """An optional part is not installed; the message says how to install it."""


class UnknownPairError(NspecError, KeyError):
    """A pair was asked for that the statistics, masks or corpus do not hold."""


class UnknownLanguageError(NspecError, ValueError):
    """A tokenizer has no tag for a language code."""


class UnsupportedModelError(NspecError, TypeError):
    """A model's neurons cannot be found, or could only be gated wrongly."""


class CorpusError(NspecError, ValueError):
    """Parallel text is not parallel, not UTF-8 or not there; the message names file and line."""


class EmptyPairError(NspecError, ValueError):
    """A pair was to be recorded or trained, but there was no sentence of it."""


class ArtifactError(NspecError, ValueError):
    """A saved file is cut off, altered, of another kind or of a newer format."""


class FolderInUseError(NspecError, BlockingIOError):
    """Another process is writing into the folder that was to be written."""


class SiteMismatchError(NspecError, ValueError):
    """Masks or statistics name other sites, or sites of other widths, than the model has."""


class RoutingError(NspecError, RuntimeError):
    """A row of a batch belongs to no pair or to a pair without a mask, so no neurons can be chosen."""


class TrainingSetupError(NspecError, ValueError):
    """Training is set up in a way that is known to give a silently wrong model."""


class NotFiniteError(NspecError, ArithmeticError):
    """A loss, weights or statistics are NaN or infinite, and so would be all that is made of them."""


class OverloadError(NspecError, RuntimeError):
    """As many requests wait as may wait, or no more are taken; the message says when to come again."""


class ExportError(NspecError, RuntimeError):
    """A model that was baked for a pair does not write what the gate writes, so it is not handed out."""


def warn(message: str) -> None:
    """Warn, and point at the line of the user's code that led here: neither ours nor one of LIBRARIES."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NO_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with this message where a condition does not hold."""
    if not condition:
        raise ConfigError(message)


def require_count(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise a ConfigError where a value is no whole number from `least` to `most`."""
    bound = {0: "is not negative", 1: "is positive"}.get(least, f"is {least} or more")
    bound = bound if most is None else f"must lie between {least} and {most}"
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    within = number is not None and least <= number and (most is None or number <= most)
    require(within, f"{name} {bound}, a whole number; got {value!r}")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; a truth value is none, nor is text."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple; `"ffn"` alone is one name, not three letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def require_share(name: str, value: float, above_zero: bool = False) -> None:
    """Raise a ConfigError where a value is no share."""
    within = is_number(value) and value <= 1 and (value > 0 if above_zero else value >= 0)
    require(within, f"{name} is a share and must lie in {'(' if above_zero else '['}0, 1], got {value!r}")


def require_weight(name: str, value: float) -> None:
    """Raise a ConfigError where a value is no finite number of at least 0."""
    require(is_number(value) and value >= 0, f"{name} is a number of at least 0, got {value!r}")
