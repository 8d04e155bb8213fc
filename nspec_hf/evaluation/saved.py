"""Scores and comparisons as JSON: written from a dataclass's fields, read back by their types.

What is read is checked field by field, so that a file of another shape is refused with the place where it
differs: `scores.en-de.bleu.value: expected a number, got "30"`. A number that is not finite is `null`.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from nspec_hf.core import ConfigError, Pair, plain, write_text


class Saved:
    """Base of dataclasses that are kept as JSON."""

    what: ClassVar[str]
    """What the file holds, for messages."""
    derived: ClassVar[frozenset[str]] = frozenset()
    """Keys of the file that follow from the fields, and are not read back."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values; `from_dict` reads it back."""
        return plain(self)

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)

    def save(self, path: str | os.PathLike) -> None:
        """Write `to_json` to a file."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Return what `to_dict` gave.

        Raises:
            ConfigError: If the content has another shape; the message says where.
        """
        try:
            known = {key: entry for key, entry in content.items() if key not in cls.derived}
            return _dataclass(cls, known, "")
        except AttributeError:
            raise ConfigError(f"this is not {cls.what}: expected an object, got {content!r:.80}") from None
        except ConfigError as error:
            raise ConfigError(f"this is not {cls.what}: {error}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Return what `to_json` gave.

        Raises:
            ConfigError: If the text is no JSON, or of another shape.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"this is not {cls.what}: no readable JSON ({error})") from None
        return cls.from_dict(content)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a file of `save`.

        Raises:
            ConfigError: If it holds something else; the message names the file.
        """
        try:
            return cls.from_json(Path(path).read_bytes())
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _value(kind: Any, value: Any, where: str) -> Any:
    """Return a JSON value as a field's type has it."""
    outer, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if outer is UnionType:
        rest = [option for option in inner if option is not NoneType]
        return None if value is None and NoneType in inner else _value(rest[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if outer is tuple and isinstance(value, list):
        return tuple(_value(inner[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if outer in (dict, Mapping) and isinstance(value, dict):
        return {
            _value(inner[0], key, f"{where} {key}"): _value(inner[1], entry, f"{where}.{key}".lstrip("."))
            for key, entry in value.items()
        }
    return _scalar(kind, value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'the file'}: expected an object, got {value!r:.80}")
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    missing, unknown = needed - value.keys(), value.keys() - {f.name for f in fields}
    if missing or unknown:
        lacks, has = ", ".join(sorted(missing)) or "nothing", ", ".join(sorted(unknown)) or "nothing"
        raise ConfigError(f"{where or 'the file'}: lacks {lacks} and has {has} that is unknown")
    return kind(
        **{key: _value(hints[key], entry, f"{where}.{key}".lstrip(".")) for key, entry in value.items()}
    )


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if get_origin(kind) is Literal:
        kind_name, fits = f"one of {', '.join(map(str, get_args(kind)))}", value in get_args(kind)
    elif kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if number else math.nan if value is None else value
        kind_name, fits = "a number", isinstance(value, float)
    elif kind is Pair:
        kind_name, fits = "a pair", isinstance(value, str)
        value = Pair(value) if fits else value
    else:
        kind_name = {str: "a text", int: "a whole number", bool: "true or false"}.get(kind, str(kind))
        fits = isinstance(value, kind) if isinstance(kind, type) else False
        fits = fits and isinstance(value, bool) == (kind is bool)
    if not fits:
        raise ConfigError(f"{where}: expected {kind_name}, got {json.dumps(value)[:80]}")
    return value
