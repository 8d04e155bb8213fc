"""The scores of a system: groups, tiers, averages, and JSON."""

import json
import math

import pytest

from nspec_hf.core import ConfigError, CorpusError, Pair, UnknownPairError
from nspec_hf.evaluation import SystemScores, score, score_system
from nspec_hf.evaluation.language_id import OffTarget
from nspec_hf.evaluation.metrics import Score

VALUES = {"en-de": 30.0, "de-en": 34.0, "en-da": 10.0, "da-en": 12.0, "de-da": 4.0, "da-de": 6.0}


def board(name="base", values=VALUES, metric="bleu", **about):
    scores = {
        Pair(pair): {metric: Score(metric=metric, value=value, signature=f"sig-{pair}", sentences=5)}
        for pair, value in values.items()
    }
    return SystemScores(name=name, scores=scores, **about)


TIERS = {"de": "high", "da": "low"}


def test_groups_and_tiers_select_directions():
    tiered = board(tiers=TIERS)
    assert tiered.select("one-to-many") == ["en-de", "en-da"]
    assert tiered.select("zero-shot") == ["de-da", "da-de"]
    assert tiered.select("many-to-one", "low") == ["da-en"]
    assert tiered.select(tier="high-low") == ["de-da"]
    assert [tiered.tier(pair) for pair in ("en-de", "da-en", "da-de")] == ["high", "low", "low-high"]
    assert board(pivot="de").select("one-to-many") == ["de-en", "de-da"]


def test_groups_and_tiers_are_the_same_in_the_codes_of_nllb():
    code = {"en": "eng_Latn", "de": "deu_Latn", "da": "dan_Latn"}
    spelled = {pair: Pair(code[Pair(pair).source], code[Pair(pair).target]) for pair in VALUES}
    tiers = {code[language]: tier for language, tier in TIERS.items()}
    usual = board(tiers=TIERS)
    nllb = board(values={spelled[pair]: value for pair, value in VALUES.items()}, tiers=tiers)
    for group in ("one-to-many", "many-to-one", "zero-shot"):
        assert nllb.select(group) == [spelled[pair] for pair in usual.select(group)]
    assert [nllb.tier(spelled[pair]) for pair in VALUES] == [usual.tier(pair) for pair in VALUES]
    assert SystemScores.from_json(nllb.to_json()) == nllb


def test_outputs_references_and_sources_may_spell_a_pair_differently():
    lines = {"zh-en": ["a dog"], "zh->en": ["the dog"], "zh--en": ["狗"]}
    outputs, references, sources = ({name: each} for name, each in lines.items())
    scores = score_system("mine", outputs, references, ["chrf"], sources=sources)
    assert scores.pairs == ["zh-en"]
    assert scores.value("zh->en", "chrf") == score(["a dog"], ["the dog"], "chrf").value


def test_averages_count_every_direction_once():
    tiered = board(tiers=TIERS)
    assert tiered.average("bleu") == pytest.approx((30 + 34 + 10 + 12 + 4 + 6) / 6)
    assert tiered.average("bleu", "one-to-many") == pytest.approx(20)
    assert tiered.average("bleu", "many-to-one", "low") == 12
    assert tiered.average("bleu", "one-to-many", "med") is None


def test_an_average_over_some_directions_is_refused():
    scores = {**board().scores, Pair("en-cs"): {}}
    with pytest.raises(UnknownPairError, match="base has no bleu of en-cs; it has: nothing"):
        SystemScores(name="base", scores=scores).average("bleu", "one-to-many")


def test_directions_that_reach_a_threshold_are_counted():
    assert board().at_least(5) == 1
    assert board().at_least(4) == 2
    assert board().at_least(10) == 0


def test_a_language_without_a_tier_is_named():
    with pytest.raises(ConfigError, match="en-da: da has no tier"):
        board(tiers={"de": "high"}).tier("en-da")
    assert board().tier("en-da") is None


def test_scoring_a_system_scores_every_direction():
    outputs = {"en-de": ["der Hund läuft schnell"], "en-zh": ["今天天气好"]}
    references = {"en-de": ["der Hund läuft sehr schnell"], "en-zh": ["今天天气很好"], "en-fr": ["un chien"]}
    found = score_system(
        "s", outputs, references, ["bleu", "chrf++"], generation={"beams": 5}, tiers={"de": "high"}
    )
    assert found.pairs == ["en-de", "en-zh"]
    assert found.metrics == ["bleu", "chrf++"]
    for pair in outputs:
        assert found.scores[pair]["bleu"] == score(outputs[pair], references[pair], "bleu", pair)
    assert found.scores["en-zh"]["bleu"].tokenizer == "zh"
    assert (found.generation, found.tiers) == ({"beams": 5}, {"de": "high"})


def test_scoring_needs_parallel_references():
    with pytest.raises(UnknownPairError, match="en-de has no references; there are those of: de-en"):
        score_system("s", {"en-de": ["a"]}, {"de-en": ["a"]})
    with pytest.raises(CorpusError, match=r"en-de: system has 1 lines, the references have 2"):
        score_system("s", {"en-de": ["a"]}, {"en-de": ["a", "b"]})


def test_json_brings_everything_back(tmp_path):
    found = OffTarget(
        pair=Pair("de-da"),
        share=0.25,
        floor=None,
        sentences=4,
        languages={"da": 3},
        undecided=0,
        identifier="x",
    )
    tiered = board(tiers=TIERS, generation={"beams": 5}, off_target={Pair("de-da"): found})
    tiered.save(tmp_path / "scores.json")
    again = SystemScores.load(tmp_path / "scores.json")
    assert again == tiered
    assert all(isinstance(pair, Pair) for pair in again.pairs)
    assert again.off_target["de-da"].pair.target == "da"


def test_an_undefined_score_is_null_in_json():
    text = board(values={"en-de": math.nan}).to_json()
    assert json.loads(text)["scores"]["en-de"]["bleu"]["value"] is None
    assert math.isnan(SystemScores.from_json(text).value("en-de", "bleu"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"scores": {"en-de": {"bleu": {}}}, "off_target": {}}'])
def test_other_json_is_refused(text):
    with pytest.raises(ConfigError, match="not scores"):
        SystemScores.from_json(text)


def test_the_table_shows_each_direction_with_signatures_and_settings():
    found = OffTarget(
        pair=Pair("de-da"), share=0.25, floor=0.01, sentences=4, languages={}, undecided=0, identifier="x"
    )
    table = board(tiers=TIERS, generation={"beams": 5}, off_target={Pair("de-da"): found}).table()
    assert table.columns == ("pair", "group", "tier", "bleu", "wrong language %", "of references %")
    assert table.rows[0] == ("en-de", "one-to-many", "high", 30.0, None, None)
    assert table.rows[4] == ("de-da", "zero-shot", "high-low", 4.0, 25.0, 1.0)
    assert "bleu: sig-en-de" in table.notes
    assert "base: beams=5" in table.notes
    assert board().table().columns == ("pair", "group", "bleu")
