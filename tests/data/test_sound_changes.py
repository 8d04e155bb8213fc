import pytest
from hypothesis import given, strategies as st

from nspec_hf.core import ConfigError
from nspec_hf.data.sound_changes import (
    CONSONANTS,
    SOUND_CHANGES,
    VOWELS,
    SoundChange,
    chance,
    draw_changes,
    draw_sounds,
    evolve,
    pick,
)

words = st.text(alphabet=VOWELS + CONSONANTS, min_size=1, max_size=10)


def change_by_hand(change: SoundChange, word: str) -> str:
    """Walk the letters one by one and compare the neighbours sign by sign."""

    def fits(sign: str, letter: str) -> bool:
        return letter in {"V": VOWELS, "C": CONSONANTS}.get(sign, sign)

    framed = "#" + word + "#"
    result = ""
    for place, letter in enumerate(framed):
        left = framed[max(0, place - len(change.left)) : place]
        right = framed[place + 1 : place + 1 + len(change.right)]
        here = (
            letter in change.before
            and len(left) == len(change.left)
            and all(map(fits, change.left, left))
            and len(right) == len(change.right)
            and all(map(fits, change.right, right))
        )
        result += (change.after[change.before.index(letter)] if change.after else "") if here else letter
    return result.strip("#")


@given(word=words, change=st.sampled_from(SOUND_CHANGES))
def test_a_change_does_what_a_walk_over_the_letters_does(word, change):
    assert change.apply(word) == change_by_hand(change, word)


@pytest.mark.parametrize(
    ("change", "word", "becomes"),
    [
        (SoundChange("ptk", "fsh", left="#"), "takpot", "sakpot"),
        (SoundChange("s", "r", left="V", right="V"), "sasasta", "sarasta"),
        (SoundChange("m", "n", right="#"), "mamum", "mamun"),
        (SoundChange("h", ""), "hahuh", "au"),
        (SoundChange("a", "e", right="Ci"), "kataski", "kataski"),
        (SoundChange("a", "e", right="Ci"), "katiga", "ketiga"),
        # Both a's stand between vowels' neighbours as they were, so the first loss does not save the second.
        (SoundChange("i", "", left="VC", right="CV"), "atiripu", "atrpu"),
    ],
)
def test_a_change_needs_its_neighbours(change, word, becomes):
    assert change.apply(word) == becomes


@pytest.mark.parametrize("change", SOUND_CHANGES)
def test_every_change_changes_some_word_and_spares_another(change):
    rng = chance("words")
    drawn = [draw_sounds(rng, "CVCVCVC") for _ in range(500)]
    changed = sum(change.apply(word) != word for word in drawn)
    assert 0 < changed < 500


def test_changes_happen_in_order():
    lost, softened = SoundChange("bdg", "ptk"), SoundChange("k", "s", right="i")
    assert evolve("gita", [lost, softened]) == "sita"
    assert evolve("gita", [softened, lost]) == "kita"


def test_drawn_changes_keep_endings_apart_and_make_another_language():
    rng = chance("changes")
    paradigm = ["", "a", "o", "u", "is", "ir", "am", "an"]
    sisters = []
    for _ in range(4):
        sisters.append(draw_changes(rng, 5, sisters, [paradigm]))
    drawn = [draw_sounds(rng, "CVCVC") for _ in range(300)]
    for place, changes in enumerate(sisters):
        assert len(set(changes)) == 5
        for stem in ("tab", "teg", "tik", "tos", "tum"):
            assert len({evolve(stem + ending, changes) for ending in paradigm}) == len(paradigm)
        for earlier in sisters[:place]:
            assert sum(evolve(word, changes) != evolve(word, earlier) for word in drawn) > 0.25 * 300


def test_too_many_sisters_are_refused():
    everything = [SOUND_CHANGES[:2]] + [[change] for change in SOUND_CHANGES] + [[]]
    with pytest.raises(ConfigError, match=r"differs from 22 sisters by 1 sound changes; ask for fewer"):
        draw_changes(chance("crowd"), 1, everything, [["", "a"]])


def test_chance_depends_on_its_names_alone():
    assert chance(1, "qa").random() == chance(1, "qa").random()
    assert chance(1, "qa").random() != chance(1, "qb").random()
    assert chance(1, "qa").random() != chance(2, "qa").random()


def test_a_pick_can_be_any_of_the_items():
    rng = chance("picks")
    assert {pick(rng, "abc") for _ in range(60)} == set("abc")
