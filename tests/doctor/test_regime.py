"""The regime of a set-up: the base's losses on both splits, and what follows from them."""

import re
from pathlib import Path
from statistics import fmean

import pytest
import torch

from nspec_hf.core import read_json
from nspec_hf.data import CorpusConfig, LanguageTags
from nspec_hf.doctor import NotCheckedError, Setup, examine, regime
from recipes.lab_diagram import points, write_regimes
from tests.doctor.test_examination import PAIRS, sound, with_text  # noqa: F401
from tests.helpers import tiny_text
from tests.helpers.tiny_experiment import RECIPES


def by_hand(folder, split):
    """Return the mean loss a target token without language tags, one sentence at a time."""
    model = tiny_text.model(dropout=0.1)
    model.eval()
    tags, total, count = LanguageTags(tiny_text.tokenizer()), 0.0, 0
    for pair in PAIRS:
        source, target = pair.split("-")
        sides = [(folder / f"{split}.{code}").read_text("utf-8").splitlines() for code in (source, target)]
        for source_text, target_text in zip(*sides, strict=True):
            (ids,) = tags.encode_source([source_text], pair)
            (labels,) = tags.encode_target([target_text], pair)
            start = [model.config.decoder_start_token_id]
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([start + labels[:-1]])
                ).logits[0]
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
            total, count = total + losses[1:].sum().item(), count + len(labels) - 1
    return total / count


def said(report):
    """Return what the check of the regime says."""
    return [finding.what for finding in report.findings["regime"]]


def test_the_losses_of_both_splits_are_those_of_one_sentence_at_a_time(sound):  # noqa: F811
    (line,) = said(examine(Setup(**with_text(sound / "text", model=str(sound / "model")))))
    train, valid = (by_hand(sound / "text", split) for split in ("train", "valid"))
    share = max(0.0, 1 - train / valid)
    assert f"loss {train:.2f} nats a token on training text and {valid:.2f} on validation text" in line
    assert f"{share:.0%} of which is overfitting" in line
    assert line.startswith("2 pairs, from 40 to 40 lines")


def test_tokens_a_parameter_are_those_of_all_target_sentences(sound):  # noqa: F811
    setup = Setup(**with_text(sound / "text", model=str(sound / "model")))
    (line,) = said(examine(setup))
    texts = setup.texts["train"]
    tokens = sum(len(tiny_text.tokenizer()(line).input_ids) for text in texts for line in text.targets)
    found = float(re.search(r"([\d.e-]+) target tokens a parameter", line)[1])
    assert found == pytest.approx(tokens / setup.network.num_parameters(), rel=0.06)


@pytest.mark.parametrize(
    ("train", "valid", "number"), [(0.2, 1.0, 0), (0.5, 1.0, 0), (0.7, 1.0, 1), (0.9, 1.0, 2), (1.1, 1.0, 2)]
)
def test_the_share_of_overfitting_decides_what_is_expected(sound, monkeypatch, train, valid, number):  # noqa: F811
    losses = iter((train, valid))
    monkeypatch.setattr(regime, "loss_of", lambda setup, texts: next(losses))
    report = examine(Setup(**with_text(sound / "text", model=str(sound / "model"))))
    (finding,) = report.findings["regime"]
    wanted = regime.REGIMES[number]
    assert (finding.why, finding.mend) == (wanted.expectation, wanted.advice)
    assert finding.level == "note"


def test_uneven_pairs_are_named(sound, monkeypatch):  # noqa: F811
    monkeypatch.setattr(regime, "loss_of", lambda setup, texts: 1.0)
    corpus = CorpusConfig(path=str(sound / "text"), lines_by_language={"fr": 5})
    about = with_text(sound / "text", model=str(sound / "model"))
    report = examine(Setup(**{**about, "corpus": corpus, "pairs": ("en-de", "en-fr")}))
    assert said(report)[1] == "pairs have from 5 to 40 training lines"


def test_without_validation_text_there_is_nothing_to_measure(sound):  # noqa: F811
    about = with_text(sound / "text", model=str(sound / "model"), splits={"train": "train"})
    assert "regime" in examine(Setup(**about)).not_given
    assert "regime" in examine(Setup(model=str(sound / "model"))).not_given


def test_a_model_that_cannot_be_run_is_not_checked(sound, monkeypatch):  # noqa: F811
    def fail(*args, **kwargs):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(regime, "text_loss", fail)
    setup = Setup(**with_text(sound / "text", model=str(sound / "model")))
    with pytest.raises(NotCheckedError, match="cannot be run on the text: out of memory"):
        list(regime.check_regime(setup))


def test_what_is_expected_is_what_the_laboratory_found():
    worlds = read_json(RECIPES / "results" / "lab.json")["cells"]
    found = [points(worlds, row, "finetune") for row in ("ns", "random", "sampled")]
    highest = 1.01
    for own in regime.REGIMES:
        gains, *others = (
            [point["gain"] for point in cells if own.least <= point["overfitting"] < highest]
            for cells in found
        )
        assert (own.cells, own.above) == (len(gains), sum(gain > 0 for gain in gains))
        assert [len(each) for each in others] == [own.cells] * 2
        means = [round(fmean(each), 1) for each in (gains, *others)]
        assert [own.own, own.random, own.drawn] == means
        highest = own.least


def test_the_advice_follows_from_the_numbers():
    most, middle, least = regime.REGIMES
    # "gains by any regularization", "let validation text decide", "speed and size, not quality".
    assert min(most.own, most.random) > 0
    assert most.drawn > max(most.own, most.random)  # "--select.temperature 0.3"
    assert most.own > middle.own > least.own
    assert 0 < middle.above < middle.cells
    assert max(least.own, least.random, least.drawn) < 0
    assert least.above < least.cells / 2


def mean_gain(experiments, row, metric="bleu"):
    """Return what a row gains over the fine-tuning of the same seed and machine, the mean of its seeds."""
    gains = []
    for path in (RECIPES / "results").glob(f"{experiments}.{row}.s*.json"):
        of_seed = (path, path.with_name(path.name.replace(row, "finetune")))
        scores = [next(iter(read_json(each)["scores"][metric].values())).values() for each in of_seed]
        gains.append(fmean(scores[0]) - fmean(scores[1]))
    return fmean(gains)


def test_what_it_says_of_multi30k_is_what_the_results_have():
    gains = [f"{mean_gain('m30k_low_zs_h100', row):.2f}" for row in ("ns_06", "sampled_06", "random_06")]
    said = "gained {} BLEU by --coverage 0.6, {} with --select.temperature 0.3 and {} by random masks"
    assert said.format(*gains) in regime.REGIMES[1].advice
    own, drawn = (mean_gain("m30k_overfit", row) for row in ("ns_06", "random_06"))
    said = f"42 % lost {-own:.2f} by --coverage 0.6 and gained {drawn:.2f} by random masks"
    assert said in regime.REGIMES[1].advice
    gains = [f"{mean_gain('m30k_disjoint', row):.2f}" for row in ("ns_06", "random_06")]
    assert "share no English gained {} and {}".format(*gains) in regime.REGIMES[1].advice
    assert max(mean_gain("m30k_low", row) for row in ("ns_06", "random_06")) < 0.05  # "by none"
    sizes = ("d192", "d128", "d64")
    lost, random = (
        [f"{-mean_gain(f'm30k_restart_{size}', row):.2f}" for size in sizes] for row in ("ns_06", "random_06")
    )
    assert "lost {}, {} and {} BLEU at coverage 0.6".format(*lost) in regime.REGIMES[2].advice
    assert f"random ones {min(random)} to {max(random)}" in regime.REGIMES[2].advice
    for size in sizes:
        density = read_json(RECIPES / "results" / f"m30k_restart_{size}.ns_06.s1.json")["extraction"][
            "density"
        ]
        assert fmean(density.values()) < 1 / 3


def test_what_it_says_of_the_bible_is_what_the_results_have():
    rows = ("ns_06", "finetune_d0", "random_06")
    gains = [f"{mean_gain('bible_low*', row, 'chrf++'):.2f}" for row in rows]
    said = "gained {} chrF++ by --coverage 0.6, {} by fine-tuning without dropout and {} by random masks"
    assert said.format(*gains) in regime.REGIMES[0].advice


def test_one_command_writes_the_numbers_of_the_laboratory(tmp_path):
    committed = Path(regime.__file__).with_name("regimes.yaml")
    numbers = re.sub(
        r"(cells|above|own|random|drawn): [-\d.]+", r"\1: 0", committed.read_text(encoding="utf-8")
    )
    (tmp_path / "regimes.yaml").write_text(numbers, encoding="utf-8")
    cells = read_json(RECIPES / "results" / "lab.json")["cells"]
    write_regimes(cells, tmp_path / "regimes.yaml")
    assert (tmp_path / "regimes.yaml").read_bytes() == committed.read_bytes() != numbers.encode()
