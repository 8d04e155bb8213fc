"""The language pair: a translation direction such as `en-de`, and how pairs group.

A `Pair` is a string, its printed name, so it can stand wherever `"en-de"` can: as a key, in JSON, in YAML,
in a file name. All functions of this package take either.
"""

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from nspec_hf.core.errors import ConfigError, UnknownPairError

ONE_TO_MANY = "one-to-many"
MANY_TO_ONE = "many-to-one"
ZERO_SHOT = "zero-shot"

_Value = TypeVar("_Value")


class Pair(str):
    """A translation direction.

    `Pair("en", "de")` and `Pair("en-de")` are the same pair, equal to the string `"en-de"`. A code that
    holds a hyphen itself needs two arguments, an arrow or two hyphens: `Pair("zh-CN->en")`.

    Raises:
        ConfigError: If a language code is empty or the text does not name exactly two.
    """

    source: str
    target: str
    __slots__ = ("source", "target")

    def __new__(cls, source: str, target: str | None = None) -> "Pair":
        """Make a pair from two codes, or from its printed name."""
        if target is None:
            if isinstance(source, Pair):
                return source
            source, target = _split(source)
        if not isinstance(source, str) or not isinstance(target, str):
            raise ConfigError(f"language codes are strings, got {source!r} and {target!r}")
        # One object a code: forty thousand pairs are made of two hundred languages.
        source, target = sys.intern(source.strip(" ")), sys.intern(target.strip(" "))
        if not source or not target:
            raise ConfigError(f"a pair needs two language codes, got source {source!r} and target {target!r}")
        for code in (source, target):
            # Nor a dot: what follows one in a file's name is its ending.
            if not code.isprintable() or set(code) & set(' ./\\<>:"|?*'):
                raise ConfigError(f"{code!r} is no language code, since it could not stand in a file's name")
        separator = "->" if "-" in source + target else "-"
        pair = super().__new__(cls, f"{source}{separator}{target}")
        pair.source, pair.target = source, target
        return pair

    def __getnewargs__(self) -> tuple[str, str]:
        """Let copy and pickle rebuild the pair from its codes."""
        return self.source, self.target

    def __repr__(self) -> str:
        """Print as the call that makes it."""
        return f"Pair({self.source!r}, {self.target!r})"

    @property
    def file_name(self) -> str:
        """How files call it, legal on every system: its name, but `zh-CN--pt-BR` for `zh-CN->pt-BR`."""
        name = self.replace("->", "--")
        return name if name.count("-") == 1 or name.split("--") == [self.source, self.target] else str(self)

    @property
    def reverse(self) -> "Pair":
        """The other direction."""
        return Pair(self.target, self.source)

    def group(self, pivot: str = "en") -> str:
        """Return `one-to-many` (out of the pivot), `many-to-one` (into it) or `zero-shot` (without it)."""
        pivot = pivot_of((self.source, self.target), pivot)
        if self.source == pivot:
            return ONE_TO_MANY
        return MANY_TO_ONE if self.target == pivot else ZERO_SHOT


def _split(text: str) -> tuple[str, str]:
    if not isinstance(text, str):
        raise ConfigError(f"a pair is written 'en-de' or Pair('en', 'de'), got {text!r}")
    separator = next((each for each in ("->", "--") if each in text), "-")
    parts = text.split(separator)
    if len(parts) != 2:
        raise ConfigError(
            f"cannot read a pair from {text!r}; write 'en-de', or 'zh-CN->en' where a code has a hyphen"
        )
    return parts[0], parts[1]


def pair_or_both(name: str) -> Pair:
    """Return the pair of that name; a name without a second language stands for both sides."""
    whole = not isinstance(name, str) or isinstance(name, Pair) or "-" in name
    return Pair(name) if whole else Pair(name, name)


def as_pairs(pairs: Iterable[str]) -> list[Pair]:
    """Return a list of pairs in the order given.

    Raises:
        ConfigError: If a pair is named twice, since its position is its index in `pair_ids`; or if `pairs` is
            one string.
    """
    if isinstance(pairs, str):
        raise ConfigError(f"expected a list of pairs, got one string; write [{str(pairs)!r}]")
    named = [Pair(pair) for pair in pairs]
    if len(set(named)) != len(named):
        twice = sorted({pair for pair in named if named.count(pair) > 1})
        raise ConfigError(f"each pair may be named once; named again: {', '.join(twice)}")
    return named


def by_pair(values: Mapping[str, _Value]) -> dict[Pair, _Value]:
    """Return what is given by pair, `{"en->de": …}` or `{"en-de": …}`, in the order given.

    Raises:
        ConfigError: If a pair is named twice, in two ways.
    """
    return dict(zip(as_pairs(values), values.values(), strict=True))


def translation_pairs(pairs: Iterable[str]) -> list[Pair]:
    """Return pairs whose text is to be read, as `as_pairs` does.

    Raises:
        ConfigError: If one goes from a language into itself: both sides would be the same lines. Masks may
            have such a pair: a union of all is called `all-all`, and your own rows may rewrite a language.
    """
    named = as_pairs(pairs)
    same = [str(pair) for pair in named if pair.source == pair.target]
    if same:
        raise ConfigError(
            f"{', '.join(same)} goes from a language into itself: both sides would be the same lines, and a "
            "model would learn to copy them; write two languages, for instance en-de, or, to rewrite text of "
            "one, two codes of yours for it"
        )
    return named


def numbered(pairs: Sequence[Pair]) -> dict[Pair, int]:
    """Return each pair's position, which is its index in `pair_ids`."""
    return {pair: number for number, pair in enumerate(pairs)}


def pair_index(pairs: Sequence[Pair] | Mapping[Pair, int], pair: str, holder: str) -> int:
    """Return the position of a pair; where it is asked again and again, `pairs` are `numbered` ones.

    Raises:
        UnknownPairError: If it is not among them; the message lists those that the `holder` has.
    """
    numbers = pairs if isinstance(pairs, Mapping) else numbered(pairs)
    number = numbers.get(Pair(pair))
    if number is None:
        raise UnknownPairError(
            f"pair {str(pair)!r} is not in the {holder}; {holder} hold: {in_short(sorted(pairs)) or 'none'}"
        )
    return number


def in_short(names: Collection[str], most: int = 60) -> str:
    """Return the names as `a, b, c`; of more than `most` the first ones, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more


def languages_of(pairs: Iterable[Pair]) -> list[str]:
    """Return the languages of some pairs, each once, in the order in which they come."""
    return list(dict.fromkeys(code for pair in pairs for code in (pair.source, pair.target)))


def main_language(code: str) -> str:
    """Return a code without script and region, in small letters: `de` of `de_DE`, `deu` of `deu_Latn`.

    A modifier is left out too, and what a tag has around its code: `sr` of `sr@latin`, `en` of `__en__`.
    """
    return re.split("[-_@]", code.strip("_"))[0].lower()


def is_english(code: str) -> bool:
    """Return whether a code is of English, as any tokenizer spells it."""
    return main_language(code) in ("en", "eng")


def pivot_of(languages: Iterable[str], pivot: str = "en") -> str:
    """Return the pivot as these languages spell it: `en` is NLLB's `eng_Latn`, mBART's `en_XX`, or `en-US`.

    One that is among them stays as it is, and so does any other than English, or where two codes are English.
    """
    languages = set(languages)
    if pivot != "en" or pivot in languages:
        return pivot
    english = list(filter(is_english, languages))
    return english[0] if len(english) == 1 else pivot


def english_centric(languages: Iterable[str], pivot: str = "en") -> list[Pair]:
    """Return all directions out of and into the pivot: `en-de, de-en, en-fr, fr-en, …` in the order given."""
    languages = list(languages)
    pivot = pivot_of(languages, pivot)
    others = [code for code in languages if code != pivot]
    return [pair for code in others for pair in (Pair(pivot, code), Pair(code, pivot))]


def zero_shot(languages: Iterable[str], pivot: str = "en") -> list[Pair]:
    """Return all directions between two languages other than the pivot."""
    languages = list(languages)
    pivot = pivot_of(languages, pivot)
    others = [code for code in languages if code != pivot]
    return [Pair(source, target) for source in others for target in others if source != target]
