"""Sound laws: what turns one made-up proto-language into several daughters, and makes them kin.

A sound change is regular: the same letter between the same neighbours always changes the same way, in every
word. Two languages that descend from the same words by different changes therefore look alike without being
equal. This file holds the alphabet, the changes, and how words and changes are drawn by chance.

All chance comes from `random.Random.random` seeded with an integer, the one sequence that Python promises to
keep, so the same names give the same draws on every machine and version.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import TypeVar

from nspec_hf.core import ConfigError

VOWELS = "aeiou"
CONSONANTS = "bdfghklmnprstvz"
ROOT_SHAPES = ("CVC", "CVCVC", "CVCCVC")

_MAX_DRAWS = 500
_PROBES = 100
_MIN_CHANGED = 0.4

Item = TypeVar("Item")


@dataclass(frozen=True)
class SoundChange:
    """A regular sound change: each letter of `before` becomes the letter at its place in `after`.

    `left` and `right` are the neighbours that it needs, one sign a letter: `V` a vowel, `C` a consonant, `#`
    the edge of the word, any other sign that letter; "" asks for nothing. An empty `after` drops the letter.
    All places of a word change at once: each sees its neighbours as they were before.
    """

    before: str
    after: str
    left: str = ""
    right: str = ""

    def apply(self, word: str) -> str:
        """Return the word after the change."""
        becomes = dict(zip(self.before, self.after or [""] * len(self.before), strict=True))
        pattern = f"(?<={_neighbours(self.left)})[{self.before}](?={_neighbours(self.right)})"
        return re.sub(pattern, lambda match: becomes[match[0]], f"#{word}#").strip("#")


def _neighbours(signs: str) -> str:
    classes = {"V": f"[{VOWELS}]", "C": f"[{CONSONANTS}]"}
    return "".join(classes.get(sign, sign) for sign in signs)


SOUND_CHANGES = (
    SoundChange("ptk", "fsh", left="#"),  # stops open at the start of a word
    SoundChange("bdg", "ptk"),  # voice is lost
    SoundChange("bdg", "vzh", left="V", right="V"),  # voiced stops open between vowels
    SoundChange("ptk", "bdg", left="V", right="V"),  # voiceless stops are voiced between vowels
    SoundChange("s", "r", left="V", right="V"),  # rhotacism, as in Latin flos, floris
    SoundChange("k", "s", right="i"),  # k softens before i, as in French cité …
    SoundChange("k", "s", right="e"),  # … and before e
    SoundChange("g", "z", right="i"),
    SoundChange("h", ""),
    SoundChange("l", "r"),
    SoundChange("r", "l", left="#"),
    SoundChange("m", "n", right="#"),
    SoundChange("f", "h", left="#"),
    SoundChange("z", "s"),
    SoundChange("o", "u"),
    SoundChange("e", "i", right="C"),
    SoundChange("a", "o", right="n"),
    SoundChange("a", "e", right="Ci"),  # umlaut: a rises where i follows
    SoundChange("o", "e", right="Ci"),
    SoundChange("i", "", left="VC", right="CV"),  # a weak vowel is lost between open syllables
)


def evolve(word: str, changes: Sequence[SoundChange]) -> str:
    """Return what a word becomes when the changes happen one after the other."""
    for change in changes:
        word = change.apply(word)
    return word


def chance(*names: object) -> Random:
    """Return the source of chance for these names: the same names, the same draws."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return Random(int.from_bytes(digest, "big"))


def pick(rng: Random, items: Sequence[Item]) -> Item:
    """Return one of the items; unlike `rng.choice`, the same one in every version of Python."""
    return items[int(rng.random() * len(items))]


def draw_sounds(rng: Random, shape: str) -> str:
    """Return random letters in a shape such as `CVC`."""
    return "".join(pick(rng, VOWELS if sign == "V" else CONSONANTS) for sign in shape)


def draw_changes(
    rng: Random, count: int, sisters: Sequence[Sequence[SoundChange]], paradigms: Sequence[Sequence[str]]
) -> tuple[SoundChange, ...]:
    """Draw the changes that make one more daughter, in the order in which they happen.

    At least 40 % of the words will differ from each sister's; endings that are in one of the paradigms will
    still sound different from each other after any root.

    Raises:
        ConfigError: If no such set is found.
    """
    probes = [draw_sounds(rng, pick(rng, ROOT_SHAPES)) for _ in range(_PROBES)]
    theirs = [[evolve(word, sister) for word in probes] for sister in sisters]
    for _ in range(_MAX_DRAWS):
        changes: list[SoundChange] = []
        while len(changes) < count:
            change = pick(rng, SOUND_CHANGES)
            if change not in changes:
                changes.append(change)
        own = [evolve(word, changes) for word in probes]
        changed = [sum(a != b for a, b in zip(own, words, strict=True)) / _PROBES for words in theirs]
        if min(changed, default=1.0) >= _MIN_CHANGED and _endings_stay_apart(changes, paradigms):
            return tuple(changes)
    raise ConfigError(
        f"found no further language that differs from {len(sisters)} sisters by {count} sound changes; "
        "ask for fewer languages in a family, or for more changes"
    )


def _endings_stay_apart(changes: Sequence[SoundChange], paradigms: Sequence[Sequence[str]]) -> bool:
    stems = ["t" + vowel + consonant for vowel, consonant in product(VOWELS, CONSONANTS)]
    return all(
        len({evolve(stem + ending, changes) for ending in endings}) == len(endings)
        for stem in stems
        for endings in paradigms
    )
