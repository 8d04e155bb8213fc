import hashlib
import itertools
import os
import subprocess
import sys

import pytest

from nspec_hf.core import ConfigError, UnknownLanguageError
from nspec_hf.data import LanguageFamilies, SyntheticConfig
from nspec_hf.data.synthetic import Meaning, NounPhrase
from tests.data.test_sound_changes import change_by_hand

SMALL = {"nouns": 12, "verbs": 10, "adjectives": 6}
GOLDEN = "8606ed31e06fe346ba2878141678cd18738d747b4487332e906e83910b4f1abe"


@pytest.fixture(scope="module")
def world():
    return LanguageFamilies(SyntheticConfig(**SMALL))


def digest(world: LanguageFamilies) -> str:
    text = "\n".join(
        f"{split} {code} {line}"
        for split in ("train", "valid", "test")
        for code, lines in world.sentences(split, 20).items()
        for line in lines
    )
    return hashlib.sha256(text.encode()).hexdigest()


def edit_distance(first: str, second: str) -> float:
    """Levenshtein distance over the longer word's length."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1] / max(len(first), len(second))


class Reader:
    """Understands sentences by looking words up from left to right, knowing the order of the language."""

    def __init__(self, language):
        self.language, self.grammar = language, language.grammar
        self.known = {word: concept for concept, word in language.words.items()}

    def read(self, sentence: str) -> Meaning:
        self.left = [self.known[word] for word in sentence.split()]
        found = {"adverb": None, "place": None}
        for part in self.grammar.order:
            getattr(self, {"S": "subject", "V": "verb", "O": "object"}[part])(found)
        assert not self.left
        return Meaning(**found)

    def take(self, kind: str) -> tuple[int, str]:
        word_kind, number, ending = self.left.pop(0)
        assert word_kind == kind
        return number, ending

    def next_is(self, kind: str) -> bool:
        return bool(self.left) and self.left[0][0] == kind

    def subject(self, found: dict) -> None:
        found["subject"] = self.phrase(case=0)

    def object(self, found: dict) -> None:
        cases = self.grammar.cases
        found["object"] = self.phrase(case=1 if cases > 1 else 0)
        if self.grammar.prepositions and self.next_is("adposition"):
            adposition, _ = self.take("adposition")
            found["place"] = (adposition, self.phrase(case=cases - 1))
        elif not self.grammar.prepositions and self.left and self.left[0][0] not in ("verb", "adverb"):
            phrase = self.phrase(case=cases - 1)
            found["place"] = (self.take("adposition")[0], phrase)

    def verb(self, found: dict) -> None:
        if self.grammar.modifier_first and self.next_is("adverb"):
            found["adverb"], _ = self.take("adverb")
        found["verb"], ending = self.take("verb")
        cells = [cell for cell, own in self.language.proto.verb_endings.items() if own == ending]
        ((past, _plural),) = cells
        found["past"] = bool(past)
        if not self.grammar.modifier_first and self.next_is("adverb"):
            found["adverb"], _ = self.take("adverb")

    def phrase(self, case: int) -> NounPhrase:
        endings, adjective = [], None
        if self.grammar.articles:
            endings.append(self.take("article")[1])
        if self.grammar.modifier_first and self.next_is("adjective"):
            adjective, ending = self.take("adjective")
            endings.append(ending)
        noun, noun_ending = self.take("noun")
        if not self.grammar.modifier_first and self.next_is("adjective"):
            adjective, ending = self.take("adjective")
            endings.append(ending)
        proto = self.language.proto
        ((gender, plural, own_case),) = [
            cell for cell, own in proto.noun_endings.items() if own == noun_ending
        ]
        assert (gender, own_case) == (proto.genders[noun], case)
        assert all(ending == (noun_ending if self.grammar.genders > 1 else "") for ending in endings)
        return NounPhrase(noun, bool(plural), adjective)


def test_codes_are_for_local_use_and_the_pivot_comes_first(world):
    assert world.languages == ["qpv", "qaa", "qab", "qac", "qba", "qbb", "qbc", "qca", "qcb", "qcc"]
    assert world.pivot == world.languages[0]
    assert [world.family_of(code) for code in world.languages] == ["qp"] + 3 * ["qa"] + 3 * ["qb"] + 3 * [
        "qc"
    ]
    many = LanguageFamilies(SyntheticConfig(families=15, languages=2, **SMALL))
    assert len(set(many.languages)) == 31
    assert all("qaa" <= code <= "qtz" and len(code) == 3 for code in many.languages)


def test_every_word_is_its_proto_word_after_the_changes_in_order(world):
    for code in world.languages:
        language = world.language(code)
        for (kind, number, ending), word in language.words.items():
            expected = language.proto.roots[kind, number] + ending
            for change in language.changes:
                expected = change_by_hand(change, expected)
            assert word == expected


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shape", [{}, {"families": 2, "languages": 4}])
def test_sisters_are_closer_than_strangers_but_not_the_same(seed, shape):
    world = LanguageFamilies(SyntheticConfig(seed=seed, **shape, **SMALL))
    within, across = [], []
    for one, other in itertools.combinations(world.languages[1:], 2):
        first, second = world.language(one), world.language(other)
        kin = first.family == second.family
        # Citation forms: the first ending of each concept.
        forms = [{key[:2]: word for key, word in reversed(lang.words.items())} for lang in (first, second)]
        distances = [edit_distance(forms[0][concept], forms[1][concept]) for concept in forms[0]]
        (within if kin else across).append(sum(distances) / len(distances))
        if kin:
            assert sum(distance > 0 for distance in distances) > 0.2 * len(distances)
    assert max(within) < 0.5 < 0.6 < min(across)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_two_words_of_a_language_sound_the_same(seed):
    world = LanguageFamilies(SyntheticConfig(seed=seed))
    for code in world.languages:
        words = list(world.language(code).words.values())
        assert len(words) > 90
        assert len(set(words)) == len(words)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_reader_with_a_dictionary_understands_every_language(seed):
    world = LanguageFamilies(SyntheticConfig(seed=seed, families=4, **SMALL))
    meanings = world.meanings("train", 60)
    sentences = world.sentences("train", 60)
    for code in world.languages:
        reader = Reader(world.language(code))
        assert [reader.read(sentence) for sentence in sentences[code]] == meanings


def test_translation_is_a_function_between_any_two_languages(world):
    sentences = world.sentences("test", 40)
    for source, target in itertools.permutations(world.languages, 2):
        reader = Reader(world.language(source))
        translations = [world.language(target).say(reader.read(text)) for text in sentences[source]]
        assert translations == sentences[target]


def test_families_differ_in_word_order_and_some_languages_have_articles(world):
    grammars = {code: world.language(code).grammar for code in world.languages}
    assert {grammars[code].order for code in ("qaa", "qba", "qca")} == {"SVO", "SOV", "VSO"}
    assert len({grammars[code].order for code in ("qaa", "qab", "qac")}) == 1
    for family in ("qa", "qb", "qc"):
        sisters = [grammar for code, grammar in grammars.items() if code.startswith(family)]
        assert {grammar.articles for grammar in sisters} == {True, False}
        assert {grammar.modifier_first for grammar in sisters} == {True, False}


def test_a_clause_is_built_as_the_grammar_says(world):
    meaning = Meaning(
        verb=1,
        past=True,
        subject=NounPhrase(2, False, 3),
        object=NounPhrase(4, True, None),
        adverb=5,
        place=(0, NounPhrase(6, False, None)),
    )
    kinds = {}
    for code in ("qpv", "qaa", "qbb", "qcc"):
        known = {word: concept for concept, word in world.language(code).words.items()}
        kinds[code] = [known[word][:2] for word in world.language(code).say(meaning).split()]
    verb, adverb, adjective, adposition = ("verb", 1), ("adverb", 5), ("adjective", 3), ("adposition", 0)
    the, subject, object_, place = ("article", 0), ("noun", 2), ("noun", 4), ("noun", 6)
    assert kinds["qpv"] == [the, adjective, subject, adverb, verb, the, object_, adposition, the, place]
    assert kinds["qaa"] == [subject, adjective, verb, adverb, object_, adposition, place]
    assert kinds["qbb"] == [the, adjective, subject, the, object_, the, place, adposition, adverb, verb]
    assert kinds["qcc"] == [adverb, verb, adjective, subject, object_, adposition, place]


def test_splits_share_no_meaning_whatever_the_seed():
    found = {split: set() for split in ("train", "valid", "test")}
    for seed in (1, 2):
        world = LanguageFamilies(SyntheticConfig(seed=seed, families=1, languages=1, **SMALL))
        for split in found:
            drawn = world.meanings(split, 400)
            assert len(set(drawn)) == 400
            found[split].update(drawn)
    for one, other in itertools.combinations(found, 2):
        assert found[one].isdisjoint(found[other])


def test_fewer_sentences_are_the_beginning_of_more(world):
    few, many = world.sentences("train", 7), world.sentences("train", 50)
    assert {code: lines[:7] for code, lines in many.items()} == few


def test_sentences_are_short_and_varied(world):
    sentences = world.sentences("train", 500)
    lengths = {code: [len(line.split()) for line in lines] for code, lines in sentences.items()}
    assert min(lengths["qpv"]) == 5
    assert all(3 <= length <= 12 for own in lengths.values() for length in own)
    assert all(len(set(lines)) == 500 for lines in sentences.values())


def test_the_same_seed_gives_the_same_text_as_ever(world):
    assert digest(world) == GOLDEN


def test_the_text_does_not_depend_on_the_hash_seed_of_the_process(world):
    code = (
        "from tests.data.test_synthetic import *; print(digest(LanguageFamilies(SyntheticConfig(**SMALL))))"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == digest(world)


def test_another_seed_gives_other_languages(world):
    other = LanguageFamilies(SyntheticConfig(seed=2, **SMALL))
    for code in world.languages:
        ours, theirs = set(world.language(code).words.values()), set(other.language(code).words.values())
        assert len(ours & theirs) < 0.2 * len(ours)


def test_files_hold_aligned_lines(world, tmp_path):
    paths = world.write(tmp_path / "new" / "folder", "valid", 9)
    assert [path.name for path in paths] == [f"valid.{code}" for code in world.languages]
    sentences = world.sentences("valid", 9)
    for path, code in zip(paths, world.languages, strict=True):
        assert path.read_bytes().decode("utf-8") == "".join(line + "\n" for line in sentences[code])


@pytest.mark.parametrize(
    "settings",
    [{"families": 0}, {"families": 16}, {"languages": 13}, {"changes": 1}, {"nouns": 9}, {"adjectives": 0}],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=rf"{name} must lie between .* got {value}"):
        SyntheticConfig(**settings)


def test_unknown_languages_and_splits_are_refused_with_those_that_exist(world):
    with pytest.raises(UnknownLanguageError, match=r"'qzz'; there are: qpv, qaa"):
        world.language("qzz")
    with pytest.raises(UnknownLanguageError, match="qzz"):
        world.family_of("qzz")
    with pytest.raises(ConfigError, match="train, valid, test; got 'dev'"):
        world.sentences("dev", 3)
    for count in (-1, 2_000_000):
        with pytest.raises(ConfigError, match=f"got {count}"):
            world.meanings("test", count)


def test_a_crowded_family_is_refused():
    with pytest.raises(ConfigError, match="fewer languages"):
        LanguageFamilies(SyntheticConfig(families=1, languages=12, changes=2, **SMALL))
