"""Comparisons: published scores and p-values, verdicts, Holm's correction, and what is refused."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from nspec_hf.core import ConfigError, CorpusError, Pair, UnknownPairError
from nspec_hf.data import read_outputs
from nspec_hf.evaluation import Comparison, compare, sacrebleu_metric, score
from nspec_hf.evaluation.paired_test import paired_test
from nspec_hf.evaluation.significance import holm

WORDS = "the a cat dog sat ran on under mat rug red blue fast slow today".split()


def spoil(lines, noise, seed):
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(WORDS) if rng.random() < noise else w for w in line.split()) for line in lines
    ]


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    references = {
        pair: [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))) for _ in range(40)]
        for pair in ("en-de", "de-en", "en-fr")
    }
    base = {pair: spoil(lines, 0.4, 1) for pair, lines in references.items()}
    system = {
        "en-de": spoil(references["en-de"], 0.1, 2),
        "de-en": spoil(references["de-en"], 0.8, 3),
        "en-fr": list(base["en-fr"]),
    }
    return references, base, system


@pytest.fixture(scope="module")
def comparison(texts):
    references, base, system = texts
    return compare({"base": base, "new": system}, references, baseline="base", n_samples=500, n_jobs=1)


def test_better_worse_and_no_difference_are_told_apart(comparison):
    verdicts = {(row.pair, row.metric): row.verdict for row in comparison.rows}
    for metric in ("bleu", "chrf++"):
        assert verdicts["en-de", metric] == "better"
        assert verdicts["de-en", metric] == "worse"
        assert verdicts["en-fr", metric] == "not significant"
    assert comparison.counts() == {"better": 2, "worse": 2, "not significant": 2}
    assert comparison.counts("bleu", "new") == {"better": 1, "worse": 1, "not significant": 1}
    assert comparison.counts("bleu", "absent") == {"better": 0, "worse": 0, "not significant": 0}


def test_a_row_holds_both_scores_their_difference_and_the_signature(comparison, texts):
    references, base, system = texts
    assert len(comparison.rows) == 6
    for row in comparison.rows:
        assert row.system_name == "new"
        assert row.baseline == score(base[row.pair], references[row.pair], row.metric).value
        assert row.system == score(system[row.pair], references[row.pair], row.metric).value
        assert row.delta == row.system - row.baseline
        assert "ar:500|seed:12345" in row.signature


def test_less_is_better_where_the_metric_counts_errors(texts):
    references, base, system = texts
    found = compare({"base": base, "new": system}, references, "base", ["ter"], n_samples=200, n_jobs=1)
    rows = {row.pair: row for row in found.rows}
    assert rows["en-de"].delta < 0
    assert rows["en-de"].verdict == "better"
    assert rows["de-en"].verdict == rows["de-en"].verdict_holm == "worse"


def test_processes_change_nothing(comparison, texts):
    references, base, system = texts
    again = compare({"base": base, "new": system}, references, baseline="base", n_samples=500, n_jobs=2)
    assert again == comparison


def test_several_systems_are_each_compared_with_the_baseline(texts):
    references, base, system = texts
    third = {pair: spoil(lines, 0.3, 9) for pair, lines in references.items()}
    settings = {"references": references, "baseline": "base", "n_samples": 200, "n_jobs": 1}
    together = compare({"new": system, "base": base, "third": third}, **settings)
    apart = [
        compare({"base": base, name: texts_}, **settings)
        for name, texts_ in [("new", system), ("third", third)]
    ]
    assert together.rows == apart[0].rows + apart[1].rows


@pytest.mark.parametrize("test", ["ar", "bs"])
def test_seed_and_test_reach_the_trials(test, texts):
    references, base, _ = texts
    only = {"en-de": spoil(references["en-de"], 0.38, 4)}
    found = compare(
        {"base": {"en-de": base["en-de"]}, "new": only}, references, "base", ["bleu"], test, 300, seed=0
    ).rows[0]
    direct = paired_test(
        base["en-de"], {"new": only["en-de"]}, references["en-de"], [sacrebleu_metric("bleu")], test, 300, 0
    )["new", "bleu"]
    assert (found.p_value, found.signature) == (direct.p_value, direct.signature)
    assert "seed:0" in found.signature


@pytest.mark.filterwarnings("ignore:do not trust")
def test_the_tokenizer_follows_the_target_language():
    lines = ["今天天气很好", "我们去公园", "他在看书"]
    worse = ["今天天气好", "我们公园", "他看"]
    found = compare(
        {"b": {"en-zh": worse}, "s": {"en-zh": lines}}, {"en-zh": lines}, "b", ["bleu"], n_samples=100
    )
    assert "tok:zh" in found.rows[0].signature


def test_holm_by_hand():
    # Sorted: 0.01·4, 0.02·3, 0.03·2 = 0.06, 0.04·1 raised to what stands before it.
    assert holm([0.02, 0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.06, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p_values):
    found = holm(p_values)
    ordered = sorted(p_values)
    for p, corrected in zip(p_values, found, strict=True):
        steps = [(len(ordered) - rank) * ordered[rank] for rank in range(len(ordered)) if ordered[rank] <= p]
        # Among equal p-values the first place has the largest factor.
        assert corrected == pytest.approx(min(1.0, max(steps)))
        assert corrected >= p


def test_holm_can_take_a_verdict_back():
    rng = random.Random(5)
    references = {f"en-x{i}": [" ".join(rng.choices(WORDS, k=9)) for _ in range(40)] for i in range(12)}
    base = {pair: spoil(lines, 0.4, 1) for pair, lines in references.items()}
    new = {pair: spoil(lines, 0.30, 2) for pair, lines in references.items()}
    found = compare({"base": base, "new": new}, references, "base", ["chrf"], n_samples=400, n_jobs=1)
    assert [row.p_holm for row in found.rows] == holm([row.p_value for row in found.rows])
    taken_back = [row for row in found.rows if row.verdict != row.verdict_holm]
    assert taken_back
    assert all(
        row.verdict_holm == "not significant" and row.p_value < 0.05 <= row.p_holm for row in taken_back
    )
    assert "(not after Holm)" in str(found.table())


def test_json_brings_everything_back(comparison):
    text = comparison.to_json()
    assert Comparison.from_json(text) == comparison
    assert json.loads(text)["counts"]["better"] == 2
    assert isinstance(Comparison.from_json(text).rows[0].pair, Pair)


@pytest.mark.parametrize("text", ["[]", "{", '{"rows": []}', '{"counts": {}, "rows": [{"pair": "en-de"}]}'])
def test_other_json_is_refused(text):
    with pytest.raises(ConfigError, match="not a comparison"):
        Comparison.from_json(text)


def test_pandas_has_a_line_a_row(comparison):
    frame = comparison.to_pandas()
    assert list(frame.columns) == [
        *("pair", "metric", "system_name", "baseline", "system", "delta", "p_value", "p_holm"),
        *("verdict", "verdict_holm", "signature", "p_with_ties", "differing"),
    ]
    assert len(frame) == 6
    assert type(frame["pair"].iloc[0]) is str


def test_the_table_counts_verdicts_and_carries_signatures(comparison):
    text = str(comparison.table())
    assert "new, bleu: 1 better, 1 worse, 1 not significant at p < 0.05" in text
    assert comparison.rows[0].signature in text


def test_unequal_line_counts_name_the_pair_and_both_counts(texts):
    references, base, system = texts
    short = {**system, "de-en": system["de-en"][:-3]}
    with pytest.raises(CorpusError, match=r"de-en: new has 37 lines, the references have 40"):
        compare({"base": base, "new": short}, references, "base")


def test_directions_must_be_the_same(texts):
    references, base, system = texts
    fewer = {pair: lines for pair, lines in system.items() if pair != "en-fr"}
    with pytest.raises(UnknownPairError, match="new lacks en-fr"):
        compare({"base": base, "new": fewer}, references, "base")
    with pytest.raises(UnknownPairError, match="the baseline lacks en-cs"):
        compare({"base": base, "new": {**system, "en-cs": ["a"]}}, references, "base")
    without = {pair: lines for pair, lines in references.items() if pair != "de-en"}
    with pytest.raises(UnknownPairError, match="references lacks de-en"):
        compare({"base": base, "new": system}, without, "base")


def test_references_may_hold_more_directions(texts):
    references, base, system = texts
    only = [{"en-de": held["en-de"]} for held in (base, system)]
    found = compare({"base": only[0], "new": only[1]}, references, "base", n_samples=100)
    assert {row.pair for row in found.rows} == {"en-de"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "other"}, "baseline 'other'"),
        ({"metrics": ["evaluate:ter"]}, "cannot be tested"),
        ({"metrics": "bleu"}, "list of different names"),
        ({"metrics": ["bleu", "bleu"]}, "list of different names"),
        ({"n_samples": 0}, "at least 1"),
        ({"n_jobs": 0}, "at least 1"),
        ({"test": "t"}, "'ar'"),
    ],
)
def test_wrong_settings_are_refused(texts, change, message):
    references, base, system = texts
    settings = {"baseline": "base", "n_jobs": 1, "n_samples": 100, **change}
    with pytest.raises(ConfigError, match=message):
        compare({"base": base, "new": system}, references, **settings)


def test_a_lone_system_has_nothing_to_be_compared_with(texts):
    references, base, _ = texts
    with pytest.raises(ConfigError, match="another system"):
        compare({"base": base}, references, "base")


def test_too_few_trials_for_any_verdict_warn(texts):
    references, base, system = texts
    with pytest.warns(UserWarning, match="10 trials"):
        compare({"base": base, "new": system}, references, "base", n_samples=10, n_jobs=1)


def almost_alike(texts, sentences):
    """Return a system that has the reference in some sentences and the baseline's translation elsewhere."""
    references, base, _ = texts
    return {pair: [*references[pair][:sentences], *lines[sentences:]] for pair, lines in base.items()}


def test_a_verdict_on_one_differing_sentence_is_sacrebleus_and_warned_about(texts):
    references, base, _ = texts
    systems = {"base": base, "new": almost_alike(texts, 1)}
    with pytest.warns(UserWarning, match=r"en-de \(new, bleu: 1 differ, p = 1.000 with ties\)"):
        found = compare(systems, references, "base", ["bleu"], n_samples=300, n_jobs=1)
    # Both possible swaps give the same difference and none a larger one: no trial counts.
    assert {row.p_value for row in found.rows} == {1 / 301}
    assert {row.p_with_ties for row in found.rows} == {1.0}
    assert found.counts()["better"] == 3
    assert "better (but few sentences differ: 1)" in str(found.table())
    assert "do not trust the verdict" in str(found.table())


def test_a_verdict_on_many_differing_sentences_is_not_doubted(comparison, recwarn):
    assert not any(row.owed_to_ties(0.05) for row in comparison.rows)
    assert "do not trust" not in str(comparison.table())
    same = [row for row in comparison.rows if row.pair == "en-fr"]
    assert [(row.p_value, row.p_with_ties, row.differing) for row in same] == [(1.0, 1.0, 0)] * 2


def test_comparisons_written_before_ties_were_counted_can_be_read(comparison):
    content = json.loads(comparison.to_json())
    for row in content["rows"]:
        del row["p_with_ties"], row["differing"]
    rows = Comparison.from_json(json.dumps(content)).rows
    assert [row.p_value for row in rows] == [row.p_value for row in comparison.rows]
    assert not any(row.owed_to_ties(0.05) for row in rows)


@pytest.mark.data
@pytest.mark.slow
def test_published_outputs_give_the_published_scores_p_values_and_verdicts(shared_data):
    folder = shared_data / "ec30_outputs"
    base, specialized, references = (read_outputs(folder, ending) for ending in ("baseline", "ns", "ref"))
    found = compare({"baseline": base, "ns": specialized}, references, baseline="baseline")
    with open(folder / "scores.csv", encoding="utf-8") as file:
        published = {row["pair"]: row for row in csv.DictReader(file)}
    assert {row.pair for row in found.rows} == set(published)
    assert len(found.rows) == 24
    for row in found.rows:
        gold, name = published[row.pair], {"bleu": "bleu", "chrf++": "chrf"}[row.metric]
        assert row.baseline == pytest.approx(float(gold[f"{name}_base"]), abs=0.01)
        assert row.system == pytest.approx(float(gold[f"{name}_ns"]), abs=0.01)
        # The published p-values have six digits; only sacreBLEU's own random stream comes that close.
        assert row.p_value == pytest.approx(float(gold[f"p_{name}"]), abs=1e-6)
        expected = {"ha-en": "worse", "en-ha": "not significant"}.get(row.pair, "better")
        assert row.verdict == expected
    assert found.counts("bleu") == {"better": 10, "worse": 1, "not significant": 1}
    assert found.counts("bleu", holm=True) == {"better": 9, "worse": 1, "not significant": 2}


ENDLESS = """
from nspec_hf.evaluation import compare

lines = [f"a sentence of words {number}" for number in range(50)]
text = {"en-de": lines, "de-en": lines}
other = {pair: [f"{line} more" for line in lines] for pair, lines in text.items()}
compare({"one": text, "two": other}, text, "one", ["bleu"], n_samples=1_000_000_000, n_jobs=2)
"""


INTERRUPTED = f"""
import os, signal

signal.signal(signal.SIGINT, signal.default_int_handler)
number = os.getpid()
os.register_at_fork(after_in_parent=lambda: os.kill(number, signal.SIGINT))
{ENDLESS}"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere no process is forked")
def test_an_interrupt_while_workers_are_forked_is_not_lost():
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=300)
    assert ended.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert ended.returncode != 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere no process is forked")
def test_workers_end_with_the_process_that_is_killed():
    ran = subprocess.Popen([sys.executable, "-c", ENDLESS])
    children, since = Path(f"/proc/{ran.pid}/task/{ran.pid}/children"), time.monotonic()
    while len(workers := children.read_text().split()) < 2 and time.monotonic() - since < 300:
        time.sleep(0.05)
    ran.kill()
    ran.wait()
    left, since = list(map(int, workers)), time.monotonic()
    assert len(left) == 2
    while (left := [number for number in left if _lives(number)]) and time.monotonic() - since < 60:
        time.sleep(0.05)
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert not left


def _lives(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
