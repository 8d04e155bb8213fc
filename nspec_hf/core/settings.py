"""Settings that another setting leaves without effect: what a user chose and nothing reads is told.

A rule names a setting and what it needs. `{"quantization": "format=ctranslate2"}`: it is read only where
`format` is `ctranslate2`. Without values (`"corpus"`), the other has to be given; `a or b`: one of two;
`not a`: the other must not be given, `not num_beams=1` not be 1. Names may be dotted. Files of settings are
checked here too, before a parser reads them: one that a later file drops is told as well.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml

from nspec_hf.core.errors import ConfigError, warn

_Command = TypeVar("_Command", bound=Callable[..., Any])
_NOTHING = (None, "", False, (), [], {})
_MOST_SETTINGS = 100_000


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


def listed(text: str) -> list[str]:
    """Return what stands between the commas of a text, without spaces around it."""
    return [part.strip() for part in text.split(",")]


def with_lists(parser: Any, arguments: Sequence[str]) -> list[str]:
    """Return a command line whose lists, `--levels 1.0,0.8`, stand as jsonargparse reads them, `[1.0,0.8]`.

    Lists in brackets, and `null`, stay as they are.
    """
    kinds: dict[str, Any] = {}
    for action in parser._actions:
        sequence = _sequence(getattr(action, "_typehint", None))
        kinds |= dict.fromkeys(action.option_strings if sequence else (), sequence)
    written: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        name, equals, value = argument.partition("=")
        if name in kinds and equals:
            written.append(f"{name}={_in_brackets(value, kinds[name])}")
        else:
            is_value = before in kinds and not argument.startswith("--")
            written.append(_in_brackets(argument, kinds[before]) if is_value else argument)
    return written


def _sequence(kind: Any) -> Any:
    """Return the type among some that holds several values, `Sequence[str]` of `str | Sequence[str]`."""
    if get_origin(kind) in (list, tuple, Sequence):
        return kind
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return next(filter(None, map(_sequence, options)), None)


def _in_brackets(value: str, kind: Any) -> str:
    if not value or value == "null" or value.startswith("["):
        return value
    # Quoted, since to YAML the language no is false.
    numbers = get_args(kind)[0] in (int, float)
    return f"[{','.join(part if numbers else json.dumps(part) for part in listed(value))}]"


def check_settings_files(arguments: Sequence[str]) -> set[str]:
    """Check the YAML files that a command line names behind `--config`, before a parser reads them.

    The trap: fields of a later file change what they name, but `arguments` (of the Trainer) and `model` are
    taken whole, so that a file with one of them drops all others that an earlier one set. A warning says so.

    Returns:
        The names that stand in them at the outermost level.

    Raises:
        ConfigError: If one is no YAML in UTF-8, or its aliases stand for more values than settings can have
            (a few lines can stand for billions, which would be written out one by one).
        FileNotFoundError: If there is no such file.
    """
    paths = [
        path if flag == "--config" else flag.removeprefix("--config=")
        for flag, path in pairwise([*arguments, ""])
        if flag == "--config" or flag.startswith("--config=")
    ]
    names: set[str] = set()
    wholes: dict[str, tuple[str, set[str]]] = {}
    for path in paths:
        try:
            root = yaml.compose(Path(path).read_bytes().decode(), yaml.SafeLoader)
            size = _yaml_size(root, {})
        except (ValueError, RecursionError, yaml.YAMLError) as reason:
            raise ConfigError(f"{path} is no readable YAML in UTF-8: {reason}") from None
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} holds no settings: expected lines of `name: value`")
        if size > _MOST_SETTINGS:
            raise ConfigError(
                f"{path} stands for {size:,} values through its aliases; write out what is meant"
            )
        names |= {str(name.value) for name, _ in root.value}
        for place, inner in _taken_whole(root):
            earlier, before = wholes.get(place, ("", set()))
            dropped = ", ".join(sorted(before - inner))
            if dropped:
                warn(
                    f"{place} of {path} takes the place of that of {earlier}, and {dropped} with it: repeat "
                    f"them, or set single ones on the command line, --{place}.NAME VALUE"
                )
            wholes[place] = (path, inner)
    return names


def _taken_whole(node: yaml.MappingNode, above: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield each mapping that a file sets as a whole: its dotted place, and the names in it."""
    for name, value in node.value:
        if isinstance(value, yaml.MappingNode):
            if name.value in ("arguments", "model"):
                yield above + name.value, set(_names(value))
            else:
                yield from _taken_whole(value, f"{above}{name.value}.")


def _names(node: yaml.Node) -> Iterator[str]:
    """Yield the names of a mapping, those that `<<` brings in too."""
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if name.value == "<<":
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield from _names(part)
        else:
            yield str(name.value)


def _yaml_size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases written out."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST_SETTINGS + 1  # what an alias to a node that holds it stands for
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_yaml_size(part, known) for part in parts)
    return known[id(node)]
