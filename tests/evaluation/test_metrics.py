"""Scores equal formulas written out here, carry their signatures, and refuse what they cannot compute."""

import importlib
import math
import sys
import urllib.request
import warnings
from collections import Counter
from urllib.error import URLError

import pytest
import sacrebleu
import sentencepiece
from sacrebleu.tokenizers import tokenizer_spm

from nspec_hf.core import ConfigError, CorpusError
from nspec_hf.evaluation import sacrebleu_metric, score

HYPOTHESES = ["the cat sat on the mat today", "a dog ran", "it rains and it pours outside"]
REFERENCES = ["the cat sat on a mat", "a dog ran away fast", "it rains and it pours here"]


def ngrams(items, order):
    return Counter(tuple(items[i : i + order]) for i in range(len(items) - order + 1))


def bleu_by_hand(hypotheses, references, split=str.split):
    """Papineni et al. (2002): brevity penalty times the geometric mean of four clipped precisions."""
    length = sum(len(split(h)) for h in hypotheses)
    reference_length = sum(len(split(r)) for r in references)
    logs = []
    for order in (1, 2, 3, 4):
        match = total = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            own, wanted = ngrams(split(hypothesis), order), ngrams(split(reference), order)
            match += sum(min(count, wanted[gram]) for gram, count in own.items())
            total += sum(own.values())
        logs.append(math.log(match / total))
    penalty = min(1.0, math.exp(1 - reference_length / length))
    return 100 * penalty * math.exp(sum(logs) / 4)


def chrf_by_hand(hypotheses, references, word_order):
    """Popović (2015, 2017): F2 of mean precision and mean recall, characters 1..6 and words 1..word_order."""
    precisions, recalls = [], []
    kinds = [(lambda text: text.replace(" ", ""), n) for n in range(1, 7)]
    kinds += [(str.split, n) for n in range(1, word_order + 1)]
    for items, order in kinds:
        match = own_total = wanted_total = 0
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            own, wanted = ngrams(items(hypothesis), order), ngrams(items(reference), order)
            match += sum((own & wanted).values())
            own_total += sum(own.values())
            wanted_total += sum(wanted.values())
        precisions.append(match / own_total)
        recalls.append(match / wanted_total)
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_bleu_is_the_formula_written_out():
    assert score(HYPOTHESES, REFERENCES, "bleu").value == pytest.approx(bleu_by_hand(HYPOTHESES, REFERENCES))


def test_bleu_punishes_output_that_is_too_short():
    short = [line.rsplit(" ", 1)[0] for line in REFERENCES]
    found = score(short, REFERENCES, "bleu")
    assert found.value == pytest.approx(bleu_by_hand(short, REFERENCES))
    assert "BP = 0." in found.detail


@pytest.mark.parametrize(("metric", "word_order"), [("chrf", 0), ("chrf++", 2)])
def test_chrf_is_the_formula_written_out(metric, word_order):
    found = score(HYPOTHESES, REFERENCES, metric)
    assert found.value == pytest.approx(chrf_by_hand(HYPOTHESES, REFERENCES, word_order))
    assert f"nw:{word_order}" in found.signature


def test_ter_counts_edits_and_less_is_better():
    found = score(["a b c d"], ["a b x d"], "ter")
    assert found.value == pytest.approx(100 * 1 / 4)
    assert found.lower_is_better
    assert not score(["a"], ["a"], "chrf").lower_is_better


def test_a_score_carries_what_is_needed_to_compute_it_again():
    found = score(HYPOTHESES, REFERENCES, "bleu", "en-de")
    assert found.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert (found.metric, found.sentences, found.tokenizer) == ("bleu", 3, "13a")
    assert found.signature in str(found)


def test_detokenized_bleu_splits_punctuation_and_tokenized_bleu_does_not():
    hypothesis, reference = ["well , it is so , yes ."], ["well, it is so, yes."]
    assert score(hypothesis, reference, "bleu").value == pytest.approx(100)
    found = score(HYPOTHESES, ["the cat sat on a mat.", *REFERENCES[1:]], "bleu:none")
    assert found.value == pytest.approx(bleu_by_hand(HYPOTHESES, ["the cat sat on a mat.", *REFERENCES[1:]]))
    assert "tok:none" in found.signature


@pytest.mark.parametrize(
    "pair", ["en-zh", "en->zh-CN", "en-zh_CN", "eng_Latn-zho_Hans", "__en__-__zh__", "en-zh@trad"]
)
def test_chinese_is_cut_into_characters_however_its_code_is_spelled(pair):
    found = score(["今天天气好"], ["今天天气很好"], "bleu", pair)
    assert found.tokenizer == "zh"
    assert found.value == pytest.approx(bleu_by_hand(["今天天气好"], ["今天天气很好"], list))


def test_without_a_pair_or_into_english_bleu_uses_13a():
    assert score(HYPOTHESES, REFERENCES, "bleu").tokenizer == "13a"
    assert score(HYPOTHESES, REFERENCES, "bleu", "zh-en").tokenizer == "13a"


@pytest.mark.parametrize(("pair", "tokenizer"), [("en-ja_XX", "ja-mecab"), ("en-kor_Hang", "ko-mecab")])
def test_a_missing_tokenizer_falls_back_to_characters_and_says_so(pair, tokenizer, monkeypatch):
    module = importlib.import_module("sacrebleu.tokenizers.tokenizer_" + tokenizer.replace("-", "_"))
    monkeypatch.setattr(module, "MeCab", None)
    with pytest.warns(UserWarning, match=rf"{tokenizer}.*sacrebleu\[.*tok:char"):
        found = score(["好い日"], ["良い日"], "bleu", pair)
    assert (found.tokenizer, "tok:char" in found.signature) == ("char", True)
    with pytest.raises(ConfigError, match=r"pip install 'sacrebleu\["):
        score(["好い日"], ["良い日"], f"bleu:{tokenizer}", pair)


def test_japanese_is_cut_into_words_where_the_extra_is_installed():
    pytest.importorskip("MeCab", reason="needs sacrebleu[ja]")
    pytest.importorskip("ipadic", reason="needs sacrebleu[ja]")
    assert score(["今日はいい天気です"], ["今日はいい天気だ"], "bleu", "en-ja").tokenizer == "ja-mecab"


def test_bleu_of_a_language_without_spaces_warns():
    with pytest.warns(UserWarning, match="th is written without spaces"):
        score(["สวัสดี"], ["สวัสดี"], "bleu", "en-th")


def test_ter_of_a_language_without_spaces_warns_too():
    with pytest.warns(UserWarning, match="th is written without spaces, so TER's tokenizer"):
        assert score(["สวัสดี ครับ"], ["สวัสดี นะ"], "ter", "en-th").value == pytest.approx(50)


@pytest.mark.parametrize(("metric", "tokenizer"), [("bleu", "13a"), ("ter", None)])
@pytest.mark.parametrize(("pair", "says"), [("en-cn", "'cn' is no such"), (None, "no pair names")])
def test_text_without_spaces_under_a_code_that_does_not_tell_is_noticed(metric, tokenizer, pair, says):
    """One of two characters is wrong, but to these tokenizers the whole sentence is one word."""
    with pytest.warns(UserWarning, match=rf"references are written without spaces.*{says}.*chrf"):
        found = score(["今天天气好", "我"], ["今天天气很好", "你"], metric, pair)
    assert (found.tokenizer, found.value) == (tokenizer, 0 if metric == "bleu" else 100)


def test_text_with_spaces_and_some_foreign_characters_passes(recwarn):
    score(["the character 好 is good"], ["the character 好 is nice"], "bleu", "zh-xx")
    assert not recwarn.list


@pytest.mark.parametrize("sentences", [[None, "a"], ["a", None], ["a", 3]])
def test_what_is_no_text_is_named_with_its_number(sentences):
    number = next(i for i, each in enumerate(sentences) if not isinstance(each, str))
    for metric in ("bleu", "chrf++", "ter"):
        with pytest.raises(CorpusError, match=f"en-de: sentence {number} of system is {sentences[number]}"):
            score(sentences, ["a", "b"], metric, "en-de")
        with pytest.raises(CorpusError, match=f"sentence {number} of the references"):
            score(["a", "b"], sentences, metric, "en-de")


def test_spbleu_without_its_tokenizer_says_how_to_get_it(monkeypatch, tmp_path):
    def no_network(*_):
        raise URLError("no route")

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(ConfigError, match=r"flores200.*\$SACREBLEU.*no route"):
        score(HYPOTHESES, REFERENCES, "spbleu")


def test_spbleu_counts_the_pieces_of_its_tokenizer(monkeypatch, tmp_path):
    (tmp_path / "text").write_text("\n".join(REFERENCES * 20), encoding="utf-8")
    (tmp_path / "models").mkdir()
    prefix = str(tmp_path / "tiny")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=prefix,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tiny.model").rename(tmp_path / "models" / "flores200sacrebleuspm")
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "models" / "flores200sacrebleuspm")
    ).encode_as_pieces
    found = score(HYPOTHESES, REFERENCES, "spbleu")
    assert found.value == pytest.approx(bleu_by_hand(HYPOTHESES, REFERENCES, pieces))
    assert "tok:flores200" in found.signature


def test_unequal_counts_name_the_pair_and_both():
    with pytest.raises(CorpusError, match=r"en-de.* 2 lines.* 3"):
        score(HYPOTHESES[:2], REFERENCES, "bleu", "en-de")


@pytest.mark.parametrize("sentences", [[], "one string"])
def test_nothing_to_score_is_refused(sentences):
    with pytest.raises(CorpusError):
        score(sentences, sentences, "bleu")


@pytest.mark.parametrize("metric", ["rouge", "chrf:none", "evaluate:", "bleu:moses"])
def test_an_unknown_metric_is_refused_with_those_that_are_known(metric):
    with pytest.raises(ConfigError, match=r"13a|chrf"):
        score(HYPOTHESES, REFERENCES, metric)


def test_names_are_read_in_any_case_but_tokenizers_as_written():
    assert sacrebleu_metric("chrF++").build().word_order == 2
    assert sacrebleu_metric("BLEU:spBLEU-1K").tokenizer == "spBLEU-1K"


METRIC = """
import datasets
import evaluate


class Letters(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        shares = [len(set(p) & set(r)) / len(set(r)) for p, r in zip(predictions, references)]
        return RESULT
"""


@pytest.fixture
def local_metric(tmp_path):
    pytest.importorskip("evaluate", reason="needs the extra evaluate")

    def write(result, name="letters"):
        path = tmp_path / name / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(METRIC.replace("RESULT", result), encoding="utf-8")
        return path

    return write


def test_a_local_metric_of_evaluate_is_scored_without_a_network(local_metric):
    path = local_metric('{"letters": sum(shares) / len(shares), "unit": "share"}')
    found = score(["ab", "c"], ["abcd", "c"], f"evaluate:{path}")
    assert found.value == pytest.approx((0.5 + 1) / 2)
    assert found.metric == f"evaluate:{path}"
    assert "key:letters" in found.signature


def test_the_signature_tells_one_script_from_another_of_that_name(local_metric):
    signatures = set()
    for factor in (1, 2):
        path = local_metric(f'{{"letters": {factor} * sum(shares)}}', "changed")
        signatures.add(score(["ab"], ["abcd"], f"evaluate:{path}").signature)
    assert len(signatures) == 2


def test_a_metric_that_cuts_every_language_alike_is_warned_about(local_metric):
    path = local_metric('{"score": sum(shares)}', "sacrebleu")
    with pytest.warns(UserWarning, match="zh too; name bleu, chrf or ter"):
        score(["今天"], ["今天"], f"evaluate:{path}", "en-zh")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(["ab"], ["ab"], f"evaluate:{path}", "en-de")


def test_one_of_several_numbers_is_chosen_by_its_key(local_metric):
    path = local_metric('{"mean": sum(shares) / len(shares), "all": shares}', "several")
    with pytest.raises(ConfigError, match=r"several numbers.*mean, all"):
        score(["ab"], ["abcd"], f"evaluate:{path}")
    assert score(["ab", "c"], ["abcd", "c"], f"evaluate:{path}#all").value == pytest.approx(0.75)
    with pytest.raises(ConfigError, match="no number 'f1'"):
        score(["ab"], ["abcd"], f"evaluate:{path}#f1")


def test_a_metric_that_evaluate_cannot_load_says_what_to_do(tmp_path):
    pytest.importorskip("evaluate", reason="needs the extra evaluate")
    with pytest.raises(ConfigError, match="local path"):
        score(HYPOTHESES, REFERENCES, f"evaluate:{tmp_path / 'absent'}")


def test_evaluate_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ConfigError, match=r"nspec-hf\[evaluate\]"):
        score(HYPOTHESES, REFERENCES, "evaluate:ter")
