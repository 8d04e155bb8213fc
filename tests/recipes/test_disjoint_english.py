"""Text whose English is repeated in every pair becomes text where it is not, rows still aligned."""

import pytest

from nspec_hf.core import CorpusError, Pair
from nspec_hf.data import CorpusConfig, read_corpus
from recipes.disjoint_english import EVALUATED, main


@pytest.fixture
def multiway(tmp_path):
    """Twelve lines a language: line i of every language says i."""
    for split, count in {"train": 12, **dict.fromkeys(EVALUATED, 2)}.items():
        for code in ("en", "de", "fr", "cs"):
            lines = [f"{split} {index} {code}" for index in range(count)]
            (tmp_path / f"{split}.{code}").write_text("\n".join(lines) + "\n", encoding="utf8")
    return tmp_path


def test_every_english_sentence_stands_in_one_pair_beside_its_own_translation(multiway):
    main([str(multiway), str(multiway / "out"), "--lines", "3"])
    config = CorpusConfig(path=str(multiway / "out"))
    texts = read_corpus(config, ["en-de", "en-fr", "cs-en"], "train")
    expected = {
        Pair("en", "de"): [(f"train {i} en", f"train {i} de") for i in (0, 1, 2)],
        Pair("en", "fr"): [(f"train {i} en", f"train {i} fr") for i in (3, 4, 5)],
        Pair("cs", "en"): [(f"train {i} cs", f"train {i} en") for i in (6, 7, 8)],
    }
    assert {text.pair: list(zip(text.sources, text.targets, strict=True)) for text in texts} == expected
    test = read_corpus(config, ["fr-en"], "test_2018_flickr")[0]
    assert list(test.sources) == ["test_2018_flickr 0 fr", "test_2018_flickr 1 fr"]


def test_too_little_text_is_refused(multiway):
    with pytest.raises(CorpusError, match="12 lines of English: 3 times 5 need 15"):
        main([str(multiway), str(multiway / "out"), "--lines", "5"])
