"""The loss equals its formula, token by token; the tally equals a plain loop."""

import pytest
import torch

from nspec_hf.core import TrainingSetupError, as_pairs
from nspec_hf.training import TokenLoss, token_losses
from nspec_hf.training.loss import PairTally

PAIRS = as_pairs(["en-de", "de-en", "en-fr"])


def batch(rows=4, length=5, vocabulary=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (rows, length), generator=draw)
    labels[torch.arange(length) >= torch.tensor([5, 3, 1, 4])[:rows, None]] = -100
    return logits, labels


def by_hand(logits, labels, smoothing):
    """(1 − ε)·(−log p(y)) − ε/V·Σ log p(v), one token at a time."""
    losses = torch.zeros(labels.shape)
    for i, j in (labels != -100).nonzero().tolist():
        log_p = logits[i, j] - logits[i, j].exp().sum().log()
        losses[i, j] = -(1 - smoothing) * log_p[labels[i, j]] - smoothing * log_p.mean()
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_each_token_has_the_loss_of_the_formula_and_padding_none(smoothing):
    logits, labels = batch()
    found = token_losses(logits, labels, smoothing)
    torch.testing.assert_close(found, by_hand(logits, labels, smoothing), atol=1e-6, rtol=0)
    assert (found[labels == -100] == 0).all()


def test_low_precision_logits_are_summed_in_float32():
    logits, labels = batch()
    assert token_losses(logits.bfloat16(), labels).dtype == torch.float32


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
        rows = torch.tensor([0, 2, 2, 0]) if seed else torch.tensor([0])
        TokenLoss(0.0, tally, lambda rows=rows: rows)({"logits": logits}, labels)
        for i, row in enumerate(rows.expand(4).tolist()):
            total, tokens = sums.get(PAIRS[row], (0.0, 0))
            own = by_hand(logits[i : i + 1], labels[i : i + 1], 0)
            sums[PAIRS[row]] = (total + float(own.sum()), tokens + int((labels[i] != -100).sum()))
    overall, each = tally.take()
    assert each == pytest.approx({pair: total / tokens for pair, (total, tokens) in sums.items()}, abs=1e-6)
    totals, tokens = zip(*sums.values(), strict=True)
    assert overall == pytest.approx(sum(totals) / sum(tokens), abs=1e-6)
    assert tally.take() == (0.0, {})


def test_a_batch_without_labels_is_refused():
    with pytest.raises(TrainingSetupError, match="no labels"):
        TokenLoss()({"logits": batch()[0]}, None)
