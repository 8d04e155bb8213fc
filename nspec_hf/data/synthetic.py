"""Made-up language families with known kinship: parallel text for the demo and for tests.

Each family has a proto-language: a root for every concept, endings for gender, number, case and tense, and a
word order. A daughter is its proto-language after a few regular sound changes, so the words of sisters look
alike and those of strangers do not. A sentence is drawn as a meaning, and every language says that meaning in
its own way: the text is aligned across all languages, and translation between any two is a function, because
no two words of a language sound the same and every language marks number and tense.

Language codes come from ISO 639's range for local use, `qaa` to `qtz`: `qpv` is the pivot, a language without
relatives in the role that English has elsewhere; `qaa qab qac` are one family, `qba qbb qbc` the next.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random

from nspec_hf.core import ConfigError, UnknownLanguageError, require_count, write_lines
from nspec_hf.data.sound_changes import (
    ROOT_SHAPES,
    SoundChange,
    chance,
    draw_changes,
    draw_sounds,
    evolve,
    pick,
)

PIVOT = "qpv"
ADVERBS = 8
ADPOSITIONS = 6

# Of 100 meanings, which lie in each split.
_SHARES = {"train": range(10, 100), "valid": range(5), "test": range(5, 10)}
_MAX_DRAWS = 2000
# The smallest world has some three million meanings in its smallest split.
_MAX_MEANINGS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """Which languages to make up; equal settings give the same text on every machine."""

    seed: int = 1
    """Decides every root, ending, sound change and sentence."""

    families: int = 3
    """Number of families besides the pivot, 1 to 15."""

    languages: int = 3
    """Number of languages in each family, 1 to 12."""

    changes: int = 5
    """Number of sound changes that make a daughter, 2 to 8; with more, sisters are less alike."""

    nouns: int = 24
    """Number of nouns, 10 to 400."""

    verbs: int = 12
    """Number of verbs, 10 to 400."""

    adjectives: int = 8
    """Number of adjectives, 1 to 400."""

    def __post_init__(self) -> None:
        """Check the values."""
        require_count("seed", self.seed, least=0)
        bounds = {"families": (1, 15), "languages": (1, 12), "changes": (2, 8), "adjectives": (1, 400)}
        for name, (low, high) in {**bounds, "nouns": (10, 400), "verbs": (10, 400)}.items():
            require_count(name, getattr(self, name), low, high)


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """How a language builds a clause."""

    order: str
    """Order of subject, verb and object: SVO, SOV or VSO."""
    modifier_first: bool
    """Whether adjectives stand before their noun and adverbs before their verb, or after."""
    prepositions: bool
    """Whether adpositions stand before their noun phrase, or after."""
    genders: int
    """Number of genders. With more than one, adjectives and articles take the ending of their noun."""
    cases: int
    """1: none; 2: subject and other; 3: subject, object and after an adposition."""
    articles: bool = False
    """Whether each noun phrase begins with an article."""


_PIVOT_GRAMMAR = Grammar(
    order="SVO", modifier_first=True, prepositions=True, genders=1, cases=1, articles=True
)
# The families take turns in these types, which resemble Romance, Turkic and Semitic languages.
_FAMILY_GRAMMARS = (
    Grammar(order="SVO", modifier_first=False, prepositions=True, genders=2, cases=1),
    Grammar(order="SOV", modifier_first=True, prepositions=False, genders=1, cases=3),
    Grammar(order="VSO", modifier_first=False, prepositions=True, genders=2, cases=2),
)


@dataclass(frozen=True)
class NounPhrase:
    """A noun in the singular or plural, with an adjective or without; concepts are numbers."""

    noun: int
    plural: bool
    adjective: int | None


@dataclass(frozen=True)
class Meaning:
    """What a sentence says, in no language: who does what to whom, when, how and where."""

    verb: int
    past: bool
    subject: NounPhrase
    object: NounPhrase
    adverb: int | None
    place: tuple[int, NounPhrase] | None
    """An adposition and its noun phrase."""

    @property
    def split(self) -> str:
        """The one split that this meaning lies in, whatever the settings, so that no two splits share one."""
        number = int.from_bytes(hashlib.sha256(repr(self).encode()).digest(), "big") % 100
        return next(split for split, share in _SHARES.items() if number in share)


@dataclass(frozen=True)
class ProtoLanguage:
    """What the languages of a family inherit."""

    roots: dict[tuple[str, int], str]
    """The root of each concept, named by kind and number, such as `("noun", 3)`."""
    genders: tuple[int, ...]
    """The gender of each noun."""
    noun_endings: dict[tuple[int, int, int], str]
    """Ending for each gender, number (1 = plural) and case."""
    verb_endings: dict[tuple[int, int], str]
    """Ending for each tense (1 = past) and number of the subject."""

    def endings(self, kind: str, number: int, agreement: bool) -> list[str]:
        """Return every ending of a concept; with `agreement`, adjectives and articles have their noun's."""
        if kind == "noun":
            own = self.genders[number]
            return [ending for (gender, _, _), ending in self.noun_endings.items() if gender == own]
        if kind == "verb":
            return list(self.verb_endings.values())
        if kind in ("adjective", "article") and agreement:
            return list(self.noun_endings.values())
        return [""]


@dataclass(frozen=True)
class Language:
    """A daughter of a proto-language."""

    code: str
    family: str
    grammar: Grammar
    proto: ProtoLanguage
    changes: tuple[SoundChange, ...]
    """In the order in which they happened."""
    words: dict[tuple[str, int, str], str]
    """Every word: for a kind, a number and an ending of the proto-language, what they have become."""

    def say(self, meaning: Meaning) -> str:
        """Return the sentence for a meaning."""
        grammar, last_case = self.grammar, self.grammar.cases - 1
        object_ = self._phrase(meaning.object, min(1, last_case))
        if meaning.place is not None:
            number, place = meaning.place
            adposition = self.words["adposition", number, ""]
            object_ += _beside(self._phrase(place, last_case), adposition, grammar.prepositions)
        ending = self.proto.verb_endings[int(meaning.past), int(meaning.subject.plural)]
        verb = [self.words["verb", meaning.verb, ending]]
        if meaning.adverb is not None:
            verb = _beside(verb, self.words["adverb", meaning.adverb, ""], grammar.modifier_first)
        parts = {"S": self._phrase(meaning.subject, 0), "V": verb, "O": object_}
        return " ".join(word for part in grammar.order for word in parts[part])

    def _phrase(self, phrase: NounPhrase, case: int) -> list[str]:
        ending = self.proto.noun_endings[self.proto.genders[phrase.noun], int(phrase.plural), case]
        agreement = ending if self.grammar.genders > 1 else ""
        words = [self.words["noun", phrase.noun, ending]]
        if phrase.adjective is not None:
            adjective = self.words["adjective", phrase.adjective, agreement]
            words = _beside(words, adjective, self.grammar.modifier_first)
        return [self.words["article", 0, agreement], *words] if self.grammar.articles else words


def _beside(words: list[str], other: str, first: bool) -> list[str]:
    return [other, *words] if first else [*words, other]


class LanguageFamilies:
    """All languages of one made-up world, and text that says the same in each of them.

    Attributes:
        config: The settings.
        languages: The codes, pivot first, then family by family.
        pivot: The code of the pivot.

    Raises:
        ConfigError: If the settings leave no room for so many different words or languages.
    """

    def __init__(self, config: SyntheticConfig | None = None) -> None:
        """Make the languages up."""
        self.config = config or SyntheticConfig()
        self.pivot = PIVOT
        made = _make_family(self.config, "qp", _PIVOT_GRAMMAR, [PIVOT])
        for number in range(self.config.families):
            family = "q" + chr(ord("a") + number)
            codes = [family + chr(ord("a") + member) for member in range(self.config.languages)]
            made += _make_family(self.config, family, _FAMILY_GRAMMARS[number % 3], codes)
        self._languages = {language.code: language for language in made}
        self.languages = list(self._languages)

    def language(self, code: str) -> Language:
        """Return one language.

        Raises:
            UnknownLanguageError: If there is none with that code.
        """
        if code not in self._languages:
            raise UnknownLanguageError(f"no language {code!r}; there are: {', '.join(self.languages)}")
        return self._languages[code]

    def family_of(self, code: str) -> str:
        """Return the family of a language, the first two letters of its code; the pivot is alone in `qp`."""
        return self.language(code).family

    def meanings(self, split: str, count: int) -> list[Meaning]:
        """Return `count` different meanings of `train`, `valid` or `test`; fewer are a prefix of more.

        Raises:
            ConfigError: If the split is unknown, or the count above a million.
        """
        if split not in _SHARES:
            raise ConfigError(f"the splits are {', '.join(_SHARES)}; got {split!r}")
        require_count("count", count, 0, _MAX_MEANINGS)
        rng = chance(self.config.seed, split)
        distinct: dict[Meaning, None] = {}
        while len(distinct) < count:
            meaning = _draw_meaning(rng, self.config)
            if meaning.split == split:
                distinct[meaning] = None
        return list(distinct)

    def sentences(self, split: str, count: int) -> dict[str, list[str]]:
        """Return `count` sentences of a split in every language, aligned: line i says the same in each.

        Raises:
            ConfigError: As `meanings`.
        """
        meanings = self.meanings(split, count)
        return {code: [self.language(code).say(meaning) for meaning in meanings] for code in self.languages}

    def write(self, folder: str | Path, split: str, count: int) -> list[Path]:
        """Write aligned text, one sentence a line, to `{split}.{code}`; return the files."""
        texts = self.sentences(split, count)
        paths = [Path(folder) / f"{split}.{code}" for code in texts]
        for path, lines in zip(paths, texts.values(), strict=True):
            write_lines(path, lines)
        return paths


def _make_family(
    config: SyntheticConfig, family: str, grammar: Grammar, codes: Sequence[str]
) -> list[Language]:
    """Draw a proto-language and its daughters; the pivot has no sound changes."""
    rng = chance(config.seed, family)
    proto = _draw_endings(rng, grammar, config.nouns)
    paradigms = [list(proto.noun_endings.values()), list(proto.verb_endings.values())]
    daughters: list[Language] = []
    for member, code in enumerate(codes):
        own, changes = grammar, ()
        if code != PIVOT:
            # Every second sister has articles; every third puts modifiers on the other side.
            flipped = grammar.modifier_first != (member % 3 == 2)
            own = replace(grammar, articles=member % 2 == 1, modifier_first=flipped)
            changes = draw_changes(rng, config.changes, [sister.changes for sister in daughters], paradigms)
        daughters.append(Language(code, family, own, proto, changes, {}))
    counts = {"noun": config.nouns, "verb": config.verbs, "adjective": config.adjectives}
    counts |= {"adverb": ADVERBS, "adposition": ADPOSITIONS, "article": 1}
    for kind, count in counts.items():
        for number in range(count):
            _draw_root(rng, kind, number, daughters)
    return daughters


def _draw_root(rng: Random, kind: str, number: int, daughters: Sequence[Language]) -> None:
    """Draw a root that gives every daughter new words only, and add them."""
    proto, grammar = daughters[0].proto, daughters[0].grammar
    endings = proto.endings(kind, number, agreement=grammar.genders > 1)
    shapes = ROOT_SHAPES if kind in ("noun", "verb", "adjective") else ROOT_SHAPES[:1]
    known = [set(daughter.words.values()) for daughter in daughters]
    for _ in range(_MAX_DRAWS):
        root = draw_sounds(rng, pick(rng, shapes))
        new = [[evolve(root + ending, daughter.changes) for ending in endings] for daughter in daughters]
        if all(len({*old, *words}) == len(old) + len(words) for old, words in zip(known, new, strict=True)):
            break
    else:
        raise ConfigError(f"no room for another {kind}; ask for fewer concepts, languages or changes")
    proto.roots[kind, number] = root
    for daughter, words in zip(daughters, new, strict=True):
        daughter.words.update(
            {(kind, number, ending): word for ending, word in zip(endings, words, strict=True)}
        )


def _draw_endings(rng: Random, grammar: Grammar, nouns: int) -> ProtoLanguage:
    """Draw different endings for all cells; without gender the first cell has none, as in English."""
    noun_cells = list(product(range(grammar.genders), range(2), range(grammar.cases)))
    verb_cells = list(product(range(2), range(2)))
    drawn: dict[str, None] = {}
    while len(drawn) < len(noun_cells) + len(verb_cells):
        drawn[draw_sounds(rng, pick(rng, ("V", "VC")))] = None
    endings = iter(drawn)
    noun_endings = {cell: next(endings) for cell in noun_cells}
    verb_endings = {cell: next(endings) for cell in verb_cells}
    if grammar.genders == 1:
        noun_endings[0, 0, 0] = verb_endings[0, 0] = ""
    genders = tuple(pick(rng, range(grammar.genders)) for _ in range(nouns))
    return ProtoLanguage({}, genders, noun_endings, verb_endings)


def _draw_meaning(rng: Random, config: SyntheticConfig) -> Meaning:
    def perhaps(chance_of: float, count: int) -> int | None:
        return pick(rng, range(count)) if rng.random() < chance_of else None

    def phrase() -> NounPhrase:
        return NounPhrase(pick(rng, range(config.nouns)), rng.random() < 0.4, perhaps(0.5, config.adjectives))

    adposition = perhaps(0.4, ADPOSITIONS)
    return Meaning(
        verb=pick(rng, range(config.verbs)),
        past=rng.random() < 0.5,
        subject=phrase(),
        object=phrase(),
        adverb=perhaps(0.4, ADVERBS),
        place=None if adposition is None else (adposition, phrase()),
    )
