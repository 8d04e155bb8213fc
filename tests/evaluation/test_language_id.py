"""The wrong-language share, against counts of sentences whose language is plain."""

import lzma
import sys
from importlib.metadata import version

import pytest

from nspec_hf.core import ConfigError, CorpusError
from nspec_hf.evaluation import off_target

GERMAN = ["Der Hund läuft schnell durch den Garten.", "Wir haben gestern keine Zeitung gelesen."]
ENGLISH = ["The dog runs quickly through the garden.", "We did not read the newspaper yesterday."]
CZECH = ["Pes rychle běží přes zahradu.", "Včera jsme nečetli noviny."]
NORWEGIAN = [
    "Hunden løper raskt gjennom hagen, og jeg vet ikke hvorfor.",
    "Vi leste ikke avisen i går kveld.",
]
NYNORSK = ["Eg veit ikkje kvifor hunden spring så fort gjennom hagen."]


pytest.importorskip("lingua", reason="needs the extra evaluate")


def test_the_share_counts_sentences_in_other_languages():
    found = off_target(
        {"cs-de": [GERMAN[0], ENGLISH[0], CZECH[0], GERMAN[1]]}, languages=["de", "en", "cs", "fr"]
    )
    result = found["cs-de"]
    assert result.share == 0.5
    assert result.languages == {"de": 2, "en": 1, "cs": 1}
    assert result.floor is None
    assert (result.sentences, result.undecided) == (4, 0)


def test_references_show_how_much_of_it_is_the_identifiers_own_error():
    found = off_target({"en-de": [*ENGLISH, GERMAN[0]]}, {"en-de": [*GERMAN, CZECH[0]]}, ["de", "en", "cs"])
    assert found["en-de"].share == pytest.approx(2 / 3)
    assert found["en-de"].floor == pytest.approx(1 / 3)


def test_references_of_a_pair_may_be_spelled_otherwise():
    found = off_target({"en-de": [*ENGLISH, GERMAN[0]]}, {"en->de": [*GERMAN, CZECH[0]]}, ["de", "en", "cs"])
    assert found["en-de"].floor == pytest.approx(1 / 3)


def test_sentences_without_a_language_are_counted_apart():
    result = off_target({"en-de": ["", "123 !", GERMAN[0], ENGLISH[0]]}, languages=["de", "en"])["en-de"]
    assert result.undecided == 2
    assert result.share == 0.25


@pytest.mark.parametrize("pair", ["en-de", "eng_Latn-deu_Latn", "en_XX-de_DE"])
def test_codes_of_all_families_are_understood(pair):
    assert off_target({pair: [GERMAN[0], ENGLISH[0]]}, languages=["de", "en"])[pair].share == 0.5


def test_norwegian_may_be_either_of_its_written_languages():
    found = off_target({"en-no": [*NORWEGIAN, *NYNORSK], "en-nn": NORWEGIAN}, languages=["no", "en"])
    assert found["en-no"].share == 0
    assert found["en-nn"].share == 1


def test_a_target_that_the_identifier_does_not_know_has_no_share():
    with pytest.warns(UserWarning, match="no off-target share for lb: lingua"):
        found = off_target({"en-lb": GERMAN, "en-de": GERMAN}, languages=["de", "en"])
    assert found["en-lb"].share is None
    assert found["en-de"].share == 0
    assert found["en-lb"].languages


def test_languages_to_choose_between_that_it_does_not_know_are_named():
    with pytest.warns(UserWarning, match="lingua does not know lb, oc;"):
        found = off_target({"en-de": GERMAN}, languages=["de", "en", "lb", "oc"])
    assert "(de|en)" in found["en-de"].identifier
    with pytest.warns(UserWarning, match="lb"), pytest.raises(ConfigError, match="two that lingua knows"):
        off_target({"en-de": GERMAN}, languages=["de", "lb"])


@pytest.mark.slow
def test_without_a_list_it_chooses_between_all_that_lingua_knows():
    result = off_target({"en-de": [*GERMAN, "Il cane corre veloce nel giardino e non so perché."]})["en-de"]
    assert result.languages == {"de": 2, "it": 1}
    assert result.identifier == f"lingua {version('lingua-language-detector')} (75 languages)"


def test_unparallel_references_are_refused():
    with pytest.raises(CorpusError, match="en-de"):
        off_target({"en-de": GERMAN}, {"en-de": GERMAN[:1]}, ["de", "en"])
    with pytest.raises(CorpusError, match="no sentence"):
        off_target({"en-de": []}, languages=["de", "en"])


def test_lingua_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(ConfigError, match=r"nspec-hf\[evaluate\]"):
        off_target({"en-de": GERMAN})


@pytest.mark.data
def test_real_references_are_almost_all_in_their_language(shared_data):
    languages = ["cs", "de", "en", "fr"]
    texts = {
        f"en-{code}": lzma.open(
            shared_data / "multi30k" / f"test_2016_flickr.{code}.xz", "rt", encoding="utf-8"
        )
        .read()
        .split("\n")[:200]
        for code in languages[:2]
    }
    found = off_target(texts, languages=languages)
    assert all(result.share < 0.02 for result in found.values())
