"""A micro-batch has its share of the loss; the tally equals a plain loop."""

import pytest
import torch

from nspec_hf.core import NotFiniteError, TrainingSetupError, as_pairs
from nspec_hf.training import TokenLoss
from nspec_hf.training.loss import PairTally
from tests.recording.test_cross_entropy import batch, by_hand

PAIRS = as_pairs(["en-de", "de-en", "en-fr"])


def test_a_micro_batch_gets_its_share_of_the_global_mean():
    parts = [batch(seed=seed) for seed in range(3)]
    tokens = sum(int((labels != -100).sum()) for _, labels in parts)
    shares = [TokenLoss(0.1)({"logits": logits}, labels, torch.tensor(tokens)) for logits, labels in parts]
    expected = sum(by_hand(logits, labels, 0.1).sum() for logits, labels in parts) / tokens
    torch.testing.assert_close(sum(shares), expected)


def test_without_a_count_the_batch_is_its_own_mean():
    logits, labels = batch()
    expected = by_hand(logits, labels, 0).sum() / (labels != -100).sum()
    torch.testing.assert_close(TokenLoss()((logits,), labels), expected)


def test_an_evaluation_is_neither_smoothed_nor_counted():
    logits, labels = batch()
    tally = PairTally(PAIRS)
    loss = TokenLoss(0.3, tally, lambda: torch.tensor([0, 1, 2, 0]))
    with torch.no_grad():
        found = loss({"logits": logits}, labels)
    torch.testing.assert_close(found, TokenLoss(0.0)({"logits": logits}, labels))
    assert loss.calls == 0
    assert tally.take() == (0.0, {})


def test_the_tally_equals_a_plain_loop_and_begins_anew():
    tally, sums = PairTally(PAIRS), {}
    for seed in range(3):
        logits, labels = batch(seed=seed)
        logits.requires_grad_(True)
        rows = torch.tensor([0, 2, 2, 0]) if seed else torch.tensor([0])
        TokenLoss(0.0, tally, lambda rows=rows: rows)({"logits": logits}, labels)
        for i, row in enumerate(rows.expand(4).tolist()):
            total, tokens = sums.get(PAIRS[row], (0.0, 0))
            own = by_hand(logits[i : i + 1].detach(), labels[i : i + 1], 0)
            sums[PAIRS[row]] = (total + float(own.sum()), tokens + int((labels[i] != -100).sum()))
    assert not tally.sums_P2.requires_grad  # else it would hold the graph of every batch since the last log
    overall, each = tally.take()
    assert each == pytest.approx({pair: total / tokens for pair, (total, tokens) in sums.items()}, abs=1e-6)
    totals, tokens = zip(*sums.values(), strict=True)
    assert overall == pytest.approx(sum(totals) / sum(tokens), abs=1e-6)
    assert tally.take() == (0.0, {})


def test_a_batch_without_labels_is_refused():
    with pytest.raises(TrainingSetupError, match="no labels"):
        TokenLoss()({"logits": batch()[0]}, None)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_its_pair(value):
    logits, labels = batch()
    logits[1, 0, int(labels[1, 0])] = -float(value)
    loss = TokenLoss(0.0, PairTally(PAIRS), lambda: torch.tensor([0, 1, 0, 0]))
    loss({"logits": logits}, labels)
    with pytest.raises(NotFiniteError, match=rf"not finite for de-en \({value}\);"):
        loss.take()


def test_what_an_earlier_training_has_counted_is_none_of_the_next():
    tally = PairTally(PAIRS)
    loss = TokenLoss(0.0, tally, lambda: torch.tensor([0]))
    loss({"logits": batch(seed=1)[0]}, batch(seed=1)[1])
    loss.begin()
    assert loss.calls == 0
    logits, labels = batch(seed=2)
    loss({"logits": logits}, labels)
    expected = float(by_hand(logits, labels, 0).sum() / (labels != -100).sum())
    assert loss.take() == {"loss_en-de": pytest.approx(expected, abs=1e-4)}
