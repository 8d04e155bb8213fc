"""Settings that another setting leaves without effect: what a user chose and nothing reads is told.

A rule names a setting and what it needs. `{"quantization": "format=ctranslate2"}`: it is read only where
`format` is `ctranslate2`. Without values (`"corpus"`), the other has to be given; `a or b`: one of two;
`not a`: the other must not be given, `not num_beams=1` not be 1. Names may be dotted.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from nspec_hf.core.errors import warn

_Command = TypeVar("_Command", bound=Callable[..., Any])
_NOTHING = (None, "", False, (), [], {})


def needs(**rules: str) -> Callable[[_Command], _Command]:
    """Give a command its rules; `__` stands for the dot of a dotted name."""

    def marked(command: _Command) -> _Command:
        command.needs = {name.replace("__", "."): rule for name, rule in rules.items()}  # type: ignore[attr-defined]
        return command

    return marked


def warn_unused(settings: object, rules: Mapping[str, str], names: str = "") -> None:
    """Warn of each setting of a dataclass that was changed although nothing reads it; `names`: `select.`."""
    usual = {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(settings)  # type: ignore[arg-type]
    }
    for sentence in unused(lambda name: getattr(settings, name), usual.get, rules, names):
        warn(sentence)


def unused(
    value: Callable[[str], Any], usual: Callable[[str], Any], rules: Mapping[str, str], names: str = ""
) -> Iterator[str]:
    """Yield a sentence for each setting that was changed although nothing reads it.

    `value` and `usual` tell a setting's value, and what it is where it is not set; `names` stands before its
    name in the sentence.
    """
    for name, rule in rules.items():
        if value(name) != usual(name) and not holds(rule, value):
            yield f"{names}{name} has no effect {_in_words(rule, value, names)}; leave it out"


def holds(rule: str, value: Callable[[str], Any]) -> bool:
    """Return whether what a rule needs is there; `value` tells a setting's value."""
    conditions = rule.removeprefix("not ").split(" or ")
    return any(_is(each, value) for each in conditions) is not rule.startswith("not ")


def _is(condition: str, value: Callable[[str], Any]) -> bool:
    name, equals, wanted = condition.partition("=")
    held = value(name)
    return str(held) in wanted.split("|") if equals else held not in _NOTHING


def _in_words(rule: str, value: Callable[[str], Any], names: str) -> str:
    rest = rule.removeprefix("not ")
    name, equals, wanted = rest.partition("=")
    if rest != rule:
        return f"with {names}{name} {wanted}".rstrip()
    if not equals:
        return f"without {' or '.join(names + each for each in rest.split(' or '))}"
    return f"with {names}{name} {value(name)}, but with {' or '.join(wanted.split('|'))}"
